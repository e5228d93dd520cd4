"""A run's directory: which files a run has, and what they are called. No other module knows these names."""

import contextlib
import glob
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stylegan2_compress import files
from stylegan2_compress.errors import UserError

OPTIONS = 'training_options.json'
INPUTS = 'inputs.json'
TRACKER = 'tracker.json'
STUDENT = 'student.pkl'
LOG = 'log.txt'
STATS = 'stats.jsonl'
TICKETS = 'tickets.jsonl'
METRICS = 'metric-*.jsonl'
STATES = 'training-state-*.pt'
SNAPSHOTS = 'network-snapshot-*.pkl'
BEST = 'best.pkl'
FAKES = 'fakes*.png'
REALS = 'reals.png'
FAKES_INIT = 'fakes_init.png'
TICKET = '*.ticket'
LOCK = '.lock'
WRITERS_LOCK = '.lock-of-process-0'

ERROR = 'Error: '  # How the line of a log begins that says what ended the run.
LOST = 'lost its connection to the others'  # What a process says of itself that another one has let down.

RECORDS = (LOG, STATS, METRICS)  # What a run appends to.
TRAINED = 'cur_nimg'  # Entry of the lines that a run itself writes about its metrics: `evaluate` appends there, too.
KIMG_PER_TICK = 4  # Thousands of images between progress lines, unless a run says otherwise.
STATE_KIMG = 40  # Thousands of images between states, unless a run says otherwise.


def kimg_of(path: Path) -> int | None:
    """The thousands of images in the name of a snapshot or an image grid; `fakes_init.png` has none."""
    match = re.search(r'(\d+)\.\w+$', path.name)
    return int(match[1]) if match else None


def is_snapshot(name: str) -> bool:
    """Whether a file of this name is a network pickle of a run, or made from one (`convert` keeps the name)."""
    return name.startswith(SNAPSHOTS.partition('*')[0])


def network_file(place: str) -> str:
    """The network file that is meant by a path or URL: of a run's directory, its last snapshot."""
    snapshots = [path for path in RunDirectory(place).snapshots() if kimg_of(path) is not None]
    return os.fspath(snapshots[-1]) if snapshots else place


def name_network_files(options: Any, *names: str) -> None:
    """Let fields of options that name run directories name the network files that are meant, while they are made.

    Args:
        options: a dataclass, which may be frozen.
        names: of the fields; None stays.
    """
    for name in names:
        place = getattr(options, name)
        if place is not None:
            object.__setattr__(options, name, network_file(place))


class RunDirectory(os.PathLike):
    """The files of a run, which may be new, going on, finished, damaged, or the host's. Creating one reads nothing.

    Attributes:
        path: of the directory.
        options_path: `training_options.json`, the loop arguments that the run was started with.
        inputs_path: `inputs.json`, digests of what the run reads.
        tracker_path: `tracker.json`, the run's id for the tracker of `--track`.
        log_path: `log.txt`, what the run printed.
        stats_path: `stats.jsonl`, a line of statistics per tick.
        best_path: `best.pkl`, the snapshot that was best by the first of the run's metrics.
        reals_path, fakes_init_path: image grids from before the first step.
        tickets_path: `tickets.jsonl`, a line for each network that `find-ticket` compared.
    """

    def __init__(self, path: str | os.PathLike):
        self._given = os.fspath(path)
        self.path = Path(path)
        self.options_path = self.path / OPTIONS
        self.inputs_path = self.path / INPUTS
        self.tracker_path = self.path / TRACKER
        self.log_path = self.path / LOG
        self.stats_path = self.path / STATS
        self.best_path = self.path / BEST
        self.reals_path = self.path / REALS
        self.fakes_init_path = self.path / FAKES_INIT
        self.tickets_path = self.path / TICKETS

    def __fspath__(self) -> str:
        """The path as it was given, which is how options name the run."""
        return self._given

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self._given!r})'

    __str__ = __fspath__

    def _named(self, pattern: str) -> list[Path]:
        """The files of a pattern; none of a directory that cannot be read, or is none."""
        return [self.path / name for name in glob.glob(pattern, root_dir=self.path)]

    # --- Among others -------------------------------------------------------------------------------------------------

    @classmethod
    def numbered(cls, outdir: str | os.PathLike) -> list['RunDirectory']:
        """The runs in `outdir`, which are the directories whose names start with a number, oldest first."""
        names = [name for name in os.listdir(outdir) if _number(name) >= 0] if os.path.isdir(outdir) else []
        return [cls(os.path.join(outdir, name)) for name in sorted(names, key=_number)]

    @classmethod
    def next(cls, outdir: str | os.PathLike, desc: str) -> 'RunDirectory':
        """`OUTDIR/00000-desc`, with the first number that no directory there has yet. It is not created."""
        taken = [-1, *(_number(run.path.name) for run in cls.numbered(outdir))]
        return cls(os.path.join(outdir, f'{max(taken) + 1:05d}-{desc}'))

    @classmethod
    def create(cls, outdir: str | os.PathLike, desc: str) -> 'RunDirectory':
        """`next`, created. Where another run takes it at the same moment, this one has the next number.

        Raises:
            UserError: it cannot be created.
        """
        files.make_directory(outdir)
        while True:
            run = cls.next(outdir, desc)
            try:
                run.path.mkdir()
            except FileExistsError:
                continue
            except OSError as error:
                raise UserError(f'Cannot create {run}: {error.strerror}.') from error
            return run

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Create the directory if it is new, and keep other processes out of it, but for those that this one starts.

        Raises:
            UserError: another process is training there, or the directory or a record in it is not writable.
        """
        files.make_directory(self.path)
        with files.locked(self.path / LOCK, self._in_use):
            if (self.path / WRITERS_LOCK).exists():
                with self.written():  # By a process that outlives the one which started it.
                    pass
            for name in self.record_sizes():
                files.require_appendable(self.path / name)
            yield

    @contextlib.contextmanager
    def written(self) -> Iterator[None]:
        """Keep others from claiming the directory, as the process that writes there when another one has claimed it.

        Raises:
            UserError: another process writes there.
        """
        with files.locked(self.path / WRITERS_LOCK, self._in_use):
            yield

    @property
    def _in_use(self) -> str:
        return f'{self._given} is in use: another process is training there.'

    def existing_files(self) -> Iterator[Path]:
        """Files that only runs have: at least one is in the directory of every run that has begun."""
        patterns = (OPTIONS, LOG, STATS, METRICS, SNAPSHOTS, FAKES)
        return (path for pattern in patterns for path in self._named(pattern) if os.path.isfile(path))

    # --- Options and the start ----------------------------------------------------------------------------------------

    def read_options(self) -> dict | None:
        """The loop arguments that the run was started with, or None where they are missing or cannot be parsed."""
        return _read_json(self.options_path)

    def write_options(self, args: Mapping) -> None:
        """Record the loop arguments, which must be JSON.

        Raises:
            UserError: the file cannot be written.
        """
        with files.atomic_write(self.options_path) as file:
            file.write(json.dumps(args, indent=2).encode())

    def read_inputs(self) -> dict[str, str]:
        """Digests of what the run reads, by the arguments that name it, and more, see `runs.inputs`; empty without."""
        return _read_json(self.inputs_path) or {}

    def write_inputs(self, inputs: Mapping[str, str]) -> None:
        """Record digests of what the run reads, and more, see `runs.inputs`.

        Raises:
            UserError: the file cannot be written.
        """
        with files.atomic_write(self.inputs_path) as file:
            file.write(json.dumps(inputs, indent=2).encode())

    def read_tracker(self) -> dict[str, Any]:
        """The tracker of the run, the run's id there, and up to how many images it is known there; empty without."""
        return _read_json(self.tracker_path) or {}

    def write_tracker(self, about: Mapping[str, Any]) -> None:
        """Record what `read_tracker` returns.

        Raises:
            UserError: the file cannot be written.
        """
        with files.atomic_write(self.tracker_path) as file:
            file.write(json.dumps(about).encode())

    @property
    def student_path(self) -> str:
        """Path of the network pickle that the run starts from, if it has its own; in the form that options contain."""
        return os.path.join(self._given, STUDENT)

    # --- Networks and images ------------------------------------------------------------------------------------------

    def snapshot_path(self, cur_nimg: int) -> Path:
        """The network pickle after so many images."""
        return self.path / SNAPSHOTS.replace('*', f'{cur_nimg // 1000:06d}')

    def snapshots(self) -> list[Path]:
        """The network pickles, oldest first."""
        return _sorted(self._named(SNAPSHOTS))

    def fakes_path(self, cur_nimg: int) -> Path:
        """The image grid after so many images."""
        return self.path / FAKES.replace('*', f'{cur_nimg // 1000:06d}')

    def fakes(self) -> list[Path]:
        """The image grids, oldest first, and at the end the one from before the first step."""
        return _sorted(self._named(FAKES))

    def ticket_path(self, name: str) -> Path:
        """The ticket that `find-ticket` keeps under a name, 'best' or 'last'."""
        return self.path / TICKET.replace('*', name)

    # --- Records ------------------------------------------------------------------------------------------------------

    def metric_path(self, metric: str) -> Path:
        """The results of a metric, one line of JSON each."""
        return self.path / METRICS.replace('*', metric)

    def metrics(self) -> list[Path]:
        """The results of all metrics that were measured, by name."""
        return sorted(self._named(METRICS))

    def record_sizes(self) -> dict[str, int]:
        """The sizes in bytes of the files that the run appends to, by name."""
        return {path.name: path.stat().st_size for pattern in RECORDS for path in self._named(pattern)}

    def sync_records(self) -> None:
        """Wait until the records are on disk: a state that counts on them is to find them after a power cut."""
        for name in self.record_sizes():
            with open(self.path / name, 'ab') as file:
                os.fsync(file.fileno())

    def cut_records(self, sizes: Mapping[str, int]) -> None:
        """Cut the records to these sizes, and others to nothing: a continued run writes what came after again.

        Of metrics, what somebody else measured after that stays, such as `evaluate`. What is left of a line that a
        power cut or a kill has cut off goes.
        """
        metrics = {path.name for path in self.metrics()}
        for name in self.record_sizes():
            with open(self.path / name, 'r+b') as file:
                kept = file.read(sizes.get(name, 0))
                kept = kept[: kept.rfind(b'\n') + 1]
                file.seek(len(kept))
                others = [line for line in file if name in metrics and _is_of_others(line)]
                file.seek(len(kept))
                file.writelines(others)
                file.truncate()

    def kimg_by(self, snapshot: str) -> float | None:
        """How far the run had come by a snapshot of that name, in thousands of images; None for other files.

        The name has whole thousands, of which `stats.jsonl` may know more, in short runs above all.
        """
        kimg = kimg_of(Path(snapshot)) if is_snapshot(snapshot) else None
        return next((tick for tick in self._ticks() if int(tick) == kimg), kimg)

    def _ticks(self) -> Iterator[float]:
        """The thousands of images that each line of `stats.jsonl` is after, the last one first."""
        with contextlib.suppress(OSError), open(self.stats_path) as file:
            for line in reversed(file.readlines()):
                with contextlib.suppress(ValueError, KeyError, TypeError):  # The last line may be cut off.
                    yield float(json.loads(line)['Progress/kimg']['mean'])

    # --- States -------------------------------------------------------------------------------------------------------

    def state_path(self, cur_nimg: int) -> Path:
        """The training state after so many images."""
        return self.path / STATES.replace('*', f'{cur_nimg / 1000:010.3f}')

    def states(self) -> list[Path]:
        """The training states, newest first."""
        pattern = re.escape(STATES).replace(r'\*', r'\d+\.\d+')
        return sorted((path for path in self._named(STATES) if re.fullmatch(pattern, path.name)), reverse=True)

    def has_lost_states(self) -> bool:
        """Whether it has trained for more than its first step, and has no state to continue from.

        Starting it again would overwrite its results.
        """
        return not self.states() and len(list(itertools.islice(self._ticks(), 2))) > 1

    def delete_temporary_files(self) -> None:
        """Delete what a kill in the middle of `files.atomic_write` left behind."""
        for pattern in (STATES, SNAPSHOTS, BEST, STUDENT, TICKET, OPTIONS, INPUTS, TRACKER):
            for path in self._named(f'.{pattern}.*.tmp'):
                path.unlink()


def _read_json(path: Path) -> dict | None:
    """The JSON object in a file, or None where it is missing, cannot be parsed, or is something else."""
    try:
        return _parsed(path.read_bytes())
    except OSError:
        return None


def _parsed(text: bytes) -> dict | None:
    """The JSON object that a text is, or None where it cannot be parsed, or is something else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_of_others(line: bytes) -> bool:
    """Whether a line in a file of results is whole, and not one that a run itself has written."""
    return line.endswith(b'\n') and TRAINED not in (_parsed(line) or {})


def _number(name: str) -> int:
    """The number that a name starts with; -1 for none."""
    match = re.match(r'\d+', name)
    return int(match.group()) if match else -1


def _sorted(paths: Iterable[Path]) -> list[Path]:
    """By the kimg in their names; those without come last."""
    return sorted(paths, key=lambda path: (kimg_of(path) is None, kimg_of(path) or 0, path.name))
