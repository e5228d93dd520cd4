"""A run in progress: what its steps and ticks work on, and its state."""

from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from training.networks import Generator

from stylegan2_compress.runs.directory import RunDirectory
from stylegan2_compress.training_loops.data import Batches, Share
from stylegan2_compress.training_loops.image_grid import ImageGrid
from stylegan2_compress.training_loops.metrics import OwnMetrics
from stylegan2_compress.training_loops.monitor import Collector, Monitor
from stylegan2_compress.training_loops.phases import MovingAverages, Phase, load_optimizer
from stylegan2_compress.training_loops.recording import Rounds

if TYPE_CHECKING:
    from training.augment import AugmentPipe


@dataclass
class Progress:
    """How far a run is."""

    cur_nimg: int = 0
    batch_idx: int = 0
    cur_tick: int = 0
    tick_start_nimg: int = 0
    state_nimg: int = 0  # Where the state was saved.
    unmeasured: bool = False  # Whether the latest snapshot's metrics are yet to be measured.
    best: tuple[str, float] | None = None  # The deciding metric, and its value of the best snapshot.

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


@dataclass
class Run:
    """Everything that the steps of a run work on, in one process."""

    options: SimpleNamespace  # The arguments of `loop.train`.
    directory: RunDirectory
    device: torch.device
    share: Share
    monitor: Monitor
    training_set: Any  # The host's dataset.
    G: Generator
    D: torch.nn.Module | None
    G_ema: Generator
    augment_pipe: 'AugmentPipe | None'
    ada_stats: Collector | None  # None where the strength of the augmentation is fixed.
    loss: Any  # With the host's `accumulate_gradients`.
    own_metrics: OwnMetrics
    phases: list[Phase]
    rounds: Rounds  # Of the loss.
    averages: MovingAverages
    progress: Progress = field(default_factory=Progress)
    grid: ImageGrid | None = None  # On rank 0.
    batches: Batches = field(init=False)  # See `data.real_batches`; set when it is known where the run goes on.
    done: bool = False

    @property
    def networks(self) -> dict[str, torch.nn.Module | None]:
        """The modules that a snapshot contains."""
        return dict(G=self.G, D=self.D, G_ema=self.G_ema, augment_pipe=self.augment_pipe)

    @property
    def parts(self) -> dict[str, Any]:
        """All that has a state, by its name in state files."""
        optimizers = {phase.name[0] + '_opt': phase.opt for phase in self.phases}
        others = dict(loss=self.loss, monitor=self.monitor, ada_stats=self.ada_stats, progress=self.progress)
        return self.networks | optimizers | others

    @property
    def is_complete(self) -> bool:
        """Whether the run is as long as it was to be."""
        return self.progress.cur_nimg >= self.options.total_kimg * 1000

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do: the last step, its snapshot and the snapshot's metrics are done."""
        return self.done and not self.progress.unmeasured

    def state_dict(self) -> dict[str, Any]:
        """The state of each part that the run has, by name. To be called in all processes."""
        return {
            name: _stateful(part, self.device).state_dict() for name, part in self.parts.items() if part is not None
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give the parts what `state_dict` returned."""
        for name, part in self.parts.items():
            if isinstance(part, torch.optim.Optimizer):
                load_optimizer(part, state[name])
            elif part is not None:
                _stateful(part, self.device).load_state_dict(state[name])


def _stateful(part, device: torch.device):
    return part if hasattr(part, 'state_dict') else TensorAttributes(part, device)


class TensorAttributes:
    """The tensors among an object's attributes as its state, for losses written for the host's loop."""

    def __init__(self, owner, device: torch.device):
        self.owner, self.device = owner, device

    def state_dict(self) -> dict:
        return {name: value for name, value in vars(self.owner).items() if isinstance(value, torch.Tensor)}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Fill the tensors, which others may share; set those that a new object does not have yet."""
        for name, value in state.items():
            own = getattr(self.owner, name, None)
            if isinstance(own, torch.Tensor) and own.shape == value.shape:
                own.copy_(value)
            else:
                setattr(self.owner, name, value.to(self.device))
