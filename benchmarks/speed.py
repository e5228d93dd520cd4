"""Where we stand in speed: ratios, each measured in this one run.

    python benchmarks/speed.py [--reference DIR] [--device cuda] [--size smoke] [--only steps,latency]

Prints, as Markdown:

* steps: time and peak memory of a training step with each loss, against the host's loss (`step_time.py`);
* embeddings: a network in FP32, BF16 and FP16, forwards and back to the images, and how far its distance is from FP32's
  beside how far distances of batches are from each other;
* statistics: throughput of a teacher's statistics against plain generation of the same images;
* loading: safe against unsafe reading of network pickles (`pickle_loading.py`);
* latency: dense against pruned generators at batch 1 and 16, against the ratio of their multiply-accumulates, and
  the operators in which the smallest one spends its time.

`--size gpu` is the paper's FFHQ 256 networks, `cpu` has narrower ones; `smoke` runs all of it in a minute at sizes that
say nothing.
"""

import contextlib
import re
import sys
import tempfile
import time
from pathlib import Path

import click
import torch
from step_time import LOSSES, name_the_host, own_cache, save_resnet
from step_time import table as step_times

SECTIONS = ('steps', 'embeddings', 'statistics', 'loading', 'latency')
RATIOS = (0.7, 0.8, 0.9, 0.95)
SIZES = dict(
    gpu=dict(
        steps=dict(losses=LOSSES, size='paper256', rounds=5, apart=False),  # Which would take longer than all the rest.
        embeddings=dict(resolution=256, resnet_width=64, batch=32, batches=16),
        statistics=dict(resolution=256, channel_base=16384, samples=2048, embedding='efficientnet_lite0'),
        loading=dict(repeats=3),
        latency=dict(resolution=256, channel_base=16384, ratios=RATIOS, seconds=3.0),
    ),
    cpu=dict(
        steps=dict(
            losses=LOSSES, size='paper256', channel_base=4096, channel_max=256, batch=4, resnet_width=32, rounds=3
        ),
        embeddings=dict(resolution=64, resnet_width=32, batch=16, batches=8),
        statistics=dict(resolution=256, channel_base=4096, samples=64, embedding='efficientnet_lite0'),
        loading=dict(repeats=3),
        latency=dict(resolution=256, channel_base=16384, ratios=RATIOS, seconds=1.0),
    ),
    smoke=dict(
        steps=dict(losses=LOSSES[-1:], size='quickstart', channel_base=256, channel_max=8, batch=2, rounds=1),
        embeddings=dict(resolution=32, resnet_width=4, batch=2, batches=2),
        statistics=dict(resolution=32, channel_base=512, samples=32, embedding='efficientnet_lite0@size=32'),
        loading=dict(repeats=1, shapes={'32 px': (32, 512)}),
        latency=dict(resolution=32, channel_base=512, ratios=(0.5,), seconds=0.1),
    ),
)


@click.command()
@click.option('--reference', metavar='DIR', help="Checkout of the paper's public code, to be timed too.")
@click.option('--device', default=None, help='cpu or cuda  [default: CUDA where there is one]')
@click.option('--size', type=click.Choice(list(SIZES)), help='smoke: does it run  [default: what the device is]')
@click.option('--only', default=','.join(SECTIONS), show_default=True, help='Which sections.')
def main(reference: str | None, device: str | None, size: str | None, only: str) -> None:
    name_the_host()
    import pickle_loading

    from stylegan2_compress.host import devices, profiling

    devices.set_backends()

    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    sections = [section.strip() for section in only.split(',')]
    if unknown := set(sections) - set(SECTIONS):
        raise click.UsageError(f'--only={",".join(unknown)} does not exist; there are {", ".join(SECTIONS)}.')
    sizes = SIZES[size or ('cpu' if device == 'cpu' else 'gpu')]
    run = dict(
        steps=lambda: step_times(reference=reference, device=device, **sizes['steps']),
        embeddings=lambda: precisions(torch.device(device), **sizes['embeddings']),
        statistics=lambda: statistics(torch.device(device), **sizes['statistics']),
        loading=lambda: pickle_loading.table(**sizes['loading']),
        latency=lambda: latency(torch.device(device), **sizes['latency']),
    )
    print(f'{profiling.device_name(torch.device(device))}\n')
    for section in sections:
        print(f'### {section.capitalize()}\n\n{run[section]()}\n', flush=True)


def generator(resolution: int, channel_base: int, device: torch.device) -> torch.nn.Module:
    """The host's, with random weights, as FFHQ's of that resolution but for the width."""
    from training.networks import Generator

    kwargs = dict(channel_base=channel_base, num_fp16_res=4, conv_clamp=256)
    return Generator(512, 0, 512, resolution, 3, synthesis_kwargs=kwargs).eval().requires_grad_(False).to(device)


def precisions(device: torch.device, resolution: int, resnet_width: int, batch: int, batches: int) -> str:
    """DiME's distance of batches of noise to others, through a ResNet-50 with random weights in each precision."""
    from stylegan2_compress import embeddings

    rnd = torch.Generator().manual_seed(0)
    images = [torch.randn([batch, 3, resolution, resolution], generator=rnd).to(device) for _ in range(batches)]
    wanted = torch.stack([torch.randn([3, resolution, resolution], generator=rnd) for _ in range(4 * batch)]).to(device)
    seconds, distances = {}, {}
    with tempfile.TemporaryDirectory() as directory:
        save_resnet(directory, resnet_width)
        for dtype in ('fp32', 'bf16', 'fp16'):
            network = embeddings.load(f'hf:{directory}@preprocess=raw@size={resolution}@dtype={dtype}', device)
            with torch.no_grad():
                moments = moments_of(network(wanted * 0.5))
                found = [(moments_of(network(each)) - moments).norm() for each in images]
            distances[dtype] = torch.stack(found).double().cpu()
            pixels = images[0].clone().requires_grad_()
            times = [timed(lambda: torch.autograd.grad(network(pixels).sum(), pixels), device) for _ in range(4)]  # noqa: B023
            seconds[dtype] = min(times[1:])
    noise = distances['fp32'].std() / distances['fp32'].mean()
    lines = [
        f'| ResNet-50, {resolution} px, width {resnet_width}, batch {batch} | ms | of FP32 | distance, off by |',
        '| --- | --- | --- | --- |',
    ]
    for dtype, values in distances.items():
        off = ((values - distances['fp32']).abs() / distances['fp32']).mean()
        ratio = seconds[dtype] / seconds['fp32']
        lines.append(f'| {dtype} | {seconds[dtype] * 1e3:.1f} | {ratio:.2f} | {off:.2%} |')
    return '\n'.join(lines) + f'\n\nStandard deviation of the distance of a batch: {noise:.2%} of its mean.'


def moments_of(features: torch.Tensor) -> torch.Tensor:
    """The first and second moments [2 dim] of features [N, dim]."""
    return torch.cat([features.mean(dim=0), features.square().mean(dim=0)])


def statistics(device: torch.device, resolution: int, channel_base: int, samples: int, embedding: str) -> str:
    """By turns, twice each: only the generator, only the embedding, and the whole pass."""
    from training.networks import Discriminator

    from stylegan2_compress import embeddings, pickles
    from stylegan2_compress.distributions import sources, statistics

    batch = 32
    G = generator(resolution, channel_base, device)
    precision = {'force_fp32': True} if device.type == 'cpu' else {}
    network = embeddings.load(embedding, device)
    batches = -(-samples // batch)

    def generate():
        for _ in range(batches):
            G(torch.randn([batch, G.z_dim], device=device), None, **precision)

    def embed():
        images = torch.randn([batch, 3, resolution, resolution], device=device)
        with torch.no_grad():
            for _ in range(batches):
                network(images)

    def whole_pass():
        seed = len(seconds['statistics'])  # Another one, so that the cache has nothing.
        source = sources.TeacherImages(teacher, seed=seed, device=device)
        with contextlib.redirect_stdout(sys.stderr):
            statistics.reference_statistics(source, [network], samples=batches * batch)

    seconds = dict(generation=[], embedding=[], statistics=[])
    with tempfile.TemporaryDirectory() as directory, own_cache(Path(directory)):
        teacher = f'{directory}/teacher.pkl'
        D = Discriminator(0, resolution, 3, channel_base=channel_base)
        pickles.save(teacher, dict(G=G, D=D, G_ema=G, augment_pipe=None, training_set_kwargs={}))
        for _ in range(2):
            for name, function in (('generation', generate), ('embedding', embed), ('statistics', whole_pass)):
                seconds[name].append(timed(function, device))
    best = {name: min(values) for name, values in seconds.items()}
    rate = {name: batches * batch / value for name, value in best.items()}
    rest = best['statistics'] - best['generation'] - best['embedding']
    lines = [
        f'| {resolution} px, channel base {channel_base}, {embedding}, batch {batch} | images/s | of generation |',
        '| --- | --- | --- |',
        *(f'| {name} | {rate[name]:.1f} | {rate[name] / rate["generation"]:.2f} |' for name in rate),
        f'\nWhat the pass adds to generator and embedding, reading the pickle included: '
        f'{rest / best["statistics"]:.1%} of its time.',
    ]
    return '\n'.join(lines)


def timed(function, device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def latency(device: torch.device, resolution: int, channel_base: int, ratios: tuple, seconds: float) -> str:
    from stylegan2_compress import pruning
    from stylegan2_compress.host import profiling

    teacher = generator(resolution, channel_base, torch.device('cpu'))
    generators = {'dense': teacher}
    for ratio in ratios:
        widths = pruning.widths_for_ratio(teacher, ratio)
        generators[f'ratio {ratio:g}'] = pruning.make_student(dict(G_ema=teacher), widths)['G_ema'].eval()
    columns = ['batch 1', 'batch 16']
    if device.type == 'cuda':
        columns += [f'{column}, as a CUDA graph' for column in columns]
    lines = [
        f'| {resolution} px, channel base {channel_base} | MACs | {" | ".join(columns)} |',
        '| --- | --- |' + ' --- |' * len(columns),
    ]
    dense = None
    for name, G in generators.items():
        G.to(device)
        profile = profiling.profile(G, name, 0, layers=False, batches=[])
        measured = [profiling.measure(G, batch, seconds) for batch in (1, 16)]
        times = [each.seconds for each in measured]
        times += [each.recorded_seconds for each in measured if each.recorded_seconds is not None]
        dense = dense or (profile.macs, times)
        cells = ' | '.join(f'{t * 1e3:.1f} ms ({d / t:.1f}×)' for t, d in zip(times, dense[1], strict=True))
        lines.append(f'| {name} | {profile.macs:,} ({dense[0] / profile.macs:.1f}×) | {cells} |')
    return '\n'.join(lines) + f'\n\n{where_time_goes(name, G, device)}'


def where_time_goes(name: str, G: torch.nn.Module, device: torch.device) -> str:
    """The operators with the most time of their own, at batch 16."""
    from torch.profiler import ProfilerActivity, profile

    z, c = torch.randn([16, G.z_dim], device=device), torch.zeros([16, 0], device=device)
    on_cpu = device.type == 'cpu'
    with profile(activities=[ProfilerActivity.CPU if on_cpu else ProfilerActivity.CUDA]) as profiler, torch.no_grad():
        G(z, c, noise_mode='const', force_fp32=on_cpu)
    own = {
        event.key: event.self_cpu_time_total if on_cpu else event.self_device_time_total
        for event in profiler.key_averages()
    }
    total = sum(own.values())
    top = sorted(own.items(), key=lambda item: -item[1])[:6]
    names = {key: re.sub(r'^void |[<(].*', '', key) for key in own}  # Of a CUDA kernel, without its types.
    return f'{name}, batch 16, own time: ' + ', '.join(f'{names[key]} {value / total:.0%}' for key, value in top) + '.'


if __name__ == '__main__':
    main()
