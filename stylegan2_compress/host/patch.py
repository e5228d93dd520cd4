"""Insert the lines of `patches/train.patch` into a host's `train.py`, and take them out again."""

import ast
import enum
import os
import shutil
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from stylegan2_compress.errors import UserError

# What the inserted lines use. StyleGAN3's train.py, for example, has other names.
_NAMES = {'UserError', 'main', 'setup_training_loop_kwargs', 'subprocess_fn', 'training_loop'}

# Lines that earlier versions of this package inserted: checkouts have them until they are patched again.
_EARLIER_LINES = (
    b'# Inserted by `stylegan2-compress patch`; `stylegan2-compress patch --reverse` takes it out again.',
    b'# Adds --loss, --loss-arg, --teacher, --student and --loop, here and in the processes that --gpus starts.',
    b'import sys',
    b'import stylegan2_compress.options',
    b'stylegan2_compress.options.extend_train(sys.modules[__name__])',
    b'',
)


class State(enum.Enum):
    """Which lines of ours a `train.py` has."""

    UNPATCHED = enum.auto()
    PATCHED = enum.auto()
    PATCHED_BY_EARLIER_VERSION = enum.auto()


def state(directory: str | Path) -> State:
    """Which lines of ours `directory/train.py` has.

    Raises:
        UserError: there is no `train.py`, or one that the patch does not fit.
    """
    return _TrainScript(directory).state


def apply(directory: str | Path) -> State:
    """Insert the lines into `directory/train.py`, in place of those of an earlier version if it has them.

    They go before its `if __name__ == '__main__':`, wherever that is, with the line endings of the file. Nothing else
    changes, nor do the file's permissions. A file that has the lines already is not written.

    Returns:
        The state before.

    Raises:
        UserError: as from `state`, leaving the file as it is; or the file cannot be written.
    """
    script = _TrainScript(directory)
    if script.state is not State.PATCHED:
        script.write([line + script.line_ending for line in _current_lines()])
    return script.state


def reverse(directory: str | Path) -> State:
    """Take the lines, or those of an earlier version, out of `directory/train.py`: it is as before, byte for byte.

    Returns:
        The state before.

    Raises:
        UserError: as from `apply`.
    """
    script = _TrainScript(directory)
    if script.state is not State.UNPATCHED:
        script.write([])
    return script.state


def _current_lines() -> list[bytes]:
    patch = files('stylegan2_compress.patches').joinpath('train.patch').read_bytes()
    return [line[1:] for line in patch.splitlines() if line.startswith(b'+') and not line.startswith(b'+++')]


class _TrainScript:
    """A `train.py` that the patch fits.

    Attributes:
        path: the file itself, where links lead.
        before, after: its lines, with their endings, before our lines and from `if __name__ == '__main__':` on.
        state: which lines of ours are between them.
    """

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory, 'train.py').resolve()
        if not self.path.is_file():
            raise UserError(f'There is no train.py in {directory}: name a checkout of stylegan2-ada-pytorch.')
        lines = self.path.read_bytes().splitlines(keepends=True)
        guard = self._find_guard(lines)
        self.before, self.after = lines[:guard], lines[guard:]
        self.state = State.UNPATCHED
        for state, ours in [
            (State.PATCHED, _current_lines()),
            (State.PATCHED_BY_EARLIER_VERSION, list(_EARLIER_LINES)),
        ]:
            if [line.rstrip(b'\r\n') for line in self.before[-len(ours) :]] == ours:
                self.state, self.before = state, self.before[: -len(ours)]
                return
        if any(b'stylegan2_compress' in line for line in lines):
            raise UserError(
                f'{self.path} already mentions stylegan2_compress, but not as this version inserts it; '
                f'restore it with `git checkout train.py` and patch it again.'
            )

    @property
    def line_ending(self) -> bytes:
        return b'\r\n' if self.after[0].endswith(b'\r\n') else b'\n'

    def _find_guard(self, lines: Sequence[bytes]) -> int:
        """The index of `if __name__ == '__main__':` among the lines."""
        try:
            body = ast.parse(b''.join(lines)).body
        except (SyntaxError, ValueError):
            raise UserError(f'{self.path} is not valid Python, so it is left as it is.') from None
        missing = _NAMES - {name for statement in body for name in _defined_names(statement)}
        guards = [statement.lineno - 1 for statement in body if _is_main_guard(statement)]
        if missing or len(guards) != 1:
            lacks = f'no {min(missing)}' if missing else f"{len(guards)} lines `if __name__ == '__main__':`"
            raise UserError(
                f'{self.path} has {lacks}, so it is not the train.py of stylegan2-ada-pytorch and is left as it is.'
            )
        return guards[0]

    def write(self, ours: Sequence[bytes]) -> None:
        """Replace the file in one step by one with these lines of ours, keeping its permissions."""
        try:
            handle, temp = tempfile.mkstemp(prefix='.train.py-', dir=self.path.parent)
        except OSError as err:
            raise UserError(f'{self.path} cannot be changed: {err.strerror}; make its directory writable.') from None
        try:
            with open(handle, 'wb') as f:
                f.writelines([*self.before, *ours, *self.after])
            shutil.copymode(self.path, temp)
            os.replace(temp, self.path)
        except BaseException:
            os.unlink(temp)
            raise


def _defined_names(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in statement.names]
    return []


def _is_main_guard(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "__name__ == '__main__'"
