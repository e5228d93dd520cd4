"""Caches: what can be had again is kept for later, for this command only where the cache cannot be written."""

import atexit
import contextlib
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from stylegan2_compress.errors import UserError

OURS = 'STYLEGAN2_COMPRESS_CACHE'
HUGGING_FACES = 'HF_HOME'


def cache_dir(*parts: str) -> Path:
    """A path in our cache, whether or not it exists: `cache_dir('statistics')`.

    The cache is `$STYLEGAN2_COMPRESS_CACHE`, or else `stylegan2-compress` in the platform's directory for caches:
    `%LOCALAPPDATA%`, `$XDG_CACHE_HOME` or `~/.cache`.
    """
    own = os.environ.get(OURS)
    return Path(own, *parts) if own else _conventional() / Path('stylegan2-compress', *parts)


def _conventional() -> Path:
    named = os.environ.get('LOCALAPPDATA' if os.name == 'nt' else 'XDG_CACHE_HOME')
    try:
        return Path(named) if named else Path.home() / '.cache'
    except RuntimeError:  # A user without a home, as in some containers.
        return Path(tempfile.gettempdir(), '.cache')


def make_ours_writable(part: str) -> Path:
    """A directory in our cache, to write to: `make_ours_writable('npm')`. See `or_temporary`.

    Raises:
        UserError: not even a temporary directory can be written.
    """
    or_temporary(OURS, cache_dir(), part)
    return cache_dir(part)


def make_hugging_faces_writable() -> None:
    """To be called before Hugging Face's libraries are imported, which then look where their cache is.

    One that is there is left as it is: many are read-only because they have what is needed.

    Raises:
        UserError: not even a temporary directory can be written.
    """
    named = os.environ.get(HUGGING_FACES)
    directory = Path(named) if named else _conventional() / 'huggingface'
    if 'huggingface_hub' not in sys.modules and not os.path.isdir(directory):
        or_temporary(HUGGING_FACES, directory, 'hub')


def or_temporary(variable: str, directory: Path, part: str) -> None:
    """If a cache cannot be written, let its environment variable name a temporary one, and say so.

    That is for this process and those that it starts, ends with it, and has links to what is in the other.

    Args:
        variable: the environment variable that names the cache.
        directory: the cache.
        part: the directory in it that is to be written to; it is created.
    """
    problem = _why_not_writable(directory / part)
    if problem is None:
        return
    try:
        temporary = tempfile.mkdtemp(prefix='stylegan2-compress-cache-')
    except OSError as error:
        raise UserError(
            f'Cannot write to the cache {directory} ({problem}), nor to a temporary one ({error.strerror}): '
            f'{variable}=DIR names another directory.'
        ) from error
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    if os.path.isdir(directory):
        in_its_place = shutil.ignore_patterns(*([] if os.path.isdir(directory / part) else [part]))
        with contextlib.suppress(OSError, shutil.Error):
            shutil.copytree(
                directory.absolute(), temporary, copy_function=os.symlink, ignore=in_its_place, dirs_exist_ok=True
            )
        for copied, _, _ in os.walk(temporary):
            os.chmod(copied, 0o700)  # Those of a read-only cache are read-only, and so are their copies.
    os.makedirs(os.path.join(temporary, part), exist_ok=True)
    os.environ[variable] = temporary
    print(
        f'Cannot write to the cache {directory} ({problem}): until this command ends, {temporary} is used; '
        f'{variable}=DIR names another directory, which is kept.',
        file=sys.stderr,
    )


def _why_not_writable(directory: Path) -> str | None:
    """Make a directory; what keeps it from being written to, or None."""
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        return error.strerror
    return None if os.access(directory, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)


def try_to_cache(part: str, name: str, write: Callable[[Path], None]) -> None:
    """Write a file to our cache, or say that it cannot be kept: it can be made again, so no run ends for that.

    Args:
        part: the directory in the cache.
        name: of the file.
        write: writes it, by `files.atomic_write`.
    """
    try:
        write(make_ours_writable(part) / name)
    except UserError as error:  # The disk is full.
        print(f'{error.message} What was computed is used, but not kept for later.', file=sys.stderr)
