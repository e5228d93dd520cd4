"""Distances with and without features of earlier steps, against their formulas written out in float64."""

import itertools

import pytest
import torch

from stylegan2_compress.distributions.memory import FeatureMemory
from stylegan2_compress.distributions.statistics import Statistics
from stylegan2_compress.losses import spread
from stylegan2_compress.losses.estimators import ESTIMATORS, MomentDistance

KERNELS = ['linear', 'rbf', 'cubic']


def features(count, seed, shift=0.0):
    rnd = torch.Generator().manual_seed(seed)
    return torch.randn([count, 5], generator=rnd, dtype=torch.float64) * torch.arange(1, 6) / 3 + shift


def reference():
    y = features(9, 1)
    return Statistics(y.mean(0), (y**2).mean(0), y)


def build(name, unbiased=True):
    entry = ESTIMATORS[name]
    return entry.build(*([unbiased] if entry.has_bank else []), reference())


def gradient(loss, x):
    (found,) = torch.autograd.grad(loss, x)
    return found


def moments_of(rows):
    return sum(rows) / len(rows), sum(row**2 for row in rows) / len(rows)


X, PAST = features(4, 2, shift=0.3).requires_grad_(), features(7, 3, shift=-0.2)


def test_signs_are_of_all_features_and_the_gradient_is_the_batchs():
    """mean_d [sign(A1 − m1) a1 + sign(A2 − m2) a2], and the value is the distance of A."""
    wanted = reference()
    A1, A2 = (each.detach() for each in moments_of([*X, *PAST]))
    a1, a2 = moments_of(X)
    found = build('moments')(X, PAST)
    assert float(found.detach()) == pytest.approx(float((A1 - wanted.m1).abs().mean() + (A2 - wanted.m2).abs().mean()))
    loss = ((A1 - wanted.m1).sign() * a1 + (A2 - wanted.m2).sign() * a2).mean()
    torch.testing.assert_close(gradient(found, X), gradient(loss, X))
    a1, a2 = moments_of(X)
    alone = (a1 - wanted.m1).abs().mean() + (a2 - wanted.m2).abs().mean()
    assert not torch.allclose(gradient(build('moments')(X, PAST), X), gradient(alone, X))


@pytest.mark.parametrize('past', [None, PAST])
def test_squared_moments(past):
    """½ mean_d [(A1 − m1)²/σ1² + (A2 − m2)²/σ2²], whose slope is (A − m)/σ²."""
    wanted = reference()
    v1 = wanted.m2 - wanted.m1**2
    v1, v2 = v1.mean(), (2 * v1**2 + 4 * wanted.m1**2 * v1).mean()
    all_rows = [*X, *([] if past is None else past)]
    A1, A2 = (each.detach() for each in moments_of(all_rows))
    a1, a2 = moments_of(X)
    found = build('squared-moments')(X, past)
    expected = ((A1 - wanted.m1) ** 2 / v1 + (A2 - wanted.m2) ** 2 / v2).mean() / 2
    assert float(found.detach()) == pytest.approx(float(expected))
    loss = ((A1 - wanted.m1) / v1 * a1 + (A2 - wanted.m2) / v2 * a2).mean()
    torch.testing.assert_close(gradient(found, X), gradient(loss, X))


def test_the_variance_of_a_square_is_that_of_a_normal_variable():
    y = torch.randn(400_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = y * torch.tensor([0.5, 2]) + torch.tensor([1, -3])
    distance = ESTIMATORS['squared-moments'].build(Statistics(y.mean(0), (y**2).mean(0), None))
    assert float(distance.variances[1]) == pytest.approx(float((y**2).var(0).mean()), rel=0.02)


def test_features_that_do_not_vary_do_not_break_squared_moments():
    y = torch.zeros(3, 2, dtype=torch.float64)
    distance = ESTIMATORS['squared-moments'].build(Statistics(y.mean(0), y.mean(0), None))
    assert distance(y).isfinite()


def kernel_of(name):
    y = reference().bank
    if name == 'linear':
        return lambda a, b: (a * b).sum()
    if name == 'cubic':
        return lambda a, b: ((a * b).sum() / len(a) + 1) ** 3
    squares = sorted(float(((a - b) ** 2).sum()) for a, b in itertools.combinations(y, 2))
    widths = [multiple * squares[(len(squares) - 1) // 2] for multiple in (0.25, 0.5, 1, 2, 4)]
    return lambda a, b: sum(torch.exp(-((a - b) ** 2).sum() / (2 * s2)) for s2 in widths) / len(widths)


@pytest.mark.parametrize('unbiased', [True, False])
@pytest.mark.parametrize('name', KERNELS)
def test_kernels_with_a_queue(name, unbiased):
    """2 w E k(x, Q) + (1 − w) U(x) − 2 E k(x, Y); the queue has no gradient."""
    k, y = kernel_of(name), reference().bank
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j or not unbiased]
    own = sum(k(X[i], X[j]) for i, j in pairs) / len(pairs)
    across = sum(k(a, b) for a in X for b in PAST) / (4 * 7)
    to_reference = sum(k(a, b) for a in X for b in y) / (4 * 9)
    w = 7 / (7 + (3 if unbiased else 4))
    found = build(name, unbiased)(X, PAST.clone().requires_grad_())
    loss = 2 * w * across + (1 - w) * own - 2 * to_reference
    torch.testing.assert_close(gradient(found, X), gradient(loss, X))
    within = [k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j or not unbiased]
    value = w * across + (1 - w) * own - 2 * to_reference + sum(within) / len(within)
    assert float(found.detach()) == pytest.approx(float(value.detach()))


@pytest.mark.parametrize('name', KERNELS)
def test_a_vector_gets_the_gradient_that_the_whole_set_would_give_it(name):
    """Of the U-statistic over batch and queue together, times its size over the batch's."""
    k, y = kernel_of(name), reference().bank
    together = [*X, *PAST]
    within = sum(k(a, b) for i, a in enumerate(together) for j, b in enumerate(together) if i != j) / (11 * 10)
    across = sum(k(a, b) for a in together for b in y) / (11 * 9)
    expected = gradient(within - 2 * across, X) * 11 / 4
    torch.testing.assert_close(gradient(build(name)(X, PAST), X), expected)


@pytest.mark.parametrize('name', ESTIMATORS)
def test_an_empty_past_changes_nothing(name):
    distance = build(name)
    values = [distance(X), distance(X, PAST[:0]), distance(X, None)]
    assert values[0] == values[1] == values[2]
    assert torch.equal(gradient(values[0], X), gradient(values[1], X))


def test_the_published_form_is_what_it_was_bit_for_bit():
    x = features(4, 2).float().requires_grad_()
    wanted = reference()
    m1, m2 = wanted.m1.float(), wanted.m2.float()
    sums, count = torch.cat([x.sum(dim=0), x.square().sum(dim=0)]), torch.tensor(4.0)
    a1, a2 = (sums / count).chunk(2)
    published = (a1 - m1).abs().mean() + (a2 - m2).abs().mean()
    found = MomentDistance(wanted)(x)
    assert torch.equal(found, published)
    assert torch.equal(gradient(found, x), gradient(published, x))


# --- The memory -------------------------------------------------------------------------------------------------------


def test_a_memory_has_the_latest_images_of_steps_that_were_taken():
    memory = FeatureMemory(10, 5)
    rounds = [features(2, seed) for seed in range(8)]
    assert memory.before(rounds[0]).shape == (0, 5)
    for step in range(3):
        memory.begin()
        for each in rounds[2 * step : 2 * step + 2]:
            memory.note(each)
        memory.commit()
    assert torch.equal(memory.before(rounds[6]), torch.cat(rounds[2:6]))  # Eight, so that with the round it is ten.
    memory.begin()
    memory.note(rounds[6] * torch.nan)  # The step is left out.
    memory.begin()
    memory.note(rounds[7])
    memory.commit()
    assert torch.equal(memory.before(features(10, 0)), torch.zeros(0, 5))
    assert torch.equal(memory.before(features(2, 0)), torch.cat([*rounds[3:6], rounds[7]]))
    other = FeatureMemory(10, 5)
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.before(rounds[0]), memory.before(rounds[0]))


# --- The spread -------------------------------------------------------------------------------------------------------


def watch(values, state=None):
    """A spread that sees batches of these spreads, one per step."""
    found = spread.Spread('eyes', reference())
    if state is not None:
        found.load_state_dict(state)
    for step, value in enumerate(values):
        found.begin()
        found.of(value * features(6, step))
        found.commit(1000 * step)
    return found


def test_the_spread_is_in_units_of_the_references():
    y = reference().bank
    total = sum(float(((y[:, d] - y[:, d].mean()) ** 2).mean()) for d in range(5))
    x = features(6, 4)
    expected = (sum(float(((x[:, d] - x[:, d].mean()) ** 2).sum() / 5) for d in range(5)) / total) ** 0.5
    assert float(spread.Spread('', reference()).of(x)) == pytest.approx(expected)


def test_a_fall_of_the_spread_is_told_once(capsys):
    watch([1.0] * 100)
    assert capsys.readouterr().out == ''
    found = watch([1.0] * 100 + [0.1] * 100)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("At 149.0 kimg, the student's features in eyes spread 0.")
    assert 'its images grow alike' in line
    watch([0.1] * 50, copy_of(found))
    assert capsys.readouterr().out == ''  # It has been told.
    watch([1.0] * 100 + [0.1] * 100, copy_of(found))
    assert len(capsys.readouterr().out.splitlines()) == 1  # It had risen, and falls again.


def copy_of(found):
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in found.state_dict().items()
    }


def test_spreading_farther_than_the_reference_is_nothing_to_lose(capsys):
    watch([4.0] * 100 + [0.9] * 150)
    assert capsys.readouterr().out == ''
