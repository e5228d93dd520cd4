"""Modulated convolutions on a CPU scale activations, not one set of weights per image."""

import torch
from torch_utils.ops import conv2d_resample, fma
from training import networks

WHAT = 'CPU: modulated convolutions with one set of weights for all images'
WHY = (
    'For evaluation the host makes weights for every image and convolves in groups, which suits GPUs: on a CPU, '
    'batches of 8 and more take 1.5 to 1.7 times as long.'
)
VERSIONS = 'all'

_host_function = networks.modulated_conv2d


def needed() -> bool:
    """Whether the host still has its own: it is the algorithm, not a version, that costs the time."""
    return networks.modulated_conv2d is not _modulated_conv2d


def apply() -> None:
    """Replace what the layers of the host's networks call."""
    networks.modulated_conv2d = _modulated_conv2d


def _modulated_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor,
    noise: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int = 0,
    resample_filter: torch.Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    fused_modconv: bool = True,
) -> torch.Tensor:
    """Convolve with weights that each image scales; arguments and result as of the host's `modulated_conv2d`.

    Scaling inputs by the styles and outputs by d = (Σ (s·w)² + ε)^(-1/2), StyleGAN2's equation 3, is the same but for
    rounding. As s does not depend on the position in the kernel, the sum is a matrix product of s² and Σ_k w².

    Elsewhere than on a CPU, and in FP16, whose range the host's normalisation is for, it is the host's function.
    """
    resampling = dict(up=up, down=down, padding=padding, flip_weight=flip_weight)
    if x.device.type != 'cpu' or x.dtype == torch.float16:
        own = dict(resample_filter=resample_filter, demodulate=demodulate, fused_modconv=fused_modconv)
        return _host_function(x, weight, styles, noise, **own, **resampling)
    if weight.shape[2:] == (1, 1) and up == down == 1 and padding == 0 and not demodulate and noise is None:
        scaled = weight.flatten(1) * styles[:, None]  # The colours of an image are a product of matrices.
        return torch.bmm(scaled.to(x.dtype), x.flatten(2)).unflatten(2, x.shape[2:])
    x = x * styles.to(x.dtype)[:, :, None, None]
    x = conv2d_resample.conv2d_resample(x=x, w=weight.to(x.dtype), f=resample_filter, **resampling)
    if not demodulate:
        return x if noise is None else x + noise.to(x.dtype)
    squared_norms = styles.square() @ weight.square().sum(dim=[2, 3]).t()
    d = (squared_norms + 1e-8).rsqrt().to(x.dtype)[:, :, None, None]
    return x * d if noise is None else fma.fma(x, d, noise.to(x.dtype))
