"""The host's InfiniteSampler can be constructed again."""

import torch
from torch_utils import misc

WHAT = 'misc.InfiniteSampler: its base class takes the data set again, so training starts'
WHY = 'It passes its data set on to torch.utils.data.Sampler, whose constructor takes no argument any more: TypeError.'
VERSIONS = 'torch releases from late 2025 on (pytorch/pytorch#163134); seen with 2.13'


class _SamplerOfDataset(torch.utils.data.Sampler):
    def __init__(self, data_source: torch.utils.data.Dataset) -> None:
        """Take the data set as torch's Sampler used to, and like that one do nothing with it."""


def needed() -> bool:
    """Whether constructing one fails."""
    try:
        misc.InfiniteSampler([0])
    except TypeError:
        return True
    return False


def apply() -> None:
    """Put a base class in between that takes the argument; everything else stays the host's."""
    misc.InfiniteSampler.__bases__ = (_SamplerOfDataset,)
