"""Bias, activation, gain and clamp on a CPU in two passes over the maps."""

import numpy as np
import torch
from torch.nn import functional
from torch_utils.ops import bias_act

WHAT = 'CPU: bias, activation, gain and clamp (bias_act) in two passes over the maps instead of four'
WHY = (
    'Without its CUDA kernel the host writes the maps out four times, multiplies even by gains that are 1, and clamps '
    'what is within the bounds: a pass of a discriminator and back takes 9 to 32 % longer for it.'
)
VERSIONS = 'all'

_host_function = bias_act._bias_act_ref

# Activations f with f(g·x) = g·f(x) for g > 0, by the name that the host gives them.
HOMOGENEOUS = ('linear', 'lrelu')


def needed() -> bool:
    """Whether the host still has its own: it is the algorithm, not a version, that costs the time."""
    return bias_act._bias_act_ref is not _bias_act


def apply() -> None:
    """Replace what runs where the host has no kernel of its own."""
    bias_act._bias_act_ref = _bias_act


def _bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None = None,
    dim: int = 1,
    act: str = 'linear',
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> torch.Tensor:
    """g·f(x + b), clamped; arguments and result as of the host's `bias_act`.

    With a gain, it is f(g·x + g·b), which differs by rounding only; without one, results are the same bit for bit.

    Elsewhere than on a CPU, for activations other than `HOMOGENEOUS`, and where the function is being traced, it is the
    host's.
    """
    spec = bias_act.activation_funcs[act]
    scale = effective_gain(spec.def_gain if gain is None else gain, x.dtype)
    if not applies_to(x) or act not in HOMOGENEOUS or scale <= 0:
        return _host_function(x, b, dim, act, alpha, gain, clamp)
    is_own = b is not None or scale != 1  # What is made here may be changed.
    if b is not None:
        b = b.reshape([-1 if axis == dim else 1 for axis in range(x.ndim)])
        x = x + b if scale == 1 else torch.add(b * scale, x, alpha=scale)
    elif scale != 1:
        x = x * scale
    if act == 'lrelu':
        slope = float(spec.def_alpha if alpha is None else alpha)
        # In place, derivatives are found from the results, which takes a slope above 0.
        x = functional.leaky_relu(x, slope, inplace=is_own and slope > 0)
    return x if clamp is None or clamp < 0 else bounded(x, clamp)


def applies_to(x: torch.Tensor) -> bool:
    """Whether these maps are on a CPU, in a precision for CPUs, and nobody is tracing what is done to them."""
    is_traced = torch.jit.is_tracing() or torch.compiler.is_compiling()  # pyright: ignore[reportPrivateImportUsage]
    return x.device.type == 'cpu' and x.dtype in (torch.float32, torch.float64) and x.numel() > 0 and not is_traced


def effective_gain(gain: float, dtype: torch.dtype) -> float:
    """The gain as a multiplication in this precision has it: √2 · √½ is 1 in FP32."""
    return float(np.float32(gain)) if dtype == torch.float32 else float(gain)


def bounded(x: torch.Tensor, limit: float) -> torch.Tensor:
    """`x.clamp(-limit, limit)`, which is x itself where that changes nothing: to look is less work than to clamp.

    Values and gradients are those of the clamp bit for bit.
    """
    low, high = torch.aminmax(x.detach())
    is_within = bool(low >= -limit) and bool(high <= limit)  # Not so for NaN.
    return x if is_within else x.clamp(-limit, limit)
