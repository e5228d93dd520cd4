"""Options that several commands have."""

from collections.abc import Callable

import click

SEED = click.IntRange(0, 2**32 - 1)  # What NumPy's older generator takes, which the host draws from.

data_option = click.option(
    '--data', required=True, metavar='PATH', help="Training images: directory or zip in the host's format."
)
outdir_option = click.option('--outdir', required=True, metavar='DIR', help='Where the run directory is created.')
host_option = click.option('--host', 'host_dir', metavar='DIR', help='Checkout of stylegan2-ada-pytorch.')
force_option = click.option('--force', is_flag=True, help='Replace the file to write if it exists.')

RUN_OPTIONS = (
    click.option('--mirror', type=bool, metavar='BOOL', help='Add flipped images  [default: false]'),
    click.option('--cond', type=bool, metavar='BOOL', help="Use the dataset's labels  [default: if the teacher does]"),
    click.option('--subset', type=int, metavar='N', help='Train with only N images  [default: all]'),
    click.option('--snap', type=int, metavar='TICKS', help='Ticks between snapshots  [default: 50]'),
    click.option(
        '--kimg-per-tick', type=float, metavar='N', help='Thousands of images between progress lines  [default: 4]'
    ),
    click.option('--seed', type=int, metavar='N', help='Random seed  [default: 0]'),
    click.option('--workers', type=int, metavar='N', help='DataLoader worker processes  [default: 3]'),
    click.option(
        '--gpus', type=int, metavar='N', help='Processes, each with a GPU or a share of the CPU  [default: 1]'
    ),
    click.option(
        '--state-kimg',
        type=float,
        metavar='N',
        help='Thousands of images between states to continue from  [default: 40]',
    ),
    click.option(
        '--resume', metavar='latest|RUN_DIR', help='Continue a run: that one, or the newest with the same options.'
    ),
    click.option('--device', metavar='DEVICE', help='cpu, cuda, cuda:1  [default: CUDA where there is one]'),
    click.option('-n', '--dry-run', is_flag=True, help='Print the options and exit.'),
    host_option,
)


def run_options(command: Callable) -> Callable:
    """Give a command the options of everything that trains, below its own."""
    for option in reversed(RUN_OPTIONS):
        command = option(command)
    return command
