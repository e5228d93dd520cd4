"""The device that a command runs on, and what depends on it."""

import os

import dnnlib
import torch

from stylegan2_compress.errors import UserError


def choose(name: str | None = None) -> torch.device:
    """The torch device of that name; for None, CUDA if it is available and the CPU otherwise.

    Raises:
        UserError: the device does not exist or is not available here.
    """
    if name is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):  # Torch raises these for unknown and for unavailable devices.
        device = None
    if device is None or device.type not in ('cpu', 'cuda'):
        raise UserError(f'--device={name} is not available here: try cpu.')
    return device


def prepare_for_cpu(args: dnnlib.EasyDict) -> None:
    """Change a training loop's arguments for a CPU: no FP16 blocks, no pinned memory, a worker per core at most."""
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
