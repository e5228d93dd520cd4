"""A pickle machine that executes nothing.

`pickle.Unpickler`, even with a restricted `find_class`, calls what the file names and allocates what the file declares.
This one interprets the opcodes of protocols 0 to 5 itself: names become whatever the caller's `find_global` returns,
calls become `reduce` of that object, byte strings stay in the file as `Blob`s, and declared lengths are checked against
the bytes that are there. Time and memory are bounded by the file's size and `MAX_OPCODES`.
"""

import codecs
import pickle
import struct
from collections.abc import Callable, Iterable
from io import BufferedIOBase
from typing import Any

MAX_OPCODES = 400_000  # A snapshot of three 256 px networks has 32,000.
_MAX_LINE = 1 << 16
_MAX_INT_BYTES = 32


class Malformed(ValueError):
    """The bytes are not a network pickle; the message continues "FILE is not a network file: "."""


class Stub:
    """What a pickle builds instead of a foreign object; whatever a subclass does not allow is malformed."""

    def reduce(self, *args: Any) -> Any:
        """The file calls this object."""
        raise Malformed(f'it calls {self}')

    def build(self, state: Any) -> None:
        """The file sets this object's state."""
        raise Malformed(f'it sets the state of {self}')

    def update(self, items: list) -> None:
        """The file appends items, or sets (key, value) pairs."""
        raise Malformed(f'it adds items to {self}')


class Blob(Stub):
    """A byte string that is still in the file."""

    __slots__ = ('_file', '_start', 'length')

    def __init__(self, file: BufferedIOBase, start: int, length: int):
        self._file, self._start, self.length = file, start, length

    def __str__(self) -> str:
        return 'a byte string'

    def tail(self, position: int) -> 'Blob':
        """The rest of this blob from `position` in the file on."""
        return Blob(self._file, position, self._start + self.length - position)

    def split(self, n: int) -> tuple[bytes, 'Blob']:
        """The first n bytes, read, and the rest."""
        if n > self.length:
            raise Malformed('it is cut off')
        return Blob(self._file, self._start, n).read(), self.tail(self._start + n)

    def read(self) -> bytes:
        """All bytes."""
        data = bytearray(self.length)
        self.read_into(memoryview(data))
        return bytes(data)

    def read_into(self, buffer: memoryview) -> None:
        """Fill `buffer`, which is as long as the blob, with its bytes; the file's position does not change."""
        position = self._file.tell()
        self._file.seek(self._start)
        if self._file.readinto(buffer) != self.length:
            raise Malformed('it became shorter while it was read')
        self._file.seek(position)

    def machine(self, *args: Any) -> 'Machine':
        """A machine for the pickles at the start of this byte string; using it moves the file's position."""
        self._file.seek(self._start)
        return Machine(self._file, self._start + self.length, *args)


class Machine:
    """Reads pickles, one per `load()`, from a file's current position on.

    Args:
        file: seekable binary file.
        end: position behind the last byte that may be read.
        find_global: `find_global(module, name)` returns the object for a name (a `Stub` if the file may call it).
        find_persistent: the same for persistent ids; without it they are malformed.
        budget: one item per opcode that may be read; machines for parts of the same file share one iterator.
    """

    def __init__(
        self,
        file: BufferedIOBase,
        end: int,
        find_global: Callable[[str, str], Any],
        find_persistent: Callable[[Any], Any] | None = None,
        budget: Iterable | None = None,
    ):
        self._file = file
        self._end = end
        self._find_global = find_global
        self._find_persistent = find_persistent
        self._budget = iter(range(MAX_OPCODES)) if budget is None else budget

    def load(self) -> Any:
        """The value of the next pickle.

        Raises:
            Malformed: the bytes are not a pickle, end too early, or ask for what a network pickle does not need.
        """
        self._stack: list = []
        self._marks: list[list] = []
        self._memo: dict[int, Any] = {}
        read = self._file.read
        try:
            for _ in self._budget:
                opcode = read(1)
                if opcode == pickle.STOP:
                    self.position()
                    return self._stack.pop()
                if opcode not in _OPERATIONS:
                    raise Malformed(f'byte {self.position() - 1} is not an opcode' if opcode else 'it is cut off')
                _OPERATIONS[opcode](self)
        except IndexError as error:
            raise Malformed('its opcodes take more from the stack than they put there') from error
        raise Malformed(f'it has more than {MAX_OPCODES:,} pickle opcodes')

    def position(self) -> int:
        """The file's position, checked against the end."""
        if self._file.tell() > self._end:
            raise Malformed('it is cut off')
        return self._file.tell()

    # --- reading

    def _read(self, n: int) -> bytes:
        if n > 255:  # Declared by the file: check before anything is allocated.
            self._expect(n)
        data = self._file.read(n)
        if len(data) != n:
            raise Malformed('it is cut off')
        return data

    def _expect(self, n: int) -> None:
        if n > self._end - self._file.tell():
            raise Malformed('it is cut off')

    def _line(self) -> bytes:
        line = self._file.readline(_MAX_LINE)
        if not line.endswith(b'\n'):
            raise Malformed('it is cut off')
        return line[:-1]

    def _u8(self) -> int:
        return self._read(1)[0]

    def _u16(self) -> int:
        return int.from_bytes(self._read(2), 'little')

    def _u32(self) -> int:
        return int.from_bytes(self._read(4), 'little')

    def _u64(self) -> int:
        return int.from_bytes(self._read(8), 'little')

    # --- stack and memo

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop_mark(self) -> list:
        items = self._stack
        self._stack = self._marks.pop()
        return items

    def _mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _get(self, key: int) -> None:
        if key not in self._memo:
            raise Malformed(f'it refers to memo {key}, which it has not set')
        self._stack.append(self._memo[key])

    def _get_short(self) -> None:
        """The most frequent opcode, so without calls."""
        key = self._file.read(1)
        if not key or key[0] not in self._memo:
            raise Malformed('it refers to a memo that it has not set')
        self._stack.append(self._memo[key[0]])

    def _put(self, key: int) -> None:
        if not 0 <= key < 1 << 32:  # Picklers count. Of larger numbers, a file can have many with the same hash.
            raise Malformed('it numbers its objects as no pickler does')
        self._memo[key] = self._stack[-1]

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    # --- values

    def _text(self, data: bytes, encoding: str = 'utf-8', errors: str = 'surrogatepass') -> str:
        try:
            return data.decode(encoding, errors)
        except UnicodeDecodeError as error:
            raise Malformed('it has a string that is not valid text') from error

    def _quoted_text(self) -> str:
        line = self._line()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b'"', b"'"):
            raise Malformed('it has a string without quotes')
        try:
            return self._text(codecs.escape_decode(line[1:-1])[0], 'ascii', 'strict')
        except ValueError as error:
            raise Malformed('it has a string that is not valid text') from error

    def _blob(self, n: int) -> Blob:
        self._expect(n)
        start = self._file.tell()
        self._file.seek(start + n)
        return Blob(self._file, start, n)

    def _number(self, convert: Callable[[bytes], Any]) -> Any:
        try:
            return convert(self._line())
        except ValueError as error:
            raise Malformed('it has a number that cannot be parsed') from error

    def _long(self, n: int) -> int:
        if n > _MAX_INT_BYTES:
            raise Malformed(f'it has an integer of {n} bytes')
        return int.from_bytes(self._read(n), 'little', signed=True)

    def _tuple(self, n: int) -> None:
        if len(self._stack) < n:
            raise IndexError
        self._stack[-n:] = [tuple(self._stack[-n:])]

    # --- filling containers

    def _append(self, items: list) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Stub):
            target.update(items)
        else:
            raise Malformed(f'it appends to a {type(target).__name__}')

    def _set_items(self, items: list) -> None:
        target = self._stack[-1]
        if not isinstance(target, (dict, Stub)):
            raise Malformed(f'it sets keys of a {type(target).__name__}')
        target.update(_pairs(items))

    def _set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def _add_items(self, items: list) -> None:
        target = self._stack[-1]
        if not isinstance(target, set):
            raise Malformed(f'it adds members to a {type(target).__name__}')
        target.update(map(_key, items))

    # --- names and calls

    def _global(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Malformed('it has a name that is not text')
        self._push(self._find_global(module, name))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._global(module, name)

    def _reduce(self) -> None:
        args, function = self._stack.pop(), self._stack.pop()
        self._call(function, args)

    def _call(self, function: Any, args: Any) -> None:
        if not isinstance(function, Stub):
            raise Malformed(f'it calls a {type(function).__name__}')
        if not isinstance(args, tuple):
            raise Malformed(f'it calls {function} with arguments that are not a tuple')
        self._push(function.reduce(*args))

    def _new_object_with_kwargs(self) -> None:
        if self._stack.pop():
            raise Malformed('it makes an object from keyword arguments')
        self._reduce()

    def _object(self) -> None:
        items = self._pop_mark()
        self._call(items[0], tuple(items[1:]))

    def _instance(self) -> None:
        args = tuple(self._pop_mark())
        self._global(self._text(self._line()), self._text(self._line()))
        self._call(self._stack.pop(), args)

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Stub):
            target.build(state)
        elif state and not (isinstance(target, dict) and _is_metadata(state)):
            raise Malformed(f'it sets the state of a {type(target).__name__}')

    def _persistent(self, identifier: Any) -> None:
        if self._find_persistent is None:
            raise Malformed('it refers to something outside the file')
        self._push(self._find_persistent(identifier))


def _is_metadata(state: Any) -> bool:
    """Whether this is what state dicts carry beside their items: versions of modules, of which nothing is kept."""
    return isinstance(state, dict) and set(state) == {'_metadata'}


def _key(value: Any) -> Any:
    """`value`, if it may be a key. Types of which a file can make many keys collide would take quadratic time."""
    if value is None or isinstance(value, str) or (isinstance(value, int) and abs(value) < 1 << 60):
        return value
    raise Malformed(f'it has a key of type {type(value).__name__}')


def _pairs(items: list) -> list[tuple]:
    if len(items) % 2:
        raise Malformed('it has a key without a value')
    return [(_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True)]


def _int_line(text: bytes) -> int | bool:
    return {b'00': False, b'01': True}[text] if text in (b'00', b'01') else int(text)


_OPERATIONS: dict[bytes, Callable[[Machine], Any]] = {
    # Stack, memo, framing.
    pickle.MARK: Machine._mark,
    pickle.POP: Machine._pop,
    pickle.POP_MARK: Machine._pop_mark,
    pickle.DUP: lambda m: m._push(m._stack[-1]),
    pickle.PUT: lambda m: m._put(m._number(int)),
    pickle.BINPUT: lambda m: m._put(m._u8()),
    pickle.LONG_BINPUT: lambda m: m._put(m._u32()),
    pickle.MEMOIZE: Machine._memoize,
    pickle.GET: lambda m: m._get(m._number(int)),
    pickle.BINGET: Machine._get_short,
    pickle.LONG_BINGET: lambda m: m._get(m._u32()),
    pickle.PROTO: Machine._u8,
    pickle.FRAME: Machine._u64,
    # Numbers.
    pickle.NONE: lambda m: m._push(None),
    pickle.NEWTRUE: lambda m: m._push(True),
    pickle.NEWFALSE: lambda m: m._push(False),
    pickle.INT: lambda m: m._push(m._number(_int_line)),
    pickle.LONG: lambda m: m._push(m._number(lambda text: int(text.removesuffix(b'L')))),
    pickle.BININT: lambda m: m._push(int.from_bytes(m._read(4), 'little', signed=True)),
    pickle.BININT1: lambda m: m._push(m._u8()),
    pickle.BININT2: lambda m: m._push(m._u16()),
    pickle.LONG1: lambda m: m._push(m._long(m._u8())),
    pickle.LONG4: lambda m: m._push(m._long(m._u32())),
    pickle.FLOAT: lambda m: m._push(m._number(float)),
    pickle.BINFLOAT: lambda m: m._push(struct.unpack('>d', m._read(8))[0]),
    # Strings.
    pickle.STRING: lambda m: m._push(m._quoted_text()),
    pickle.BINSTRING: lambda m: m._push(m._text(m._read(m._u32()), 'ascii', 'strict')),
    pickle.SHORT_BINSTRING: lambda m: m._push(m._text(m._read(m._u8()), 'ascii', 'strict')),
    pickle.UNICODE: lambda m: m._push(m._text(m._line(), 'raw-unicode-escape', 'strict')),
    pickle.SHORT_BINUNICODE: lambda m: m._push(m._text(m._read(m._u8()))),
    pickle.BINUNICODE: lambda m: m._push(m._text(m._read(m._u32()))),
    pickle.BINUNICODE8: lambda m: m._push(m._text(m._read(m._u64()))),
    pickle.SHORT_BINBYTES: lambda m: m._push(m._blob(m._u8())),
    pickle.BINBYTES: lambda m: m._push(m._blob(m._u32())),
    pickle.BINBYTES8: lambda m: m._push(m._blob(m._u64())),
    pickle.BYTEARRAY8: lambda m: m._push(m._blob(m._u64())),
    # Containers.
    pickle.EMPTY_TUPLE: lambda m: m._push(()),
    pickle.TUPLE1: lambda m: m._tuple(1),
    pickle.TUPLE2: lambda m: m._tuple(2),
    pickle.TUPLE3: lambda m: m._tuple(3),
    pickle.TUPLE: lambda m: m._push(tuple(m._pop_mark())),
    pickle.EMPTY_LIST: lambda m: m._push([]),
    pickle.LIST: lambda m: m._push(m._pop_mark()),
    pickle.APPEND: lambda m: m._append([m._stack.pop()]),
    pickle.APPENDS: lambda m: m._append(m._pop_mark()),
    pickle.EMPTY_DICT: lambda m: m._push({}),
    pickle.DICT: lambda m: m._push(dict(_pairs(m._pop_mark()))),
    pickle.SETITEM: Machine._set_item,
    pickle.SETITEMS: lambda m: m._set_items(m._pop_mark()),
    pickle.EMPTY_SET: lambda m: m._push(set()),
    pickle.ADDITEMS: lambda m: m._add_items(m._pop_mark()),
    pickle.FROZENSET: lambda m: m._push(frozenset(map(_key, m._pop_mark()))),
    # Names, calls, objects. Extension registry and out-of-band buffers are absent: they refer to outside of the file.
    pickle.GLOBAL: lambda m: m._global(m._text(m._line()), m._text(m._line())),
    pickle.STACK_GLOBAL: Machine._stack_global,
    pickle.REDUCE: Machine._reduce,
    pickle.NEWOBJ: Machine._reduce,
    pickle.NEWOBJ_EX: Machine._new_object_with_kwargs,
    pickle.OBJ: Machine._object,
    pickle.INST: Machine._instance,
    pickle.BUILD: Machine._build,
    pickle.PERSID: lambda m: m._persistent(m._line()),
    pickle.BINPERSID: lambda m: m._persistent(m._stack.pop()),
}
