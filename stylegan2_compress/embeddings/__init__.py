"""Frozen networks that turn images into vectors: `load('efficientnet_lite0@size=64', device)`.

`specs` has the grammar of spec strings, `presets` the table of networks, and `base` the module that wraps them. Each of
the other files loads one kind of network, except for `layers`, several layers as one vector, and `perceptual`, a
distance between layers.
"""

import torch

from stylegan2_compress.embeddings.base import Embedding
from stylegan2_compress.embeddings.layers import LayerMeans
from stylegan2_compress.embeddings.presets import loader_of, parse
from stylegan2_compress.embeddings.specs import Spec, split

__all__ = ['Embedding', 'Spec', 'load', 'parse', 'split']


def load(spec: str | Spec, device: torch.device | str, resolution: int | None = None) -> Embedding:
    """Load the embedding network that a spec names, frozen, to a device.

    Args:
        spec: names the network.
        device: where it will run.
        resolution: side of the images that it will see, if they are to be tried.

    Raises:
        UserError: the spec is not valid, the weights cannot be loaded (says what to install, download or pass), or the
            network does not map images of that size to vectors.
    """
    spec = spec if isinstance(spec, Spec) else parse(str(spec))  # A loss argument `3` is a number by now.
    device = torch.device(device)
    network, preprocessing = loader_of(spec).load(spec, device)
    if spec.layers is not None:
        network = LayerMeans(network, spec)
    embedding = Embedding(spec, network, preprocessing, device)
    if resolution is not None:
        embedding.require_images(resolution)
    return embedding
