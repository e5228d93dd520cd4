"""Which device a command runs on."""

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
