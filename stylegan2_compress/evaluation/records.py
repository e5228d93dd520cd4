"""Records of metrics in the host's format: one file per metric, with a line of JSON per result."""

import errno
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from numbers import Real  # NumPy's are, too.
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dnnlib

from stylegan2_compress import files
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation.base import Metric
from stylegan2_compress.runs.directory import RunDirectory

if TYPE_CHECKING:
    from training.networks import Generator


def measured(metric: Metric, G: 'Generator', seed: int, **more: Any) -> dict[str, Any]:
    """Measure a metric; returns what the host's `calc_metric` does, and more.

    Args:
        metric: prepared.
        G: generator in eval mode on the metric's device.
        seed: of the latents.
        more: further entries.

    Raises:
        UserError: a metric of the user's own returns something else than numbers by name.
    """
    start = time.time()
    results: Any = metric.measure(G, seed)
    are_numbers = isinstance(results, Mapping) and all(isinstance(value, Real) for value in results.values())
    if not are_numbers or not results:
        raise UserError(
            f'--metrics={metric.name} must return numbers by name, such as {{"{metric.name}": 0.5}}, and returned '
            f'{str(results)[:100]!r}: docs/extending.md shows a metric that does.'
        )
    seconds = time.time() - start
    return dict(
        results={name: float(value) for name, value in results.items()},
        metric=metric.name,
        total_time=seconds,
        total_time_str=dnnlib.util.format_time(seconds),
        num_gpus=1,
        seed=seed,
        **more,
        **metric.facts(),
    )


def append(pkl: str, record: dict, out: str | None = None) -> None:
    """Append a record to the file of its metric, in the directory of a network pickle, or to another file.

    Args:
        pkl: path of the network; for `out`, it may be a URL.
        record: entries as in the result of the host's `calc_metric`, and more.
        out: file for records of several networks, each with its path.

    Raises:
        UserError: the file cannot be written; it is as it was.
    """
    path = out or _beside(pkl, record['metric'])
    name = pkl if out else os.path.basename(pkl)
    line = json.dumps(dict(record, snapshot_pkl=name, timestamp=time.time()))
    try:
        _append_line(path, line.encode())
    except OSError as error:
        result = json.dumps(record['results'])
        raise UserError(f'Cannot write {path}: {error.strerror}. The result is {result}.') from error


def _append_line(path: str | os.PathLike, line: bytes) -> None:
    """Append a line, or nothing if there is no room for it; what was cut off before it stays a line of its own."""
    with open(path, 'a+b', buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b'\n' else b'\n' + line
        line += b'\n'
        if file.write(line) != len(line):
            file.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def require_appendable(pkl: str, metric: str) -> None:
    """Check that `append` can write a record of a metric beside a network pickle.

    Raises:
        UserError: it cannot.
    """
    try:
        files.require_appendable(_beside(pkl, metric))
    except UserError as error:
        raise UserError(f'{error.message.rstrip(".")}; --out=FILE takes the results.') from error


def _beside(pkl: str, metric: str) -> Path:
    return RunDirectory(os.path.dirname(os.path.abspath(pkl))).metric_path(metric)


def read(directory: Path) -> Iterator[dict]:
    """All records in a directory; of lines that are none, cut off or damaged, it is said that they are left out.

    Raises:
        UserError: a file of records cannot be read.
    """
    for path in RunDirectory(directory).metrics():
        damaged = 0
        with files.opened(path) as (file, _size):
            text = file.read().decode('utf-8', errors='replace')
        for line in text.splitlines():
            record = _parse(line)
            damaged += record is None
            if record is not None:
                yield record
        if damaged:
            lines = '1 line left out, which is no result' if damaged == 1 else f'{damaged} lines left out, no results'
            print(f'{path}: {lines} of a metric.', file=sys.stderr)


def _parse(line: str) -> dict | None:
    """A record with the name of a snapshot and numbers as results; None if the line is something else."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get('snapshot_pkl'), str):
        return None
    results = record.get('results')
    are_numbers = isinstance(results, dict) and all(isinstance(value, (int, float)) for value in results.values())
    return record if are_numbers else None
