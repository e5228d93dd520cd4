"""What the network pickle of a pruned FFHQ 256 generator takes on disk, with all networks and with the generator alone.

    python benchmarks/pickle_sizes.py [--ratio 0.8]

The networks have the shape of the host's `paper256` and random weights, which take the space that trained ones take.
"""

import tempfile
from pathlib import Path

import click

from stylegan2_compress import host


@click.command()
@click.option('--ratio', default=0.8, show_default=True, help='Share of channels to cut.')
def main(ratio: float) -> None:
    host.activate()
    from training.networks import Discriminator, Generator

    from stylegan2_compress import pickles, pruning
    from stylegan2_compress.host import profiling
    from stylegan2_compress.training_loops.snapshots import generator_alone

    images = dict(c_dim=0, img_resolution=256, img_channels=3)
    G = Generator(z_dim=512, w_dim=512, synthesis_kwargs=dict(channel_base=16384), **images)
    D = Discriminator(channel_base=16384, **images)
    networks = dict(G=G, D=D, G_ema=G, augment_pipe=None, training_set_kwargs=None)
    student = pruning.make_student(networks, pruning.widths_for_ratio(G, ratio))
    print(f'{profiling.parameters(student["G_ema"]):,} parameters at ratio {ratio:g}\n\n| | MB |\n| --- | --- |')
    with tempfile.TemporaryDirectory() as directory:
        for name, contents in [('G, D and G_ema', student), ('--only G_ema', generator_alone(student))]:
            for ending in ('.pkl', '.safetensors'):
                path = Path(directory, f'networks{ending}')
                pickles.save(path, contents)
                print(f'| {name}, {ending} | {path.stat().st_size / 1e6:.1f} |')


if __name__ == '__main__':
    main()
