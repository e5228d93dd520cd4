"""Time to read, prune and inspect generators of the shapes that NVIDIA trained on FFHQ, on this machine.

    python benchmarks/pruning_cost.py [--ratio 0.9] [--repeats 3]

Wanted for the 24.8 M-parameter generator (256 px, channel base 16384), on two cores: safe reading at most 1.5 times the
host's own, pruning with l1 in seconds, inspecting in under 5 s and 1 GB.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch

from stylegan2_compress import host

SHAPES = [(256, 16384), (256, 32768), (1024, 32768)]  # img_resolution, channel_base


@click.command()
@click.option('--ratio', default=0.9, show_default=True, help='Pruning ratio.')
@click.option('--repeats', default=3, show_default=True, help='Times are medians of so many runs.')
def main(ratio: float, repeats: int) -> None:
    host.activate()
    from stylegan2_compress import pickles, profiling, pruning

    click.echo(f'{profiling.device_name(torch.device("cpu"))}, {os.cpu_count()} cores, medians of {repeats}')
    with tempfile.TemporaryDirectory() as temp:
        path = Path(temp, 'teacher.pkl')
        for img_resolution, channel_base in SHAPES:
            pickles.save(path, networks(img_resolution, channel_base))
            data = pickles.load(path)
            widths = pruning.widths_for_ratio(data['G_ema'], ratio)
            reads = [(seconds(read_as_the_host, path), seconds(pickles.load, path)) for _ in range(repeats)]
            unsafe, safe = (statistics.median(times) for times in zip(*reads, strict=True))
            prune = statistics.median(seconds(pruning.make_student, data, widths) for _ in range(repeats))
            inspections = [inspect(path) for _ in range(repeats)]
            wall, cpu, peak = (statistics.median(values) for values in zip(*inspections, strict=True))
            click.echo(
                f'{img_resolution} px, channel base {channel_base}, {profiling.parameters(data["G_ema"]) / 1e6:.1f} M '
                f'parameters, file of {path.stat().st_size / 1e6:.0f} MB:\n'
                f'  read: {safe:.2f} s, the host {unsafe:.2f} s, ratio {safe / unsafe:.2f}\n'
                f'  prune with l1 to ratio {ratio}: {prune:.2f} s\n'
                f'  inspect, with the start of Python: {wall:.2f} s ({cpu:.2f} s of CPU), {peak / 1e6:.0f} MB'
            )


def networks(img_resolution: int, channel_base: int) -> dict:
    """Untrained networks as the host's training loop saves them: in eval mode, G and G_ema apart."""
    from training.networks import Discriminator, Generator

    precision = dict(num_fp16_res=4, conv_clamp=256)
    G, G_ema = (
        Generator(512, 0, 512, img_resolution, 3, synthesis_kwargs=dict(channel_base=channel_base, **precision))
        for _ in range(2)
    )
    D = Discriminator(0, img_resolution, 3, channel_base=channel_base, **precision)
    data = {name: network.eval().requires_grad_(False) for name, network in dict(G=G, D=D, G_ema=G_ema).items()}
    return dict(data, training_set_kwargs=None, augment_pipe=None)


def read_as_the_host(path: Path) -> dict:
    import legacy

    with open(path, 'rb') as f:
        return legacy.load_network_pkl(f)


def seconds(function: Callable, *args) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def inspect(path: Path) -> tuple[float, float, int]:
    """Seconds on the clock and of the CPU, and peak resident bytes, of the command in a process of its own."""
    command = [sys.executable, '-m', 'stylegan2_compress', 'inspect', path]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise subprocess.CalledProcessError(status, command)
    kilobyte = 1 if sys.platform == 'darwin' else 1024  # There ru_maxrss is in bytes.
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * kilobyte


if __name__ == '__main__':
    main()
