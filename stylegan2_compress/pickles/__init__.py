"""Reading and writing networks: the host's pickles of any version, safetensors, and stylegan2-pytorch's state dicts.

    from stylegan2_compress import pickles

    data = pickles.load('ffhq.pkl')  # Executes none of the code in the file.
    pickles.save('ffhq.safetensors', data)

The dictionaries have the host's keys: G, D, G_ema, training_set_kwargs, augment_pipe.
"""

import contextlib
import itertools
import os
import warnings
from collections.abc import Iterator
from io import BufferedIOBase
from typing import Any

import torch

from stylegan2_compress import files
from stylegan2_compress.errors import UserError
from stylegan2_compress.files import sha256 as sha256
from stylegan2_compress.host import downloads
from stylegan2_compress.pickles import host_pickle, mistakes, report, safetensors_file, state_dicts, training_sets
from stylegan2_compress.pickles.contents import Refused, UnknownClass, Unsupported
from stylegan2_compress.pickles.machine import Malformed
from stylegan2_compress.pickles.rebuild import Mismatch

KEYS = ('G', 'D', 'G_ema', 'training_set_kwargs', 'augment_pipe')


def load(
    path: str | os.PathLike, trust: bool = False, device: str | torch.device = 'cpu', as_stored: bool = False
) -> dict[str, Any]:
    """Read the networks in a pickle, a safetensors file or a `.pt` file of state dicts.

    Nothing in the file is executed: networks become instances of the local host's classes, or of ours, built from the
    recorded constructor arguments and state. A warning is given if the source code of a class in a pickle differs from
    the local one in a way that may change the network, and if the file names an unknown class of data sets, which is
    left out. TensorFlow pickles go through the host's converter.

    Args:
        path: a file; an http(s) URL or the name of a published network, which the host's download cache keeps; or
            `hf://OWNER/REPOSITORY/FILE`.
        trust: let the host load a pickle instead, which runs the code in it.
        device: where to put the networks.
        as_stored: leave weights of other precisions than FP32, in which the host computes from FP32 weights only.

    Returns:
        The file's dictionary with at least `KEYS`; None for what the file lacks. Networks are as stored in all else:
        the host stores them in eval mode and with `requires_grad` off.

    Raises:
        UserError: the file cannot be read, or contains no networks.
    """
    local = local_file(path)
    with files.opened(local) as (file, size):
        data = _read(path, local, file, size, trust)
    data = data if as_stored else _in_fp32(data)
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
        return _in_fp32(_read(path, local, file, size)), digest


def _in_fp32(data: dict[str, Any]) -> dict[str, Any]:
    """The contents of a file after all weights of networks were made FP32, in place."""
    for network in filter(lambda value: isinstance(value, torch.nn.Module), data.values()):
        tensors = itertools.chain(network.parameters(), network.buffers())
        if any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in tensors):
            network.float()
    return data


def _read(path: str | os.PathLike, local: str, file: BufferedIOBase, size: int, trust: bool = False) -> dict[str, Any]:
    with _user_errors(path, file):
        if _is_safetensors(path):
            data = safetensors_file.read(local)
        elif _is_state_dicts(path):
            data = state_dicts.read(file, size)
        elif trust:
            return {**dict.fromkeys(KEYS), **host_pickle.read_trusting(file, size, local)}
        else:
            data = host_pickle.read(file, size, local)
    data = {**dict.fromkeys(KEYS), **data}
    foreign = training_sets.foreign_class(data['training_set_kwargs'])
    if foreign is not None:
        data['training_set_kwargs'] = training_sets.without_class(data['training_set_kwargs'])
        warnings.warn(
            f"{path} names {foreign[:200]!r} as the class of its data set, which is neither the host's nor ours. The "
            'name is left out, because the host would call whatever has it: give its tools --data.',
            stacklevel=3,  # The caller of `load`.
        )
    return data


def save(path: str | os.PathLike, data: dict[str, Any]) -> None:
    """Write networks, complete or not at all, in the format that the end of `path` says.

    `.safetensors`; `.pt` and `.pth` for state dicts in the layout of stylegan2-pytorch; else the host's pickle.

    Args:
        path: file to write; an existing one is replaced.
        data: dictionary with some of `KEYS` (the host opens only pickles with all of G, D and G_ema).

    Raises:
        UserError: the file cannot be written, or a network cannot be stored in that format.
    """
    with files.atomic_write(path) as file:
        if _is_safetensors(path):
            safetensors_file.write(file, data)
        elif _is_state_dicts(path):
            state_dicts.write(file, data)
        else:
            host_pickle.write(file, data)


def require_storable(path: str | os.PathLike, data: dict[str, Any]) -> None:
    """Check that networks fit the format that the end of `path` says, before others of their kind are made.

    The host's pickles and safetensors hold all of this package's networks; a state dict does not.

    Raises:
        UserError: they do not.
    """
    if _is_state_dicts(path):
        state_dicts.contents(data)


def inspect(path: str | os.PathLike) -> report.Report:
    """Describe a network file without executing any of it or reading the weights.

    Pickles that `load` refuses are described as far as possible; classes need not be known.

    Args:
        path: a file, a URL or a name, as for `load`.

    Raises:
        UserError: the file cannot be read, or contains no networks.
    """
    local = local_file(path)
    with files.opened(local) as (file, size), _user_errors(path, file):
        if _is_safetensors(path):
            return report.inspect_safetensors(file, size, local)
        if _is_state_dicts(path):
            return report.inspect_state_dicts(file, size, local)
        return report.inspect_pickle(file, size, local)


def local_file(path: str | os.PathLike) -> str:
    """The path of a file on this machine; what is named otherwise is downloaded, see `host.downloads.local_file`.

    Raises:
        UserError: it cannot be downloaded, or is a directory.
    """
    local = downloads.local_file(os.fspath(path))
    if os.path.isdir(local):
        raise UserError(f'{path} is a directory, of which no network-snapshot-*.pkl can be taken here: name a file.')
    return local


@contextlib.contextmanager
def _user_errors(path: str | os.PathLike, file: BufferedIOBase) -> Iterator[None]:
    """Turn what the readers raise into user-facing errors."""
    try:
        yield
    except Mismatch as error:
        raise UserError(f'{path} does not fit the local classes: {str(error)[:500]}{_way_out(error)}.') from error
    except Malformed as error:
        mistaken_for = mistakes.what_it_is(file, may_be_zip=_is_state_dicts(path))
        if mistaken_for is not None:
            raise UserError(f'{path} is no network file but {mistaken_for}.') from error
        raise UserError(f'{path} is not a network file: {str(error)[:500]}.') from error
    except UnknownClass as error:
        raise UserError(f'{path} {str(error)[:500]}. Nothing in it was run{_way_out(error)}.') from error
    except Refused as error:
        raise UserError(f'{path} {str(error)[:500]}. Nothing in it was run.') from error
    except Unsupported as error:
        raise UserError(f'{path} {error}.') from error


def _way_out(error: Mismatch | UnknownClass) -> str:
    """What --trust is good for with this file, if anything."""
    if not error.is_measurable:
        return ''
    return f'; if you trust its author, {host_pickle.MEASURING} measure it with --trust, which runs the code in it'


def _is_safetensors(path: str | os.PathLike) -> bool:
    return files.public_name(os.fspath(path)).endswith('.safetensors')


def _is_state_dicts(path: str | os.PathLike) -> bool:
    return files.public_name(os.fspath(path)).endswith(('.pt', '.pth'))
