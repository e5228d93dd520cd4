"""The host's loop can train on several GPUs: networks begin with the same buffers everywhere."""

import inspect

import torch
from torch.nn.parallel import distributed as ddp
from training import training_loop

from stylegan2_compress.distributed import broadcast_from_rank_zero
from stylegan2_compress.patches import With

WHAT = 'training on several GPUs: DistributedDataParallel hands on the buffers of the first process when it is made'
WHY = (
    'The host switches off that they are handed on in every step, which now goes for the start, too: constant noise '
    'differs, and only the first process has what was resumed. AssertionError at the first snapshot.'
)
VERSIONS = 'torch >= 2.1'


class _SameBuffers(ddp.DistributedDataParallel):
    """Also for the host's `isinstance`, which asks for the class of torch, one."""

    def __init__(self, module: torch.nn.Module, device_ids: list | None = None, broadcast_buffers: bool = True):
        broadcast_from_rank_zero(module.buffers())
        in_every_step = {_IN_EVERY_STEP: broadcast_buffers}
        super().__init__(module, device_ids=device_ids, **in_every_step)  # pyright: ignore[reportArgumentType]


# The host's name for it is deprecated where there is another.
_NAMES = inspect.signature(ddp.DistributedDataParallel).parameters
_IN_EVERY_STEP = 'forward_sync_buffers' if 'forward_sync_buffers' in _NAMES else 'broadcast_buffers'


def needed() -> bool:
    """Whether the wrapper asks if buffers are to be handed on when it is made."""
    hand_on = getattr(ddp, '_sync_module_states', None)  # None where torch was built without processes.
    return hand_on is not None and 'broadcast_buffers' in inspect.signature(hand_on).parameters


def apply() -> None:
    """Change what `torch.nn.parallel.DistributedDataParallel` means to the one module that wraps networks in it."""
    parallel = With(torch.nn.parallel, DistributedDataParallel=_SameBuffers)
    training_loop.torch = With(torch, nn=With(torch.nn, parallel=parallel))
