"""Put the lines of `patches/train.patch` into a host's `train.py`, and take them out again."""

import ast
import os
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path

from stylegan2_compress.errors import UserError

# What the inserted lines work with. StyleGAN3's train.py, for one, has other names.
_NAMES = {'UserError', 'main', 'setup_training_loop_kwargs', 'subprocess_fn', 'training_loop'}


def is_applied(directory: str | Path) -> bool:
    """Say whether `directory/train.py` has the lines.

    Raises:
        UserError: if there is no `train.py`, or one that the patch does not fit.
    """
    return _TrainScript(directory).is_applied


def apply(directory: str | Path) -> bool:
    """Insert the lines into `directory/train.py`, unless they are there; return whether anything changed.

    They go before its `if __name__ == '__main__':`, wherever that is, with the line endings found there; nothing else
    changes, the file's permissions neither.

    Raises:
        UserError: as `is_applied` does, leaving the file as it is; or if the file cannot be written.
    """
    script = _TrainScript(directory)
    if script.is_applied:
        return False
    lines = [line + script.line_ending for line in _inserted_lines()]
    script.write(script.lines[: script.guard] + lines + script.lines[script.guard :])
    return True


def reverse(directory: str | Path) -> bool:
    """Take the lines out of `directory/train.py`, byte for byte, if they are there; return whether anything changed.

    Raises:
        UserError: as `apply` does.
    """
    script = _TrainScript(directory)
    if not script.is_applied:
        return False
    script.write(script.lines[: script.guard - len(_inserted_lines())] + script.lines[script.guard :])
    return True


def _inserted_lines() -> list[bytes]:
    patch = files('stylegan2_compress.patches').joinpath('train.patch').read_bytes()
    return [line[1:] for line in patch.splitlines() if line.startswith(b'+') and not line.startswith(b'+++')]


class _TrainScript:
    """A `train.py` that the patch fits.

    `lines` are its lines with their endings, `guard` is the index among them of `if __name__ == '__main__':`.
    """

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory, 'train.py').resolve()
        if not self.path.is_file():
            raise UserError(f'There is no train.py in {directory}: name a checkout of stylegan2-ada-pytorch.')
        self.lines = self.path.read_bytes().splitlines(keepends=True)
        self.guard = self._find_guard()
        ours = _inserted_lines()
        before = [line.rstrip(b'\r\n') for line in self.lines[max(self.guard - len(ours), 0) : self.guard]]
        self.is_applied = before == ours
        if not self.is_applied and any(b'stylegan2_compress' in line for line in self.lines):
            raise UserError(
                f'{self.path} already mentions stylegan2_compress, but not as this version inserts it; '
                f'restore it with `git checkout train.py` and patch it again.'
            )

    @property
    def line_ending(self) -> bytes:
        return b'\r\n' if self.lines[self.guard].endswith(b'\r\n') else b'\n'

    def _find_guard(self) -> int:
        try:
            body = ast.parse(b''.join(self.lines)).body
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

    def write(self, lines: list[bytes]) -> None:
        """Replace the file in one step, keeping its permissions."""
        try:
            handle, temp = tempfile.mkstemp(prefix='.train.py-', dir=self.path.parent)
        except OSError as err:
            raise UserError(f'{self.path} cannot be changed: {err.strerror}; make its directory writable.') from None
        try:
            with open(handle, 'wb') as f:
                f.writelines(lines)
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
