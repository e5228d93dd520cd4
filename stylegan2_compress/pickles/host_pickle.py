"""The host's own file format: pickled dictionaries of networks."""

import contextlib
import copy
import pickle
import warnings
from io import BufferedIOBase
from typing import Any, BinaryIO, NoReturn

import legacy
import torch
from torch_utils import misc

from stylegan2_compress.errors import UserError
from stylegan2_compress.pickles import dialects, tensorflow
from stylegan2_compress.pickles.contents import (
    Allowance,
    Network,
    Reader,
    Refused,
    TFNetwork,
    UnknownClass,
    plain,
)
from stylegan2_compress.pickles.machine import Malformed
from stylegan2_compress.pickles.rebuild import Mismatch, Rebuilder, one_line

MEASURING = '`profile`, `evaluate` and `compare`'  # Commands that need of a generator only that the host can call it.
_MAX_KEYS = 20
_MODULES = ('G', 'D', 'G_ema', 'augment_pipe')


def read(file: BufferedIOBase, size: int, name: str) -> dict[str, Any]:
    """The file's dictionary, without executing any of it; see `pickles.load`.

    Args:
        file: the file, open in binary mode.
        size: its length in bytes.
        name: its path, for the warning.

    Raises:
        Malformed: the file is not a network pickle, or does not fit the local classes.
        Refused: it refers to something that a network does not need.
        Unsupported: it has a StyleGAN3 generator.
    """
    root = Reader(file, size, _refuse).read()
    if is_tensorflow(root):
        return tensorflow.convert(*root)
    check_root(root, Network)
    translator = dialects.Translator()
    allowance = Allowance()
    rebuilder = Rebuilder(allowance)
    data = {}
    try:
        for key, value in root.items():
            if isinstance(value, Network):
                data[key] = rebuilder.module(translator.translate(value))
            else:
                data[key] = plain(value, allowance)
    except (Mismatch, UnknownClass) as error:
        error.is_measurable = dialects.is_generator(root.get('G_ema'))
        raise
    if rebuilder.differing:
        classes = ', '.join(sorted(rebuilder.differing))
        warnings.warn(
            f'{name} was made with other source code of {classes} than the local code, which is used now: its images '
            f'may differ from those of its author. {MEASURING} run the code in the file with --trust.',
            stacklevel=4,  # The caller of `pickles.load`.
        )
    return data


def _refuse(name: str) -> NoReturn:
    raise Refused(f'refers to {name!r}, which no network needs')


def is_tensorflow(root: Any) -> bool:
    """Whether a file's value is the TensorFlow era's (G, D, Gs)."""
    return isinstance(root, tuple) and len(root) == 3 and all(isinstance(item, TFNetwork) for item in root)


def check_root(root: Any, kind: type) -> None:
    """Check that a file's value is a dictionary of networks, which are of type `kind`.

    Raises:
        Malformed: it is not.
    """
    if not isinstance(root, dict) or len(root) > _MAX_KEYS:
        raise Malformed(f'it holds a {type(root).__name__}, not a dictionary of networks')
    for key in _MODULES:
        if not isinstance(root.get(key), (kind, type(None))):
            raise Malformed(f'its {key} is not a network')
    if all(root.get(key) is None for key in ('G', 'D', 'G_ema')):
        raise Malformed('it has none of G, D and G_ema')
    if not isinstance(root.get('training_set_kwargs'), (dict, type(None))):
        raise Malformed('its training_set_kwargs are not a dictionary')


def read_trusting(file: BufferedIOBase, size: int, name: str) -> dict[str, Any]:
    """The file's dictionary from the host's own loader, which runs the code in the file.

    Args:
        file: the file, open in binary mode.
        size: its length in bytes.
        name: its path, for the error.

    Raises:
        UserError: the host's loader fails.
        Unsupported: because it has a StyleGAN3 generator.
    """
    try:
        return legacy.load_network_pkl(file)
    except Exception as error:  # Code from a file can raise anything.
        with contextlib.suppress(Malformed, Refused):
            read(file, size, name)
        raise UserError(f'The host cannot load {name} ({one_line(error)}).') from error


def write(file: BinaryIO, data: dict[str, Any]) -> None:
    """Pickle `data` as the host's training loop does. Networks on other devices are stored with CPU tensors."""
    pickle.dump({key: _on_cpu(value) for key, value in data.items()}, file)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.nn.Module) and any(t.device.type != 'cpu' for t in misc.params_and_buffers(value)):
        return copy.deepcopy(value).cpu()
    return value
