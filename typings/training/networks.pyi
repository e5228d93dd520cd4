from collections.abc import Callable
from typing import Any

import torch

modulated_conv2d: Callable[..., torch.Tensor]

class _Module(torch.nn.Module):
    """What persistent classes have in common. Their constructors take what the host's take."""

    init_args: tuple[Any, ...]
    init_kwargs: dict[str, Any]
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    def __getattr__(self, name: str) -> Any: ...

class FullyConnectedLayer(_Module):
    weight: torch.nn.Parameter
    bias: torch.nn.Parameter | None

class Conv2dLayer(_Module):
    weight: torch.nn.Parameter
    bias: torch.nn.Parameter | None

class SynthesisLayer(_Module):
    weight: torch.nn.Parameter
    bias: torch.nn.Parameter
    affine: FullyConnectedLayer

class ToRGBLayer(_Module):
    weight: torch.nn.Parameter
    bias: torch.nn.Parameter
    affine: FullyConnectedLayer

class MappingNetwork(_Module):
    num_ws: int
    num_layers: int
    w_avg: torch.Tensor

class SynthesisBlock(_Module):
    resolution: int
    use_fp16: bool
    is_last: bool
    channels_last: bool

class SynthesisNetwork(_Module):
    block_resolutions: list[int]
    num_ws: int

class Generator(_Module):
    z_dim: int
    c_dim: int
    w_dim: int
    img_resolution: int
    img_channels: int
    num_ws: int
    mapping: MappingNetwork
    synthesis: SynthesisNetwork

class Discriminator(_Module):
    c_dim: int
    img_resolution: int
    img_channels: int
    block_resolutions: list[int]

def __getattr__(name: str) -> Any: ...
