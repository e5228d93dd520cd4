"""How much time our training loop adds to what the loss and the optimizers take by themselves.

    python benchmarks/loop_overhead.py [--resolution 32] [--steps 100] [--device cpu]

Runs the loop on random images with the host's own loss and takes the time spent inside `accumulate_gradients` and
`opt.step`. What is left of the time between the first and the last step is the loop's: data, latents, gradients to
zero and repair, G_ema, statistics. Prints its share. Ticks, with their snapshots, are left out: how often they come is
the user's choice.
"""

import contextlib
import io
import json
import tempfile
import time
import zipfile
from pathlib import Path

import click
import numpy as np
import PIL.Image
import torch

from stylegan2_compress import host


class Meter:
    """Wraps functions and adds up the time spent in them, after the device has finished."""

    def __init__(self, device: torch.device, warmup_steps: int):
        self.device, self.warmup_steps = device, warmup_steps
        self.inside, self.steps, self.start, self.end = 0.0, 0, None, None

    def now(self) -> float:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def timed(self, function):
        def wrapper(*args, **kwargs):
            before = self.now()
            result = function(*args, **kwargs)
            if self.start is not None:
                self.inside += self.now() - before
            return result

        return wrapper

    def step_done(self) -> None:
        self.steps += 1
        if self.steps == self.warmup_steps:
            self.start = self.now()
        self.end = self.now()


@click.command()
@click.option('--resolution', default=32, show_default=True)
@click.option('--channel-base', default=1024, show_default=True)
@click.option('--channel-max', default=64, show_default=True)
@click.option('--batch', default=32, show_default=True)
@click.option('--steps', default=100, show_default=True, help='Steps that are timed, after 10 to warm up.')
@click.option('--device', default=None, help='cpu or cuda  [default: CUDA where there is one]')
def main(resolution: int, channel_base: int, channel_max: int, batch: int, steps: int, device: str | None) -> None:
    host.activate()
    from training.loss import StyleGAN2Loss

    from stylegan2_compress.training_loops import distillation, monitor

    device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    meter = Meter(device, warmup_steps=10)
    StyleGAN2Loss.accumulate_gradients = meter.timed(StyleGAN2Loss.accumulate_gradients)
    torch.optim.Adam.step = meter.timed(torch.optim.Adam.step)
    advance = monitor.Monitor.advance
    monitor.Monitor.advance = lambda self, images: (advance(self, images), meter.step_done())

    with tempfile.TemporaryDirectory() as directory:
        args = arguments_on_random_images(directory, resolution, channel_base, channel_max, batch, device)
        args.update(total_kimg=(steps + 10) * batch / 1e3, kimg_per_tick=1e6)
        args.update(image_snapshot_ticks=None, network_snapshot_ticks=None)
        with contextlib.redirect_stdout(io.StringIO()):
            distillation.training_loop(run_dir=directory, **args)

    total = meter.end - meter.start
    print(
        f'{steps} steps of {batch} images at {resolution}×{resolution} on {device} ({torch.get_num_threads()} threads)'
    )
    print(f'loss and optimizers   {meter.inside / steps * 1e3:8.2f} ms per step')
    print(f'whole loop            {total / steps * 1e3:8.2f} ms per step')
    print(f'the loop adds         {total / meter.inside - 1:8.1%}')


def arguments_on_random_images(
    directory: str, resolution: int, channel_base: int, channel_max: int, batch: int, device: torch.device
) -> dict:
    """Arguments of our training loop with the host's own loss and networks of these widths."""
    from stylegan2_compress.compression.options import MethodOptions
    from stylegan2_compress.compression.planning import compress
    from stylegan2_compress.host import configurations
    from stylegan2_compress.runs.loops import OUR_LOOP
    from stylegan2_compress.runs.plan import Plan

    data = Path(directory, 'random.zip')
    write_random_images(data, resolution)
    _desc, args = configurations.loop_arguments(str(data), batch=batch, aug='noaug', workers=1)
    for kwargs in (args.G_kwargs.synthesis_kwargs, args.D_kwargs):
        kwargs.update(channel_base=channel_base, channel_max=channel_max)
    args.device = str(device)
    compress(Plan('', args), MethodOptions(loop=OUR_LOOP))
    args.pop('loop')
    return args


def write_random_images(path: Path, resolution: int, count: int = 500) -> None:
    rnd = np.random.default_rng(0)
    with zipfile.ZipFile(path, 'w') as archive:
        for index in range(count):
            png = io.BytesIO()
            PIL.Image.fromarray(rnd.integers(256, size=[resolution, resolution], dtype=np.uint8)).save(png, 'png')
            archive.writestr(f'{index:05d}.png', png.getvalue())
        archive.writestr('dataset.json', json.dumps({'labels': None}))


if __name__ == '__main__':
    main()
