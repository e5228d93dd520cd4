"""`generate`: images to look at."""

import click

from stylegan2_compress.arguments import command_options
from stylegan2_compress.cli.shared import force_option, host_option, load, trust_option
from stylegan2_compress.generation.options import GenerateOptions


@click.command()
@click.argument('networks', nargs=-1, required=True, metavar='PKL|RUN_DIR|URL|EXPORT…')
@command_options(GenerateOptions)
@force_option
@trust_option
@host_option
def generate(networks, force, trust, host_dir, **options):
    """Make images of a generator (G_ema): a grid, a file for each seed, or a film; of several, for the same z.

    A seed gives the image that the host's generate.py makes of it, on any device. Of a run directory, the last snapshot
    makes the images; exports make them in their runtime.

    \b
    Examples:
      # A grid of 64
      stylegan2-compress generate student.pkl --grid 8x8 --trunc 0.7 --out fakes.png
    \b
      # A directory with a file for each seed, all of class 3
      stylegan2-compress generate cifar10 --seeds 0-63,70 --class 3 --out fakes
    \b
      # Teacher and student below each other, for the same z
      stylegan2-compress generate --compare ffhq256 student.pkl --seeds 0-7 --out compare.png
    \b
      # A walk through eight images and back
      stylegan2-compress generate student.pkl --seeds 0-7 --interpolate walk.gif
    """
    chosen = GenerateOptions(**options)
    chosen.check_networks(networks)
    click.echo(load('generation.generate:generate', host_dir)(networks, chosen, force, trust))
