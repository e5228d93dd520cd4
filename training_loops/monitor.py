"""How a run goes, printed and written down: status lines, a progress bar, statistics per tick, trackers."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import dnnlib
import psutil
import torch
from metrics import metric_main
from torch_utils import training_stats

from stylegan2_compress.errors import Stopped
from stylegan2_compress.evaluation import records
from stylegan2_compress.host.progress_bars import progress_bar
from stylegan2_compress.runs.directory import TRAINED, RunDirectory
from stylegan2_compress.training_loops import trackers
from stylegan2_compress.training_loops.metrics import is_hosts
from stylegan2_compress.training_loops.tensorboard import TensorBoard


class Collector(training_stats.Collector):
    """The host's collector of statistics, which has a state: a continued run goes on collecting."""

    def state_dict(self) -> dict:
        """What all processes have reported since the last `update`, and what that made visible.

        To be called in all processes.
        """
        totals = training_stats._sync(self.names())
        zero = torch.zeros([training_stats._num_moments], dtype=training_stats._counter_dtype)
        return {
            'pending': {name: total - self._cumulative.get(name, zero) for name, total in totals},
            'visible': {name: moments.clone() for name, moments in self._moments.items()},
        }

    def load_state_dict(self, state: dict) -> None:
        """Make the next `update` show what was pending, together with what is reported from now on."""
        for name, pending in state['pending'].items():
            training_stats._counters.setdefault(name, {})  # Names have one order in all processes.
            self._cumulative[name] = training_stats._cumulative.get(name, torch.zeros_like(pending)) - pending
        self._moments = {name: moments.clone() for name, moments in state['visible'].items()}


class Monitor:
    """Keeps a run's clocks, and writes its progress at the end of each tick.

    Every process has one, because statistics are of all of them; only rank 0 prints and writes.

    Args:
        directory: of the run.
        total_kimg: length of the run in thousands of images.
        device: where memory is measured.
        rank: of this process.
        track: the tracker beside TensorBoard, see `runs.trackers`.
        cuda_graphs: whether steps are recorded.
    """

    def __init__(
        self,
        directory: RunDirectory,
        total_kimg: float,
        device: torch.device,
        rank: int = 0,
        track: str | None = None,
        cuda_graphs: bool = False,
    ):
        self.directory = directory
        self.total_nimg = total_kimg * 1000
        self.device = device
        self.is_rank_zero = rank == 0
        self.track = track
        self.cuda_graphs = cuda_graphs
        self.trackers: list[trackers.Tracker] = []
        self.run_start = self.tick_start = time.time()
        self.maintenance = 0.0
        self.tick_start_nimg = 0
        self.pace_start: tuple[float, int] | None = None  # When the second tick began, and after how many images.
        for counters in (training_stats._counters, training_stats._cumulative):
            counters.clear()  # Of a run that this process had before, whose names would be in this one's files.
        self.collector = Collector(regex='.*')

    def begin(self, cur_nimg: int = 0) -> None:
        """Start the clocks of training after so many images. In a new run, setting up counts as maintenance."""
        if cur_nimg == 0:
            now = time.time()
            self.maintenance, self.tick_start = now - self.run_start, now
        if self.is_rank_zero:
            opened = [
                TensorBoard.open(self.directory.path, cur_nimg),
                trackers.open_named(self.track, self.directory, cur_nimg),
            ]
            self.trackers = [tracker for tracker in opened if tracker is not None]
            self.stats_jsonl = open(self.directory.stats_path, 'a' if cur_nimg else 'w')  # noqa: SIM115
        self.bar = progress_bar(
            shown=self.is_rank_zero,
            leave=True,
            total=self.total_nimg / 1000,
            initial=cur_nimg / 1000,
            unit='kimg',
            bar_format='{percentage:3.0f}% |{bar}| {n:.1f}/{total:g} kimg, {remaining} left{postfix}',
            smoothing=0.05,
        )

    def advance(self, images: int) -> None:
        """Move the progress bar."""
        self.bar.update(min(images / 1000, self.bar.total - self.bar.n))  # The last step may be beyond the end.

    def print_tick(self, tick: int, cur_nimg: int, augment_p: float) -> None:
        """Print the host's status line, and report its numbers as statistics."""
        self.tick_end = time.time()
        total, spent = self.tick_end - self.run_start, self.tick_end - self.tick_start
        kimg = (cur_nimg - self.tick_start_nimg) / 1e3
        ram = psutil.Process().memory_info().rss / 2**30
        gpu = 0.0
        if self.device.type == 'cuda':
            # What a CUDA graph works with is not allocated when it is replayed, but reserved.
            peak = torch.cuda.max_memory_reserved if self.cuda_graphs else torch.cuda.max_memory_allocated
            gpu = peak(self.device) / 2**30
            torch.cuda.reset_peak_memory_stats(self.device)
        report = training_stats.report0
        fields = [
            f'tick {report("Progress/tick", tick):<5d}',
            f'kimg {report("Progress/kimg", cur_nimg / 1e3):<8.1f}',
            f'time {dnnlib.util.format_time(report("Timing/total_sec", total)):<12s}',
            f'sec/tick {report("Timing/sec_per_tick", spent):<7.1f}',
            f'sec/kimg {report("Timing/sec_per_kimg", spent / kimg):<7.2f}',
            f'maintenance {report("Timing/maintenance_sec", self.maintenance):<6.1f}',
            f'cpumem {report("Resources/cpu_mem_gb", ram):<6.2f}',
            f'gpumem {report("Resources/peak_gpu_mem_gb", gpu):<6.2f}',
            f'augment {report("Progress/augment", augment_p):.3f}',
        ]
        report('Timing/total_hours', total / 3600)
        report('Timing/total_days', total / 86400)
        self.print_line(' '.join(fields))

    def report_image(self, name: str, png_path: Path, cur_nimg: int) -> None:
        """Pass a grid of images, which was written to a file, to the trackers."""
        self._pass_on(lambda tracker: tracker.image(name, png_path, cur_nimg))

    def report_metric(self, result: dict, snapshot_pkl: Path, cur_nimg: int) -> None:
        """Print and record what the host's `calc_metric` returned, or the like of it."""
        if self.is_rank_zero:
            self.bar.clear()
            record = dict(result, **{TRAINED: cur_nimg})
            if is_hosts(result['metric']):
                metric_main.report_metric(record, run_dir=str(self.directory.path), snapshot_pkl=str(snapshot_pkl))
            else:
                print(json.dumps(record))
                records.append(str(snapshot_pkl), record)
            self.bar.refresh()
        self._pass_on(lambda tracker: tracker.metrics(result['results'], cur_nimg))

    def end_tick(self, phases, cur_nimg: int) -> None:
        """Record the statistics since the last tick, show the losses, restart the tick's clocks."""
        for phase in phases:
            training_stats.report0(f'Timing/{phase.name}', phase.stopwatch.milliseconds())
        self.collector.update()
        stats = self.collector.as_dict()
        if self.is_rank_zero:
            self.stats_jsonl.write(json.dumps(dict(stats, timestamp=time.time())) + '\n')
            self.stats_jsonl.flush()
            self._show_losses(stats, cur_nimg)
        self._pass_on(lambda tracker: tracker.scalars(stats, cur_nimg))
        self.tick_start_nimg = cur_nimg
        self.tick_start = time.time()
        self.maintenance = self.tick_start - self.tick_end

    def count_as_maintenance(self, seconds: float) -> None:
        """Leave time that was not spent on training out of the tick that has begun."""
        self.tick_start += seconds
        self.maintenance += seconds

    def _show_losses(self, stats: dict, cur_nimg: int) -> None:
        """Show speed, main losses and spread in the bar; without a bar, print them with the remaining time."""
        seconds = (time.time() - self.tick_start) / (cur_nimg - self.tick_start_nimg)
        shown = [f'{1 / seconds:.1f} images/s']
        for name, value in stats.items():
            if value.num and (match := re.fullmatch(r'Loss/(\w+)/loss', name)):
                shown.append(f'{match[1]} {value.mean:.3f}')
        spreads = [value.mean for name, value in stats.items() if value.num and re.match(r'Loss/\w+/spread/', name)]
        if spreads:
            shown.append(f'spread {min(spreads):.2f}')
        self.bar.set_postfix_str(', '.join(shown))
        if self.bar.disable:
            if self.tick_start_nimg:  # The first tick is one step, of all phases and slow: it foretells nothing.
                since, since_nimg = self.pace_start = self.pace_start or (self.tick_start, self.tick_start_nimg)
                pace = (time.time() - since) / (cur_nimg - since_nimg)  # With snapshots and metrics in between.
                left = dnnlib.util.format_time(max(self.total_nimg - cur_nimg, 0) * pace)
                shown.append(f'{left} left')
            print(f'  {", ".join(shown)}', flush=True)

    def print_line(self, line: str) -> None:
        """Print a line above the progress bar."""
        self.bar.clear()
        print(line, flush=True)
        self.bar.refresh()

    def state_dict(self) -> dict:
        """The clocks, and the statistics since the last tick."""
        now = time.time()
        return {
            'seconds': now - self.run_start,
            'tick_seconds': now - self.tick_start,
            'maintenance': self.maintenance,
            'tick_start_nimg': self.tick_start_nimg,
            'collector': self.collector.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Set the clocks as if the run had not been interrupted."""
        now = time.time()
        self.run_start, self.tick_start = now - state['seconds'], now - state['tick_seconds']
        self.maintenance, self.tick_start_nimg = state['maintenance'], state['tick_start_nimg']
        self.collector.load_state_dict(state['collector'])

    def __enter__(self) -> 'Monitor':
        """Training, which has begun, is in the block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _traceback: object) -> None:
        """Close the bar and all files."""
        failed = kind is not None and not issubclass(kind, Stopped)
        self.bar.close()
        if self.is_rank_zero:
            self.stats_jsonl.close()
        self._pass_on(lambda tracker: tracker.close(failed))

    def _pass_on(self, what: Callable[[trackers.Tracker], None]) -> None:
        """Call all trackers. The run goes on without the one of `--track` from the moment on when that fails."""
        for tracker in list(self.trackers):
            try:
                what(tracker)
            except Exception as error:  # Of a library that talks to servers, any.
                if not isinstance(tracker, trackers.NamedRun):
                    raise
                self.trackers.remove(tracker)
                self.print_line(trackers.left_out(tracker.name, error))
