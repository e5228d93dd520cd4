"""Reports: one self-contained HTML file about a run, or about several runs side by side."""

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
    """Write a report about runs, and return its path.

    Args:
        run_dirs: one or several run directories; the runs may still be going on.
        out: a file if it ends in .html, else a directory, which is created if necessary. By default the run directory
            of a single run, and the current directory for several. An existing report is replaced.
        snapshots: how many of each run's snapshots to open at most, besides its teacher. With 0 no network is opened,
            and the host is not needed.
        latency: whether to measure how long the networks take for an image.

    Raises:
        UserError: a path is not a run directory, options contradict each other, or the report cannot be written.
    """
    if latency and not snapshots:
        raise UserError('--latency opens networks, and --snapshots=0 opens none: leave one of them out.')
    run_dirs = list({os.path.realpath(run_dir): run_dir for run_dir in run_dirs}.values())
    runs = [reading.read(run_dir) for run_dir in run_dirs]
    path = _destination(run_dirs, out)
    if snapshots:
        # Imported here because it needs the host, and reports without images do not.
        from stylegan2_compress.report import generators

        pictures = generators.open_networks(runs, snapshots, latency)
    else:
        pictures = [None] * len(runs)
    files.make_directory(path.parent)
    with files.atomic_write(path) as file:
        file.write(page.build(runs, pictures, path.parent))
    return path


def _destination(run_dirs: Sequence[str | os.PathLike], out: str | None) -> Path:
    if out is None:
        path = Path(run_dirs[0] if len(run_dirs) == 1 else '.', FILE_NAME)
    elif not out:
        raise UserError('--out= is empty: name a file or a directory.')
    else:
        path = Path(out) if out.endswith('.html') else Path(out, FILE_NAME)
    files.require_writable_directory('--out', os.fspath(path.parent))
    if files.status(path, 'write') is not None and not reading.is_report(path):
        raise UserError(f'{path} exists and is not a report: name another file with --out.')
    return path
