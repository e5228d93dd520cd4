"""How far a student's features spread within a batch, beside the reference's: what falls when its images grow alike."""

import torch

from stylegan2_compress import distributed
from stylegan2_compress.distributions.statistics import Statistics

RATE = 0.05  # Of the average that follows the spread of steps.
INTERVAL = 50  # Steps between looks at that average, for which the device is waited for.
FALLEN, RISEN = 0.5, 0.75  # Shares of the largest average: below the first a warning, above the second all is well.


class Spread:
    """The spread of features within a batch, in units of the reference's, and a warning when it falls.

    The spread is the root of the summed variances of all entries. A memory of older features hides from the loss that
    images grow alike, because the older ones were not; this does not look at it. A spread above the reference's is no
    reason to expect more than that.

    Args:
        name: of the embedding, for the warning.
        reference: whose moments tell its spread.
    """

    def __init__(self, name: str, reference: Statistics):
        self.name = name
        variance = (reference.m2 - reference.m1.square()).clamp_min(0).sum()
        self.wanted = variance.sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        self.average = torch.full([], torch.nan, device=variance.device)
        self.largest = 0.0
        self.steps = 0
        self.has_fallen = False
        self.pending: list[torch.Tensor] = []

    @torch.no_grad()
    def of(self, features: torch.Tensor) -> torch.Tensor:
        """The spread of this process's features [N, dim], N >= 2: a scalar, 1 where it is the reference's."""
        spread = features.var(dim=0).sum().sqrt() / self.wanted.to(features)
        self.pending.append(spread)
        return spread

    def begin(self) -> None:
        """Begin a step: forget the features of one that was left out."""
        self.pending.clear()

    def commit(self, nimg: int) -> None:
        """The step at so many images has been taken: follow, and now and then look and warn."""
        if not self.pending:
            return
        spread = torch.stack(self.pending).mean().to(self.average)
        self.pending.clear()
        self.average = torch.where(self.average.isnan(), spread, self.average.lerp(spread, RATE))
        self.steps += 1
        if self.steps % INTERVAL == 0:
            self._look(float(self.average), nimg)

    def _look(self, average: float, nimg: int) -> None:
        self.largest = max(self.largest, min(average, 1.0))
        if average < FALLEN * self.largest and not self.has_fallen:
            self.has_fallen = True
            if distributed.is_rank_zero():
                print(
                    f"At {nimg / 1000:.1f} kimg, the student's features in {self.name} spread {average:.2f} times as "
                    f"far within a batch as the reference's, after {self.largest:.2f}: its images grow alike. A "
                    'shorter memory, a smaller weight or a lower learning rate may help.'
                )
        if average > RISEN * self.largest:
            self.has_fallen = False

    def state_dict(self) -> dict:
        return {
            'average': self.average,
            'largest': self.largest,
            'steps': self.steps,
            'has_fallen': self.has_fallen,
        }

    def load_state_dict(self, state: dict) -> None:
        self.average = state['average'].to(self.average)
        self.largest, self.steps, self.has_fallen = state['largest'], state['steps'], state['has_fallen']
