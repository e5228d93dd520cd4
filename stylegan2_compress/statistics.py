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

import torch
import torch.distributed
from torch import Tensor

Group = torch.distributed.ProcessGroup


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
    sums = torch.cat([x.sum(dim=0), x.square().sum(dim=0), x.new_tensor([len(x)])])
    sums = _sum_over(sums, group)
    m1, m2 = (sums[:-1] / sums[-1].detach()).chunk(2)
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


class MomentAccumulator:
    """Raw moments of a stream of batches, in float64 and constant memory."""

    def __init__(self, dim: int, device: torch.device | str = 'cpu'):
        """Start with no vectors, of width `dim`."""
        # Sums of x, sums of x^2, and how many: one tensor, so that processes merge in one reduction.
        self._sums = torch.zeros([2 * dim + 1], dtype=torch.float64, device=device)

    @property
    def count(self) -> int:
        """How many vectors have been seen."""
        return int(self._sums[-1])

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add features [N, dim]."""
        x = x.to(self._sums)
        self._sums += torch.cat([x.sum(dim=0), x.square().sum(dim=0), x.new_tensor([len(x)])])

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


class _SumOver(torch.autograd.Function):
    """Sum over processes; see the module's docstring for the gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        ctx.world_size = torch.distributed.get_world_size(group)
        x = x.clone()
        torch.distributed.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.world_size, None


def _sum_over(x: Tensor, group: Group | None) -> Tensor:
    return x if group is None else _SumOver.apply(x, group)
