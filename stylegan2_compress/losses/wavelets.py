"""Haar analysis of feature maps: the high-frequency subbands that NICKEL compares."""

from torch import Tensor

Subbands = tuple[Tensor, Tensor, Tensor]


def haar_levels(x: Tensor, J: int) -> list[Subbands]:
    """Orthonormal two-dimensional Haar transform, without its last low-low subband.

    It is linear: the difference of two transforms is the transform of the difference, at half the cost.

    Args:
        x: Maps [N, C, H, W].
        J: Number of levels, from 1 up to as often as both H and W can be halved.

    Returns:
        J tuples, finest level first: the horizontal, vertical and diagonal details of level j, each
        [N, C, H / 2^j, W / 2^j] (cH, cV, cD of PyWavelets).

    Raises:
        ValueError: J is out of these bounds.
    """
    height, width = x.shape[-2:]
    if J < 1 or height % 2**J or width % 2**J:
        raise ValueError(f'{J} Haar levels of {height}x{width} maps: the sides have to be divisible by 2^J, J >= 1')
    levels = []
    for _ in range(J):
        top, bottom = x[..., 0::2, :], x[..., 1::2, :]
        low, high = top + bottom, top - bottom
        left, right = low[..., 0::2], low[..., 1::2]
        high_left, high_right = high[..., 0::2], high[..., 1::2]
        levels.append(((high_left + high_right) / 2, (left - right) / 2, (high_left - high_right) / 2))
        x = (left + right) / 2
    return levels
