"""Records of metrics in the host's format: one file per metric, with a line of JSON per result."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from stylegan2_compress.runs.directory import RunDirectory


def append(pkl: str, record: dict) -> None:
    """Append a record to the file of its metric, in the directory of a network pickle.

    Args:
        pkl: local path.
        record: entries as in the result of the host's `calc_metric`, and more.
    """
    directory = RunDirectory(os.path.dirname(os.path.abspath(pkl)))
    line = json.dumps(dict(record, snapshot_pkl=os.path.basename(pkl), timestamp=time.time()))
    with open(directory.metric_path(record['metric']), 'a') as file:
        file.write(line + '\n')


def read(directory: Path) -> Iterator[dict]:
    """All records in a directory that have a snapshot's name and results; other lines are ignored."""
    for path in RunDirectory(directory).metrics():
        for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and isinstance(record.get('results'), dict) and record.get('snapshot_pkl'):
                yield record
