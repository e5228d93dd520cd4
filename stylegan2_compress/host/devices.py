"""Which device a command runs on."""

import os

import torch

from stylegan2_compress.errors import UserError


def choose(name: str | None = None) -> torch.device:
    """The torch device of that name; for None, CUDA where there is one and the CPU elsewhere.

    Raises:
        UserError: There is no such device, or it does not work here.
    """
    if name is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):  # What torch raises for unknown and for absent devices.
        device = None
    if device is None or device.type not in ('cpu', 'cuda'):
        raise UserError(f'--device={name} is none that works here: try cpu.')
    return device


def prepare_for_cpu(args: dict) -> None:
    """FP16 blocks and pinned memory are for GPUs."""
    for kwargs in (args.G_kwargs.get('synthesis_kwargs', {}), args.D_kwargs):
        if kwargs.get('num_fp16_res'):
            kwargs['num_fp16_res'] = 0
    args.data_loader_kwargs.pin_memory = False
    args.data_loader_kwargs.num_workers = min(args.data_loader_kwargs.num_workers, os.cpu_count() or 1)


def precision(device: torch.device) -> dict[str, bool]:
    """Keyword arguments of a forward pass of the host's networks on a device: FP32 everywhere but on CUDA.

    The host's FP16 blocks have no fast path on a CPU, and some of their operations none at all.
    """
    return {} if device.type == 'cuda' else {'force_fp32': True}
