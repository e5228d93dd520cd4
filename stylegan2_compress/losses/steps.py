"""Optimizer steps with a loss that is not finite: named, left out, and the end of the run after ten in a row."""

from collections.abc import Iterable

import torch
from torch_utils import training_stats

from stylegan2_compress import distributed
from stylegan2_compress.errors import DivergedError
from stylegan2_compress.host import devices

PATIENCE = 10  # Steps of one phase in a row that may be left out.


class Steps:
    """Decides phase by phase whether the gradients may be used.

    While gradients accumulate, nothing waits for the device: `check` takes note of scalars, `report` keeps back what
    `training_stats` is to get. `end` then looks at all of it at once, in agreement with the other processes, for which
    Python waits once per phase. If a scalar is not finite, the gradients are dropped, so that neither the
    host's loop nor ours moves a weight; running averages are what they were before the phase; and nothing is reported,
    because the totals of the host's statistics would never be finite again, and ADA would follow them.

    Attributes:
        nimg: images made in the generator's main phases so far, by all processes.
        left_out: how many steps in a row were left out, by phase.
    """

    def __init__(self):
        self.nimg = 0
        self.left_out: dict[str, int] = {}
        self._averages: list[tuple[torch.Tensor, torch.Tensor]] | None = None
        self._scalars: list[tuple[str, torch.Tensor]] = []
        self._reports: list[tuple[str, torch.Tensor]] = []

    def begin(self, averages: Iterable[torch.Tensor]) -> None:
        """Say which tensors a round may change that outlive the phase; counts once per phase, in its first round."""
        if self._averages is None:
            self._averages = [(average, average.clone()) for average in averages]

    def count(self, images: int) -> None:
        """Count images that each process has made in a main phase of the generator."""
        self.nimg += images * distributed.world_size()

    def report(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """What `training_stats.report` does, but at the end of the phase, and not if the step is left out."""
        self._reports.append((name, _sums(value.detach())))
        return value

    def check(self, name: str, scalar: torch.Tensor) -> torch.Tensor:
        """Take note of a scalar that has to be finite. Returns it."""
        self._scalars.append((name, scalar.detach()))
        return scalar

    def notes(self) -> tuple[list, list]:
        """The lists that `check` and `report` append to."""
        return self._scalars, self._reports

    def end(self, phase: str, parameters: Iterable[torch.nn.Parameter]) -> bool:
        """Finish a phase, after its last round. Returns whether its step is one to take.

        Args:
            phase: its name.
            parameters: whose gradients it accumulated.

        Raises:
            DivergedError: this was the tenth step of that phase in a row to leave out.
        """
        culprits = self._not_finite()
        _count(self._reports, but_names_alone=bool(culprits))
        if culprits:
            for parameter in parameters:
                parameter.grad = None
            for average, before in self._averages or ():
                average.copy_(before)
        self._averages, self._scalars, self._reports = None, [], []
        self.left_out[phase] = self.left_out.get(phase, 0) + 1 if culprits else 0
        if culprits:
            self._complain(phase, ', '.join(culprits))
        return not culprits

    def _not_finite(self) -> list[str]:
        """Names of the scalars that were not finite in some round of some process."""
        if not self._scalars:
            return []
        names, scalars = zip(*self._scalars, strict=True)
        bad = torch.stack(scalars).isfinite().logical_not().to(torch.uint8)
        distributed.max_over_processes(bad)
        return list(dict.fromkeys(name for name, is_bad in zip(names, bad.tolist(), strict=True) if is_bad))

    def _complain(self, phase: str, culprits: str) -> None:
        where = f'at {self.nimg / 1000:.1f} kimg'
        if self.left_out[phase] >= PATIENCE:
            raise DivergedError(
                f'Training diverged {where}: {culprits} not finite in {PATIENCE} {phase} steps in a row; go back to an '
                'earlier snapshot, with a lower learning rate or without mixed precision (--fp32=1).'
            )
        if distributed.is_rank_zero():
            print(f'{phase} step left out {where}: {culprits} not finite.')

    def state_dict(self) -> dict:
        return {'nimg': self.nimg, 'left_out': dict(self.left_out)}

    def load_state_dict(self, state: dict) -> None:
        self.nimg, self.left_out = state['nimg'], dict(state['left_out'])


def _sums(numbers: torch.Tensor) -> torch.Tensor:
    """What `training_stats` keeps of a tensor: how many numbers it has, their sum and the sum of their squares, [3]."""
    numbers = numbers.flatten().float()
    sums = torch.stack([torch.ones_like(numbers).sum(), numbers.sum(), numbers.square().sum()])
    return sums.double() if devices.has_float64(sums.device) else sums


def _count(reports: Iterable[tuple[str, torch.Tensor]], but_names_alone: bool) -> None:
    """Add sums to the counters of `training_stats`, all of them in one operation. Processes must agree on names."""
    together: dict[str, torch.Tensor] = {}
    for name, sums in reports:
        together[name] = together[name] + sums if name in together else sums
    counters = [training_stats._counters.setdefault(name, {}) for name in together]
    if but_names_alone or not together:
        return
    for counter, sums in zip(counters, together.values(), strict=True):
        if sums.device not in counter:
            counter[sums.device] = torch.zeros_like(sums)
    pairs = zip(counters, together.values(), strict=True)
    totals = [counter[sums.device] for counter, sums in pairs]
    torch._foreach_add_(totals, list(together.values()))  # pyright: ignore[reportPrivateImportUsage]
