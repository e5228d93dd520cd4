"""What `torch.save` writes, read by the machine that runs nothing: the zip archives of today and the older format.

`torch.load(weights_only=True)` would do for files one trusts; before torch 2.6 it could be made to run code.
"""

import struct
import zipfile
from collections.abc import Callable
from io import BufferedIOBase
from typing import Any

import torch

from stylegan2_compress.pickles.contents import (
    TORCH_MAGIC,
    TORCH_PROTOCOL,
    Foreign,
    Reader,
    Refused,
    Storage,
    is_shape,
)
from stylegan2_compress.pickles.machine import Blob, Machine, Malformed

_IGNORED = {'argparse.Namespace'}  # Options of a training script, kept beside the networks.
_SHARING = 4  # Files in which `g` and `g_ema` share their data exist.
_LOCAL_HEADER = struct.Struct('<4s22xHH')  # Signature, lengths of name and extra field.


def read(file: BufferedIOBase, size: int) -> Any:
    """The value in a file of `torch.save`, whose tensors are `contents.Tensor` records.

    Args:
        file: the file, open in binary mode; it has to stay open as long as records are read.
        size: its length in bytes.

    Raises:
        Malformed: it is no such file.
        Refused: it refers to something that a state dict does not need.
    """
    file.seek(0)
    is_zip = file.read(4) == b'PK\x03\x04'
    return (_read_zip if is_zip else _read_older)(file, size, Reader(file, size, _foreign, _SHARING))


def _foreign(name: str) -> Foreign:
    if name in _IGNORED:
        return Foreign(name)
    raise Refused(f'refers to {name!r}, which no state dict needs')


def _finder(reader: Reader) -> Callable[[str, str], Any]:
    def find(module: str, name: str) -> Any:
        is_storage = module == 'torch' and name.endswith('Storage')
        return (reader.find_storage_type if is_storage else reader.find_global)(module, name)

    return find


# --- zip archives -------------------------------------------------------------------------------------------------


def _read_zip(file: BufferedIOBase, size: int, reader: Reader) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:  # Reads the directory; data are read by us, from where they lie.
            members = {entry.filename: entry for entry in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error, OSError) as error:
        raise Malformed('it is a zip archive that is not whole') from error
    folders = [name.removesuffix('data.pkl') for name in members if name.endswith('/data.pkl')]
    if len(folders) != 1:
        raise Malformed('it is a zip archive that torch.save did not write')
    folder = folders[0]
    if any(name.startswith(f'{folder}code/') for name in members):
        raise Malformed('it is a TorchScript program, not a dictionary of weights')

    def blob(name: str) -> Blob:
        if f'{folder}{name}' not in members:
            raise Malformed(f'it lacks {name!r}')
        return _stored(file, size, members[f'{folder}{name}'])

    if f'{folder}byteorder' in members and not _says(blob('byteorder'), b'little'):
        raise Malformed('it was written on a big-endian machine')
    storages: dict[str, Storage] = {}

    def find_persistent(identifier: Any) -> Storage:
        key, dtype, numel = _storage_head(identifier)
        if key not in storages:
            storages[key] = Storage(dtype, blob(f'data/{key}'))
        if storages[key].dtype != dtype or storages[key].blob.length != numel * dtype.itemsize:
            raise Malformed('it has a tensor storage whose length is not the one declared')
        return storages[key]

    return blob('data.pkl').machine(_finder(reader), find_persistent, reader.budget).load()


def _says(blob: Blob, text: bytes) -> bool:
    return blob.length == len(text) and blob.read() == text


def _stored(file: BufferedIOBase, size: int, entry: zipfile.ZipInfo) -> Blob:
    """Where a member's bytes lie in the file, whose position stays.

    A compressed member is refused: it can be larger than the file.
    """
    if entry.compress_type != zipfile.ZIP_STORED:
        raise Malformed('it is a compressed archive, which torch.save does not write')
    if entry.header_offset < 0:
        raise Malformed('it is a zip archive that is not whole')
    position = file.tell()
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    file.seek(position)
    if len(header) < _LOCAL_HEADER.size or header[:4] != b'PK\x03\x04':
        raise Malformed('it is a zip archive that is not whole')
    _signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    start = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    if start + entry.file_size > size:
        raise Malformed('it is cut off')
    return Blob(file, start, entry.file_size)


# --- the format before torch 1.6 ----------------------------------------------------------------------------------


def _read_older(file: BufferedIOBase, size: int, reader: Reader) -> Any:
    storages: dict[str, Storage] = {}

    def find_persistent(identifier: Any) -> Storage:
        key, dtype, numel = _storage_head(identifier)
        length = numel * dtype.itemsize
        if length > size:
            raise Malformed('it is cut off')
        storage = storages.setdefault(key, Storage(dtype, Blob(file, size, length)))  # Where it lies comes later.
        if storage.dtype != dtype or storage.blob.length != length:
            raise Malformed('it has a tensor storage whose length is not the one declared')
        return storage

    file.seek(0)
    machine = Machine(file, size, _finder(reader), find_persistent, reader.budget)
    if (machine.load(), machine.load()) != (TORCH_MAGIC, TORCH_PROTOCOL):
        raise Malformed('torch.save did not write it')
    system = machine.load()
    if not isinstance(system, dict) or system.get('little_endian') is not True:
        raise Malformed('it was written on a big-endian machine')
    value, keys = machine.load(), machine.load()
    if not isinstance(keys, list) or set(map(repr, keys)) != set(map(repr, storages)):
        raise Malformed('it has tensor storages without data')
    position = machine.position()
    for key in keys:
        storage = storages[key]
        numel, data = Blob(file, position, size - position).split(8)
        if int.from_bytes(numel, 'little') != storage.numel or storage.blob.length > data.length:
            raise Malformed('it has a tensor storage whose length is not the one declared')
        storage.blob = Blob(file, position + 8, storage.blob.length)
        position += 8 + storage.blob.length
    return value


def _storage_head(identifier: Any) -> tuple[str, torch.dtype, int]:
    """Key, dtype and number of elements from a persistent id; the device is ignored."""
    if not (isinstance(identifier, tuple) and len(identifier) in (5, 6) and identifier[0] == 'storage'):
        raise Malformed('it has a tensor storage without data')
    _kind, dtype, key, _location, numel, *view = identifier
    if not (isinstance(dtype, torch.dtype) and isinstance(key, str) and is_shape((numel,))) or view not in ([], [None]):
        raise Malformed('it has a tensor storage without data')
    return key, dtype, numel
