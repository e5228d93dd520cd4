"""Moments and MMD, against closed forms, scikit-learn's kernels, the host's KID, and between processes."""

import itertools
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from two_processes import in_two_processes

from stylegan2_compress import distributed
from stylegan2_compress.distributions import mmd, moments
from stylegan2_compress.distributions.statistics import Statistics
from stylegan2_compress.losses.estimators import MomentDistance

BANDWIDTHS = [0.7, 1.5, 4.0]
KERNELS = {
    'linear': mmd.linear,
    'cubic': mmd.cubic,
    'rbf': partial(mmd.rbf, bandwidths=BANDWIDTHS),
}


def scikit_learns(name, x, y):
    from sklearn.metrics import pairwise  # not above: the processes below would wait for it

    if name == 'linear':
        return pairwise.linear_kernel(x, y)
    if name == 'cubic':
        return pairwise.polynomial_kernel(x, y, degree=3, coef0=1)
    return sum(pairwise.rbf_kernel(x, y, gamma=0.5 / s**2) for s in BANDWIDTHS) / len(BANDWIDTHS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def normal(*shape, **kwargs):
    return torch.randn(shape, dtype=torch.float64, **kwargs)


# ---------------------------------------------------------------------------------------------------------------------
# Moments


def test_moments_are_means_of_powers():
    m1, m2 = moments.moments(torch.tensor([[1.0, 2.0], [3.0, -4.0]]))
    assert m1.tolist() == [2, -1]
    assert m2.tolist() == [5, 10]


def distance_from(m1, m2):
    return MomentDistance(Statistics(m1, m2, torch.empty(0, len(m1))))


def test_moment_distance_is_the_papers_formula():
    x, m1, m2 = normal(5, 3).numpy(), normal(3).numpy(), normal(3).numpy()
    expected = sum(abs(x[:, d].mean() - m1[d]) + abs((x[:, d] ** 2).mean() - m2[d]) for d in range(3)) / 3
    distance = distance_from(*map(torch.from_numpy, (m1, m2)))(torch.from_numpy(x))
    assert float(distance) == pytest.approx(expected, rel=1e-12)


def test_moment_distance_has_the_features_precision_and_their_gradient():
    x = normal(5, 3, requires_grad=True)
    m1, m2 = normal(3), normal(3)
    assert torch.autograd.gradcheck(distance_from(m1, m2), (x,))
    assert distance_from(m1, m2)(x.float()).dtype == torch.float32


def test_accumulated_moments_are_those_of_all_batches_in_float64():
    batches = [100 + torch.randn(n, 4) for n in (1, 7, 30, 62)]  # float32 sums would lose digits
    accumulator = moments.MomentAccumulator(4)
    for batch in batches:
        accumulator.update(batch)
    everything = torch.cat(batches).double()
    assert accumulator.count == 100
    m1, m2 = accumulator.moments()
    torch.testing.assert_close(m1, everything.mean(dim=0), rtol=1e-14, atol=0)
    torch.testing.assert_close(m2, everything.square().mean(dim=0), rtol=1e-14, atol=0)


def test_moments_of_nothing_are_refused():
    with pytest.raises(ValueError, match='no vectors'):
        moments.MomentAccumulator(4).moments()


# ---------------------------------------------------------------------------------------------------------------------
# MMD


@pytest.mark.parametrize('name', KERNELS)
@pytest.mark.parametrize('unbiased', [True, False])
def test_mmd2_is_the_double_sum_over_another_librarys_kernel(name, unbiased):
    x, y = normal(5, 3), 1 + normal(7, 3)
    within = []
    for z in (x, y):
        k = scikit_learns(name, z, z)
        pairs = [(i, j) for i, j in itertools.product(range(len(z)), repeat=2) if i != j or not unbiased]
        within.append(sum(k[i, j] for i, j in pairs) / len(pairs))
    expected = sum(within) - 2 * scikit_learns(name, x, y).mean()
    assert float(mmd.mmd2(x, y, KERNELS[name], unbiased=unbiased)) == pytest.approx(expected, rel=1e-10)


def test_biased_linear_mmd2_is_the_squared_distance_of_means():
    x, y = normal(5, 3), normal(7, 3)
    expected = (x.mean(dim=0) - y.mean(dim=0)).square().sum()
    torch.testing.assert_close(mmd.mmd2(x, y, mmd.linear, unbiased=False), expected)


def test_rbf_mmd2_of_gaussians_approaches_its_closed_form():
    """For x ~ N(a, I), y ~ N(b, I): E k(x, y) = (s^2 / (s^2 + 2))^(dim/2) exp(-|a - b|^2 / (2 (s^2 + 2)))."""
    n, dim, s, shift = 4000, 3, 1.3, 0.8
    x, y = normal(n, dim), normal(n, dim) + torch.tensor([shift, 0, 0])
    scale = (s**2 / (s**2 + 2)) ** (dim / 2)
    expected = 2 * scale * (1 - math.exp(-(shift**2) / (2 * (s**2 + 2))))
    estimate = mmd.mmd2(x, y, partial(mmd.rbf, bandwidths=[s]))
    assert float(estimate) == pytest.approx(expected, rel=0.05)


def test_unbiased_cubic_mmd2_is_the_hosts_kid(monkeypatch):
    from metrics import kernel_inception_distance, metric_utils

    x, y = normal(20, 8), normal(20, 8) + 0.3
    features = {'real': y.numpy(), 'fake': x.numpy()}
    for kind, name in (('real', 'dataset'), ('fake', 'generator')):
        monkeypatch.setattr(
            metric_utils,
            f'compute_feature_stats_for_{name}',
            lambda kind=kind, **_kwargs: SimpleNamespace(get_all=lambda: features[kind]),
        )
    expected = kernel_inception_distance.compute_kid(
        SimpleNamespace(rank=0), max_real=20, num_gen=20, num_subsets=1, max_subset_size=20
    )
    assert float(mmd.mmd2(x, y, mmd.cubic)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize('name', KERNELS)
def test_mmd2_has_a_gradient(name):
    x, y = normal(4, 3, requires_grad=True), normal(5, 3)
    assert torch.autograd.gradcheck(lambda x: mmd.mmd2(x, y, KERNELS[name]), (x,))


def test_rbf_is_precise_far_from_the_origin():
    x, y = torch.randn(6, 4) + 1000, torch.randn(6, 4) + 1000
    expected = mmd.rbf(x.double(), y.double(), BANDWIDTHS)
    torch.testing.assert_close(mmd.rbf(x, y, BANDWIDTHS).double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize('unbiased', [True, False])
def test_the_references_share_can_be_computed_once_and_in_pieces(unbiased):
    kernel = KERNELS['rbf']
    x, y = normal(4, 3), normal(11, 3)
    within_y = mmd.mean_within(y, kernel, unbiased, rows=3)
    torch.testing.assert_close(within_y, mmd.mean_within(y, kernel, unbiased))
    whole = mmd.mmd2(x, y, kernel, unbiased=unbiased)
    torch.testing.assert_close(mmd.mmd2(x, y, kernel, unbiased=unbiased, within_y=within_y), whole)


def test_bandwidths_are_multiples_of_the_median_distance():
    y = normal(7, 3)
    squared = [float((a - b).square().sum()) for a, b in itertools.combinations(y, 2)]  # 21 of them: the median is one
    expected = [math.sqrt(multiple * np.median(squared)) for multiple in (0.25, 0.5, 1, 2, 4)]
    assert mmd.median_bandwidths(y) == pytest.approx(expected)


def test_kernels_by_name_get_what_they_need():
    y = normal(7, 3)
    x = normal(2, 3)
    assert set(mmd.KERNELS) == {'linear', 'rbf', 'cubic'}
    expected = mmd.rbf(x, y, mmd.median_bandwidths(y))
    torch.testing.assert_close(mmd.KERNELS['rbf'](y)(x, y), expected)
    torch.testing.assert_close(mmd.KERNELS['cubic'](y)(x, y), mmd.cubic(x, y))


def test_too_few_vectors_are_refused():
    with pytest.raises(ValueError, match='two vectors'):
        mmd.mmd2(normal(1, 3), normal(4, 3), mmd.linear)
    for y in (normal(1, 3), torch.ones(4, 3)):
        with pytest.raises(ValueError, match='differ'):
            mmd.median_bandwidths(y)


# ---------------------------------------------------------------------------------------------------------------------
# Several processes


LOSSES = {
    'moments': lambda x, y, _group: distance_from(*moments.moments(y))(x),
    'moments with a past': lambda x, y, _group: distance_from(*moments.moments(y))(x, y - 1),
    'cubic with a past': lambda x, y, group: mmd.mmd2(x, y, mmd.cubic, past=y - 1, group=group),
    **{
        name: lambda x, y, group, kernel=kernel: mmd.mmd2(x, y, kernel, group=group) for name, kernel in KERNELS.items()
    },
}


def test_two_processes_have_the_gradient_of_one_with_the_whole_batch(tmp_path):
    """With DistributedDataParallel, which averages gradients, and without any factor by the caller."""
    images, reference = normal(8, 3), normal(9, 4)
    torch.save((images, reference), tmp_path / 'data.pt')
    in_two_processes(_train_one_step, str(tmp_path))
    assert distributed.world() is None
    expected = {**_values_and_gradients(images, reference, _network()), 'accumulated': moments.moments(images)}
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f'rank{rank}.pt'), expected)


def _train_one_step(rank: int, directory: str) -> None:
    images, reference = torch.load(f'{directory}/data.pt')
    network = torch.nn.parallel.DistributedDataParallel(_network())
    results = _values_and_gradients(images.chunk(2)[rank], reference, network)
    # The accumulator counts vectors, not batches: its processes have 3 and 5 of them.
    accumulator = moments.MomentAccumulator(3)
    accumulator.update(images.split([3, 5])[rank])
    accumulator.merge_processes(distributed.world())
    torch.save({**results, 'accumulated': accumulator.moments()}, f'{directory}/rank{rank}.pt')


def _network() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4)).double()


def _values_and_gradients(images, reference, network) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Per loss: its value, and the gradient of all parameters."""
    results = {}
    for name, loss in LOSSES.items():
        network.zero_grad()
        value = loss(network(images), reference, distributed.world())
        value.backward()
        results[name] = value.detach(), torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    return results
