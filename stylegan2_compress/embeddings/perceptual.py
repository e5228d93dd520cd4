"""Perceptual distance between images: a distance between intermediate feature maps of a network."""

from collections.abc import Sequence

import torch

from stylegan2_compress.embeddings.base import Embedding


def perceptual_distance(embedding: Embedding, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Distance of pairs of images: LPIPS, or LPIPS with equal weights for all channels (Zhang et al. 2018).

    In every layer, the vectors at each position are scaled to unit length; their squared distances are averaged over
    positions, then over layers. LPIPS itself weights channels by human judgements, which exist only for its own
    network, and adds layers up: that is the distance of the embedding `lpips`.

    Args:
        embedding: one with layers.
        x, y: images [N, C, H, W] in [-1, 1].

    Returns:
        [N], from 0 for equal images, with equal weights to 4; differentiable.

    Raises:
        UserError: the network exposes no layers.
    """
    return distance_of_layers(embedding.layers(x), embedding.layers(y), embedding.channel_weights)


def distance_of_layers(
    x: Sequence[torch.Tensor], y: Sequence[torch.Tensor], channel_weights: Sequence[torch.Tensor] | None = None
) -> torch.Tensor:
    """`perceptual_distance` of images whose layers [N, channels, h, w] are known: [N]."""
    squares = [(_unit(a) - _unit(b)).square() for a, b in zip(x, y, strict=True)]
    if channel_weights is None:
        return sum(square.sum(dim=1).mean(dim=(1, 2)) for square in squares) / len(squares)  # pyright: ignore[reportReturnType]  # The sum of no layers would be 0.
    pairs = zip(squares, channel_weights, strict=True)
    return sum(torch.einsum('nchw,c->nhw', square, weight).mean(dim=(1, 2)) for square, weight in pairs)  # pyright: ignore[reportReturnType]


def _unit(maps: torch.Tensor) -> torch.Tensor:
    """Vectors [N, C, h, w] scaled to unit length at each position; zero stays zero, with a finite gradient."""
    return maps * (maps.square().sum(dim=1, keepdim=True) + 1e-10).rsqrt()
