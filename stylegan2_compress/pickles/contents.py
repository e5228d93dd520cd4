"""What a network pickle may contain, and the record that each of its parts becomes when nothing is executed.

The names in `Reader._known` are the whole allowlist. None of them is imported: each stands for a function below that
checks its arguments and returns a record. Tensor data stays in the file until `Tensor.read`.
"""

import dataclasses
import math
import re
from collections import OrderedDict
from collections.abc import Callable
from io import BufferedIOBase
from typing import Any, Literal

import numpy as np
import torch
from dnnlib import EasyDict

from stylegan2_compress.pickles.machine import MAX_OPCODES, Blob, Machine, Malformed, Stub

_STORAGE_DTYPES = {
    'DoubleStorage': torch.float64,
    'FloatStorage': torch.float32,
    'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16,
    'LongStorage': torch.int64,
    'IntStorage': torch.int32,
    'ShortStorage': torch.int16,
    'CharStorage': torch.int8,
    'ByteStorage': torch.uint8,
    'BoolStorage': torch.bool,
}
TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # First value of every file in `torch.save`'s older format.
TORCH_PROTOCOL = 1001
_PERSISTENCE_VERSION = 6
_MAX_DEPTH = 32
_MAX_PLAIN = 1 << 20
_MAX_SOURCES = 16


class Refused(Exception):
    """The file asks for code to be run; the message names it and continues after the file's name."""


class UnknownClass(Refused):
    """The file has a network of a class that is not known here.

    Attributes:
        is_measurable: whether its G_ema has the parts by which the host calls a generator.
    """

    is_measurable = False


class Unsupported(Exception):
    """The file has a network of a kind that is known and not supported; the message continues after its name."""


# --- records -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Storage:
    """A flat array of one dtype, still in the file."""

    dtype: torch.dtype
    blob: Blob

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.blob.length // self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """The elements, on the CPU, in memory that nothing else uses."""
        data = torch.empty(self.blob.length, dtype=torch.uint8)
        self.blob.read_into(data.numpy().data)
        return data.view(self.dtype)


@dataclasses.dataclass(eq=False)
class Tensor:
    """A tensor or parameter, still in the file; its shape and strides are known to fit its storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.size)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the elements."""
        return self.storage.dtype

    def read(self) -> torch.Tensor:
        """The data with the recorded strides; the caller sets `requires_grad`."""
        return self.storage.read().as_strided(self.size, self.stride, self.offset)


@dataclasses.dataclass(eq=False)
class Network:
    """An instance of a class that the host's persistence pickles with the source of its module."""

    class_name: str
    module_src: str
    state: dict
    written_as: str | None = None  # If it was translated: the name of its class in the file,
    written_by: str | None = None  # and the repository that has this class.


class TFNetwork(Stub):
    """An instance of the TensorFlow era's `dnnlib.tflib.network.Network`."""

    state: dict | None = None

    def __str__(self) -> str:
        return 'a TensorFlow network'

    def build(self, state: Any) -> None:
        """Take the recorded attributes."""
        if not (isinstance(state, dict) and {'version', 'static_kwargs', 'variables', 'components'} <= set(state)):
            raise Malformed('it has a TensorFlow network without variables')
        self.state = state


class Array(Stub):
    """A NumPy array, still in the file. `claim(n)` is called with the number of bytes that it takes of the file."""

    blob: Blob | None = None

    def __init__(self, claim: Callable[[int], None]):
        self._claim = claim

    def __str__(self) -> str:
        return 'an array'

    def build(self, state: Any) -> None:
        """Take the state from `ndarray.__reduce__`: version, shape, dtype, whether Fortran order, data."""
        if not (isinstance(state, tuple) and len(state) == 5):
            raise Malformed('it has an array without data')
        _, shape, dtype, is_fortran, blob = state
        if not (isinstance(dtype, DType) and isinstance(blob, Blob) and is_shape(shape)):
            raise Malformed('it has an array without data')
        if math.prod(shape) * dtype.dtype.itemsize != blob.length:
            raise Malformed('it has an array whose shape does not fit its data')
        self._claim(blob.length)
        self.shape, self.dtype, self.blob = shape, dtype.dtype, blob
        self.order: Literal['C', 'F'] = 'F' if is_fortran else 'C'

    def read(self) -> np.ndarray:
        """The array, in memory that nothing else uses."""
        if self.blob is None:
            raise Malformed('it has an array without data')
        array = np.frombuffer(self.blob.read(), self.dtype).reshape(self.shape, order=self.order)
        return array.astype(self.dtype.newbyteorder('='))


class DType(Stub):
    """A NumPy dtype of booleans, integers or floats, not of objects."""

    def __init__(self, code: Any, *_options: Any):
        if not (isinstance(code, str) and re.fullmatch(r'b1|[iu][1248]|f[248]', code)):
            raise Malformed('it has an array of objects')
        self.dtype = np.dtype(code)

    def __str__(self) -> str:
        return 'a dtype'

    def build(self, state: Any) -> None:
        """Take the state from `dtype.__reduce__`, of which only the byte order matters here."""
        if not (isinstance(state, tuple) and len(state) >= 2 and state[1] in ('<', '>', '|', '=')):
            raise Malformed('it has a dtype that cannot be parsed')
        self.dtype = self.dtype.newbyteorder(state[1])


class Foreign(Stub):
    """A name outside the allowlist and whatever the file makes of it, kept only to be reported."""

    def __init__(self, name: str):
        self.name = name

    def __str__(self) -> str:
        return self.name

    def reduce(self, *args: Any) -> 'Foreign':
        """Allow the call, and make nothing of it."""
        return Foreign(self.name)

    def build(self, state: Any) -> None:
        """Allow any."""

    def update(self, items: list) -> None:
        """Allow any."""


# --- the reader --------------------------------------------------------------------------------------------------


class _Function(Stub):
    """A name on the allowlist that the file may call."""

    def __init__(self, name: str, function: Callable, num_args: tuple[int, ...]):
        self._name, self._function, self._num_args = name, function, num_args

    def __str__(self) -> str:
        return self._name

    def reduce(self, *args: Any) -> Any:
        """The stand-in's value, if the number of arguments is right."""
        if len(args) not in self._num_args:
            raise Malformed(f'it calls {self} with {len(args)} arguments')
        return self._function(*args)


class Reader:
    """Reads one pickle file into plain values and the records above.

    Args:
        file: the file, open in binary mode; it has to stay open as long as records are read.
        size: its length in bytes.
        foreign: called with a name outside the allowlist; returns a `Foreign`, or raises `Refused`.
        sharing: how many times as large as the file its tensors may be together, because they share data.

    Attributes:
        budget: one item per opcode that may still be read.
    """

    def __init__(self, file: BufferedIOBase, size: int, foreign: Callable[[str], Foreign], sharing: int = 1):
        self._file = file
        self._size = size
        self._foreign = foreign
        self._unclaimed = sharing * size  # Bytes that no tensor has claimed: sharing must not multiply the data.
        self._sources: set[str] = set()
        self._preamble = b''  # Of the last storage whose preamble differed from that of the storage before.
        self._storages: dict[Blob, Storage] = {}
        self.budget = iter(range(MAX_OPCODES))
        known = {
            'collections.OrderedDict': (OrderedDict, (0,)),
            'dnnlib.util.EasyDict': (EasyDict, (0,)),
            'builtins.set': (_as_set, (1,)),
            'torch_utils.persistence._reconstruct_persistent_obj': (self._network, (1,)),
            'torch._utils._rebuild_tensor_v2': (self._tensor, (6, 7)),
            'torch._utils._rebuild_parameter': (_parameter, (3,)),
            'torch.storage._load_from_bytes': (self._storage, (1,)),
            'dnnlib.tflib.network.Network': (TFNetwork, (0,)),
            'numpy.dtype': (DType, (1, 2, 3)),
            'numpy.ndarray': (Array, ()),  # Named, never called.
        }
        for package in ('numpy.core', 'numpy._core'):  # Before NumPy 2 and since.
            known |= {
                f'{package}.multiarray.scalar': (_scalar, (2,)),
                f'{package}.multiarray._reconstruct': (lambda *_: Array(self._claim), (3,)),
                f'{package}.numeric._frombuffer': (self._array_from_buffer, (4,)),
            }
        self._known = {name: _Function(name, *entry) for name, entry in known.items()}

    def read(self) -> Any:
        """The file's value.

        Raises:
            Malformed: the file is not a pickle of networks.
            Refused: from `foreign`.
        """
        self._file.seek(0)
        return Machine(self._file, self._size, self.find_global, budget=self.budget).load()

    def find_global(self, module: str, name: str) -> Stub:
        """What a name in the file stands for."""
        return self._known.get(f'{module}.{name}') or self._foreign(f'{module}.{name}')

    def _claim(self, n: int) -> None:
        self._unclaimed -= n
        if self._unclaimed < 0:
            raise Malformed('it has more tensor data than bytes')

    # --- torch

    def _storage(self, blob: Any) -> Storage:
        """Stand-in for `torch.storage._load_from_bytes`: `blob` is a file in `torch.save`'s format before 1.6."""
        if not isinstance(blob, Blob):
            raise Malformed('it has a tensor storage that is not a byte string')
        if blob not in self._storages:
            position = self._file.tell()
            self._storages[blob] = self._parse_storage(blob)
            self._file.seek(position)
        return self._storages[blob]

    def _parse_storage(self, blob: Blob) -> Storage:
        start, rest = blob.split(min(len(self._preamble), blob.length))
        if not start or start != self._preamble:
            rest = self._parse_preamble(blob)
        machine = rest.machine(self.find_storage_type, _storage_head, self.budget)
        head, keys = machine.load(), machine.load()
        if not isinstance(head, _StorageHead) or keys != [head.key]:
            raise Malformed('it has a tensor storage without data')
        numel, data = rest.tail(machine.position()).split(8)
        if int.from_bytes(numel, 'little') != head.numel or data.length != head.numel * head.dtype.itemsize:
            raise Malformed('it has a tensor storage whose length is not the one declared')
        return Storage(head.dtype, data)

    def _parse_preamble(self, blob: Blob) -> Blob:
        """Check the start of a storage, which is the same in all storages from one machine, and return the rest."""
        machine = blob.machine(self.find_storage_type, None, self.budget)
        magic, protocol, system = machine.load(), machine.load(), machine.load()
        if (magic, protocol) != (TORCH_MAGIC, TORCH_PROTOCOL) or not isinstance(system, dict):
            raise Malformed('it has a tensor storage in a format that the host does not write')
        if system.get('little_endian') is not True:
            raise Malformed('it was written on a big-endian machine')
        rest = blob.tail(machine.position())
        self._preamble, _ = blob.split(blob.length - rest.length)
        return rest

    def find_storage_type(self, module: str, name: str) -> torch.dtype | Foreign:
        """The dtype that the name of a storage's class stands for."""
        if module != 'torch' or name not in _STORAGE_DTYPES:
            return self._foreign(f'{module}.{name}')
        return _STORAGE_DTYPES[name]

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, meta=None) -> Tensor:
        """Stand-in for `torch._utils._rebuild_tensor_v2`."""
        if not isinstance(storage, Storage):
            raise Malformed('it has a tensor without storage')
        if not (is_shape(size) and is_shape(stride) and len(size) == len(stride) and is_shape((offset,))):
            raise Malformed('it has a tensor without a valid shape')
        if hooks or meta:
            raise Malformed('it has a tensor with hooks')
        tensor = Tensor(storage, offset, size, stride, _may_require_grad(grad, storage.dtype))
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if tensor.numel > storage.numel or (tensor.numel and last >= storage.numel):
            raise Malformed('it has a tensor that is larger than its storage')
        self._claim(storage.blob.length)
        return tensor

    # --- the host

    def _network(self, meta: Any) -> Network:
        """Stand-in for `torch_utils.persistence._reconstruct_persistent_obj`."""
        if not (isinstance(meta, dict) and meta.get('type') == 'class' and meta.get('version') == _PERSISTENCE_VERSION):
            raise Malformed(f"it has an object that is not of version {_PERSISTENCE_VERSION} of the host's persistence")
        class_name, module_src, state = (meta.get(key) for key in ('class_name', 'module_src', 'state'))
        if not (isinstance(class_name, str) and isinstance(module_src, str) and isinstance(state, dict)):
            raise Malformed('it has an object without class, source code or state')
        if not all(isinstance(key, str) for key in state):
            raise Malformed('it has an object with attributes whose names are not text')
        self._sources.add(module_src)
        if len(self._sources) > _MAX_SOURCES:
            raise Malformed(f'it has source code of more than {_MAX_SOURCES} modules')
        return Network(class_name, module_src, state)

    # --- numpy

    def _array_from_buffer(self, blob: Any, dtype: Any, shape: Any, order: Any) -> Array:
        """Stand-in for `numpy._core.numeric._frombuffer`, which protocol 5 uses."""
        array = Array(self._claim)
        array.build((1, shape, dtype, order == 'F', blob))
        return array


def _scalar(dtype: Any, blob: Any) -> np.generic:
    """Stand-in for `numpy.core.multiarray.scalar`."""
    if not (isinstance(dtype, DType) and isinstance(blob, Blob) and blob.length == dtype.dtype.itemsize):
        raise Malformed('it has a NumPy scalar without value')
    return np.frombuffer(blob.read(), dtype.dtype).astype(dtype.dtype.newbyteorder('='))[0]


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> Tensor:
    """Stand-in for `torch._utils._rebuild_parameter`."""
    if not isinstance(data, Tensor) or hooks:
        raise Malformed('it has a parameter that is not a tensor or has hooks')
    return dataclasses.replace(data, requires_grad=_may_require_grad(requires_grad, data.dtype))


def _may_require_grad(value: Any, dtype: torch.dtype) -> bool:
    if value and not dtype.is_floating_point:
        raise Malformed(f'it has a {dtype} tensor that requires a gradient')
    return bool(value)


def _as_set(items: Any) -> set:
    """Stand-in for `set`, which protocol 3 and older call."""
    if not (isinstance(items, list) and all(isinstance(item, str) for item in items)):
        raise Malformed('it has a set with members that are not text')
    return set(items)


@dataclasses.dataclass
class _StorageHead:
    dtype: torch.dtype
    key: str
    numel: int


def _storage_head(identifier: Any) -> _StorageHead:
    """Stand-in for the object behind the persistent id in a storage's pickle; its device is ignored."""
    if not (isinstance(identifier, tuple) and len(identifier) == 6):
        raise Malformed('it has a tensor storage without data')
    kind, dtype, key, _location, numel, view = identifier
    if kind != 'storage' or not isinstance(dtype, torch.dtype) or not is_shape((numel,)) or view is not None:
        raise Malformed('it has a tensor storage without data')
    return _StorageHead(dtype, key, numel)


def is_shape(value: Any) -> bool:
    """Whether a value is a tuple of numbers as a tensor's shape or strides may be."""
    return isinstance(value, tuple) and all(isinstance(n, int) and 0 <= n < 1 << 48 for n in value)


# --- plain values ------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Allowance:
    """How many more values and characters of plain data a file may unfold to, and the byte strings and arrays read."""

    left: int = _MAX_PLAIN
    data: dict[Stub, Any] = dataclasses.field(default_factory=dict)


def plain(value: Any, allowance: Allowance | None = None) -> Any:
    """A copy of a recorded value that consists of plain Python and NumPy data alone.

    Args:
        value: what a `Reader` made.
        allowance: shared by all calls for one file.

    Raises:
        Malformed: it contains something else, is nested too deeply, or shared parts make it far larger than the file.
    """
    allowance = allowance or Allowance()

    def copy(value: Any, depth: int) -> Any:
        allowance.left -= 1 + (len(value) if isinstance(value, str) else 0)
        if allowance.left < 0:
            raise Malformed('it has plain data that unfolds to far more than the file')
        if depth > _MAX_DEPTH:
            raise Malformed(f'it has plain data nested more than {_MAX_DEPTH} deep')
        if isinstance(value, dict):
            return type(value)((copy(key, depth + 1), copy(item, depth + 1)) for key, item in value.items())
        if isinstance(value, (list, tuple, set, frozenset)):
            return type(value)(copy(item, depth + 1) for item in value)
        if value is None or isinstance(value, (bool, int, float, str, np.generic)):
            return value
        if isinstance(value, (Blob, Array)):
            if value not in allowance.data:
                allowance.data[value] = value.read()
            return allowance.data[value]
        raise Malformed(f'it has {_describe(value)} where plain data is expected')

    return copy(value, 0)


def _describe(value: Any) -> str:
    if isinstance(value, Network):
        return f'a network of class {value.class_name!r}'
    return str(value) if isinstance(value, Stub) else f'a {type(value).__name__}'
