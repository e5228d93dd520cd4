"""Runs as people look at them: one HTML file with everything in it, about one run or several side by side."""

import os
from collections.abc import Sequence
from pathlib import Path

from stylegan2_compress import files
from stylegan2_compress.errors import UserError
from stylegan2_compress.report import page, reading

FILE_NAME = 'report.html'


def write(
    run_dirs: Sequence[str | os.PathLike], out: str | None = None, snapshots: int = 6, latency: bool = False
) -> Path:
    """Read runs and write the page about them. Returns its path.

    Args:
        run_dirs: one or several; they may be going on.
        out: a file if it ends in .html, else a directory, which is made. By default the run directory of a single
            run, and the current directory for several. An earlier report there is replaced.
        snapshots: at most so many of each run's snapshots are opened, and its teacher; for 0 no network is, and the
            host is not needed.
        latency: measure how long the networks take for an image.

    Raises:
        UserError: a path is no run, or the page cannot be written.
    """
    run_dirs = list({os.path.realpath(run_dir): run_dir for run_dir in run_dirs}.values())
    runs = [reading.read(run_dir) for run_dir in run_dirs]
    path = _destination(run_dirs, out)
    if snapshots:
        # Only here, because it needs the host, which a report without pictures does without.
        from stylegan2_compress.report import generators

        pictures = generators.look(runs, snapshots, latency)
    else:
        pictures = [None] * len(runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(path) as file:
        file.write(page.build(runs, pictures))
    return path


def _destination(run_dirs: Sequence[str | os.PathLike], out: str | None) -> Path:
    if out is None:
        path = Path(run_dirs[0] if len(run_dirs) == 1 else '.', FILE_NAME)
    else:
        path = Path(out) if out.endswith('.html') else Path(out, FILE_NAME)
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f'Cannot write {path}: {existing} is no directory that can be written to; name another by --out.'
        )
    if path.exists() and not _is_report(path):
        raise UserError(f'{path} exists and is no report: name another file by --out.')
    return path


def _is_report(path: Path) -> bool:
    with files.opened(path) as (file, _size):
        return page.GENERATOR.encode() in file.read(2000)
