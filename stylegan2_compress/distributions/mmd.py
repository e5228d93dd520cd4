"""Maximum mean discrepancy of feature vectors: tensors in, tensors out.

Functions that take a `group` treat the batches of all its processes as one; `distributed` explains their gradient.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from stylegan2_compress.distributed import Group, gather_with_gradient

Kernel = Callable[[Tensor, Tensor], Tensor]


# ---------------------------------------------------------------------------------------------------------------------
# Maximum mean discrepancy


def linear(x: Tensor, y: Tensor) -> Tensor:
    """k(x, y) = x . y, for all pairs of rows: [n, dim] and [m, dim] give [n, m]. Its MMD compares means only."""
    return x @ y.T


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """k(x, y) = (x . y / dim + 1)^3, the kernel of KID: compares the first three moments."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def rbf(x: Tensor, y: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """k(x, y) = mean_s exp(-|x - y|^2 / (2 s^2)) over bandwidths s: compares whole distributions."""
    centre = y.mean(dim=0).detach()  # distances are the same from anywhere, and most precise from the middle
    x, y = x - centre, y - centre
    distances = (x.square().sum(dim=1)[:, None] + y.square().sum(dim=1) - 2 * x @ y.T).clamp_min(0)
    return torch.stack([(distances / (-2 * s**2)).exp() for s in bandwidths]).mean(dim=0)


def median_bandwidths(y: Tensor, multiples: Sequence[float] = (0.25, 0.5, 1, 2, 4), rows: int = 2048) -> list[float]:
    """Bandwidths for `rbf` by the median heuristic: s^2 = multiple * median |y_i - y_j|^2 over pairs of rows.

    At the median distance the five default terms of the kernel are exp(-2), exp(-1), exp(-1/2), exp(-1/4) and
    exp(-1/8): none is flat there, as some would be in high dimensions with multiples further apart.

    Args:
        y: Reference features [N, dim], N >= 2.
        multiples: Of the median squared distance, one per bandwidth.
        rows: Only that many first rows are looked at.

    Raises:
        ValueError: There are no two rows, or at least half of the pairs are equal.
    """
    median = torch.pdist(y[:rows].detach().double()).square().median() if len(y) >= 2 else 0
    if not median > 0:
        raise ValueError(f'No median distance among {len(y)} features: they have to differ')
    return [float(multiple * median) ** 0.5 for multiple in multiples]


# By name: kernels, from reference features [N, dim] (only `rbf` looks at them).
KERNELS: dict[str, Callable[[Tensor], Kernel]] = {
    'linear': lambda y: linear,
    'rbf': lambda y: partial(rbf, bandwidths=median_bandwidths(y)),
    'cubic': lambda y: cubic,
}


def mmd2(
    x: Tensor,
    y: Tensor,
    kernel: Kernel,
    *,
    unbiased: bool = True,
    within_y: Tensor | None = None,
    group: Group | None = None,
) -> Tensor:
    """Squared maximum mean discrepancy: E k(x, x') + E k(y, y') - 2 E k(x, y) (Gretton et al. 2012).

    Args:
        x: Features [n, dim] of a batch, n the same on all processes of the group.
        y: Reference features [m, dim], the same on all processes.
        kernel: One of `linear`, `rbf` (with bandwidths) and `cubic`, or any other.
        unbiased: Leave out pairs of a vector with itself (the U-statistic; it can be negative). Else include them.
        within_y: `mean_within(y, kernel, unbiased)`, which does not depend on x, if it is known already.
        group: Processes whose batches count as one.

    Returns:
        A scalar.

    Raises:
        ValueError: The unbiased estimate of fewer than two vectors.
    """
    x = gather_with_gradient(x, group)
    if within_y is None:
        within_y = mean_within(y, kernel, unbiased)
    return mean_within(x, kernel, unbiased) + within_y - 2 * kernel(x, y).mean()


def mean_within(x: Tensor, kernel: Kernel, unbiased: bool = True, rows: int = 1024) -> Tensor:
    """E k(x, x') over the pairs of rows of one set, without pairs of a row with itself if unbiased.

    Args:
        x: Features [n, dim].
        kernel: As in `mmd2`.
        unbiased: As in `mmd2`.
        rows: Pairs are made for so many rows at a time: memory grows with n * rows.

    Returns:
        A scalar.

    Raises:
        ValueError: The unbiased estimate of fewer than two vectors.
    """
    n = len(x)
    if unbiased and n < 2:
        raise ValueError(f'The unbiased MMD needs two vectors or more, not {n}')
    total = x.new_zeros([])
    for start in range(0, n, rows):
        pairs = kernel(x[start : start + rows], x)
        total = total + pairs.sum()
        if unbiased:
            total = total - pairs.diagonal(offset=start).sum()
    return total / (n * (n - 1) if unbiased else n * n)
