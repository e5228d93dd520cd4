"""Convolutions on CUDA go straight to torch."""

import warnings

import torch
from torch_utils.ops import conv2d_gradfix

WHAT = "conv2d_gradfix: torch's own convolutions, without a warning at every call"
WHY = (
    'The replacement knows torch 1.7 to 1.9; on any other it warns at each call and then does what torch does. '
    "Torch's own convolution has had gradients of any order since, and skips those nobody asked for."
)
VERSIONS = 'torch >= 1.10'


class _AsIfOnCuda(torch.Tensor):
    device = torch.device('cuda')


def needed() -> bool:
    """Whether a convolution of a CUDA tensor would warn that this torch is not supported (no GPU needed to know)."""
    enabled = conv2d_gradfix.enabled
    conv2d_gradfix.enabled = True
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            conv2d_gradfix._should_use_custom_op(torch.empty(0).as_subclass(_AsIfOnCuda))
    finally:
        conv2d_gradfix.enabled = enabled
    return len(caught) > 0


def apply() -> None:
    """Never choose the custom operation."""
    conv2d_gradfix._should_use_custom_op = lambda input: False
