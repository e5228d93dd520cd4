"""Reading and writing networks: the host's pickles of any age, and safetensors.

    from stylegan2_compress import pickles

    data = pickles.load('ffhq.pkl')  # Runs nothing of what the file contains.
    pickles.save('ffhq.safetensors', data)

The dictionaries have the host's keys: G, D, G_ema, training_set_kwargs, augment_pipe.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import dnnlib
import requests
import torch

from stylegan2_compress import files
from stylegan2_compress.errors import UserError
from stylegan2_compress.files import sha256 as sha256
from stylegan2_compress.pickles import host_pickle, report, safetensors_file
from stylegan2_compress.pickles.contents import Refused
from stylegan2_compress.pickles.machine import Malformed
from stylegan2_compress.pickles.rebuild import Mismatch

TRUSTING = '`prune`, `profile`, `convert`, `evaluate` and `compare`'  # The commands that have --trust.
KEYS = ('G', 'D', 'G_ema', 'training_set_kwargs', 'augment_pipe')


def load(path: str | os.PathLike, trust: bool = False, device: str | torch.device = 'cpu') -> dict[str, Any]:
    """Read the networks in a pickle or safetensors file.

    Nothing in the file is executed: networks become instances of the local host's classes, or of ours, with the
    constructor arguments and the state on record. Where a class's source in a pickle differs from the local one in a
    way that may change the network, a warning says so. TensorFlow pickles go through the host's converter.

    Args:
        path: A file, or an http(s) URL, which the host's download cache keeps.
        trust: Let the host load a pickle instead, which runs the source code in it and anything else it asks for.
        device: Where to put the networks.

    Returns:
        The file's dictionary with at least `KEYS`; None for what the file lacks. Networks are as stored: the host
        stores them in eval mode and with `requires_grad` off.

    Raises:
        UserError: There is no such file, or no networks can be read from it.
    """
    local = local_file(path)
    with _in_a_sentence(path):
        if _is_safetensors(path):
            data = safetensors_file.read(local)
        elif trust:
            data = host_pickle.read_trusting(local)
        else:
            data = host_pickle.read(local)
    data = {**dict.fromkeys(KEYS), **data}
    return {key: value.to(device) if isinstance(value, torch.nn.Module) else value for key, value in data.items()}


def save(path: str | os.PathLike, data: dict[str, Any]) -> None:
    """Write networks, complete or not at all: as safetensors if `path` ends in that, else as the host's pickle.

    Args:
        path: File to write; one that is there is replaced.
        data: Dictionary with some of `KEYS` (the host opens pickles that have all of G, D and G_ema).

    Raises:
        UserError: The file cannot be written, or a network has no form as safetensors.
    """
    with files.atomic_write(path) as file:
        (safetensors_file if _is_safetensors(path) else host_pickle).write(file, data)


def inspect(path: str | os.PathLike) -> report.Report:
    """Look into a pickle or safetensors file, executing nothing of it and reading no weights.

    Pickles that `load` refuses are reported on as far as possible; classes need not be known.

    Args:
        path: A file, or an http(s) URL.

    Raises:
        UserError: There is no such file, or it holds no networks.
    """
    local = local_file(path)
    with _in_a_sentence(path):
        return report.of_safetensors(local) if _is_safetensors(path) else report.of_pickle(local)


def local_file(path: str | os.PathLike) -> str:
    """Where a file, or what a URL names, lies on this machine: the host's cache downloads it at first.

    Raises:
        UserError: The URL cannot be downloaded.
    """
    path = os.fspath(path)
    if not re.match('https?://', path):
        return path
    try:
        return dnnlib.util.open_url(path, return_filename=True)
    except (requests.RequestException, OSError, AssertionError) as error:
        raise UserError(f'Cannot download {path}: get it some other way, and name the file here.') from error


@contextlib.contextmanager
def _in_a_sentence(path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except Mismatch as error:
        raise UserError(
            f'{path} does not fit the local classes: {str(error)[:500]}; if you trust whoever made it, --trust of '
            f'{TRUSTING} (in Python trust=True) lets the host load it, which runs the code in it.'
        ) from error
    except Malformed as error:
        raise UserError(f'{path} is not a network file: {str(error)[:500]}.') from error
    except Refused as error:
        raise UserError(
            f'{path} {str(error)[:500]}. Nothing in it was run; if you trust whoever made it, --trust of '
            f'{TRUSTING} (in Python trust=True) lets it run its own code.'
        ) from error


def _is_safetensors(path: str | os.PathLike) -> bool:
    return os.fspath(path).endswith('.safetensors')
