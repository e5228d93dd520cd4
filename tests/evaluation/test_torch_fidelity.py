"""Fréchet and kernel distances are torch-fidelity's, of the same features. It needs torchvision for other things."""

import numpy as np
import pytest
import torch

from stylegan2_compress.evaluation import distances

try:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
except (ImportError, RuntimeError):  # A torchvision that is not of this torch raises the latter.
    pytest.skip('pip install torch-fidelity torchvision to run', allow_module_level=True)


@pytest.fixture(params=[(300, 200, 8), (40, 60, 64)], ids=['many', 'fewer than dimensions'])
def features(request):
    """Two sets of vectors with covariances of their own."""
    n, m, dim = request.param
    rnd = np.random.RandomState(0)
    mix = rnd.randn(2, dim, dim) / dim**0.5
    return rnd.randn(n, dim) @ mix[0], rnd.randn(m, dim) @ mix[1] + 0.3


def test_frechet_distance(features):
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(torch.from_numpy(x)) for x in features), False)
    assert distances.frechet_distance(*features) == pytest.approx(theirs['frechet_inception_distance'], rel=1e-6)


def test_kernel_distance(features):
    """Of one subset that is everything, so that nothing is drawn."""
    size = min(map(len, features))
    x, y = (each[:size] for each in features)
    theirs = kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=1, kid_subset_size=size, verbose=False
    )
    ours = distances.kernel_distance(x, y, np.random.default_rng(0), subsets=1, size=size)
    assert ours == pytest.approx(theirs['kernel_inception_distance_mean'], rel=1e-6)
