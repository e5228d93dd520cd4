"""The device that a command runs on, and what depends on it."""

import contextlib
import os
import re
from collections.abc import Iterator

import dnnlib
import torch

from stylegan2_compress import distributed
from stylegan2_compress.errors import UserError

WITHOUT_FLOAT64 = ('mps',)


def choose(name: str | None = None) -> torch.device:
    """The torch device of that name; for None, CUDA if it is available and the CPU otherwise.

    Nothing is put on it: of several processes, each would take memory of the first GPU.

    Raises:
        UserError: the device does not exist or is not available here.
    """
    if name is None:
        return distributed.named_device(None)
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or (device.index or 0) >= _count(device.type):
        instead = 'mps or cpu' if torch.backends.mps.is_available() else 'cpu'
        raise UserError(f'--device={name} is not available here: try {instead}.')
    return device


def _count(kind: str) -> int:
    """How many devices of a type are here."""
    if kind == 'cuda':
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == 'mps':
        return int(torch.backends.mps.is_available())
    return int(kind == 'cpu')


def has_float64(device: torch.device | str) -> bool:
    """Whether tensors on a device can be of double precision."""
    return torch.device(device).type not in WITHOUT_FLOAT64


def in_float64(x: torch.Tensor) -> torch.Tensor:
    """A tensor in double precision: on its device if that has any, else on the CPU."""
    return (x if has_float64(x.device) else x.cpu()).double()


@contextlib.contextmanager
def fitting(too_large: str) -> Iterator[None]:
    """If the device's memory does not suffice for the block, say what is too large, and what to do.

    Raises:
        UserError: with that sentence.
    """
    try:
        yield
    except RuntimeError as error:
        if not re.search('out of memory|not enough memory|allocate memory|ALLOC_FAILED', str(error)):
            raise
        raise UserError(too_large) from error


def fitting_batch(batch: int, device: torch.device | str) -> contextlib.AbstractContextManager[None]:
    """`fitting` for what a command does with `--batch` images at a time."""
    return fitting(f'--batch={batch} is more than memory holds on {device}: give a smaller one.')


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """A random state of its own for the block: the global one is neither used nor changed, save that of MPS."""
    with torch.random.fork_rng([device] if device.type == 'cuda' else []):
        torch.manual_seed(seed)
        yield


def prepare_without_cuda(args: dnnlib.EasyDict) -> None:
    """Change a training loop's arguments for all but CUDA: no FP16, no pinned memory, a worker per core at most."""
    for kwargs in (args.G_kwargs.get('synthesis_kwargs', {}), args.D_kwargs):
        if kwargs.get('num_fp16_res'):
            kwargs['num_fp16_res'] = 0
    args.data_loader_kwargs.pin_memory = False
    args.data_loader_kwargs.num_workers = min(args.data_loader_kwargs.num_workers, os.cpu_count() or 1)


def precision(device: torch.device) -> dict[str, bool]:
    """Keyword arguments of a forward pass of the host's networks on a device: FP32 on everything but CUDA.

    On a CPU the host's FP16 blocks are not faster, and some of their operations do not exist.
    """
    return {} if device.type == 'cuda' else {'force_fp32': True}


def set_backends(cudnn_benchmark: bool = True, allow_tf32: bool = False) -> None:
    """Set the switches of cuDNN, which are global; by default as the host's calc_metrics.py does.

    Torch computes convolutions in TF32 until that is switched off.
    """
    torch.backends.cudnn.benchmark = cudnn_benchmark
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow_tf32
