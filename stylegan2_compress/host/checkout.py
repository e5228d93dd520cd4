"""The directory of the host (NVlabs/stylegan2-ada-pytorch): find it, fetch it, put it on `sys.path`, repair it."""

import json
import os
import shutil
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import click

import stylegan2_compress.patches as patches
from stylegan2_compress import files
from stylegan2_compress.caches import cache_dir, make_ours_writable
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import download as host_download

ENVIRONMENT = 'STYLEGAN2_ADA_PYTORCH'

# Files by which a host is recognised. StyleGAN3 and the TensorFlow original lack at least one of them.
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

_RECEIPT = '.stylegan2-compress.json'  # In a host that we fetched: where it came from, and the sizes of its modules.

_active: 'Host | None' = None


@dataclass(frozen=True)
class Host:
    """A directory with the host's modules, and how it was found.

    `source` is '--host', 'STYLEGAN2_ADA_PYTORCH', 'current directory', 'cached copy', 'already imported' or '--dest'.
    """

    path: Path
    source: str

    @property
    def is_checkout(self) -> bool:
        """Whether the scripts (train.py, generate.py) are there; the PyPI wheels contain only the modules."""
        return (self.path / 'train.py').is_file()

    @property
    def origin(self) -> str:
        """Where it was fetched from, if this package fetched it."""
        receipt = self.path / _RECEIPT
        return json.loads(receipt.read_text())['origin'] if receipt.is_file() else 'not fetched by stylegan2-compress'


def find(host: str | Path | None = None) -> Host:
    """Find the host: the directory given, `STYLEGAN2_ADA_PYTORCH`, the current directory or the cached copy.

    Raises:
        UserError: a directory that was named is not a host, or none was found.
    """
    existing = _find(host)
    if existing is None:
        cached = cache_dir('host')
        if not _missing(cached):
            raise UserError(
                f'The copy of stylegan2-ada-pytorch in {cached} is not as it was fetched: name it with --host to use '
                'it as it is, or run `stylegan2-compress host`, which moves it aside and fetches another.'
            )
        raise UserError(
            f'stylegan2-ada-pytorch was not found: run `stylegan2-compress host` to fetch it, or name a checkout with '
            f'--host or {ENVIRONMENT}.'
        )
    return existing


def fetch(dest: str | Path | None = None, source: str = 'auto') -> Host:
    """Fetch the host into `dest`, by default our cache, unless it is there already.

    A new directory appears complete or not at all: a failure leaves nothing behind. A cached copy that was changed, or
    is from another source, is moved aside.

    Args:
        dest: a directory that is new, empty, or a host already.
        source: 'git' (a clone at the pinned commit), 'pypi' (the modules only, no train.py), or 'auto' (the first of
            these that answers).

    Raises:
        UserError: `dest` is something else, from another source or cannot be written, or no source answers.
    """
    if dest is None:
        target, label = cache_dir('host').absolute(), 'cached copy'
        replaceable = not _is_intact(target) or not _is_from(target, source)
    else:
        target, label = Path(dest).absolute(), '--dest'
        replaceable = not os.path.exists(target) or (target.is_dir() and files.is_empty(target))
        if not replaceable and _missing(target):
            raise UserError(f'--dest={dest} is not empty and not stylegan2-ada-pytorch: name a new directory.')
        if not replaceable and not (_is_from(target, source) or (source == 'git' and Host(target, '').is_checkout)):
            raise UserError(f'--dest={dest} has a copy that is not from --source={source}: name a new directory.')
        if replaceable:
            files.require_writable_directory('--dest', str(dest))
    if replaceable:
        click.echo(f'Fetching stylegan2-ada-pytorch into {target} …', err=True)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # An empty directory stays what it is: it may be a mount point, or where the user's shell is.
            is_filled = dest is not None and target.is_dir()
            with tempfile.TemporaryDirectory(prefix='.host-', dir=target if is_filled else target.parent) as temp:
                fresh = Path(temp, 'host')
                _write_receipt(fresh, _download(fresh, source))
                if is_filled:
                    for path in list(fresh.iterdir()):
                        path.rename(target / path.name)
                elif not (_is_intact(target) and _is_from(target, source)):  # Else another process was faster.
                    if target.exists():
                        _move_aside(target)
                    fresh.rename(target)
        except OSError as err:
            if not _is_intact(target):  # Else another process put it there between the check and the renaming.
                raise UserError(
                    f'{target} cannot be written ({err.strerror}): name another directory with --dest.'
                ) from None
    return Host(target.resolve(), label)


def find_or_fetch(host: str | Path | None = None) -> Host:
    """The active host, or the one that `find` finds; if there is none, fetch it into our cache."""
    if host is None and _active is not None:
        return _active
    found = _find(host)
    if found is None:
        make_ours_writable('.')
    return found or fetch()


def activate(host: str | Path | None = None) -> Host:
    """Find the host, put it first on `sys.path`, and apply the run-time repairs that it needs. Later calls do nothing.

    In a process that has imported a host already (in the host's own `train.py`), that one is used.

    Raises:
        UserError: there is no host, another one is active, or other modules with the names of its modules are imported.
    """
    global _active
    if _active is None:
        host_to_use = _already_imported() or find(host)
        _refuse_foreign_modules(host_to_use)
        if sys.path[:1] != [str(host_to_use.path)]:
            sys.path.insert(0, str(host_to_use.path))
        patches.apply_needed()
        _active = host_to_use
    if host and Path(host).resolve() != _active.path:
        raise UserError(
            f'--host={host} comes too late: this process already uses {_active.path} ({_active.source}); '
            f'leave --host out or start a new process.'
        )
    return _active


def _find(host: str | Path | None) -> Host | None:
    for named, source in ((host, '--host'), (os.environ.get(ENVIRONMENT), ENVIRONMENT)):
        if named:
            missing = _missing(Path(named))
            if missing:
                raise UserError(
                    f'{source}={named} is not a checkout of stylegan2-ada-pytorch: it has no {missing[0]}; '
                    f'`stylegan2-compress host --dest DIR` fetches one.'
                )
            return Host(Path(named).resolve(), source)
    if not _missing(Path.cwd()):
        return Host(Path.cwd(), 'current directory')
    if _is_intact(cache_dir('host')):
        return Host(cache_dir('host').resolve(), 'cached copy')
    return None


def _missing(path: Path) -> list[str]:
    return [name for name in _LANDMARKS if not os.path.isfile(path / name)]


def _download(path: Path, source: str) -> str:
    downloads = {'git': [host_download.clone], 'pypi': [host_download.unpack_wheels]}
    downloads['auto'] = downloads['git'] + downloads['pypi']
    reasons = []
    for download in downloads[source]:
        try:
            return download(path)
        except host_download.Unavailable as unavailable:
            reasons.append(str(unavailable))
            shutil.rmtree(path, ignore_errors=True)  # A clone that was stopped leaves files.
    raise UserError(
        f'stylegan2-ada-pytorch cannot be fetched: {"; ".join(reasons)}; check the network, or copy a checkout here '
        f'and name it with --host.'
    )


def _write_receipt(path: Path, origin: str) -> None:
    modules = [file for name in _TOP_LEVEL_MODULES for file in (path / name).rglob('*') if file.is_file()]
    sizes = {file.relative_to(path).as_posix(): file.stat().st_size for file in [path / 'legacy.py', *modules]}
    (path / _RECEIPT).write_text(json.dumps({'origin': origin, 'sizes': sizes}, indent=2))
    exclude = path / '.git' / 'info' / 'exclude'
    if exclude.is_file():
        exclude.write_text(exclude.read_text() + _RECEIPT + '\n')  # `git status` stays clean.


def _move_aside(target: Path) -> None:
    """Rename a copy that is to be replaced: someone may have trained in it."""
    aside = target.with_name(f'{target.name}-replaced-{uuid.uuid4().hex[:8]}')
    target.rename(aside)
    click.echo(f'What was there is now in {aside}: delete it, unless something of yours is in it.', err=True)


def _is_intact(path: Path) -> bool:
    """Whether every module that was fetched has its full size (the scripts beside them may be patched)."""
    try:
        sizes = json.loads((path / _RECEIPT).read_text())['sizes']
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _is_from(path: Path, source: str) -> bool:
    return source == 'auto' or Host(path, '').origin.lower().startswith(source)


def _already_imported() -> Host | None:
    if 'dnnlib' not in sys.modules:
        return None
    path = _location(sys.modules['dnnlib']).parent
    if _missing(path):
        raise UserError(
            f'The module dnnlib is already imported from {path}, which is not stylegan2-ada-pytorch; '
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
