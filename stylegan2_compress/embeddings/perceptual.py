"""How different two images look: distances between a network's intermediate feature maps."""

import torch

from stylegan2_compress.embeddings import Embedding


def perceptual_distance(embedding: Embedding, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Distance of pairs of images, as LPIPS has it but with equal weights for all channels (Zhang et al. 2018).

    In every layer that the network shows, the vectors at each position are scaled to unit length; their squared
    distances are averaged over positions, then over layers. LPIPS proper weights channels by human judgements, which
    exist for its own networks only.

    Args:
        embedding: one with `layers`.
        x, y: images [N, C, H, W] in [-1, 1].

    Returns:
        [N], from 0 for equal images to 4; differentiable.

    Raises:
        UserError: The network shows no layers.
    """
    layers = list(zip(embedding.layers(x), embedding.layers(y), strict=True))
    return sum((_unit(a) - _unit(b)).square().sum(dim=1).mean(dim=(1, 2)) for a, b in layers) / len(layers)


def _unit(maps: torch.Tensor) -> torch.Tensor:
    """Vectors at each position [N, C, h, w] at unit length; zero stays zero, with a gradient that is finite."""
    return maps * (maps.square().sum(dim=1, keepdim=True) + 1e-10).rsqrt()
