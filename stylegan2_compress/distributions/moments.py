"""Moments of feature vectors: tensors in, tensors out. `distributed` explains gradients with several processes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stylegan2_compress.distributed import Group, sum_over_processes, sum_with_gradient
from stylegan2_compress.host import devices


def moments(x: Tensor, group: Group | None = None) -> tuple[Tensor, Tensor]:
    """First and second raw moment, elementwise: m1 = E[x] and m2 = E[x^2].

    Args:
        x: features [N, dim]; N may differ between processes.
        group: processes whose batches count as one; None for this process only.

    Returns:
        Two tensors [dim].
    """
    sums = sum_with_gradient(_power_sums(x), group)
    m1, m2 = (sums[:-1] / sums[-1]).chunk(2)
    return m1, m2


def moments_by_label(x: Tensor, labels: Tensor, group: Group | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """What the images of each label add to the first two raw moments, and the label's share of the images.

    Args:
        x: features [N, dim]; N may differ between processes.
        labels: [N, labels], one-hot.
        group: processes whose batches count as one; None for this process only.

    Returns:
        Two tensors [labels, dim] and one [labels].
    """
    labels = labels.to(x)
    sums = sum_with_gradient(torch.cat([labels.T @ x, labels.T @ x.square(), labels.sum(0)[:, None]], dim=1), group)
    m1, m2, shares = (sums / sums[:, -1].sum()).tensor_split([x.shape[1], 2 * x.shape[1]], dim=1)
    return m1, m2, shares[:, 0]


def distance_of_moments(a1: Tensor, a2: Tensor, m1: Tensor, m2: Tensor) -> Tensor:
    """DiME's loss for one embedding: mean_d |a1 - m1| + mean_d |a2 - m2|, of moments [dim].

    Of those of labels, [labels, dim], the sum over these.
    """
    return (a1 - m1.to(a1)).abs().mean(-1).sum() + (a2 - m2.to(a2)).abs().mean(-1).sum()


def straight_through(
    distance: Callable[..., Tensor], own: Sequence[Tensor], past: Sequence[Tensor], share: float
) -> Tensor:
    """A distance of the moments of a batch and earlier features together, with the gradient through the batch alone.

    With a1 and a2 the moments of the batch, and A1 and A2 those of all features, the value is distance(A1, A2) and the
    gradient that of s1 · a1 + s2 · a2, where (s1, s2) = ∇distance(A1, A2): for |A − m| that is sign(A − m) · a. So the
    direction is that of many images, and the strength that of the batch.

    Args:
        distance: from moments to a scalar.
        own: moments of the batch.
        past: those of the earlier features.
        share: of the batch among all features.

    Returns:
        A scalar.
    """
    together = [a.detach().lerp(p, 1 - share).requires_grad_() for a, p in zip(own, past, strict=True)]
    with torch.enable_grad():
        value = distance(*together)
        slopes = torch.autograd.grad(value, together)
    slope = torch.stack([(s * a).sum() for s, a in zip(slopes, own, strict=True)]).sum()
    return value.detach() + (slope - slope.detach())


def mean_and_variance(x: Tensor, labels: Tensor, group: Group | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Elementwise mean and unbiased variance of the rows with each label, in two passes to avoid cancellation.

    Args:
        x: features [N, dim]; N may differ between processes.
        labels: [N, labels], one-hot.
        group: processes whose batches count as one; None for this process only.

    Returns:
        Means and variances [labels, dim], and the number of rows with each label [labels]. The mean of no rows and the
        variance of fewer than two are 0.
    """
    labels = labels.to(x)
    sums = sum_with_gradient(torch.cat([labels.T @ x, labels.sum(0)[:, None]], dim=1), group)
    counts = sums[:, -1].detach()
    means = sums[:, :-1] / counts.clamp_min(1)[:, None]
    # Deviations from the mean sum to zero over the whole batch, so that the variance has no gradient through the mean.
    # (Over one process's share of the batch they do not, so that the mean has to be detached.)
    squares = sum_with_gradient(labels.T @ (x - labels @ means.detach()).square(), group)
    return means, squares / (counts - 1).clamp_min(1)[:, None], counts


def _power_sums(x: Tensor) -> Tensor:
    """Sums of x, sums of x^2 and the number of rows [2 * dim + 1]: one tensor for one reduction over processes."""
    return torch.cat([x.sum(dim=0), x.square().sum(dim=0), x.new_full([1], len(x))])


COLUMNS = 2**20  # Of features that are in float64 at a time.


class MomentAccumulator:
    """Raw moments of a stream of batches, in float64 and constant memory."""

    def __init__(self, dim: int, device: torch.device | str = 'cpu'):
        """Start with no vectors, of width `dim`."""
        place = device if devices.has_float64(device) else 'cpu'
        self._sums = torch.zeros([2 * dim + 1], dtype=torch.float64, device=place)

    @property
    def count(self) -> int:
        """Number of vectors that have been added."""
        return int(self._sums[-1])

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add features [N, dim]. Only some columns at a time are in float64, beside all of them in their own type."""
        sums, sums_of_squares, count = self._sums.tensor_split([x.shape[1], 2 * x.shape[1]])
        for columns, of_these, of_their_squares in zip(
            x.split(COLUMNS, dim=1), sums.split(COLUMNS), sums_of_squares.split(COLUMNS), strict=True
        ):
            columns = devices.in_float64(columns)
            of_these += columns.sum(0)
            of_their_squares += columns.square().sum(0)
        count += len(x)

    def merge_processes(self, group: Group | None) -> None:
        """Add the vectors of the other processes of a group, all of which end up equal. None changes nothing."""
        sum_over_processes(self._sums, group)

    def moments(self) -> tuple[Tensor, Tensor]:
        """m1 and m2, float64 [dim].

        Raises:
            ValueError: no vectors have been added.
        """
        if not self.count:
            raise ValueError('There are no vectors whose moments could be taken')
        m1, m2 = (self._sums[:-1] / self._sums[-1]).chunk(2)
        return m1, m2
