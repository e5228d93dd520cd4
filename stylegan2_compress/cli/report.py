"""`report`: a run, or several, as a page to look at."""

import click

from stylegan2_compress.cli.shared import host_option, load_light


@click.command()
@click.argument('run_dirs', nargs=-1, required=True, metavar='RUN_DIR…')
@click.option(
    '--out', metavar='DIR|FILE', help='Where to write it  [default: into the run directory; of several, here]'
)
@click.option(
    '--snapshots',
    type=click.IntRange(min=0),
    default=6,
    show_default=True,
    metavar='N',
    help='Show images of at most N snapshots of each run; 0 opens no network at all.',
)
@click.option('--latency', is_flag=True, help='Measure what an image takes here, with CUDA or without.')
@host_option
def report(run_dirs, out, snapshots, latency, host_dir):
    """Write one HTML file that shows how runs went, or go.

    Options, curves of losses, scores, distances and metrics, images of the same z from teacher and student through
    time, parameters and multiply-accumulates. Several runs are laid over each other. The file needs nothing else: no
    network, no server. Runs of the host's own train.py are read as well, and runs that go on or have crashed.

    \b
    Examples:
      # Writes RUN_DIR/report.html
      stylegan2-compress report runs/00000-mnist-DiMELoss
    \b
      # Two runs side by side, without opening a network
      stylegan2-compress report runs/00000-a runs/00001-b --out comparison.html --snapshots 0
    """
    if snapshots:
        load_light('host:activate')(host_dir)
    click.echo(load_light('report:write')(run_dirs, out, snapshots, latency))
