"""Perceptual distance between images: a distance between intermediate feature maps of a network."""

import torch

from stylegan2_compress.embeddings.base import Embedding


def perceptual_distance(embedding: Embedding, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Distance of pairs of images: LPIPS with equal weights for all channels (Zhang et al. 2018).

    In every layer, the vectors at each position are scaled to unit length; their squared distances are averaged over
    positions, then over layers. LPIPS itself weights channels by human judgements, which exist only for its own
    networks.

    Args:
        embedding: one with layers.
        x, y: images [N, C, H, W] in [-1, 1].

    Returns:
        [N], from 0 for equal images to 4; differentiable.

    Raises:
        UserError: the network exposes no layers.
    """
    layers = list(zip(embedding.layers(x), embedding.layers(y), strict=True))
    distances = [(_unit(a) - _unit(b)).square().sum(dim=1).mean(dim=(1, 2)) for a, b in layers]
    return sum(distances) / len(distances)  # pyright: ignore[reportReturnType]  # The sum of no layers would be 0.


def _unit(maps: torch.Tensor) -> torch.Tensor:
    """Vectors [N, C, h, w] scaled to unit length at each position; zero stays zero, with a finite gradient."""
    return maps * (maps.square().sum(dim=1, keepdim=True) + 1e-10).rsqrt()
