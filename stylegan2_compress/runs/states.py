"""Training states: files from which a run goes on exactly where it was, each with a checksum."""

import hashlib
import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from stylegan2_compress import files
from stylegan2_compress.errors import UserError
from stylegan2_compress.runs.directory import RunDirectory

KEEP = 2  # State files per run.
COMMENT = b'sha256:'


class Damaged(UserError):
    """A state file's contents differ from what was saved."""


def save_state(run: RunDirectory, cur_nimg: int, parts: Mapping[str, Any], finished: bool) -> Path:
    """Write a state file, and delete all others but the newest of those before it.

    Args:
        run: whose state it is.
        cur_nimg: images seen.
        parts: state dictionaries by name: tensors, numbers, strings, lists and dictionaries only.
        finished: whether the run has nothing left to do.

    Returns:
        The path of the file.

    Raises:
        UserError: it cannot be written, or has something that could not be read back; the existing files stay.
    """
    state = {**parts, 'finished': finished, 'records': run.record_sizes()}
    path = run.state_path(cur_nimg)
    run.sync_records()
    with files.atomic_write(path) as file:
        write_state(file, state)
    if not _opens(path):
        path.unlink()
        raise UserError(_unreadable(parts))
    others = [other for other in run.states() if other != path]
    for other in [other for other in others if other > path] + [other for other in others if other < path][KEEP - 1 :]:
        other.unlink()
    return path


def load_latest_state(run: RunDirectory) -> dict[str, Any] | None:
    """The newest state that is not damaged, with its tensors on the CPU; None where there are no state files.

    Raises:
        UserError: all state files are damaged.
    """
    found = latest_state(run)
    return None if found is None else read_verified(found[0])


def latest_state(run: RunDirectory) -> tuple[Path, str] | None:
    """Path and checksum of the newest state that is not damaged; None where there are no state files.

    Raises:
        UserError: all state files are damaged.
    """
    paths = run.states()
    for path in paths:
        try:
            return path, verify(path)
        except Damaged as damage:
            print(f'{damage} The one before it is used.' if path != paths[-1] else damage)
    if paths:
        raise UserError(_all_damaged(run))
    return None


def require_one(run: RunDirectory) -> None:
    """Refuse a run whose states are all damaged, before anything is written there; one without any is not refused.

    Raises:
        UserError: they are.
    """
    if run.states() and not has_intact(run):
        raise UserError(_all_damaged(run))


def has_intact(run: RunDirectory) -> bool:
    """Whether a run has a state that is not damaged."""
    return any(_is_intact(path) for path in run.states())


def _is_intact(path: Path) -> bool:
    try:
        verify(path)
    except Damaged:
        return False
    return True


def _all_damaged(run: RunDirectory) -> str:
    return (
        f'All states in {run} are damaged: start a new run in another directory, without --resume; the snapshots of '
        'this one can be its --student.'
    )


def _opens(path: Path) -> bool:
    """Whether `read_state` finds in a file only what states may have. No tensor is read, so that it takes no time."""
    try:
        torch.load(os.fspath(path), map_location='cpu', weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        return False
    except RuntimeError:  # On file systems without memory mapping.
        pass
    return True


def _unreadable(parts: Mapping[str, Any]) -> str:
    """Which parts of a state made its file one that does not open."""
    names = []
    for name, part in parts.items():
        file = io.BytesIO()
        torch.save(part, file)
        file.seek(0)
        try:
            torch.load(file, map_location='cpu', weights_only=True)
        except pickle.UnpicklingError:
            names.append(f'"{name}"')
    return (
        f'The state of {" and ".join(names)} could not be read back, and the run not be continued from it: a '
        'state_dict() may have tensors, numbers of Python, strings, lists and dictionaries.'
    )


# --- Format: what torch.save writes, which is a zip archive, with a checksum as the archive's comment -----------------


def write_state(file: BinaryIO, state: Mapping[str, Any]) -> None:
    """Write a state to an empty file.

    Raises:
        OSError: the file cannot be written.
    """
    sink = _HashingWriter(file)
    try:
        torch.save(dict(state), sink)  # pyright: ignore[reportArgumentType]  # It only writes and flushes.
    except RuntimeError:  # torch raises it for any error in `write`.
        raise sink.error or RuntimeError('torch.save failed') from sink.error
    file.seek(-2, os.SEEK_END)  # The length of the comment, which is the last thing in an archive without one.
    comment = COMMENT + sink.digest.hexdigest().encode()
    file.write(len(comment).to_bytes(2, 'little') + comment)


def read_state(path: str | os.PathLike, checksum: str | None = None) -> dict[str, Any]:
    """The state in a file, with its tensors on the CPU. No code in the file is run.

    Args:
        path: of the file.
        checksum: of the state that is meant, where other processes read it, too.

    Raises:
        Damaged: the checksum does not match.
        UserError: the file cannot be read, or has another state.
    """
    found = verify(path)
    if checksum not in (None, found):
        raise UserError(f'{path} is another state here than in process 0, which continues from it.')
    return read_verified(path)


def read_verified(path: str | os.PathLike) -> dict[str, Any]:
    """The same of a file whose checksum has just been found to match, as by `latest_state`."""
    return torch.load(path, map_location='cpu', weights_only=True)


def verify(path: str | os.PathLike) -> str:
    """Compare the contents of a state file with its checksum, and return that.

    Raises:
        Damaged: they do not match.
    """
    length = len(COMMENT) + hashlib.sha256().digest_size * 2
    with files.opened(path) as (file, size):
        digest = hashlib.sha256()
        left = size - length - 2
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
        digest.update(b'\0\0')  # The length of the comment when the digest was made.
        if file.read()[2:] != COMMENT + digest.hexdigest().encode():
            raise Damaged(f'{path} is damaged: its checksum does not match.')
    return digest.hexdigest()


class _HashingWriter:
    """Writes bytes to a file and hashes them; keeps the error that made writing fail."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()
