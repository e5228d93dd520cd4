"""The alternating phases of GAN training: which module, which optimizer, how often."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import dnnlib
import torch

from stylegan2_compress import distributed


class Stopwatch:
    """The time between `start` and `stop`: on CUDA by events in the device's current stream, else by the wall clock."""

    def __init__(self, device: torch.device):
        self.device = device
        self.events = None
        if device.type == 'cuda':
            self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self.started = 0.0
        self.elapsed: float | None = None

    def start(self) -> None:
        """Start measuring; the last time is kept until `stop`."""
        if self.events:
            self.events[0].record(torch.cuda.current_stream(self.device))
        self.started = time.perf_counter()

    def stop(self) -> None:
        """Stop measuring."""
        if self.events:
            self.events[1].record(torch.cuda.current_stream(self.device))
        self.elapsed = time.perf_counter() - self.started

    def milliseconds(self) -> list[float]:
        """The last time measured, as a list for `training_stats.report0`: empty if nothing was measured yet."""
        if self.elapsed is None:
            return []
        if self.events:
            self.events[1].synchronize()
            return [self.events[0].elapsed_time(self.events[1])]
        return [self.elapsed * 1e3]


@dataclass
class Phase:
    """One backward and optimizer step: `Gmain`, `Greg`, `Gboth`, `Dmain`, `Dreg` or `Dboth`."""

    name: str
    module: torch.nn.Module
    opt: torch.optim.Optimizer
    interval: int  # Runs at every interval-th step; the loss is multiplied by it.
    stopwatch: Stopwatch
    parameters: list[torch.nn.Parameter] = field(init=False)
    lr: float = field(init=False)  # The optimizer's, of which steps may take a part.

    def __post_init__(self):
        self.parameters = list(self.module.parameters())
        self.lr = self.opt.param_groups[0]['lr']

    def begin(self, lr_share: float = 1) -> None:
        """Delete the gradients of the last step, and let the module have new ones, for a step at this part of `lr`."""
        self.stopwatch.start()
        for group in self.opt.param_groups:
            group['lr'] = self.lr * lr_share
        self.opt.zero_grad(set_to_none=True)
        self.module.requires_grad_(True)

    def finish(self, rounds: int) -> None:
        """Step the optimizer with the mean gradient of the batch.

        Args:
            rounds: in how many rounds this process did its share of the batch.
        """
        self.module.requires_grad_(False)
        distributed.average_gradients(self.parameters, rounds)
        self.opt.step()
        self.stopwatch.stop()


def load_optimizer(opt: torch.optim.Optimizer, state: dict) -> None:
    """Give an optimizer what its `state_dict` returned, perhaps on a device with another memory format.

    Fused steps take parameters and moments in the order of memory: they are to have the same strides.
    """
    opt.load_state_dict(state)
    for parameter, moments in opt.state.items():
        for name, value in moments.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                moments[name] = torch.empty_like(parameter).copy_(value)


class MovingAverages:
    """Tensors that every forward pass moves, such as the average of W, made independent of how a batch is split.

    In a phase, every round of every process starts from the same values, and the results are averaged: one round with
    all the images does the same. Results that are not finite are discarded.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]):
        self.tensors = list(tensors)

    def begin(self) -> None:
        """Start a phase."""
        self.before = [tensor.clone() for tensor in self.tensors]
        self.sums = [torch.zeros_like(tensor) for tensor in self.tensors]
        self.rounds = 0

    @contextlib.contextmanager
    def round(self) -> Iterator[None]:
        """A context for the forward passes of one round."""
        for tensor, before in zip(self.tensors, self.before, strict=True):
            tensor.copy_(before)
        yield
        for tensor, total in zip(self.tensors, self.sums, strict=True):
            total += tensor
        self.rounds += 1

    def finish(self, used: bool) -> None:
        """End the phase. A step that was left out, not `used`, does not change the tensors."""
        if not used:
            self.sums = self.before
        else:
            for total in self.sums:
                total /= self.rounds
            distributed.average(self.sums)
        for tensor, before, mean in zip(self.tensors, self.before, self.sums, strict=True):
            tensor.copy_(torch.where(mean.isfinite().all(), mean, before))


FUSED = ('torch.optim.Adam', 'torch.optim.AdamW')  # Optimizers that can step all parameters in one operation.


def build_phases(networks, device: torch.device) -> list[Phase]:
    """Phases for each `(letter, module, opt_kwargs, reg_interval)`, in the order they run.

    With a `reg_interval`, regularisation is lazy (StyleGAN2, appendix B): it runs every so many steps in a phase of
    its own, and learning rate and betas shrink so that one optimizer serves both. With None there is one phase.

    Optimizers that can are `fused`, unless told otherwise. Their states are those of others, in both directions, and
    say which it was: a run that was started without goes on without.
    """
    phases = []
    for letter, module, opt_kwargs, reg_interval in networks:
        intervals = {'both': 1} if reg_interval is None else {'main': 1, 'reg': reg_interval}
        opt_kwargs = dict(opt_kwargs)
        lazy_ratio = 1 if reg_interval is None else reg_interval / (reg_interval + 1)
        opt_kwargs['lr'] *= lazy_ratio
        opt_kwargs['betas'] = [float(beta) ** lazy_ratio for beta in opt_kwargs['betas']]
        if opt_kwargs.get('class_name') in FUSED and device.type in ('cpu', 'cuda'):
            opt_kwargs.setdefault('fused', True)
        opt = dnnlib.util.construct_class_by_name(module.parameters(), **opt_kwargs)
        phases += [Phase(letter + kind, module, opt, n, Stopwatch(device)) for kind, n in intervals.items()]
    return phases
