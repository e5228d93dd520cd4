"""The alternating phases of GAN training: which module, which optimizer, how often."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import dnnlib
import torch

from stylegan2_compress import distributed


class Stopwatch:
    """Time between `start` and `stop` on one device: CUDA events there, the wall clock elsewhere."""

    def __init__(self, device: torch.device):
        self.events = None
        if device.type == 'cuda':
            self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self.started = self.elapsed = None

    def start(self) -> None:
        if self.events:
            self.events[0].record()
        self.started = time.perf_counter()

    def stop(self) -> None:
        if self.events:
            self.events[1].record()
        self.elapsed = time.perf_counter() - self.started

    def milliseconds(self) -> list[float]:
        """The last time measured, or nothing if there was none, as `training_stats.report0` wants it."""
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

    def __post_init__(self):
        self.parameters = list(self.module.parameters())

    def begin(self) -> None:
        self.stopwatch.start()
        self.opt.zero_grad(set_to_none=True)
        self.module.requires_grad_(True)

    def has_gradients(self) -> bool:
        """Whether the loss has left any: it leaves out steps whose loss is not finite."""
        return any(parameter.grad is not None for parameter in self.parameters)

    def finish(self, rounds: int) -> None:
        """Step the optimizer with the mean gradient of the batch, of which this process did so many rounds."""
        self.module.requires_grad_(False)
        distributed.average_gradients(self.parameters, rounds)
        self.opt.step()
        self.stopwatch.stop()


class MovingAverages:
    """Tensors that every forward pass moves, such as the average of W, kept independent of how a batch is split.

    In a phase, every round of every process starts from the same values, and the results are averaged: one round with
    all the images does the same. Values that are not finite are forgotten.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]):
        self.tensors = list(tensors)

    def begin(self) -> None:
        self.before = [tensor.clone() for tensor in self.tensors]
        self.sums = [torch.zeros_like(tensor) for tensor in self.tensors]
        self.rounds = 0

    @contextlib.contextmanager
    def round(self) -> Iterator[None]:
        for tensor, before in zip(self.tensors, self.before, strict=True):
            tensor.copy_(before)
        yield
        for tensor, total in zip(self.tensors, self.sums, strict=True):
            total += tensor
        self.rounds += 1

    def finish(self, used: bool) -> None:
        """End the phase. A step that the loss left out, not `used`, leaves the averages alone."""
        if not used:
            self.sums = self.before
        else:
            for total in self.sums:
                total /= self.rounds
            distributed.average(self.sums)
        for tensor, before, mean in zip(self.tensors, self.before, self.sums, strict=True):
            tensor.copy_(torch.where(mean.isfinite().all(), mean, before))


def build_phases(networks, device: torch.device) -> list[Phase]:
    """Phases for each `(letter, module, opt_kwargs, reg_interval)`, in the order they run.

    With a `reg_interval`, regularisation is lazy (StyleGAN2, appendix B): it runs every so many steps in a phase of
    its own, and learning rate and betas shrink so that one optimizer serves both. With None there is one phase.
    """
    phases = []
    for letter, module, opt_kwargs, reg_interval in networks:
        intervals = {'both': 1} if reg_interval is None else {'main': 1, 'reg': reg_interval}
        opt_kwargs = dict(opt_kwargs)
        lazy_ratio = 1 if reg_interval is None else reg_interval / (reg_interval + 1)
        opt_kwargs['lr'] *= lazy_ratio
        opt_kwargs['betas'] = [float(beta) ** lazy_ratio for beta in opt_kwargs['betas']]
        opt = dnnlib.util.construct_class_by_name(module.parameters(), **opt_kwargs)
        phases += [Phase(letter + kind, module, opt, n, Stopwatch(device)) for kind, n in intervals.items()]
    return phases
