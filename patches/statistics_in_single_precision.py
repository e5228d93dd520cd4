"""Statistics of tensors on devices that have no double precision."""

import torch
from torch_utils import training_stats

WHAT = 'training_stats: statistics of tensors on MPS, in single precision until they are read'
WHY = 'The host counts in float64, which MPS does not have: TypeError in the first step.'
VERSIONS = 'all of them, where torch has MPS'
DEVICES = ('mps',)


def needed() -> bool:
    """Whether there is such a device."""
    return torch.backends.mps.is_available()


def apply() -> None:
    """Let `training_stats.report` count the tensors of these devices otherwise."""
    training_stats.report = _reporting(training_stats.report)


def _reporting(hosts):
    def report(name: str, value):
        if not (isinstance(value, torch.Tensor) and value.device.type in DEVICES):
            return hosts(name, value)
        counters = training_stats._counters.setdefault(name, {})
        numbers = value.detach().flatten().float()
        if numbers.numel():
            sums = torch.stack([torch.ones_like(numbers).sum(), numbers.sum(), numbers.square().sum()])
            counters[value.device] = counters.get(value.device, torch.zeros_like(sums)) + sums
        return value

    return report
