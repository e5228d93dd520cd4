"""What safe reading costs: time and memory against the host's own unsafe loader, on networks of official shapes.

    python benchmarks/pickle_loading.py [--repeats 3]

Writes snapshots (G, D and G_ema with random weights) as the host's training loop does: FFHQ 256 px with both channel
bases, and 1024 px config F. Each is then read in fresh processes, by turns by the host and by us, and inspected. A
ratio compares the best runs of the two; the file is in the system's cache, and torch is imported.
"""

import copy
import json
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from stylegan2_compress import host

SHAPES = {
    '256 px, channel_base 16384': (256, 16384),
    '256 px, channel_base 32768': (256, 32768),
    '1024 px, config F': (1024, 32768),
}

# Run in a process of its own: prints seconds, and the megabytes at the peak.
JOB = """
import json, re, sys, time
from pathlib import Path
from stylegan2_compress import host
host.activate()
import legacy
import torch
from stylegan2_compress import pickles
torch.set_num_threads(1)
job, path = sys.argv[1:]
times = []
for _ in range(3):
    start = time.perf_counter()
    if job == 'host':
        with open(path, 'rb') as file:
            legacy.load_network_pkl(file)
    elif job == 'safe':
        pickles.load(path)
    else:
        pickles.inspect(path).text()
    times.append(time.perf_counter() - start)
# Not getrusage's maximum, which begins with the size of the process that started this one.
peak = int(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1]) / 1000
print(json.dumps({'first': times[0], 'warm': min(times), 'MB': peak}))
"""


@click.command()
@click.option('--repeats', default=3, show_default=True, help='Fresh processes per loader; three runs in each.')
def main(repeats: int) -> None:
    host.activate()
    print(table(repeats))


def table(repeats: int, shapes: dict = SHAPES) -> str:
    """Measure every shape; returns Markdown. Wanted: at most 1.5 times the host's time."""
    lines = [
        '| | host, first / warm | ours, first / warm | ratio, first / warm | `pickles.inspect` | peak, host / ours |',
        '| --- | --- | --- | --- | --- | --- |',
    ]
    with tempfile.TemporaryDirectory() as directory:
        for name, (resolution, channel_base) in shapes.items():
            path = write_snapshot(Path(directory), resolution, channel_base)
            runs = {job: [] for job in ('host', 'safe', 'inspect')}
            for _ in range(repeats):
                for job in runs:
                    runs[job].append(run(job, path))
            best = {
                (job, when): min(result[when] for result in results)
                for job, results in runs.items()
                for when in ('first', 'warm')
            }
            ratio = ' / '.join(f'{best["safe", when] / best["host", when]:.2f}' for when in ('first', 'warm'))
            peak = ' / '.join(f'{max(result["MB"] for result in runs[job]):.0f}' for job in ('host', 'safe'))
            times = [f'{best[job, "first"]:.2f} / {best[job, "warm"]:.2f} s' for job in ('host', 'safe')]
            lines.append(f'| {name}, {path.stat().st_size / 1e6:.0f} MB | {times[0]} | {times[1]} | {ratio} '
                         f'| {best["inspect", "first"]:.2f} s | {peak} MB |')  # fmt: skip
            path.unlink()
    return '\n'.join(lines)


def write_snapshot(directory: Path, resolution: int, channel_base: int) -> Path:
    """Write G, D, G_ema with random weights."""
    import torch
    from dnnlib import EasyDict
    from training import networks

    common = {'c_dim': 0, 'img_resolution': resolution, 'img_channels': 3}
    kwargs = EasyDict(channel_base=channel_base, channel_max=512, num_fp16_res=4, conv_clamp=256)
    torch.manual_seed(0)
    G = networks.Generator(z_dim=512, w_dim=512, synthesis_kwargs=kwargs, **common).eval().requires_grad_(False)
    D = networks.Discriminator(**kwargs, **common).eval().requires_grad_(False)
    path = directory / 'network-snapshot.pkl'
    with open(path, 'wb') as file:
        pickle.dump({'G': G, 'D': D, 'G_ema': copy.deepcopy(G), 'training_set_kwargs': {}, 'augment_pipe': None}, file)
    return path


def run(job: str, path: Path) -> dict:
    """One fresh process."""
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', JOB, job, str(path)], capture_output=True, check=True)
    return json.loads(done.stdout)


if __name__ == '__main__':
    main()
