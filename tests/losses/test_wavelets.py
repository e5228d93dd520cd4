"""The Haar transform, against PyWavelets."""

import pytest
import pywt
import torch

from stylegan2_compress.losses.wavelets import haar_levels


@pytest.mark.parametrize(('shape', 'J'), [((2, 3, 16, 16), 4), ((1, 2, 8, 24), 3), ((2, 1, 6, 10), 1)])
def test_levels_are_those_of_pywavelets(shape, J):
    x = torch.randn(shape, dtype=torch.float64)
    ours = haar_levels(x, J)
    _lowest, *coarsest_first = pywt.wavedec2(x.numpy(), 'haar', level=J)
    assert len(ours) == J
    for level, reference in zip(ours, reversed(coarsest_first), strict=True):
        for subband, expected in zip(level, reference, strict=True):
            torch.testing.assert_close(subband, torch.from_numpy(expected), rtol=0, atol=1e-12)


def test_energy_is_kept():
    """Orthonormal: subbands and the last average have the energy of the maps."""
    x = torch.randn([2, 3, 8, 8], dtype=torch.float64)
    details = sum(subband.square().sum() for level in haar_levels(x, 3) for subband in level)
    averages = x.sum(dim=(2, 3)) / 8
    torch.testing.assert_close(details + averages.square().sum(), x.square().sum())


def test_gradient():
    x = torch.randn([1, 2, 4, 4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: [subband for level in haar_levels(x, 2) for subband in level], (x,))


@pytest.mark.parametrize(('side', 'J'), [(8, 0), (8, 4), (8, -1), (12, 3), (7, 1)])
def test_levels_out_of_bounds_are_refused(side, J):
    with pytest.raises(ValueError, match='divisible'):
        haar_levels(torch.zeros([1, 1, side, side]), J)


def test_sides_are_both_looked_at():
    with pytest.raises(ValueError, match='4x6'):
        haar_levels(torch.zeros([1, 1, 4, 6]), 2)
