"""Reading and writing networks: the host's pickles of any version, and safetensors.

    from stylegan2_compress import pickles

    data = pickles.load('ffhq.pkl')  # Executes none of the code in the file.
    pickles.save('ffhq.safetensors', data)

The dictionaries have the host's keys: G, D, G_ema, training_set_kwargs, augment_pipe.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from io import BufferedIOBase
from typing import Any

import dnnlib
import requests
import torch

from stylegan2_compress import files
from stylegan2_compress.errors import UserError
from stylegan2_compress.files import sha256 as sha256
from stylegan2_compress.pickles import host_pickle, mistakes, report, safetensors_file
from stylegan2_compress.pickles.contents import Refused
from stylegan2_compress.pickles.machine import Malformed
from stylegan2_compress.pickles.rebuild import Mismatch

TRUSTING = '`prune`, `profile`, `convert`, `evaluate` and `compare`'  # The commands that have --trust.
KEYS = ('G', 'D', 'G_ema', 'training_set_kwargs', 'augment_pipe')


def load(path: str | os.PathLike, trust: bool = False, device: str | torch.device = 'cpu') -> dict[str, Any]:
    """Read the networks in a pickle or safetensors file.

    Nothing in the file is executed: networks become instances of the local host's classes, or of ours, built from the
    recorded constructor arguments and state. A warning is given if the source code of a class in a pickle differs from
    the local one in a way that may change the network. TensorFlow pickles go through the host's converter.

    Args:
        path: a file, or an http(s) URL, which the host's download cache keeps.
        trust: let the host load a pickle instead, which runs the code in it.
        device: where to put the networks.

    Returns:
        The file's dictionary with at least `KEYS`; None for what the file lacks. Networks are as stored: the host
        stores them in eval mode and with `requires_grad` off.

    Raises:
        UserError: the file cannot be read, or contains no networks.
    """
    local = local_file(path)
    with files.opened(local) as (file, size):
        data = _read(path, local, file, size, trust)
    return {key: value.to(device) if isinstance(value, torch.nn.Module) else value for key, value in data.items()}


def load_with_sha256(path: str | os.PathLike) -> tuple[dict[str, Any], str]:
    """What `load` returns for a file, and the SHA-256 of its bytes in hexadecimal, from opening it once.

    The safetensors library opens a `.safetensors` file once more, because it takes paths only.

    Raises:
        UserError: the file cannot be read, or contains no networks.
    """
    local = local_file(path)
    with files.opened(local) as (file, size):
        digest = files.sha256_of_open(file)
        return _read(path, local, file, size), digest


def _read(path: str | os.PathLike, local: str, file: BufferedIOBase, size: int, trust: bool = False) -> dict[str, Any]:
    with _user_errors(path, file):
        if _is_safetensors(path):
            data = safetensors_file.read(local)
        elif trust:
            data = host_pickle.read_trusting(file, local)
        else:
            data = host_pickle.read(file, size, local)
    return {**dict.fromkeys(KEYS), **data}


def save(path: str | os.PathLike, data: dict[str, Any]) -> None:
    """Write networks, complete or not at all: as safetensors if `path` ends in that, else as the host's pickle.

    Args:
        path: file to write; an existing one is replaced.
        data: dictionary with some of `KEYS` (the host opens only pickles with all of G, D and G_ema).

    Raises:
        UserError: the file cannot be written, or a network cannot be stored as safetensors.
    """
    with files.atomic_write(path) as file:
        (safetensors_file if _is_safetensors(path) else host_pickle).write(file, data)


def inspect(path: str | os.PathLike) -> report.Report:
    """Describe a pickle or safetensors file without executing any of it or reading the weights.

    Pickles that `load` refuses are described as far as possible; classes need not be known.

    Args:
        path: a file, or an http(s) URL.

    Raises:
        UserError: the file cannot be read, or contains no networks.
    """
    local = local_file(path)
    with files.opened(local) as (file, size), _user_errors(path, file):
        if _is_safetensors(path):
            return report.inspect_safetensors(file, size, local)
        return report.inspect_pickle(file, size, local)


def local_file(path: str | os.PathLike) -> str:
    """The path of a file on this machine; a URL is downloaded into the host's cache unless it is there already.

    Raises:
        UserError: the URL cannot be downloaded.
    """
    path = os.fspath(path)
    if not re.match('https?://', path):
        return path
    try:
        return dnnlib.util.open_url(path, return_filename=True)
    except (requests.RequestException, OSError, AssertionError) as error:
        raise UserError(f'Cannot download {path}: get the file in another way and give its path.') from error


@contextlib.contextmanager
def _user_errors(path: str | os.PathLike, file: BufferedIOBase) -> Iterator[None]:
    """Turn what the readers raise into user-facing errors."""
    try:
        yield
    except Mismatch as error:
        raise UserError(
            f'{path} does not fit the local classes: {str(error)[:500]}; if you trust its author, --trust of '
            f'{TRUSTING} (in Python trust=True) lets the host load it, which runs the code in it.'
        ) from error
    except Malformed as error:
        mistaken_for = mistakes.what_it_is(file)
        if mistaken_for is not None:
            raise UserError(f'{path} is no network file but {mistaken_for}.') from error
        raise UserError(f'{path} is not a network file: {str(error)[:500]}.') from error
    except Refused as error:
        raise UserError(
            f'{path} {str(error)[:500]}. Nothing in it was run; if you trust its author, --trust of '
            f'{TRUSTING} (in Python trust=True) runs the code in it.'
        ) from error


def _is_safetensors(path: str | os.PathLike) -> bool:
    return os.fspath(path).endswith('.safetensors')
