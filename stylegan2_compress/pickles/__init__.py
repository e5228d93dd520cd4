"""Network pickles, in and out. First form: `load` still goes through the host's own loader."""

import hashlib
import os
import pickle
from pathlib import Path

import legacy

from stylegan2_compress import files
from stylegan2_compress.errors import UserError

KEYS = ('G', 'D', 'G_ema', 'training_set_kwargs', 'augment_pipe')


def load(path: str | os.PathLike, trust: bool = False, device: str = 'cpu') -> dict:
    """Read the networks in `path`; missing entries are None."""
    if not Path(path).is_file():
        raise UserError(f'There is no file {path}.')
    with open(path, 'rb') as file:
        data = legacy.load_network_pkl(file)
    for key in KEYS:
        value = data.setdefault(key, None)
        if hasattr(value, 'to'):
            data[key] = value.to(device)
    return data


def save(path: str | os.PathLike, data: dict) -> None:
    """Write `data` as a pickle the host opens."""
    with files.atomic_write(path) as file:
        pickle.dump(data, file)


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
