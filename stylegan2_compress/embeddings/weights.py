"""Weight files: from a spec or a URL into a network."""

import pickle
from collections.abc import Callable

import torch
from torch import Tensor, nn

from stylegan2_compress.embeddings.specs import Spec
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import downloads


def local_path(spec: Spec, url: str, sha256: str | None = None) -> str:
    """Path of a preset's weights: `@weights=PATH` if given, or the cached download.

    Args:
        spec: of the preset.
        url: of its weights.
        sha256: of what is downloaded, if it is known.

    Raises:
        UserError: the file cannot be downloaded.
    """
    way_out = (
        f'download it yourself and use {spec.name}@weights=PATH, or an embedding that needs no download, such as '
        'efficientnet_lite0'
    )
    return spec.weights or downloads.download(url, sha256, way_out)


def fill(network: nn.Module, spec: Spec, path: str, renamed: Callable[[str], str | None] = str) -> None:
    """Load a state dict from a file into a network. No weight of the network may be missing.

    Args:
        network: gets the weights.
        spec: for the error.
        path: a file by `torch.save`; nothing in it is executed.
        renamed: maps a name in the file to the name in the network, or to None for weights that the network lacks.

    Raises:
        UserError: the file holds something else.
    """
    try:
        weights: dict[str, Tensor] = torch.load(path, map_location='cpu', weights_only=True)
        network.load_state_dict({new: tensor for name, tensor in weights.items() if (new := renamed(name))})
    except (OSError, EOFError, pickle.UnpicklingError, RuntimeError, AttributeError, TypeError) as error:
        raise UserError(
            f'Embedding {spec} cannot use {path!r}: it does not hold the weights of {spec.name}.'
        ) from error
