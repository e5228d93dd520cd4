"""Networks as safetensors: the tensors by dotted name, everything else as JSON in the file's metadata.

    {"version": 1,
     "data": {"G_ema": {"class": "Generator", "args": [], "kwargs": {"z_dim": 512, ...}, "training": false,
                        "requires_grad": [], "attributes": {"synthesis.b4": {...}}},
              "training_set_kwargs": {"value": {...}}},
     "shared": {"G_ema.mapping.fc0.weight": "G.mapping.fc0.weight"}}

`attributes` contains attributes that differ from what the constructor makes, `shared` maps the names of tensors that
several modules share to the one under which they are stored. A further entry, `sha256`, is that of the others and all
tensors; files by earlier versions lack it.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.torch
import torch
from dnnlib import EasyDict
from torch_utils import persistence

from stylegan2_compress.errors import UserError
from stylegan2_compress.host.networks import class_name, init_arguments, module_source
from stylegan2_compress.pickles import host_pickle
from stylegan2_compress.pickles.contents import DType, Network, Refused
from stylegan2_compress.pickles.machine import Malformed
from stylegan2_compress.pickles.rebuild import HOOKS, MEMBERS, check_attributes, construct, fill, set_attributes

_KEY = 'stylegan2_compress'
_CHECKSUM = 'sha256'
_VERSION = 1
_TAG = '!'  # Marks JSON objects that encode a type which JSON lacks.


# --- writing ------------------------------------------------------------------------------------------------------


def write(file: BinaryIO, data: dict[str, Any]) -> None:
    """Write `data` so that `read` returns the same: tensors bit for bit, plain data with its types.

    Raises:
        UserError: a network is not what its constructor arguments make, or a value cannot be encoded.
    """
    tensors: dict[str, torch.Tensor] = {}
    shared: dict[str, str] = {}
    names: dict[int, str] = {}
    described = {}
    for key, value in data.items():
        try:
            described[key] = _describe(value) if isinstance(value, torch.nn.Module) else {'value': _encode(value)}
        except (Malformed, Refused, TypeError) as error:
            raise UserError(f'{key} cannot be stored as safetensors: {error}.') from error
        if isinstance(value, torch.nn.Module):
            for name, tensor in _named_tensors(value):
                first = names.setdefault(id(tensor), f'{key}.{name}')
                if first == f'{key}.{name}':
                    tensors[first] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                else:
                    shared[f'{key}.{name}'] = first
    document = {'version': _VERSION, 'data': described, 'shared': shared}
    document[_CHECKSUM] = _checksum(document, sorted(tensors.items()))
    file.write(safetensors.torch.save(tensors, {_KEY: json.dumps(document)}))


def _checksum(document: dict, tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 of the description and of the tensors, by name: types, shapes and bytes."""
    digest = hashlib.sha256(json.dumps(document).encode())
    for name, tensor in tensors:
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _describe(module: torch.nn.Module) -> dict[str, Any]:
    """Class, constructor arguments, mode and changed attributes of `module`, checked to be enough to rebuild it."""
    if not persistence.is_persistent(module):
        raise TypeError(f'a {class_name(module)} does not know its constructor arguments')
    args, kwargs = init_arguments(module)
    record = Network(class_name(module), module_source(type(module)), {'_init_args': args, '_init_kwargs': kwargs})
    modules = dict(module.named_modules(remove_duplicate=False))
    made = construct(record, len(modules)).train(module.training)
    if _classes(module) != _classes(made):
        raise TypeError('its modules are not those that its constructor arguments make')
    tensors = dict(_named_tensors(module))
    fill(made, {name: tensor.shape for name, tensor in tensors.items()}, lambda name, like: tensors[name])
    changed = {path: _changed_attributes(m, made.get_submodule(path)) for path, m in modules.items()}
    return {
        'class': class_name(module),
        'args': _encode(list(args)),
        'kwargs': _encode(kwargs),
        'training': module.training,
        'requires_grad': [name for name, tensor in tensors.items() if tensor.requires_grad],
        'attributes': {path: attributes for path, attributes in changed.items() if attributes},
    }


def _changed_attributes(module: torch.nn.Module, made: torch.nn.Module) -> dict[str, Any]:
    for name in HOOKS:
        if module.__dict__.get(name):
            raise TypeError('it has hooks, which are code')
    own, constructed = (
        {name: _encode(value) for name, value in vars(m).items() if name not in HOOKS | MEMBERS} for m in (module, made)
    )
    return {
        name: value
        for name, value in own.items()
        if name not in constructed or json.dumps(value) != json.dumps(constructed[name])
    }


def _classes(module: torch.nn.Module) -> dict[str, str]:
    return {path: class_name(submodule) for path, submodule in module.named_modules(remove_duplicate=False)}


def _named_tensors(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


# --- reading ------------------------------------------------------------------------------------------------------


def read(path: str, with_data: bool = True) -> dict[str, Any]:
    """The data that `write` was given, networks rebuilt from the local classes.

    Args:
        path: a regular file, which the safetensors library opens.
        with_data: without it, networks are as their constructors make them, and their tensors have shapes only.

    Raises:
        Malformed: the file does not contain networks as `write` writes them.
        Refused: a network's class is neither the host's nor ours.
    """
    try:
        with safetensors.safe_open(path, 'pt') as file:
            return _Document(file, with_data).data()
    except (safetensors.SafetensorError, RecursionError) as error:
        raise Malformed(f'it is not a safetensors file of networks ({error})') from error


class _Document:
    """An open file and the JSON in its metadata, none of which is trusted."""

    def __init__(self, file: Any, with_data: bool):
        self._file = file
        self._with_data = with_data
        self._names = set(file.keys())
        self._read_already: dict[str, torch.Tensor] = {}
        try:
            document = json.loads((file.metadata() or {})[_KEY])
            version = document['version']
            self._data, self._shared = dict(document['data']), dict(document['shared'])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise Malformed('it does not describe networks in its metadata') from error
        if version != _VERSION:
            raise Malformed(f'it has version {version!r}, not {_VERSION}, of the format')
        if not all(isinstance(name, str) for name in self._shared.values()):
            raise Malformed('it has shared tensors that have no name')
        if with_data and _CHECKSUM in document:
            checksum = document.pop(_CHECKSUM)
            tensors = ((name, file.get_tensor(name)) for name in sorted(self._names))
            if _checksum(document, tensors) != checksum:
                raise Malformed('it is damaged (its checksum is wrong): copy or download it again')

    def data(self) -> dict[str, Any]:
        """The contents of the file."""
        data = {}
        for key, entry in self._data.items():
            if not isinstance(entry, dict) or not {'class', 'value'} & entry.keys():
                raise Malformed(f'it does not describe its {key}')
            data[key] = self._module(key, entry) if 'class' in entry else _decode(entry['value'])
        host_pickle.check_root(data, torch.nn.Module)
        return data

    def _module(self, key: str, entry: dict) -> torch.nn.Module:
        sizes = self._sizes(f'{key}.')
        args, kwargs = _decode(entry.get('args')), _decode(entry.get('kwargs'))
        args = tuple(args) if isinstance(args, list) else args
        record = Network(str(entry['class']), '', {'_init_args': args, '_init_kwargs': kwargs})
        module = construct(record, len(sizes))
        fill(module, sizes, lambda name, like: self._tensor(f'{key}.{name}', like) if self._with_data else like)
        module.train(entry.get('training') is True)
        trained, attributes = entry.get('requires_grad'), _decode(entry.get('attributes'))
        if not isinstance(trained, list) or not isinstance(attributes, dict):
            raise Malformed(f'it does not describe its {key}')
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            tensor.requires_grad_(name in trained and tensor.is_floating_point())
        modules = dict(module.named_modules(remove_duplicate=False))
        for path, values in attributes.items():
            if path not in modules or not isinstance(values, dict):
                raise Malformed(f'it has attributes for {path!r}, which its {key} lacks')
            (set_attributes if self._with_data else check_attributes)(modules[path], values)
        return module

    def _sizes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        names = [name for name in [*self._names, *self._shared] if name.startswith(prefix)]
        return {name.removeprefix(prefix): self._file.get_slice(self._stored(name)).get_shape() for name in names}

    def _stored(self, name: str) -> str:
        name = self._shared.get(name, name)
        if name not in self._names:
            raise Malformed(f'it lacks {name!r}')
        return name

    def _tensor(self, name: str, like: torch.Tensor) -> torch.Tensor:
        name = self._stored(name)
        if name not in self._read_already:
            # The memory format comes from the constructor; the file's own memory is not kept.
            stored = self._file.get_tensor(name)
            tensor = torch.empty_strided(like.shape, like.stride(), dtype=stored.dtype).copy_(stored)
            is_parameter = isinstance(like, torch.nn.Parameter)
            self._read_already[name] = torch.nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
        return self._read_already[name]


# --- types that JSON lacks ----------------------------------------------------------------------------------------


def _encode(value: Any) -> Any:
    """`value` in JSON's types.

    Raises:
        TypeError: it is not plain data.
    """
    if isinstance(value, np.generic):
        code = value.dtype.str[1:]
        return {_TAG: 'numpy', 'dtype': code, 'bytes': value.astype(DType(code).dtype).tobytes().hex()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if type(value) is dict and _TAG not in value and all(isinstance(key, str) for key in value):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, dict):
        kind = 'EasyDict' if isinstance(value, EasyDict) else 'dict'
        return {_TAG: kind, 'items': [[_encode(key), _encode(item)] for key, item in value.items()]}
    if isinstance(value, (tuple, set, frozenset)):
        items = value if isinstance(value, tuple) else sorted(value, key=repr)
        return {_TAG: type(value).__name__, 'items': [_encode(item) for item in items]}
    if isinstance(value, bytes):
        return {_TAG: 'bytes', 'bytes': value.hex()}
    raise TypeError(f'a {type(value).__name__} is not plain data')


def _decode(value: Any) -> Any:
    """The inverse of `_encode`."""
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _TAG not in value:
        return {key: _decode(item) for key, item in value.items()}
    try:
        return _DECODERS[value[_TAG]](value)
    except (KeyError, TypeError, ValueError) as error:
        raise Malformed('it has a value of an unknown type in its metadata') from error


_DECODERS = {
    'numpy': lambda value: np.frombuffer(bytes.fromhex(value['bytes']), DType(value['dtype']).dtype)[0],
    'bytes': lambda value: bytes.fromhex(value['bytes']),
    'dict': lambda value: dict(map(_decode, value['items'])),
    'EasyDict': lambda value: EasyDict(map(_decode, value['items'])),
    'tuple': lambda value: tuple(map(_decode, value['items'])),
    'set': lambda value: set(map(_decode, value['items'])),
    'frozenset': lambda value: frozenset(map(_decode, value['items'])),
}
