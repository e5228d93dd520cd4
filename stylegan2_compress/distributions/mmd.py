"""Kernels and maximum mean discrepancy of feature vectors: tensors in, tensors out.

`distributed` explains gradients with several processes.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from stylegan2_compress.distributed import Group, gather_with_gradient
from stylegan2_compress.host import devices

Kernel = Callable[[Tensor, Tensor], Tensor]


def linear(x: Tensor, y: Tensor) -> Tensor:
    """k(x, y) = x . y for all pairs of rows: [n, dim] and [m, dim] give [n, m]. Its MMD compares means only."""
    return x @ y.T


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """k(x, y) = (x . y / dim + 1)^3, the kernel of KID: compares the first three moments."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def rbf(x: Tensor, y: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """k(x, y) = mean_s exp(-|x - y|^2 / (2 s^2)) over bandwidths s: compares whole distributions."""
    centre = y.mean(dim=0).detach()  # Does not change distances, and keeps their precision.
    x, y = x - centre, y - centre
    distances = (x.square().sum(dim=1)[:, None] + y.square().sum(dim=1) - 2 * x @ y.T).clamp_min(0)
    return torch.stack([(distances / (-2 * s**2)).exp() for s in bandwidths]).mean(dim=0)


def same_label(x: Tensor, y: Tensor, kernel: Kernel, labels: int) -> Tensor:
    """k(x, y) of pairs with the same label, and 0 of others: features and labels are equal together, or not.

    Args:
        x, y: features [n, dim + labels] and [m, dim + labels], the last columns of which are one-hot labels, or such
            labels times weights.
        kernel: of the features.
        labels: how many there are.
    """
    return (x[:, -labels:] @ y[:, -labels:].T) * kernel(x[:, :-labels], y[:, :-labels])


ROWS = 2048  # Of reference features that bandwidths are found by.
MULTIPLES = (0.25, 0.5, 1, 2, 4)  # Of the median squared distance, one per bandwidth.


def median_bandwidths(y: Tensor) -> list[float]:
    """Bandwidths for `rbf` by the median heuristic: s^2 = multiple * median |y_i - y_j|^2, over the first `ROWS` rows.

    At the median distance the five terms of the kernel are exp(-2), exp(-1), exp(-1/2), exp(-1/4) and
    exp(-1/8): none is flat there, as some would be in high dimensions with multiples further apart.

    Args:
        y: reference features [N, dim], N >= 2.

    Raises:
        ValueError: there are fewer than two rows, or at least half of the pairs are equal.
    """
    median = torch.pdist(devices.in_float64(y[:ROWS].detach())).square().median() if len(y) >= 2 else 0
    if not median > 0:
        raise ValueError(f'{len(y)} feature vectors have no median distance above 0: they have to differ')
    return [float(multiple * median) ** 0.5 for multiple in MULTIPLES]


# Kernels by name, built from reference features [N, dim] (which only `rbf` uses).
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
    past: Tensor | None = None,
    group: Group | None = None,
) -> Tensor:
    """Squared maximum mean discrepancy: E k(x, x') + E k(y, y') - 2 E k(x, y) (Gretton et al. 2012).

    With features of earlier batches, E k(x, x') is w E k(x, past) + (1 - w) of the mean over pairs of the batch, where
    w is the share of the past in the partners that a vector has. The gradient goes through the batch, and is that of
    2 w E k(x, past) + (1 - w) E k(x, x') - 2 E k(x, y): what a batch with all of these vectors would give to its own
    vectors, times as many as that is larger.

    Args:
        x: features [n, dim] of a batch, n the same in all processes of the group.
        y: reference features [m, dim], the same in all processes.
        kernel: `linear`, `rbf` (with bandwidths), `cubic` or any other.
        unbiased: leave out pairs of a vector with itself (the U-statistic, which can be negative).
        within_y: `mean_within(y, kernel, unbiased)`, which does not depend on x, if it is known already.
        past: features [p, dim] of earlier batches, the same in all processes; they get no gradient.
        group: processes whose batches count as one; None for this process only.

    Returns:
        A scalar.

    Raises:
        ValueError: unbiased, of fewer than two vectors.
    """
    x = gather_with_gradient(x, group)
    if within_y is None:
        within_y = mean_within(y, kernel, unbiased)
    within_x = mean_within(x, kernel, unbiased)
    if past is not None and len(past):
        w = len(past) / (len(past) + len(x) - unbiased)
        across = kernel(x, past.detach().to(x)).mean()
        within_x = (1 - w) * within_x + w * (2 * across - across.detach())
    return within_x + within_y - 2 * kernel(x, y).mean()


def mean_within(x: Tensor, kernel: Kernel, unbiased: bool = True, rows: int = 1024) -> Tensor:
    """E k(x, x') over pairs of rows of one set, without pairs of a row with itself if unbiased.

    Args:
        x: features [n, dim].
        kernel: as for `mmd2`.
        unbiased: as for `mmd2`.
        rows: number of rows whose pairs are computed at a time: memory grows with n * rows.

    Returns:
        A scalar.

    Raises:
        ValueError: unbiased, of fewer than two vectors.
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
