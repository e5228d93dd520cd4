"""The host's own file format: pickled dictionaries of networks."""

import copy
import pickle
import warnings
from typing import Any, BinaryIO

import legacy
import torch
from torch_utils import misc

from stylegan2_compress import files
from stylegan2_compress.errors import UserError
from stylegan2_compress.pickles import tensorflow
from stylegan2_compress.pickles.contents import Allowance, Network, Reader, Refused, TFNetwork, plain
from stylegan2_compress.pickles.machine import Malformed
from stylegan2_compress.pickles.rebuild import Rebuilder, one_line

_MAX_KEYS = 20
_MODULES = ('G', 'D', 'G_ema', 'augment_pipe')


def read(path: str) -> dict[str, Any]:
    """The file's dictionary, nothing of the file executed; see `pickles.load`.

    Raises:
        Malformed, Refused, UserError
    """
    with files.opened(path) as (file, size):
        root = Reader(file, size, _refuse).read()
        if is_tensorflow(root):
            return tensorflow.convert(*root)
        check_root(root, Network)
        allowance = Allowance()
        rebuilder = Rebuilder(allowance)
        data = {}
        for key, value in root.items():
            data[key] = rebuilder.module(value) if isinstance(value, Network) else plain(value, allowance)
    if rebuilder.differing:
        classes = ', '.join(sorted(rebuilder.differing))
        warnings.warn(
            f'{path} was made with other source code of {classes} than the local one, which is used now; '
            f'its images may differ from those it was made for. `--trust` of `convert` (trust=True) runs its own code.',
            stacklevel=3,  # The caller of `pickles.load`.
        )
    return data


def _refuse(name: str) -> None:
    raise Refused(f'refers to {name!r}, which no network needs')


def is_tensorflow(root: Any) -> bool:
    """Whether a file's value is the TensorFlow era's (G, D, Gs)."""
    return isinstance(root, tuple) and len(root) == 3 and all(isinstance(item, TFNetwork) for item in root)


def check_root(root: Any, kind: type) -> None:
    """Raise `Malformed` unless a file's value is a dictionary of networks, which are of type `kind`."""
    if not isinstance(root, dict) or len(root) > _MAX_KEYS:
        raise Malformed(f'it holds a {type(root).__name__}, not a dictionary of networks')
    for key in _MODULES:
        if not isinstance(root.get(key), (kind, type(None))):
            raise Malformed(f'its {key} is no network')
    if all(root.get(key) is None for key in ('G', 'D', 'G_ema')):
        raise Malformed('it has none of G, D and G_ema')
    if not isinstance(root.get('training_set_kwargs'), (dict, type(None))):
        raise Malformed('its training_set_kwargs are no dictionary')


def read_trusting(path: str) -> dict[str, Any]:
    """The file's dictionary through the host's own loader, which runs the code in it.

    Raises:
        UserError: The host's loader fails.
    """
    with files.opened(path) as (file, _):
        try:
            return legacy.load_network_pkl(file)
        except Exception as error:  # Code from a file can raise anything.
            raise UserError(f'The host cannot load {path} ({one_line(error)}).') from error


def write(file: BinaryIO, data: dict[str, Any]) -> None:
    """Pickle `data` as the host's training loop does; networks are stored as CPU tensors wherever they are."""
    pickle.dump({key: _on_cpu(value) for key, value in data.items()}, file)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.nn.Module) and any(t.device.type != 'cpu' for t in misc.params_and_buffers(value)):
        return copy.deepcopy(value).cpu()
    return value
