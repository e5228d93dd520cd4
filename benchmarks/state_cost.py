"""What saving the state and keeping statistics cost, in percent of a step.

    python benchmarks/state_cost.py [--resolution 32] [--steps 60] [--device cpu]

Runs our loop on random images with the host's own loss, and in the same run times every call that saves a state or
collects, writes or shows statistics. The share of a step that they take is at the default intervals: a state every
40 kimg, statistics every 4 kimg, reports of scalars in every step.
"""

import contextlib
import io
import tempfile

import click
import torch
from loop_overhead import Meter, arguments_on_random_images

from stylegan2_compress import host


@click.command()
@click.option('--resolution', default=32, show_default=True)
@click.option('--channel-base', default=1024, show_default=True)
@click.option('--channel-max', default=64, show_default=True)
@click.option('--batch', default=32, show_default=True)
@click.option('--steps', default=60, show_default=True, help='Steps that are timed, after 10 to warm up.')
@click.option('--device', default=None, help='cpu or cuda  [default: CUDA where there is one]')
def main(resolution: int, channel_base: int, channel_max: int, batch: int, steps: int, device: str | None) -> None:
    host.activate()
    from torch_utils import training_stats

    from stylegan2_compress.runs import states
    from stylegan2_compress.runs.directory import STATE_KIMG, RunDirectory
    from stylegan2_compress.training_loops import distillation, monitor
    from stylegan2_compress.training_loops.run import Run

    device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    reports, ticks, saving = (Meter(device, warmup_steps=10) for _ in range(3))
    training_stats.report = reports.timed(training_stats.report)
    for name in ('print_tick', 'end_tick'):
        setattr(monitor.Monitor, name, ticks.timed(getattr(monitor.Monitor, name)))
    Run.state_dict = saving.timed(Run.state_dict)
    states.save_state = saving.timed(states.save_state)
    advance = monitor.Monitor.advance
    monitor.Monitor.advance = lambda self, images: (
        advance(self, images),
        [meter.step_done() for meter in (reports, ticks, saving)],
    )

    with tempfile.TemporaryDirectory() as directory:
        args = arguments_on_random_images(directory, resolution, channel_base, channel_max, batch, device)
        every = 10 * batch / 1000  # Often enough to be timed.
        args.update(total_kimg=(steps + 10) * batch / 1e3, kimg_per_tick=every, state_kimg=every)
        args.update(image_snapshot_ticks=None, network_snapshot_ticks=None)
        with contextlib.redirect_stdout(io.StringIO()):
            distillation.training_loop(run_dir=directory, **args)
        size = max(path.stat().st_size for path in RunDirectory(directory).states())

    rare = ticks.inside + saving.inside
    step = (reports.end - reports.start - rare) / steps
    times = steps / 10
    state = f'state ({size / 2**20:.1f} MiB), every {STATE_KIMG} kimg'
    shares = {
        'reports of scalars, every step': reports.inside / steps,
        'statistics, every 4 kimg': ticks.inside / times * batch / 4000,
        state: saving.inside / times * batch / 1000 / STATE_KIMG,
    }
    print(f'{steps} steps of {batch} images at {resolution}×{resolution} on {device}, {step * 1e3:.1f} ms each')
    for name, seconds in shares.items():
        print(f'{name:40} {seconds * 1e3:8.3f} ms per step {seconds / step:8.2%}')
    print(f'{"together":40} {sum(shares.values()) * 1e3:8.3f} ms per step {sum(shares.values()) / step:8.2%}')


if __name__ == '__main__':
    main()
