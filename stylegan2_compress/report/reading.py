"""What a run directory tells: options, statistics, metrics, and how far the run has come.

The directory may be of a run that is going on, has crashed or was only just started, by our loops or by the host's.
Nothing in it is trusted to be whole: a line that is half written is skipped, a number that is none is left out.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from stylegan2_compress import files
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation import settings
from stylegan2_compress.export.record import RECORD
from stylegan2_compress.runs import inputs
from stylegan2_compress.runs.directory import ERROR, LOST, STUDENT, RunDirectory, is_snapshot, kimg_of

GENERATOR = 'stylegan2-compress report'  # What every report is made by, and says near its beginning.

LOG_TAIL = 1 << 18  # Bytes at the end of log.txt that are looked at.
DEEPEST = 50  # Levels of JSON.
PATIENCE = 900  # Seconds without a line after which a run is taken for dead, unless its ticks take longer.

# What the loops print as they get on; below it, a traceback is the end.
_PROGRESS = re.compile(
    r'tick \d|Loading training set|Constructing networks|Setting up |Exporting |Training for |Total '
)
_TRACEBACK = 'Traceback (most recent call last):'


@dataclass(frozen=True)
class Point:
    """A value at a place in the run."""

    kimg: float
    value: float
    count: float = 1  # How many values it is the mean of.


@dataclass(frozen=True)
class State:
    """How a run stands."""

    word: str  # running, finished, stopped or crashed.
    sentence: str
    error: str | None = None  # The last error line of log.txt.


@dataclass
class Run:
    """A run directory, read."""

    path: Path
    name: str
    options: dict  # training_options.json; empty where there is none.
    statistics: dict[str, list[Point]]  # By the names of stats.jsonl.
    metrics: dict[str, list[Point]]  # By the names of the results in metric-*.jsonl.
    settings: dict[str, str]  # Of these, by the same names: with what data, say, they were measured.
    snapshots: list[tuple[int, Path]]  # (kimg, network-snapshot-*.pkl), in order.
    fakes: list[tuple[int, Path]]  # (kimg, fakes*.png), in order.
    state: State
    exports: list[Path] = field(default_factory=list)  # Of each export in the directory its page, or its record.
    teacher: str | None = None  # The file, as it was named.
    chosen: dict[str, str] = field(default_factory=dict)  # The options that were given, as far as they are on record.
    start: dict[str, float] = field(default_factory=dict)  # Results of the network that training started from.
    notes: list[str] = field(default_factory=list)  # What was missing or could not be read, in sentences.

    @property
    def kimg(self) -> float | None:
        """How far the run has come."""
        return _last(self.statistics, 'Progress/kimg')

    @property
    def total_kimg(self) -> float | None:
        return _positive(self.options.get('total_kimg'))

    @property
    def seconds(self) -> float | None:
        """How long it has run."""
        return _last(self.statistics, 'Timing/total_sec')

    def option(self, name: str) -> object:
        """A value in training_options.json by its dotted name, `option('loss_kwargs.class_name')`, or None."""
        return inputs.value_of(self.options, name)


def read(run_dir: str | os.PathLike) -> Run:
    """Read a run directory.

    Raises:
        UserError: it is none.
    """
    try:
        return _read(Path(run_dir))
    except OSError as error:
        raise UserError(f'Cannot read {error.filename or run_dir}: {error.strerror}.') from error


def _read(path: Path) -> Run:
    _require_run(path)
    directory = RunDirectory(path)
    notes = []
    options = _read_options(directory.options_path, notes)
    statistics, last_tick = _read_statistics(directory.stats_path, notes)
    recorded = directory.read_inputs()
    data = _training_data(options, recorded.get(inputs.DIRECTORY))
    metrics, start, measured_with, last_metric = _read_metrics(directory, data, notes)
    log = directory.log_path
    last_sign = max(last_tick, last_metric, log.stat().st_mtime if log.is_file() else 0)
    last_sign = last_sign or max(file.stat().st_mtime for file in directory.existing_files())
    run = Run(
        path=path,
        name=path.resolve().name,
        options=options,
        statistics=statistics,
        metrics=metrics,
        settings=measured_with,
        snapshots=_numbered(directory.snapshots()),
        fakes=_numbered(directory.fakes()),
        state=State('running', ''),
        exports=_exports(path),
        teacher=inputs.teacher(options, recorded),
        chosen=inputs.chosen(recorded),
        start=start,
        notes=notes,
    )
    run.state = _state(run, _log_lines(log), silence=time.time() - last_sign)
    return run


def _exports(path: Path) -> list[Path]:
    """What can be opened of each export in a run directory: the page of one for browsers, the record of others."""
    records = sorted(path.glob(f'*/{RECORD}'))
    directories = [page if (page := record.with_name('index.html')).is_file() else record for record in records]
    return directories + [page for page in sorted(path.glob('*.html')) if page.is_file() and not is_report(page)]


def is_report(path: Path) -> bool:
    """Whether a file is a report."""
    with files.opened(path) as (file, _size):
        return f'<meta name="generator" content="{GENERATOR}"'.encode() in file.read(2000)


def _require_run(path: Path) -> None:
    if not path.is_dir():
        raise UserError(
            f'{path} is no run directory: {"it is a file" if path.exists() else "there is no such directory"}.'
        )
    run = RunDirectory(path)
    if not any(file != run.options_path or run.read_options() is not None for file in run.existing_files()):
        children = (child for child in path.iterdir() if child.is_dir())
        inside = sorted(child.name for child in children if any(RunDirectory(child).existing_files()))
        hint = f'; there are runs in it, such as {path / inside[-1]}' if inside else ''
        raise UserError(
            f'{path} is no run directory: it has no readable training_options.json, log.txt or stats.jsonl{hint}.'
        )


def _numbered(paths: list[Path]) -> list[tuple[int, Path]]:
    """The kimg in the names of files, and the files; those without are left out."""
    return [(kimg, path) for path in paths if (kimg := kimg_of(path)) is not None and path.is_file()]


# --- Files ------------------------------------------------------------------------------------------------------------


def _read_options(file: Path, notes: list[str]) -> dict:
    if not file.is_file():
        notes.append('There is no training_options.json, so what the run was started with is not known.')
        return {}
    options = _json(file.read_text(encoding='utf-8', errors='replace'))
    if not isinstance(options, dict):
        notes.append('training_options.json cannot be read, so what the run was started with is not known.')
        return {}
    return options


def _read_statistics(file: Path, notes: list[str]) -> tuple[dict[str, list[Point]], float]:
    """Curves by name, and the time of the last tick (0 where there is none)."""
    curves, seen, timestamp = {}, 0.0, 0.0
    for record in _json_lines(file, notes):
        kimg = _number(_get(record.get('Progress/kimg'), 'mean'))
        if kimg is None:
            continue
        kimg = round(kimg, 3)  # The host keeps it as a float32; it counts images.
        if kimg <= seen:  # The run went on from an earlier state: what it had done since is done again.
            curves = {name: [point for point in points if point.kimg < kimg] for name, points in curves.items()}
        seen, timestamp = kimg, _number(record.get('timestamp')) or timestamp
        for name, statistic in record.items():
            value, count = _number(_get(statistic, 'mean')), _number(_get(statistic, 'num'))
            if value is not None and count:
                curves.setdefault(name, []).append(Point(kimg, value, count))
    if not curves:
        notes.append('stats.jsonl has no complete line yet, so there are no curves.')
    return {name: points for name, points in curves.items() if points}, timestamp


def _training_data(options: dict, started_in: object) -> dict[str, object]:
    """The data that results in training are about, whose records do not name it."""
    path = _get(options.get('training_set_kwargs'), 'path')
    if not isinstance(path, str):
        return {}
    return {settings.DATA: os.path.normpath(os.path.join(started_in, path)) if isinstance(started_in, str) else path}


def _read_metrics(
    directory: RunDirectory, unless_named: dict[str, object], notes: list[str]
) -> tuple[dict[str, list[Point]], dict[str, float], dict[str, str], float]:
    """Curves by the name of the result, results of the run's own start, both's settings, the time of the last (or 0).

    What was measured with other data, say, is not on the same curve, and of a snapshot that was replaced nothing is.
    """
    # By name, setting, kimg (None for the start) and seed. Measured again: the last counts.
    found: dict[str, dict[str, dict[int | None, settings.BY_SEED]]] = {}
    timestamp = 0.0
    for file in [*directory.metrics(), directory.tickets_path]:
        for record in _of_files_there(directory, list(_json_lines(file, notes))):
            snapshot, results = _results(record)
            kimg = kimg_of(Path(str(snapshot))) if is_snapshot(Path(str(snapshot)).name) else None
            if kimg is None and snapshot != STUDENT:
                continue
            if kimg is not None:
                timestamp = max(timestamp, _number(record.get('timestamp')) or 0.0)
            setting, seed = settings.setting_of(unless_named | record), settings.seed_of(record)
            for name, value in _numbers(results).items():
                settings.touched(found.setdefault(name, {}), setting).setdefault(kimg, {})[seed] = value
    curves, start, chosen = {}, {}, {}
    for name, by_setting in found.items():
        chosen[name] = _longest(by_setting)
        of_all: dict = by_setting[chosen[name]]
        means = {kimg: fmean(settings.values(by_seed)) for kimg, by_seed in of_all.items()}
        if None in means:
            start[name] = means.pop(None)
        if means:
            curves[name] = [Point(kimg, means[kimg]) for kimg in sorted(means)]
    return curves, start, chosen, timestamp


def _of_files_there(directory: RunDirectory, records: list[dict]) -> Iterator[dict]:
    """Those records, in their order, that are not of another file which had the name of one in the run directory."""
    by_snapshot: dict[str, list[dict]] = {}
    for record in records:
        by_snapshot.setdefault(Path(str(_results(record)[0])).name, []).append(record)
    kept = {id(each) for name, own in by_snapshot.items() for each in settings.of_file(own, directory.path / name)}
    return (record for record in records if id(record) in kept)


def _longest(by_setting: dict[str, dict]) -> str:
    """The setting in which most snapshots were measured; the newest of several."""
    return max(reversed(by_setting), key=lambda setting: len(by_setting[setting]))


def results_beside(file: Path) -> dict[str, dict[str, float]]:
    """The results on record for a network file, by name and setting; means over the newest of each seed."""
    lines = [line for path in RunDirectory(file.parent).metrics() for line in _json_lines(path, [])]
    own = [
        {**line, 'results': _numbers(line.get('results'))} for line in lines if line.get('snapshot_pkl') == file.name
    ]
    found = settings.by_setting(settings.of_file(own, file))
    return {name: {setting: fmean(values) for setting, values in each.items()} for name, each in found.items()}


def _numbers(results: object) -> dict[str, float]:
    """The numbers among results."""
    items = results.items() if isinstance(results, dict) else ()
    return {name: value for name, result in items if (value := _number(result)) is not None}


def _results(record: dict) -> tuple[object, object]:
    """Which snapshot a line is about, and what it says, as the host writes it or as `find-ticket` does."""
    if 'frechet_distance' not in record:
        return record.get('snapshot_pkl'), record.get('results')
    name = f'Fréchet distance of {record.get("network")}, {record.get("embedding")}'
    return record.get('snapshot'), {name: record['frechet_distance']}


def _json_lines(file: Path, notes: list[str]) -> Iterator[dict]:
    """The objects in a file, one a line. Half a line at the end is one that is being written; others are counted."""
    if not file.is_file():
        return
    broken = 0
    with open(file, encoding='utf-8', errors='replace') as lines:
        for line in lines:
            record = _json(line)
            if isinstance(record, dict):
                yield record
            elif line.endswith('\n') and line.strip():
                broken += 1
    if broken:
        notes.append(f'{broken} of the lines of {file.name} cannot be read and were left out.')


def _log_lines(file: Path) -> list[str]:
    """The last lines of log.txt, without what progress bars drew over."""
    if not file.is_file():
        return []
    with open(file, 'rb') as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - LOG_TAIL))
        text = log.read().decode('utf-8', 'replace')
    text = re.sub(r'\x1b\[[0-9;]*[A-Za-z]', '', text)
    return [line.rpartition('\r')[2] for line in text.replace('\r\n', '\n').split('\n')]


# --- How the run stands -----------------------------------------------------------------------------------------------


def _state(run: Run, log: list[str], silence: float) -> State:
    """From the last lines of the log, and from how long nothing was written."""
    since = max((i + 1 for i, line in enumerate(log) if _PROGRESS.match(line)), default=0)
    error = _error_line(log[since:])
    kimg, total = run.kimg, run.total_kimg
    where = 'before its first tick' if kimg is None else f'at {kimg:g}{f" of {total:g}" if total else ""} kimg'
    if error is not None and error.startswith('KeyboardInterrupt'):
        return State('stopped', f'Stopped by Ctrl-C {where}.')
    if error is not None:
        return State('crashed', f'Crashed {where}.', error)
    complete = kimg is not None and total is not None and kimg >= total * (1 - 1e-6)
    if complete or ('Exiting...' in log[since:] and total is None):
        return State('finished', f'Finished {where}{_took(run)}.')
    if sentence := next((line for line in log[since:] if line.startswith('Stopped at ')), None):
        return State('stopped', sentence)
    if 'Exiting...' in log[since:]:
        return State('stopped', f'Stopped {where}{_took(run)}.')
    if silence > max(PATIENCE, 3 * _longest_tick(run)):
        return State(
            'stopped', f'Stopped {where}: nothing was written for {duration(silence)}, and the log names no error.'
        )
    pace = _pace(run)
    if kimg is None or total is None or pace is None:
        return State('running', f'Running, {where}.')
    return State('running', f'Running, {where}; about {duration((total - kimg) * pace)} left.')


def _pace(run: Run) -> float | None:
    """Seconds per thousand images, with snapshots and metrics in between where there are ticks enough to know."""
    times = run.statistics.get('Timing/total_sec', [])[1:]  # The first tick is one step, and slow.
    if len(times) > 1 and times[-1].kimg > times[0].kimg:
        return (times[-1].value - times[0].value) / (times[-1].kimg - times[0].kimg)
    return _last(run.statistics, 'Timing/sec_per_kimg')


def _error_line(log: list[str]) -> str | None:
    """What the last traceback in these lines ends with, or the last sentence of ours.

    Of several processes it is what the first said that failed by itself: others say that they lost its connection.
    """
    told = [line for line in log if line.startswith(ERROR)]
    if any(line.startswith(f'{ERROR}Process ') for line in told):
        return next((line for line in told if LOST not in line), told[0])
    starts = [i for i, line in enumerate(log) if line.strip() == _TRACEBACK]
    if starts:
        after = [line for line in log[starts[-1] + 1 :] if line.strip()]
        return next((line for line in after if not line.startswith(' ')), _TRACEBACK)
    return next((line for line in reversed(log) if line.startswith(ERROR)), None)


def _longest_tick(run: Run) -> float:
    """Seconds, maintenance (snapshots, metrics) included."""
    names = ('Timing/sec_per_tick', 'Timing/maintenance_sec')
    return sum(max((point.value for point in run.statistics.get(name, [])), default=0) for name in names)


def _took(run: Run) -> str:
    return '' if run.seconds is None else f' after {duration(run.seconds)}'


def duration(seconds: float) -> str:
    """Two units at most: 45 s, 12 min, 3 h 20 min, 2 days 4 h."""
    if seconds > 1e10:
        return 'centuries'  # Numbers in files may be anything.
    seconds = max(seconds, 0)
    if seconds < 60:
        return f'{seconds:.0f} s'
    minutes = round(seconds / 60)
    if minutes < 60:
        return f'{minutes} min'
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f'{hours} h {minutes} min' if minutes else f'{hours} h'
    days, hours = divmod(hours, 24)
    return f'{days} day{"s" * (days != 1)}' + (f' {hours} h' if hours else '')


# --- Values that may be anything --------------------------------------------------------------------------------------


def _json(text: str) -> object:
    """What the text says, or None where it is no JSON, or nested deeper than anything we could show."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return None if _deeper(value, DEEPEST) else value


def _deeper(value: object, levels: int) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels == 0 or any(_deeper(each, levels - 1) for each in inside)


def _get(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else None


def _number(value: object) -> float | None:
    """A number of float32's range, which is what runs compute with, so that axes can be laid through it."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < 1e39:
        return None
    return float(value) if abs(value) > 1e-39 else 0.0


def _positive(value: object) -> float | None:
    number = _number(value)
    return number if number is not None and number > 0 else None


def _last(curves: dict[str, list[Point]], name: str) -> float | None:
    return curves[name][-1].value if curves.get(name) else None
