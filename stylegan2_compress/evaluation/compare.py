"""`compare`: a table of earlier runs, ours and the host's, from the files that they have written."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from stylegan2_compress import files, pickles
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation import records, settings
from stylegan2_compress.export import exported
from stylegan2_compress.export.record import RECORD
from stylegan2_compress.host import profiling
from stylegan2_compress.host.networks import require_generator
from stylegan2_compress.runs import inputs
from stylegan2_compress.runs.directory import RunDirectory, is_snapshot
from stylegan2_compress.tickets import baking


def compare(places: list[str], trust: bool = False) -> list[dict[str, object]]:
    """One row per run directory, network file or export.

    Args:
        places: run directories, network files or exports. Of a run directory, the last snapshot with a record of a
            metric is shown; the last snapshot if there are no records.
        trust: run unknown code that the files contain.

    Returns:
        Rows for `tables.render`: name, options of the training, size, and every recorded result. Results with several
        seeds are shown as their mean and as `… std`; of several settings, such as other data, the one measured last.

    Raises:
        UserError: a place is none of them.
    """
    return [_row(place, trust) for place in places]


def _row(place: str, trust: bool) -> dict[str, object]:
    path = Path(place)
    if files.status(place) is None:
        raise UserError(f'{place or "The empty name"} does not exist: name run directories or network files.')
    if exported.is_export(place):
        return _row_of_export(place)
    if not (path.is_dir() or path.is_file()):
        raise UserError(f'{place} is a device: name run directories or network files.')
    run = RunDirectory(path if path.is_dir() else path.parent)
    measured = list(records.read(run.path))
    snapshot = _last_snapshot(run, measured) if path.is_dir() else path.name
    if snapshot is None:
        raise UserError(f'{place} contains no network-snapshot-*.pkl and no metric-*.jsonl: name a run directory.')
    row: dict[str, object] = {'run': place}
    if path.is_dir():
        row['snapshot'] = snapshot
    file = run.path / snapshot
    own = settings.of_file([record for record in measured if Path(record['snapshot_pkl']).name == snapshot], file)
    row |= _options(run, snapshot, own)
    if file.is_file():
        contents = pickles.load(file, trust=trust)
        require_generator(str(file), contents)
        G = baking.plain(contents['G_ema'])
        row['parameters'] = profiling.parameters(G)
        row['MACs'] = profiling.macs(G)
    return row | _results(own)


def _row_of_export(place: str) -> dict[str, object]:
    generator = exported.read_record(place)['generator']
    row: dict[str, object] = {'run': place, 'parameters': generator.get('parameters'), 'MACs': generator.get('macs')}
    own = [record for record in records.read(Path(place)) if record['snapshot_pkl'] == RECORD]
    return row | _results(settings.of_file(own, Path(place, RECORD)))


def _last_snapshot(run: RunDirectory, measured: list[dict]) -> str | None:
    """Name of the last snapshot with records. Without any, of the last snapshot, or of any file with records."""
    names = [Path(record['snapshot_pkl']).name for record in measured]
    existing = [path.name for path in run.snapshots()]
    return max([name for name in names if is_snapshot(name)] or existing or names, default=None)


def _options(run: RunDirectory, snapshot: str, measured: list[dict]) -> dict[str, object]:
    """Options that the run was trained with, and for how long by this snapshot; empty if they are not known."""
    args = run.read_options()
    if args is None:
        return {}
    loss, recorded = args.get('loss_kwargs'), run.read_inputs()
    loss = loss if isinstance(loss, dict) else {}
    teacher = inputs.teacher(args, recorded)
    images = [record['cur_nimg'] for record in measured if 'cur_nimg' in record]  # Our loop writes them.
    reached = images[-1] / 1000 if images else run.kimg_by(snapshot)
    ratio = recorded.get(inputs.RATIO)
    embeddings = loss.get('embeddings') or loss.get('embedding')
    return {
        'loss': str(loss.get('class_name', '')).rpartition('.')[2] or None,
        'teacher': None if teacher is None else re.split(r'[/\\]', teacher)[-1],
        'ratio': None if ratio is None else float(ratio),
        'criterion': recorded.get(inputs.CRITERION),
        'embeddings': ', '.join(embeddings) if isinstance(embeddings, list) else embeddings,
        'kimg': reached,
        'batch': args.get('batch_size'),
        'gamma': loss.get('r1_gamma'),
        'seed': args.get('random_seed'),
    }


def _results(entries: Iterable[dict]) -> dict[str, float]:
    """Results by name, of the newest setting. With several seeds, mean and standard deviation of the newest of each."""
    results = {}
    for name, values in settings.newest(entries).items():
        results[name] = float(np.mean(values))
        if len(values) > 1:
            results[f'{name} std'] = float(np.std(values, ddof=1))
    return results
