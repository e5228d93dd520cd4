"""Files: opened with errors a user can act on, hashed, written atomically, locked."""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
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

    Raises:
        UserError: the file exists, is a directory or one of the inputs, is in a directory that cannot be written to,
            or has a name that says another format.
    """
    if Path(path).is_dir():
        raise UserError(f'{path or "The empty name"} is a directory: name a file to write.')
    check_ending(path, endings)
    if any(each is not None and os.path.realpath(each) == os.path.realpath(path) for each in inputs):
        raise UserError(f'{path} is read and would be replaced: name another file to write.')
    if Path(path).exists() and not force:
        raise UserError(f'{path} exists: name another file, or add --force to replace it.')
    _require_writable_parent(path)


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
    existing = os.path.abspath(directory)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f'{option}={directory} cannot be written to, because of {existing}; choose another directory.')


def make_directory(path: str | os.PathLike) -> None:
    """Create a directory unless it exists.

    Raises:
        UserError: it cannot be created.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(f'Cannot create {os.fspath(path)}: {error.strerror}.') from error


def require_appendable(path: str | os.PathLike) -> None:
    """Check that an existing file can be appended to.

    Raises:
        UserError: it cannot.
    """
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
        UserError: the file cannot be written (no such directory, no permission, disk full).
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f'.{target.name[:200]}.{secrets.token_hex(8)}.tmp')
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
        if target.is_file():
            os.chmod(temporary, target.stat().st_mode & 0o7777)
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)) and error.errno is not None:
            raise UserError(f'Cannot write {path}: {error.strerror}.') from error
        raise
    _sync_directory(target.parent)


def refuse_to_replace_directory(path: str, force: bool, marker: str) -> None:
    """Check that a directory can be made, and that there is none unless `force` is given and it is one of ours.

    Args:
        path: the directory.
        force: whether to replace a directory that has the file `marker`, or is empty.
        marker: a file that all directories of the kind have.

    Raises:
        UserError: there is a file or another directory, or its parent cannot be written to.
    """
    target = Path(path)
    if target.exists():
        if not target.is_dir():
            raise UserError(f'{path} is a file: name a directory to write.')
        if any(target.iterdir()) and not (force and (target / marker).is_file()):
            way_out = 'name another directory' if force else 'name another directory, or add --force to replace it'
            raise UserError(f'{path} exists{f" and has no {marker}" if force else ""}: {way_out}.')
    _require_writable_parent(path)


def _require_writable_parent(path: str) -> None:
    if not os.access(Path(path).absolute().parent, os.W_OK):
        raise UserError(f'Cannot write {path}: its directory does not exist or is not writable.')


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike) -> Iterator[Path]:
    """A new directory that appears under `path` when the block ends, in place of one that may be there, or not at all.

    Raises:
        UserError: it cannot be written.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f'.{target.name[:200]}.{secrets.token_hex(8)}.tmp')
    try:
        temporary.mkdir()
    except OSError as error:
        raise UserError(f'Cannot write {path}: {error.strerror}.') from error
    try:
        yield temporary
        if target.exists():
            replaced = temporary.with_suffix('.old')
            target.rename(replaced)
            temporary.rename(target)
            shutil.rmtree(replaced)
        else:
            temporary.rename(target)
    except OSError as error:
        if error.errno is None:
            raise
        raise UserError(f'Cannot write {path}: {error.strerror}.') from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync_directory(target.parent)


@contextlib.contextmanager
def collected(path: str | os.PathLike) -> Iterator[Path]:
    """A new directory whose files move to the directory `path` when the block ends, or none of them.

    `path` is created if necessary. Files there of the same names are replaced, others stay.

    Raises:
        UserError: they cannot be written.
    """
    target = Path(path)
    existing = next(each for each in [target, *target.absolute().parents] if each.exists())
    try:
        with tempfile.TemporaryDirectory(prefix='.tmp-', dir=existing) as temporary:
            yield Path(temporary)
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted(Path(temporary).iterdir()):
                os.replace(file, target / file.name)
    except OSError as error:
        if error.errno is None:
            raise
        raise UserError(f'Cannot write {path}: {error.strerror}.') from error


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
