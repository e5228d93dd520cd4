"""The alternating phases of GAN training: which module, which optimizer, how often."""

import time
from dataclasses import dataclass, field

import dnnlib
import torch
from torch_utils import misc


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

    def finish(self) -> None:
        """Step the optimizer. Non-finite gradients become 0 or ±1e5, as in the host."""
        self.module.requires_grad_(False)
        for parameter in self.parameters:
            if parameter.grad is not None:
                misc.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
        self.opt.step()
        self.stopwatch.stop()


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
