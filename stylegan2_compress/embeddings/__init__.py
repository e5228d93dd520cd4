"""Frozen networks that turn images into vectors: `load('efficientnet_lite0@size=64', device)`.

`specs` has the grammar of spec strings, `sources` the table of networks, `base` the module that all of them become;
the other files each load one kind of network.
"""

import torch

from stylegan2_compress.embeddings.base import Embedding
from stylegan2_compress.embeddings.sources import find, parse
from stylegan2_compress.embeddings.specs import Spec, split

__all__ = ['Embedding', 'Spec', 'load', 'parse', 'split']


def load(spec: str | Spec, device: torch.device | str) -> Embedding:
    """Load the embedding network that a spec names, frozen, onto a device.

    Raises:
        UserError: The spec is not valid, the weights cannot be had (says what to install, download or pass), or the
            network does not map a batch of images of that size to vectors.
    """
    spec = spec if isinstance(spec, Spec) else parse(str(spec))  # A loss argument 3 comes as a number.
    device = torch.device(device)
    network, preprocessing = find(spec).load(spec, device)
    return Embedding(spec, network, preprocessing, device)
