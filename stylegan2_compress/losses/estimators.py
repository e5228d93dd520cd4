"""Estimators of the distance between the student's features and a reference's, by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from stylegan2_compress import distributed
from stylegan2_compress.distributions import mmd, moments
from stylegan2_compress.distributions.statistics import Statistics
from stylegan2_compress.errors import UserError
from stylegan2_compress.losses.terms import total


class MomentDistance:
    """mean |a1 − m1| + mean |a2 − m2|: a1 and a2 are the first two raw moments of the batch, m1 and m2 the reference's.

    What the paper's code computes. With labels, it is the sum over them, each by its share, and the features are those
    of `labels.at_labels`. A small batch has a distance from its own distribution, too, of the order of
    1/√batch; its gradient pulls single images to the mean. With features of the past, the distance is that of the
    moments of both together, see `moments.straight_through`.

    Args:
        reference: whose moments are used.
        shares: of the labels; none of features alone.
    """

    def __init__(self, reference: Statistics, shares: Sequence[float] = ()):
        self.reference = reference
        self.labels = len(shares) or 1

    def __call__(self, features: torch.Tensor, past: torch.Tensor | None = None) -> torch.Tensor:
        """Distance of features [N, dim], and of those of earlier steps [M, dim], which get no gradient."""
        group = distributed.world()
        if past is None or not len(past):
            return self.of_moments(*moments.moments(features, group))
        return moments.straight_through(self.of_moments, features, past, group)

    def of_moments(self, a1: torch.Tensor, a2: torch.Tensor) -> torch.Tensor:
        """Distance of moments [dim] from the reference's."""
        return self.labels * moments.distance_of_moments(a1, a2, self.reference.m1, self.reference.m2)


class SquaredMomentDistance(MomentDistance):
    """½ (mean (a1 − m1)² / σ1² + mean (a2 − m2)² / σ2²): smooth where `MomentDistance` changes its sign.

    σ1² is the mean variance of the entries of the features over the reference, and σ2² that of their squares if they
    are normally distributed: the mean of 2 v² + 4 m1² v for entries with variance v. (Divided by its own variance each,
    entries that hardly vary would rule: EfficientNet has many.)
    """

    def __init__(self, reference: Statistics, shares: Sequence[float] = ()):
        super().__init__(reference)
        self.factor = number_of_labels(shares)
        variance = (reference.m2 - reference.m1.square()).clamp_min(0)
        of_squares = 2 * variance.square() + 4 * reference.m1.square() * variance
        self.variances = [each.mean().clamp_min(torch.finfo(torch.float32).tiny) for each in (variance, of_squares)]

    def of_moments(self, a1: torch.Tensor, a2: torch.Tensor) -> torch.Tensor:
        wanted = self.reference.m1, self.reference.m2
        pairs = zip((a1, a2), wanted, self.variances, strict=True)
        squares = total((a - m.to(a)).square().mean() / variance.to(a) for a, m, variance in pairs)
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

    def __init__(self, kernel: str, unbiased: bool, reference: Statistics, shares: Sequence[float] = ()):
        labels = len(shares)
        try:
            self.kernel = mmd.KERNELS[kernel](reference.bank[:, :-labels] if labels else reference.bank)
        except ValueError as error:
            raise UserError(f'--loss-arg estimator={kernel} has nothing to go by: {error}.') from error
        if labels:
            self.kernel = partial(mmd.same_label, kernel=self.kernel, labels=labels)
        self.factor = number_of_labels(shares)
        self.unbiased = unbiased
        self.bank = reference.bank
        self.within = mmd.mean_within(self.bank, self.kernel, self.unbiased)

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

    def fill(self, bank: torch.Tensor) -> None:
        """Use other features [bank, dim] of the reference."""
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


# By name. The weights of the kernels are not from the paper: on the images of the quickstart's pruned start, they make
# the gradient about as strong as that of `moments` with its 20 (benchmarks/estimator_weights.py). Those of `linear` and
# `cubic` depend on the scale of an embedding's features, that of `rbf` does not.
ESTIMATORS = {
    'moments': Estimator(MomentDistance, weight=20, has_bank=False),
    'squared-moments': Estimator(SquaredMomentDistance, weight=0.8, has_bank=False),
    'linear': Estimator(partial(KernelDistance, 'linear'), weight=0.1),
    'rbf': Estimator(partial(KernelDistance, 'rbf'), weight=2),
    'cubic': Estimator(partial(KernelDistance, 'cubic'), weight=30),
}
