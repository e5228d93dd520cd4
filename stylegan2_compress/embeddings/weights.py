"""Weight files: from the spec or from their URL, and into a network."""

import pickle
from collections.abc import Callable

import dnnlib
import torch
from torch import Tensor, nn

from stylegan2_compress.embeddings.specs import Spec
from stylegan2_compress.errors import UserError


def file(spec: Spec, url: str) -> str:
    """Path of a preset's weights: `@weights=PATH` if given, else the cached download.

    Raises:
        UserError: The file cannot be downloaded.
    """
    return spec.weights or downloaded(spec, url, f'download it yourself and use {spec.name}@weights=PATH')


def downloaded(spec: Spec, url: str, way_out: str) -> str:
    """Path of a URL's content in the host's cache (`DNNLIB_CACHE_DIR`), downloaded once.

    Raises:
        UserError: It cannot be downloaded.
    """
    try:
        return dnnlib.util.open_url(url, return_filename=True)
    except (OSError, AssertionError) as error:  # The host asserts that a URL has the form of one.
        reason = type(error).__name__
        raise UserError(f'Embedding {spec} cannot download {url} ({reason}): try again, or {way_out}.') from error


def fill(network: nn.Module, spec: Spec, path: str, renamed: Callable[[str], str | None] = str) -> None:
    """Load a state dict from a file into a network, all of it.

    Args:
        network: Gets the weights.
        spec: For the error.
        path: A file that `torch.save` wrote; nothing in it is executed.
        renamed: Turns a name in the file into a name in the network, or into None for what that has no place for.

    Raises:
        UserError: The file holds something else.
    """
    try:
        weights: dict[str, Tensor] = torch.load(path, map_location='cpu', weights_only=True)
        network.load_state_dict({renamed(name): tensor for name, tensor in weights.items() if renamed(name)})
    except (OSError, EOFError, pickle.UnpicklingError, RuntimeError, AttributeError, TypeError) as error:
        raise UserError(
            f'Embedding {spec} cannot use {path!r}: it does not hold the weights of {spec.name}.'
        ) from error
