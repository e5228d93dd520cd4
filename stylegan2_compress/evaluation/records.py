"""Files `metric-<name>.jsonl` in the host's format: one result of a metric per line."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path


def append(pkl: str, record: dict) -> None:
    """Append a record to the file of its metric, in the directory of a network pickle.

    Args:
        pkl: local path.
        record: entries as in the result of the host's `calc_metric`, and more.
    """
    directory = os.path.dirname(os.path.abspath(pkl))
    line = json.dumps(dict(record, snapshot_pkl=os.path.basename(pkl), timestamp=time.time()))
    with open(os.path.join(directory, f'metric-{record["metric"]}.jsonl'), 'a') as file:
        file.write(line + '\n')


def read(directory: Path) -> Iterator[dict]:
    """All records in a directory that have a snapshot's name and results; other lines are ignored."""
    for path in sorted(directory.glob('metric-*.jsonl')):
        for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and isinstance(record.get('results'), dict) and record.get('snapshot_pkl'):
                yield record
