"""Weight files: from a spec or a URL into a network."""

import pickle
from collections.abc import Callable

import dnnlib
import torch
from torch import Tensor, nn

from stylegan2_compress.embeddings.specs import Spec
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import downloads


def local_path(spec: Spec, url: str) -> str:
    """Path of a preset's weights: `@weights=PATH` if given, or the cached download.

    Raises:
        UserError: the file cannot be downloaded.
    """
    return spec.weights or download(spec, url, f'download it yourself and use {spec.name}@weights=PATH')


def download(spec: Spec, url: str, way_out: str) -> str:
    """Path of a URL's content in the host's cache (`DNNLIB_CACHE_DIR`), downloaded if it is not there yet.

    Args:
        spec: for the error.
        url: to download.
        way_out: for the error: what to do if the download fails.

    Raises:
        UserError: the download fails.
    """
    downloads.writable_cache()
    try:
        return dnnlib.util.open_url(url, return_filename=True)
    except (OSError, AssertionError) as error:  # The host asserts that a URL is well-formed.
        reason = type(error).__name__
        raise UserError(f'Embedding {spec} cannot download {url} ({reason}): try again, or {way_out}.') from error


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
