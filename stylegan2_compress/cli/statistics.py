"""`stats`: what a run would compute first, computed once and for all."""

import click

from stylegan2_compress.arguments import command_options
from stylegan2_compress.cli.shared import force_option, host_option, load
from stylegan2_compress.compression.options import StatsOptions
from stylegan2_compress.files import check_output


@click.command()
@command_options(StatsOptions)
@force_option
@host_option
def stats(force, host_dir, **options):
    """Compute what DiME matches: statistics of a teacher's or a data set's images in embedding spaces.

    Runs do this by themselves and remember the result; with the file they start at once, on another machine, too:
    --loss-arg statistics=FILE. A file that was made for something else is refused.

    \b
    Examples:
      stylegan2-compress stats --teacher ffhq256.pkl --samples 50000 --out ffhq256.npz
    \b
      # With features for --loss-arg estimator=rbf
      stylegan2-compress stats --teacher ffhq256.pkl --embedding dinov2_vits14 --bank 4096 --out ffhq256-dinov2.npz
    \b
      # A conditional teacher, with labels as often as in the data set it was trained on
      stylegan2-compress stats --teacher mnist.pkl --data mnist.zip --embedding efficientnet_lite0 --out mnist.npz
    \b
      # The data set itself, for --loss-arg reference=data
      stylegan2-compress stats --data ffhq256.zip --mirror 1 --out ffhq256-data.npz
    """
    chosen = StatsOptions(**options)
    check_output(chosen.out, force, ['.npz'], inputs=[chosen.teacher, chosen.data])
    click.echo(load('compression.stats:write_statistics', host_dir)(chosen))
