"""Estimators of the distance between the student's features and a reference's, by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from stylegan2_compress import distributed
from stylegan2_compress.distributions import mmd, moments
from stylegan2_compress.distributions.labels import LabelledStatistics
from stylegan2_compress.distributions.statistics import Statistics
from stylegan2_compress.errors import UserError
from stylegan2_compress.losses.terms import total


class MomentDistance:
    """mean |a1 − m1| + mean |a2 − m2|: a1 and a2 are the first two raw moments of the batch, m1 and m2 the reference's.

    What the paper's code computes. A small batch has a distance from its own distribution, too, of the order of
    1/√batch; its gradient pulls single images to the mean. With features of the past, the distance is that of the
    moments of both together, see `moments.straight_through`.

    With labels, features are those of `labels.beside_labels`, and the distance is the sum over labels of
    mean |a1 − q m1| + mean |a2 − q m2|: a1 and a2 are what the label's images add to the moments, and q is how many of
    the images have the label. That is the batch's own q and not the reference's: how often a label is drawn is chance,
    and against the reference's share, means nearer to zero would be the best answer to it.

    Args:
        reference: whose moments are used, a `LabelledStatistics` with labels.
        shares: of the labels; none of features alone.
    """

    def __init__(self, reference: Statistics | LabelledStatistics, shares: Sequence[float] = ()):
        self.wanted = reference.m1, reference.m2
        self.labels = len(shares)

    def __call__(self, features: torch.Tensor, past: torch.Tensor | None = None) -> torch.Tensor:
        """Distance of features [N, dim], and of those of earlier steps [M, dim], which get no gradient."""
        group = distributed.world()
        own = self._moments(features, group)
        if past is None or not len(past):
            return self.of_moments(*own)
        images = len(features) * distributed.size_of(group)
        share = images / (images + len(past))
        return moments.straight_through(self.of_moments, own, self._moments(past.to(features)), share)

    def of_moments(self, a1: torch.Tensor, a2: torch.Tensor, q: torch.Tensor | None = None) -> torch.Tensor:
        """Distance of moments [dim] from the reference's; of those of labels [labels, dim] with q [labels]."""
        return moments.distance_of_moments(a1, a2, *self._wanted_at(q))

    def _moments(self, features: torch.Tensor, group: distributed.Group | None = None) -> tuple[torch.Tensor, ...]:
        if not self.labels:
            return moments.moments(features, group)
        return moments.moments_by_label(features[:, : -self.labels], features[:, -self.labels :], group)

    def _wanted_at(self, q: torch.Tensor | None) -> Sequence[torch.Tensor]:
        return self.wanted if q is None else [q[:, None] * moment.to(q) for moment in self.wanted]


class SquaredMomentDistance(MomentDistance):
    """½ (mean (a1 − m1)² / σ1² + mean (a2 − m2)² / σ2²): smooth where `MomentDistance` changes its sign.

    σ1² is the mean variance of the entries of the features over the reference, and σ2² that of their squares if they
    are normally distributed: the mean of 2 v² + 4 m1² v for entries with variance v. (Divided by its own variance each,
    entries that hardly vary would rule: EfficientNet has many.) With labels, it is the sum over these of
    (a1 − q m1)² and (a2 − q m2)², and variances are those within labels.
    """

    def __init__(self, reference: Statistics | LabelledStatistics, shares: Sequence[float] = ()):
        super().__init__(reference, shares)
        self.factor = number_of_labels(shares)
        m1, m2 = self.wanted
        variance = (m2 - m1.square()).clamp_min(0)
        of_squares = 2 * variance.square() + 4 * m1.square() * variance
        means = [each.mean(-1) for each in (variance, of_squares)]
        if shares:
            means = [(each * each.new_tensor(shares)).sum() for each in means]
        self.variances = [mean.clamp_min(torch.finfo(torch.float32).tiny) for mean in means]

    def of_moments(self, a1: torch.Tensor, a2: torch.Tensor, q: torch.Tensor | None = None) -> torch.Tensor:
        pairs = zip((a1, a2), self._wanted_at(q), self.variances, strict=True)
        squares = total((a - m.to(a)).square().mean(-1).sum() / variance.to(a) for a, m, variance in pairs)
        return self.factor * squares / 2


class KernelDistance:
    """Squared maximum mean discrepancy between the batch and a bank of the reference's features.

    The gradient of the unbiased estimate is right on average for batches of any size.

    Args:
        kernel: name in `mmd.KERNELS`.
        unbiased: see `mmd.mmd2`.
        reference: whose `bank` is used, and changed by `fill`. The bandwidths of `rbf` are its first one's, and stay.
        shares: of the labels, with which features are those of `labels.beside_labels`; none of features alone.
    """

    def __init__(
        self, kernel: str, unbiased: bool, reference: Statistics | LabelledStatistics, shares: Sequence[float] = ()
    ):
        labels = len(shares)
        # Rows of a bank with labels are in the order of these: bandwidths have to see some of each.
        features = reference.bank[:: -(-len(reference.bank) // mmd.ROWS), :-labels] if labels else reference.bank
        try:
            self.kernel = mmd.KERNELS[kernel](features)
        except ValueError as error:
            raise UserError(f'--loss-arg estimator={kernel} has nothing to go by: {error}.') from error
        self.factor = number_of_labels(shares)
        self.unbiased = unbiased
        self.bank = reference.bank
        if not labels:
            self.within = mmd.mean_within(self.bank, self.kernel, self.unbiased)
        else:
            self.within = self._within_labels(shares)
            self.kernel = partial(mmd.same_label, kernel=self.kernel, labels=labels)

    def __call__(self, features: torch.Tensor, past: torch.Tensor | None = None) -> torch.Tensor:
        """Distance of features [N, dim]; with those of earlier steps [M, dim], see `mmd.mmd2`."""
        bank = self.bank.to(features)  # Of another precision only under @dtype=fp64.
        return self.factor * mmd.mmd2(
            features,
            bank,
            self.kernel,
            unbiased=self.unbiased,
            within_y=self.within,
            past=past,
            group=distributed.world(),
        )

    def _within_labels(self, shares: Sequence[float]) -> torch.Tensor:
        """Σ share² E k(y, y') of the bank's rows of each label: pairs of all images with a label in common."""
        features, labels = self.bank.tensor_split([-len(shares)], dim=1)
        used = [label for label, share in enumerate(shares) if share]
        parts = (features[labels[:, label] > 0] for label in used)
        return total(
            shares[label] ** 2 * mmd.mean_within(part, self.kernel, self.unbiased)
            for label, part in zip(used, parts, strict=True)
        )

    def fill(self, bank: torch.Tensor) -> None:
        """Use other features [bank, dim] of the reference, without labels."""
        self.bank.copy_(bank)
        self.within.copy_(mmd.mean_within(bank, self.kernel, self.unbiased))


def number_of_labels(shares: Sequence[float]) -> float:
    """1 / Σ share²: how many labels there are, of unequal shares how many equal ones would be as many; 1 without.

    Squares of what a label's images add count by the square of its share. Times this number, a difference that all
    labels have in common counts as much as without labels.
    """
    return 1 / sum(share**2 for share in shares) if shares else 1


@dataclass(frozen=True)
class Estimator:
    """An entry of `ESTIMATORS`."""

    # From (unbiased, reference, shares) if it has a bank, else from (reference, shares).
    build: Callable[..., Callable[[torch.Tensor], torch.Tensor]]
    weight: float  # λ where neither the user nor the paper says one.
    has_bank: bool = True
    has_scale: bool = False  # It grows with the scale of the features.


# By name. The weights of the kernels are not from the paper: on the images of the quickstart's pruned start, they make
# the gradient about as strong as that of `moments` with its 20 (benchmarks/estimator_weights.py).
ESTIMATORS = {
    'moments': Estimator(MomentDistance, weight=20, has_bank=False, has_scale=True),
    'squared-moments': Estimator(SquaredMomentDistance, weight=0.8, has_bank=False),
    'linear': Estimator(partial(KernelDistance, 'linear'), weight=0.1, has_scale=True),
    'rbf': Estimator(partial(KernelDistance, 'rbf'), weight=2),
    'cubic': Estimator(partial(KernelDistance, 'cubic'), weight=30, has_scale=True),
}
