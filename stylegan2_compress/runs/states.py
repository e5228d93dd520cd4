"""Training state: the one file from which a run goes on exactly where it was, and the records that go on with it."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from stylegan2_compress import files
from stylegan2_compress.errors import UserError

KEEP = 2
STATE_KIMG = 40  # Thousands of images between states, unless a run says otherwise.
RECORDS = ('log.txt', 'stats.jsonl', 'metric-*.jsonl')  # What a run appends to.
COMMENT = b'sha256:'


class Damaged(UserError):
    """A state file that is not what was saved."""


def state_path(run_dir: str | os.PathLike, cur_nimg: int) -> Path:
    return Path(run_dir, f'training-state-{cur_nimg / 1000:010.3f}.pt')


def states_in(run_dir: str | os.PathLike) -> list[Path]:
    """Paths of the state files, newest first."""
    paths = Path(run_dir).glob('training-state-*.pt')
    return sorted((path for path in paths if re.fullmatch(r'training-state-\d+\.\d+\.pt', path.name)), reverse=True)


def save_state(run_dir: str | os.PathLike, cur_nimg: int, parts: Mapping[str, Any], finished: bool) -> Path:
    """Write a state file, and delete all but it and the newest of those before it.

    Args:
        run_dir: of the run.
        cur_nimg: images seen.
        parts: state dictionaries by name: tensors, numbers, strings, lists and dictionaries only.
        finished: whether the run has nothing left to do.

    Raises:
        UserError: it cannot be written; the files that are there stay.
    """
    state = {**parts, 'finished': finished, 'records': record_sizes(run_dir)}
    path = state_path(run_dir, cur_nimg)
    with files.atomic_write(path) as file:
        write_state(file, state)
    others = [other for other in states_in(run_dir) if other != path]
    for other in [other for other in others if other > path] + [other for other in others if other < path][KEEP - 1 :]:
        other.unlink()
    return path


def load_latest_state(run_dir: str | os.PathLike) -> dict[str, Any] | None:
    """The newest state that is whole, with its tensors on the CPU; None where there is none at all.

    Raises:
        UserError: there are state files, and all are damaged.
    """
    paths = states_in(run_dir)
    for path in paths:
        try:
            return read_state(path)
        except Damaged as damage:
            print(f'{damage} The one before it is used.' if path != paths[-1] else damage)
    if paths:
        raise UserError(f'All states in {run_dir} are damaged: delete training-state-*.pt there to start from scratch.')
    return None


# --- One file: what torch.save writes, with a checksum as the comment of the zip archive that it is -------------------


def write_state(file: BinaryIO, state: Mapping[str, Any]) -> None:
    sink = _Hashing(file)
    try:
        torch.save(dict(state), sink)
    except RuntimeError:  # What torch makes of any error in `write`.
        raise sink.error or RuntimeError('torch.save failed') from sink.error
    file.seek(-2, os.SEEK_END)  # The length of the comment, which is the last thing in an archive without one.
    comment = COMMENT + sink.digest.hexdigest().encode()
    file.write(len(comment).to_bytes(2, 'little') + comment)


def read_state(path: str | os.PathLike) -> dict[str, Any]:
    """The state in a file, with its tensors on the CPU; no code in it is run.

    Raises:
        Damaged: the checksum does not fit.
    """
    length = len(COMMENT) + hashlib.sha256().digest_size * 2
    with files.opened(path) as (file, size):
        digest = hashlib.sha256()
        left = size - length - 2
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
        digest.update(b'\0\0')  # The length of the comment before there was one.
        if file.read()[2:] != COMMENT + digest.hexdigest().encode():
            raise Damaged(f'{path} is damaged: its checksum does not fit.')
    return torch.load(path, map_location='cpu', weights_only=True)


class _Hashing:
    """Passes bytes on to a file and hashes them; keeps the error that made writing fail."""

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


# --- Records ----------------------------------------------------------------------------------------------------------


def record_sizes(run_dir: str | os.PathLike) -> dict[str, int]:
    """How long each of the run's records is, in bytes."""
    return {path.name: path.stat().st_size for pattern in RECORDS for path in Path(run_dir).glob(pattern)}


def cut_records(run_dir: str | os.PathLike, sizes: Mapping[str, int]) -> None:
    """Take back what was appended to the records after they were that long: the continued run writes it once more."""
    for name, size in record_sizes(run_dir).items():
        if size > sizes.get(name, 0):
            os.truncate(Path(run_dir, name), sizes.get(name, 0))


def delete_temporary_files(run_dir: str | os.PathLike) -> None:
    """Delete what a kill in the middle of `files.atomic_write` left behind."""
    for pattern in ('.training-state-*.tmp', '.network-snapshot-*.tmp'):
        for path in Path(run_dir).glob(pattern):
            path.unlink()
