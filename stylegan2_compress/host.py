"""Where the host (NVlabs/stylegan2-ada-pytorch) is: find it, fetch it, put it on `sys.path`, repair it."""

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from stylegan2_compress.cache import cache_dir
from stylegan2_compress.errors import UserError

URL = 'https://github.com/NVlabs/stylegan2-ada-pytorch'
PINNED_COMMIT = 'd72cc7d041b42ec8e806021a205ed9349f87c6a4'  # The host's last.

ENVIRONMENT = 'STYLEGAN2_ADA_PYTORCH'

# Files that make a directory a host. Its relatives (StyleGAN3, the TensorFlow original) lack one or another.
_LANDMARKS = (
    'dnnlib/util.py',
    'legacy.py',
    'metrics/metric_main.py',
    'torch_utils/misc.py',
    'torch_utils/ops/grid_sample_gradfix.py',
    'torch_utils/persistence.py',
    'training/dataset.py',
    'training/loss.py',
    'training/networks.py',
)
_TOP_LEVEL_MODULES = ('dnnlib', 'legacy', 'metrics', 'torch_utils', 'training')

_active: 'Host | None' = None


@dataclass(frozen=True)
class Host:
    """A directory with the host's modules, and how it was found.

    `source` is '--host', 'STYLEGAN2_ADA_PYTORCH', 'current directory', 'cached copy' or 'already imported'.
    """

    path: Path
    source: str

    @property
    def is_checkout(self) -> bool:
        """Whether the scripts (train.py, generate.py) are there too; the PyPI wheels have only the modules."""
        return (self.path / 'train.py').is_file()


def find(host: str | Path | None = None) -> Host:
    """Look for the host: the directory given, `STYLEGAN2_ADA_PYTORCH`, the current directory, the cached copy.

    Raises:
        UserError: if a directory that was named is no host, or if there is none anywhere.
    """
    for named, source in ((host, '--host'), (os.environ.get(ENVIRONMENT), ENVIRONMENT)):
        if named:
            missing = _missing(Path(named))
            if missing:
                raise UserError(
                    f'{source}={named} is no checkout of stylegan2-ada-pytorch: it has no {missing[0]}; '
                    f'`stylegan2-compress host --dest DIR` makes one.'
                )
            return Host(Path(named).resolve(), source)
    if not _missing(Path.cwd()):
        return Host(Path.cwd(), 'current directory')
    if not _missing(cache_dir('host')):
        return Host(cache_dir('host').resolve(), 'cached copy')
    raise UserError(
        f'There is no stylegan2-ada-pytorch here: run `stylegan2-compress host` to fetch it, or name a checkout '
        f'with --host or {ENVIRONMENT}.'
    )


def activate(host: str | Path | None = None) -> Host:
    """Find the host, put it first on `sys.path`, and apply the run-time repairs it needs; call it as often as you like.

    A process that has the host imported already (the host's own `train.py`) goes on with that one.

    Raises:
        UserError: if there is no host, if another one is active, or if foreign modules took its modules' names.
    """
    global _active
    if _active is None:
        found = _already_imported() or find(host)
        _refuse_foreign_modules(found)
        if sys.path[:1] != [str(found.path)]:
            sys.path.insert(0, str(found.path))
        importlib.import_module('stylegan2_compress.patches').apply_needed()
        _active = found
    if host is not None and Path(host).resolve() != _active.path:
        raise UserError(
            f'--host={host} comes too late: this process already uses {_active.path} ({_active.source}); '
            f'leave --host out or start a new process.'
        )
    return _active


def _missing(path: Path) -> list[str]:
    return [name for name in _LANDMARKS if not (path / name).is_file() or not (path / name).stat().st_size]


def _already_imported() -> Host | None:
    if 'dnnlib' not in sys.modules:
        return None
    path = _location(sys.modules['dnnlib']).parent
    if _missing(path):
        raise UserError(
            f'The module dnnlib is already imported from {path}, which is no stylegan2-ada-pytorch; '
            f'start a new process without it.'
        )
    return Host(path, 'already imported')


def _refuse_foreign_modules(host: Host) -> None:
    for name in _TOP_LEVEL_MODULES:
        if name in sys.modules and host.path not in _location(sys.modules[name]).parents:
            raise UserError(
                f'A module named {name!r} is already imported from {_location(sys.modules[name])} and hides the '
                f"host's in {host.path}; start a new process without it, or rename it."
            )


def _location(module: ModuleType) -> Path:
    """Directory of a package, file of a module."""
    return Path(module.__path__[0] if hasattr(module, '__path__') else module.__file__ or '').resolve()
