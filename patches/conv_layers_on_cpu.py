"""Layers of discriminators on a CPU: bias and gain within the convolution."""

import torch
from torch.nn import functional
from torch_utils.ops import bias_act, upfirdn2d
from training import networks

from stylegan2_compress.patches.bias_act_on_cpu import HOMOGENEOUS, applies_to, bounded, effective_gain

WHAT = "CPU: the discriminator's layers (Conv2dLayer) with bias and gain inside the convolution"
WHY = (
    'The host adds the bias and multiplies by the gain in passes of their own, forwards and backwards, and convolves '
    'one to four colours into maps by a routine that is made for many channels.'
)
VERSIONS = 'all'

FEW_CHANNELS = 4  # Up to so many inputs, a product of matrices is faster than a 1x1 convolution.

_host_function = networks.Conv2dLayer.forward


def needed() -> bool:
    """Whether the host still has its own: it is the algorithm, not a version, that costs the time."""
    return networks.Conv2dLayer.forward is not _forward


def apply() -> None:
    """Replace the forward pass of the host's class, and so of networks that exist already."""
    networks.Conv2dLayer.forward = _forward


def _forward(self, x: torch.Tensor, gain: float = 1) -> torch.Tensor:
    """Resample, convolve, activate; arguments and result as of the host's `Conv2dLayer.forward`.

    The gain g is in the weights and the bias, as f(g·x) = g·f(x); that differs by rounding only.

    Elsewhere than on a CPU, for other activations, and for layers that upsample, it is the host's function.
    """
    if not applies_to(x) or self.activation not in HOMOGENEOUS or self.up > 1 or gain <= 0:
        return _host_function(self, x, gain=gain)
    scale = effective_gain(self.act_gain * gain, x.dtype)
    w = (self.weight * (self.weight_gain * scale)).to(x.dtype)
    b = None if self.bias is None else self.bias.to(x.dtype) * scale
    kernel_size, stride, padding = w.shape[2], 1, self.padding
    if self.down > 1:
        before, after = ((self.resample_filter.shape[-1] - self.down + odd) // 2 + padding for odd in (1, 0))
        at_once = self.down if kernel_size == 1 else 1  # What only the convolution's corners would see is not made.
        x = upfirdn2d.upfirdn2d(x, self.resample_filter, down=at_once, padding=[before, after, before, after])
        stride, padding = self.down // at_once, 0
    if kernel_size == 1 and x.shape[1] <= FEW_CHANNELS and b is not None:
        side = x.shape[2:]
        maps = w.flatten(1).expand(len(x), -1, -1)
        x = torch.baddbmm(b[:, None], maps, x.flatten(2))
        return _activated(self, x, gain).unflatten(2, side)
    return _activated(self, functional.conv2d(x, w, b, stride=stride, padding=padding), gain)


def _activated(layer: networks.Conv2dLayer, x: torch.Tensor, gain: float) -> torch.Tensor:
    """The activation and the clamp, of maps that may be changed."""
    if layer.activation == 'lrelu':
        x = functional.leaky_relu_(x, bias_act.activation_funcs['lrelu'].def_alpha)
    return x if layer.conv_clamp is None else bounded(x, layer.conv_clamp * gain)
