"""`metric-<name>.jsonl`: results of metrics, a line each, as the host writes them."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path


def append(pkl: str, record: dict) -> None:
    """Add a record beside a network pickle.

    Args:
        pkl: local path.
        record: what the host's `calc_metric` returns, and more.
    """
    directory = os.path.dirname(os.path.abspath(pkl))
    line = json.dumps(dict(record, snapshot_pkl=os.path.basename(pkl), timestamp=time.time()))
    with open(os.path.join(directory, f'metric-{record["metric"]}.jsonl'), 'a') as file:
        file.write(line + '\n')


def read(directory: Path) -> Iterator[dict]:
    """Records in a directory with a snapshot's name and results; lines that are none are left out."""
    for path in sorted(directory.glob('metric-*.jsonl')):
        for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and isinstance(record.get('results'), dict) and record.get('snapshot_pkl'):
                yield record
