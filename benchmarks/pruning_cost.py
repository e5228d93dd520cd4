"""What pruning costs on this machine, at the shapes that NVIDIA trained on FFHQ.

    python benchmarks/pruning_cost.py [--ratio 0.9] [--criterion content-aware --samples 2]

Prints the seconds from a teacher in memory to its student. Wanted is `l1` in seconds for the 24.8 M-parameter generator
on two cores. What reading and inspecting such files costs is printed by `pickle_loading.py`.
"""

import statistics
import time

import click
import torch

from stylegan2_compress import host

SHAPES = [(256, 16384), (256, 32768), (1024, 32768)]  # img_resolution, channel_base


@click.command()
@click.option('--ratio', default=0.9, show_default=True, help='Pruning ratio.')
@click.option('--criterion', 'criteria', multiple=True, default=['l1'], show_default=True, help='May be repeated.')
@click.option('--samples', default=2, show_default=True, help='Images for the criteria that look at any.')
@click.option('--repeats', default=3, show_default=True, help='Times are medians of so many runs.')
def main(ratio: float, criteria: list[str], samples: int, repeats: int) -> None:
    host.activate()
    from training.networks import Generator

    from stylegan2_compress import pruning
    from stylegan2_compress.host import profiling

    click.echo(f'{profiling.device_name(torch.device("cpu"))}; {samples} images; medians of {repeats}')
    options = pruning.CriterionOptions(samples=samples, batch=samples)
    for img_resolution, channel_base in SHAPES:
        G = Generator(512, 0, 512, img_resolution, 3, synthesis_kwargs=dict(channel_base=channel_base))
        teacher = dict(G_ema=G.eval().requires_grad_(False))
        widths = pruning.widths_for_ratio(G, ratio)
        click.echo(
            f'{img_resolution} px, channel base {channel_base}, {profiling.parameters(G) / 1e6:.1f} M parameters'
        )
        for criterion in criteria:
            durations = []
            for _ in range(repeats):
                start = time.perf_counter()
                pruning.make_student(teacher, widths, criterion, options)
                durations.append(time.perf_counter() - start)
            click.echo(f'  {criterion}: {statistics.median(durations):.2f} s')


if __name__ == '__main__':
    main()
