"""What `--cuda-graphs 1` saves: time and peak memory of a step of our loop, with and without, in turns.

    python benchmarks/cuda_graphs.py [--size quickstart --size paper256] [--loss CLASS …] [--batch 16]

A whole step: data, latents, all phases by their intervals, optimizers, G_ema. Networks and embeddings are those of
`step_time.py`, with random weights, and mixed precision as the host's configuration has it. The first steps, in which
kernels are chosen and phases are recorded, are left out. Needs a GPU of NVIDIA.
"""

import contextlib
import gc
import io
import tempfile
import time
from pathlib import Path

import click
import torch
from step_time import SIZES, loop_arguments, own_cache, write_inputs

from stylegan2_compress import host

LOSSES = ('stylegan2_compress.AdversarialLoss', 'stylegan2_compress.NickelDimeLoss')
WARM_UP = {False: 17, True: 65}  # Steps: the fourth Dreg is in the 49th.


@click.command()
@click.option(
    '--size', 'sizes', multiple=True, type=click.Choice(list(SIZES)), default=('quickstart', 'paper256'),
    show_default=True,
)  # fmt: skip
@click.option('--loss', 'losses', multiple=True, metavar='CLASS', default=LOSSES, show_default=True)
@click.option('--batch', type=int, help="[default: the size's]")
@click.option('--steps', default=32, show_default=True, help='That are timed, in each turn.')
@click.option('--turns', default=2, show_default=True, help='Of which the shortest time counts.')
def main(sizes: tuple[str, ...], losses: tuple[str, ...], batch: int | None, steps: int, turns: int) -> None:
    if not torch.cuda.is_available():
        raise click.UsageError('there is no GPU here, or torch cannot use it.')
    host.activate()
    print(f'{torch.cuda.get_device_name()}, torch {torch.__version__}\n')
    print('| size, batch | loss | ms per step | recorded | ratio | peak memory | recorded |')
    print('| --- | --- | --- | --- | --- | --- | --- |')
    for size in sizes:
        chosen = SIZES[size] | ({} if batch is None else dict(batch=batch))
        for loss in losses:
            with tempfile.TemporaryDirectory() as directory, own_cache(Path(directory, 'cache')):
                inputs = write_inputs(Path(directory), **chosen)
                times = [(time_steps(inputs, loss, False, steps), time_steps(inputs, loss, True, steps))
                         for _ in range(turns)]  # fmt: skip
            (plain, memory), (recorded, its_memory) = (min(each) for each in zip(*times, strict=True))
            print(
                f'| {size}, {chosen["batch"]} | {loss.rpartition(".")[2]} | {plain * 1e3:.1f} | {recorded * 1e3:.1f} '
                f'| {recorded / plain:.2f} | {memory / 1e6:.0f} MB | {its_memory / 1e6:.0f} MB |', flush=True,
            )  # fmt: skip


def time_steps(inputs: dict, loss: str, recorded: bool, steps: int) -> tuple[float, int]:
    """Seconds per step, and bytes of the device at most."""
    from stylegan2_compress.host import devices
    from stylegan2_compress.runs.loops import OUR_LOOP
    from stylegan2_compress.training_loops import loop

    args = loop_arguments(loss, inputs, devices.choose(), loop=OUR_LOOP)
    args.pop('loop')
    args.update(cuda_graphs=recorded, total_kimg=1e6, kimg_per_tick=1e6, state_kimg=1e6)
    args.update(image_snapshot_ticks=None, network_snapshot_ticks=None)
    seconds, count = [], 0
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()

    class Enough(Exception):
        pass

    step = loop.step

    def timed_step(run) -> None:
        nonlocal count
        step(run)
        count += 1
        if count in (WARM_UP[recorded], WARM_UP[recorded] + steps):
            torch.cuda.synchronize()
            seconds.append(time.perf_counter())
        if len(seconds) == 2:
            raise Enough

    loop.step = timed_step
    try:
        with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(io.StringIO()):
            loop.train(run_dir=directory, **args)
    except Enough:
        pass
    finally:
        loop.step = step
    # What a graph works with is not allocated when it is replayed, but reserved.
    return (seconds[1] - seconds[0]) / steps, torch.cuda.max_memory_reserved()


if __name__ == '__main__':
    main()
