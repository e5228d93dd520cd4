"""The host's layers in float64, for gradients that are compared with formulas written out."""

import types

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Float64Torch(types.ModuleType):
    """torch, with another meaning of one name."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


class NoFloat32(TorchDispatchMode):
    """Sees to it that no activation or gradient is rounded: only the resampling filters and scalars are float32."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
            assert out.numel() <= 16, (func, out.shape)
        return out


def in_float64(module):
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not name.endswith('resample_filter'):  # Eighths: exact in any precision, and the host wants float32.
            tensor.data = tensor.data.double()
    return module
