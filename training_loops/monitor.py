"""Tells people and files how a run goes: the status line, `stats.jsonl`, a progress bar."""

import json
import os
import sys
import time

import dnnlib
import psutil
import torch
from torch_utils import training_stats
from tqdm import tqdm


class Monitor:
    """Keeps a run's clocks, and writes its progress at the end of each tick.

    Args:
        run_dir: `stats.jsonl` goes there.
        total_kimg: length of the run in thousands of images.
        device: where memory is measured.
    """

    def __init__(self, run_dir: str, total_kimg: float, device: torch.device):
        self.device = device
        self.run_start = self.tick_start = time.time()
        self.maintenance = 0.0
        self.tick_start_nimg = 0
        self.collector = training_stats.Collector(regex='.*')
        self.stats_jsonl = open(os.path.join(run_dir, 'stats.jsonl'), 'w')  # noqa: SIM115 (closed by close)
        self.bar = tqdm(
            total=total_kimg * 1000,
            unit='img',
            unit_scale=True,
            file=sys.__stderr__,  # The host's Logger stands in for sys.stderr and would log the bar.
            disable=not sys.__stderr__.isatty(),
            smoothing=0.05,
        )

    def begin(self) -> None:
        """Training starts: what went before counts as maintenance."""
        now = time.time()
        self.maintenance, self.tick_start = now - self.run_start, now

    def advance(self, images: int) -> None:
        self.bar.update(images)

    def print_tick(self, tick: int, cur_nimg: int, augment_p: float) -> None:
        """The host's status line, its numbers collected as statistics too."""
        self.tick_end = time.time()
        total, spent = self.tick_end - self.run_start, self.tick_end - self.tick_start
        kimg = (cur_nimg - self.tick_start_nimg) / 1e3
        ram = psutil.Process().memory_info().rss / 2**30
        gpu = 0.0
        if self.device.type == 'cuda':
            gpu = torch.cuda.max_memory_allocated(self.device) / 2**30
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
        self.bar.clear()
        print(' '.join(fields), flush=True)
        self.bar.refresh()

    def end_tick(self, phases, cur_nimg: int) -> None:
        """Append the statistics since the last tick to `stats.jsonl` and restart the tick's clocks."""
        for phase in phases:
            training_stats.report0(f'Timing/{phase.name}', phase.stopwatch.milliseconds())
        self.collector.update()
        self.stats_jsonl.write(json.dumps(dict(self.collector.as_dict(), timestamp=time.time())) + '\n')
        self.stats_jsonl.flush()
        self.tick_start_nimg = cur_nimg
        self.tick_start = time.time()
        self.maintenance = self.tick_start - self.tick_end

    def close(self) -> None:
        self.bar.close()
        self.stats_jsonl.close()
