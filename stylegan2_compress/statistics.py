"""Moments and maximum mean discrepancy of feature vectors: tensors in, tensors out.

Several processes: functions that take a `group` see the batches of all its processes as one batch; None is this
process alone, `world()` all of them. Every process then computes the *same* value, the loss of the whole batch, and
gradients flow through the reduction under this convention:

    each process calls `backward` on its copy of that value, and gradients of parameters are averaged over the
    processes, as DistributedDataParallel does; the average is the gradient that one process with the whole batch gets.

For R processes this means that the gradient which reaches the local features is R times dL/dx: averaging divides the
sum over processes by R, but each process contributes the dL/dx of its own images only. The factor is exact because the
copies are equal, and so the backward pass needs no communication.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed
from torch import Tensor

Group = torch.distributed.ProcessGroup
Kernel = Callable[[Tensor, Tensor], Tensor]


def world() -> Group | None:
    """All processes, or None if this one is alone."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.group.WORLD if together and torch.distributed.get_world_size() > 1 else None


def moments(x: Tensor, group: Group | None = None) -> tuple[Tensor, Tensor]:
    """First and second raw moment, elementwise: m1 = E[x] and m2 = E[x^2].

    Args:
        x: Features [N, dim]; N may differ between processes.
        group: Processes whose batches count as one.

    Returns:
        Two tensors [dim].
    """
    sums = _sum(_power_sums(x), group)
    m1, m2 = (sums[:-1] / sums[-1]).chunk(2)
    return m1, m2


def moment_distance(x: Tensor, m1: Tensor, m2: Tensor, group: Group | None = None) -> Tensor:
    """DiME's loss for one embedding: mean_d |a1 - m1| + mean_d |a2 - m2|, for the moments a1 and a2 of the batch.

    Args:
        x: Features [N, dim] of the student's images.
        m1, m2: The reference's moments [dim].
        group: Processes whose batches count as one.

    Returns:
        A scalar.
    """
    a1, a2 = moments(x, group)
    return (a1 - m1.to(a1)).abs().mean() + (a2 - m2.to(a2)).abs().mean()


def mean_and_variance(x: Tensor, groups: Tensor, group: Group | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and unbiased variance, elementwise, of each of several groups of rows: in two passes, without cancellation.

    Args:
        x: Features [N, dim]; N may differ between processes.
        groups: [N, groups], one-hot: which group a row belongs to.
        group: Processes whose batches count as one.

    Returns:
        Means and variances [groups, dim], and how many rows each group has [groups]. The mean of no rows is 0, the
        variance of fewer than two is 0.
    """
    groups = groups.to(x)
    sums = _sum(torch.cat([groups.T @ x, groups.sum(0)[:, None]], dim=1), group)
    counts = sums[:, -1].detach()
    means = sums[:, :-1] / counts.clamp_min(1)[:, None]
    # Deviations from the mean sum to zero, so that nothing flows through it into the variance (of the whole batch: of
    # one process's share something would).
    squares = _sum(groups.T @ (x - groups @ means.detach()).square(), group)
    return means, squares / (counts - 1).clamp_min(1)[:, None], counts


def _power_sums(x: Tensor) -> Tensor:
    """Sums of x, sums of x^2, and how many: [2 * dim + 1], one tensor for one reduction over processes."""
    return torch.cat([x.sum(dim=0), x.square().sum(dim=0), x.new_tensor([len(x)])])


class MomentAccumulator:
    """Raw moments of a stream of batches, in float64 and constant memory."""

    def __init__(self, dim: int, device: torch.device | str = 'cpu'):
        """Start with no vectors, of width `dim`."""
        self._sums = torch.zeros([2 * dim + 1], dtype=torch.float64, device=device)

    @property
    def count(self) -> int:
        """How many vectors have been seen."""
        return int(self._sums[-1])

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add features [N, dim]."""
        self._sums += _power_sums(x.to(self._sums))

    def merge(self, other: 'MomentAccumulator') -> None:
        """Add all that another accumulator has seen."""
        self._sums += other._sums.to(self._sums)

    def merge_processes(self, group: Group | None) -> None:
        """Add what the other processes of a group have seen; they end up equal. None changes nothing."""
        if group is not None:
            torch.distributed.all_reduce(self._sums, group=group)

    def moments(self) -> tuple[Tensor, Tensor]:
        """m1 and m2, float64 [dim].

        Raises:
            ValueError: Nothing has been seen.
        """
        if not self.count:
            raise ValueError('Moments of no vectors at all')
        m1, m2 = (self._sums[:-1] / self._sums[-1]).chunk(2)
        return m1, m2


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
    x = _gather(x, group)
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


# ---------------------------------------------------------------------------------------------------------------------
# Reductions over processes; the module's docstring explains their gradient


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        ctx.processes = torch.distributed.get_world_size(group)
        total = x.clone()
        torch.distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.processes, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        ctx.processes = torch.distributed.get_world_size(group)
        ctx.rank = torch.distributed.get_rank(group)
        parts = [torch.empty_like(x) for _ in range(ctx.processes)]
        torch.distributed.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad.chunk(ctx.processes)[ctx.rank] * ctx.processes, None


def _sum(x: Tensor, group: Group | None) -> Tensor:
    return x if group is None else _Sum.apply(x, group)


def _gather(x: Tensor, group: Group | None) -> Tensor:
    return x if group is None else _Gather.apply(x, group)
