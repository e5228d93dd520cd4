"""Files: opened with errors a user can act on, hashed, written atomically, locked."""

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import filelock

from stylegan2_compress.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has none.
    fcntl = None

# What NumPy raises of damaged .npz files.
DAMAGED_NPZ = (OSError, RuntimeError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile)

_not_to_replace: set[str] = set()  # Files that were not there when a command was checked, which may last hours.


def status(path: str | os.PathLike, purpose: str = 'read') -> os.stat_result | None:
    """What the system says of a path; None where nothing is. `Path.exists` and its like raise what no user understands.

    Args:
        path: of anything; a symbolic link is followed.
        purpose: what the path was given for, 'read' or 'write'; for the error.

    Raises:
        UserError: it does not say: a directory on the way may not be entered or is a file, or the name is too long.
    """
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f'Cannot {purpose} {path}: {error.strerror}.') from error


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[tuple[BufferedReader, int]]:
    """A regular file, open for reading in binary mode, and its size in bytes.

    Raises:
        UserError: the file does not exist, is not a regular one, or cannot be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f'{path} is a {"directory" if os.path.isdir(path) else "device"}, not a file.')
        file = open(path, 'rb')  # noqa: SIM115  (closed below: what happens in the caller's block is not caught here)
    except OSError as error:
        raise UserError(f'Cannot read {path or "the empty name"}: {error.strerror}.') from error
    with file:
        yield file, os.fstat(file.fileno()).st_size


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        UserError: the file cannot be read.
    """
    with opened(path) as (file, _size):
        return sha256_of_open(file)


def sha256_of_open(file: BufferedIOBase) -> str:
    """The SHA-256 of an open file's bytes, in hexadecimal; the file is at its start afterwards."""
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(1 << 20):
        digest.update(block)
    file.seek(0)
    return digest.hexdigest()


def public_name(place: str) -> str:
    """The last part of a path or an address, to publish: neither directories nor a query, which may hold a key."""
    path = urlsplit(place).path if '://' in place else place
    return os.path.basename(path.rstrip('/\\'))


@contextlib.contextmanager
def locked(path: str | os.PathLike, in_use: str | None) -> Iterator[None]:
    """Hold a lock on the file `path`, which is created if necessary and stays.

    The lock is the operating system's and ends with the process, however that ends. Where there are no such locks
    (some network file systems), no process is refused.

    Args:
        path: file to lock.
        in_use: message for a process that is refused; None lets it wait instead.

    Raises:
        UserError: another process holds the lock, or the file cannot be written.
    """
    lock = _RecordLock if fcntl is not None else filelock.FileLock
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(lock(os.fspath(path), timeout=-1 if in_use is None else 0))
        except TimeoutError as error:
            raise UserError(in_use or f'{path} is locked.') from error
        except OSError as error:
            raise UserError(f'Cannot write {path}: {error.strerror}.') from error
        yield


class _RecordLock:
    """A lock of POSIX, which the processes that this one forks do not inherit, unlike filelock's.

    Data loaders' workers live on for seconds when a run is killed, which then could not be continued at once.

    Args:
        path: file to lock.
        timeout: 0 refuses at once, -1 waits.
    """

    def __init__(self, path: str, timeout: float):
        self.path, self.waits = path, timeout != 0

    def __enter__(self) -> None:
        assert fcntl is not None
        self.file = open(self.path, 'a')
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | (0 if self.waits else fcntl.LOCK_NB))
        except OSError as error:
            if not self.waits and error.errno in (errno.EACCES, errno.EAGAIN):
                self.file.close()
                raise TimeoutError from error

    def __exit__(self, *_exception) -> None:
        self.file.close()


def check_output(path: str, force: bool, endings: Sequence[str], inputs: Iterable[str | None] = ()) -> None:
    """Check that a file can be written, and that it does not exist unless `force` is given.

    Args:
        path: of the file.
        force: whether an existing file may be replaced.
        endings: that say the format which is written.
        inputs: what the command reads, which no file replaces.

    A file that appears there later is not replaced either: `atomic_write` and `collected` then refuse.

    Raises:
        UserError: the file exists, is a directory or one of the inputs, is in a directory that cannot be written to,
            or has a name that says another format.
    """
    if os.path.isdir(path or '.'):
        raise UserError(f'{path or "The empty name"} is a directory: name a file to write.')
    check_ending(path, endings)
    if any(each is not None and os.path.realpath(each) == os.path.realpath(path) for each in inputs):
        raise UserError(f'{path} is read and would be replaced: name another file to write.')
    if status(path, 'write') is not None and not force:
        raise UserError(f'{path} exists: name another file, or add --force to replace it.')
    _require_writable_parent(path)
    if force:
        _not_to_replace.discard(os.path.realpath(path))
    else:
        expect_nothing_at(path)


def expect_nothing_at(path: str) -> None:
    """Let `atomic_write` and `collected` refuse to replace a file that is not there now, should it appear."""
    _not_to_replace.add(os.path.realpath(path))


def _has_appeared(path: Path) -> bool:
    return os.fspath(path) in _not_to_replace and os.path.lexists(path)


def check_ending(path: str, endings: Sequence[str]) -> None:
    """Check that the name of a file to write says the format.

    Raises:
        UserError: it has none of the endings.
    """
    if not path.endswith(tuple(endings)):
        raise UserError(f'The name of the file to write, {path}, must end in {" or ".join(endings)}.')


def require_writable_directory(option: str, directory: str) -> None:
    """Check that a directory can be written to, or created.

    Args:
        option: the option that names the directory, for the error.
        directory: a path, of which only the first directories may exist.

    Raises:
        UserError: neither is possible.
    """
    if not directory:
        raise UserError(f'{option}= is empty: name a directory, such as {option}=. for this one.')
    existing = os.path.realpath(directory)
    while not os.path.exists(existing) and existing != os.path.dirname(existing):  # Not even a drive may exist.
        existing = os.path.dirname(existing)
    if not _is_writable_directory(existing):
        raise UserError(f'{option}={directory} cannot be written to, because of {existing}; choose another directory.')
    status(directory, 'write')  # Its own name may be one that cannot be.


def _is_writable_directory(path: str | os.PathLike) -> bool:
    return os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)


def make_directory(path: str | os.PathLike) -> None:
    """Create a directory unless it exists.

    Raises:
        UserError: it cannot be created.
    """
    try:
        os.makedirs(os.path.realpath(path), exist_ok=True)
    except OSError as error:
        raise UserError(f'Cannot create {os.fspath(path)}: {error.strerror}.') from error


def require_appendable(path: str | os.PathLike) -> None:
    """Check that a file can be appended to, or created if there is none.

    Raises:
        UserError: it cannot.
    """
    if status(path, 'write') is None:
        _require_writable_parent(path)
        return
    try:
        with open(path, 'ab'):
            pass
    except OSError as error:
        raise UserError(f'Cannot write {path}: {error.strerror}.') from error


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a binary file that appears under `path` when the block ends, complete and on disk, or not at all.

    The bytes go to a hidden temporary file in the same directory, which is then synced and renamed to `path`. A full
    disk, an exception in the block or a kill leaves the old file as it was. A symbolic link is followed, an existing
    file keeps its permissions.

    Raises:
        UserError: the file cannot be written (no such directory, no permission, disk full), or `check_output` saw none
            of its name and now there is one; then what was to be written is beside it, under another name.
    """
    target = Path(os.path.realpath(path))
    beginning = os.fsencode(target.name)[:200].decode(errors='ignore')  # Names are limited to 255 bytes.
    temporary = target.with_name(f'.{beginning}.{secrets.token_hex(8)}.tmp')
    try:
        # os.open and not tempfile: the mode must follow the umask, as for any file the user makes.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, 'O_BINARY', 0), 0o666)
    except OSError as error:
        raise UserError(f'Cannot write {path}: {error.strerror}.') from error
    try:
        with open(descriptor, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if _has_appeared(target):
            other = target.with_name(f'{target.stem}-{secrets.token_hex(4)}{target.suffix}')
            os.replace(temporary, other)
            raise UserError(f'{path} has appeared while this was made, and was not replaced: see {other}.')
        if target.is_file():
            os.chmod(temporary, target.stat().st_mode & 0o7777)
        os.replace(temporary, target)
        _not_to_replace.discard(os.fspath(target))
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)) and error.errno is not None:
            raise UserError(f'Cannot write {path}: {error.strerror}.') from error
        raise
    _sync_directory(target.parent)


def check_output_directory(path: str, force: bool, marker: str, inputs: Iterable[str | None] = ()) -> None:
    """Check that a directory can be written, and that it is new or empty unless `force` is given and it is one of ours.

    Args:
        path: the directory.
        force: whether to write to a directory that has the file `marker`.
        marker: a file that all directories of the kind have.
        inputs: what the command reads, which is not in such a directory.

    Raises:
        UserError: there is a file, another directory or one with an input, or it cannot be written to.
    """
    if status(path, 'write') is not None:
        if not os.path.isdir(path):
            raise UserError(f'{path} is a file: name a directory to write.')
        if not is_empty(path) and not (force and os.path.isfile(os.path.join(path, marker))):
            way_out = 'name another directory' if force else 'name another directory, or add --force to replace it'
            raise UserError(f'{path} exists{f" and has no {marker}" if force else ""}: {way_out}.')
        for each in inputs:
            if each is not None and os.path.exists(each) and is_inside(each, path):
                raise UserError(f'{each} is read, and lies in {path}: name another directory to write.')
        if not _is_writable_directory(path):
            raise UserError(f'Cannot write {path}: the directory is not writable.')
    else:
        _require_writable_parent(path)


def is_inside(path: str | os.PathLike, directory: str | os.PathLike) -> bool:
    """Whether a path is in a directory or below, or is the directory; symbolic links are followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory))


def is_empty(directory: str | os.PathLike) -> bool:
    """Whether nothing is in a directory.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return not os.listdir(directory)
    except OSError as error:
        raise UserError(f'Cannot read {directory}: {error.strerror}.') from error


def _require_writable_parent(path: str | os.PathLike) -> None:
    """Check the directory that a file will be in, which is another one than its name says if it is a symbolic link."""
    if not _is_writable_directory(os.path.dirname(os.path.realpath(path))):
        raise UserError(f'Cannot write {path}: its directory does not exist or is not writable.')


@contextlib.contextmanager
def collected(path: str | os.PathLike, earlier: Collection[str] | None = None) -> Iterator[Path]:
    """A new directory whose files move to the directory `path` when the block ends, or none of them.

    `path` is created if necessary. What else is there stays.

    Args:
        path: a directory, of which only the first directories may exist.
        earlier: the files in `path` that the new ones replace, all of them and no others, as paths relative to it;
            None replaces those of the same names.

    Raises:
        UserError: they cannot be written, or one would replace a file that is not one of the earlier ones, or one that
            `check_output` did not see.
    """
    target = Path(os.path.realpath(path))
    existing = next((each for each in [target, *target.parents] if os.path.exists(each)), target)
    try:
        with tempfile.TemporaryDirectory(prefix='.tmp-', dir=existing) as temporary:
            yield Path(temporary)
            found = sorted(file for file in Path(temporary).rglob('*') if not file.is_dir())
            new = {file.relative_to(temporary).as_posix(): file for file in found}
            if earlier is not None:
                _make_room(target, earlier, new)
            for name in new:
                if _has_appeared(target / name):
                    raise UserError(f'{target / name} has appeared while this was made: name another directory.')
            for name, file in new.items():
                make_directory((target / name).parent)
                os.replace(file, target / name)
                _not_to_replace.discard(os.fspath(target / name))
            make_directory(target)  # Of no files.
    except OSError as error:
        if error.errno is None:
            raise
        raise UserError(f'Cannot write {path}: {error.strerror}.') from error


def _make_room(directory: Path, earlier: Collection[str], new: Collection[str]) -> None:
    """Delete the earlier files in a directory that have no new ones of their names.

    Raises:
        UserError: there is another file of a new one's name; nothing has been deleted.
    """
    for name in new:
        if name not in earlier and os.path.lexists(directory / name):
            raise UserError(f'{directory / name} is none of the files that are replaced: move it away.')
    for name in set(earlier) - set(new):
        (directory / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # Where there is more in it, as in `directory` there are the new files.
            os.removedirs((directory / name).parent)


def _sync_directory(directory: Path) -> None:
    """Make a rename in `directory` survive a power cut, on platforms that can sync directories."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
