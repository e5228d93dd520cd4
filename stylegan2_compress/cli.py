"""The `stylegan2-compress` command: one thin function per sub-command, the work is in the rooms.

Imports of torch and of our rooms happen inside the commands, so that `--help` answers at once.
"""

import os
from pathlib import Path

import click

from stylegan2_compress.errors import UserError
from stylegan2_compress.version import __version__


@click.group(context_settings={'help_option_names': ['-h', '--help'], 'max_content_width': 120})
@click.version_option(__version__, prog_name='stylegan2-compress')
def main() -> None:
    """Compress StyleGAN2 generators: pruning, DiME distillation, and what they need around them."""


# --- host, patch --------------------------------------------------------------------------------------------------


# --- inspect, convert ---------------------------------------------------------------------------------------------


# --- prune, profile -----------------------------------------------------------------------------------------------


@main.command()
@click.option('--teacher', required=True, metavar='PKL|URL', help='Network pickle whose G_ema is pruned.')
@click.option('--ratio', type=float, metavar='P', help='Part, in [0, 1), of the channels of every layer to leave out.')
@click.option('--widths', metavar='RES:N,…', help='Instead: channels to keep by resolution; the others stay whole.')
@click.option('--criterion', default='l1', show_default=True, metavar='NAME', help='How channels are chosen.')
@click.option('--out', required=True, type=click.Path(dir_okay=False), metavar='PKL', help='File to write.')
@click.option('--force', is_flag=True, help='Replace the file to write if it exists.')
@click.option('--trust', is_flag=True, help='Run unknown code that the teacher pickle contains.')
@click.option('--host', 'host_dir', metavar='DIR', help='Checkout of stylegan2-ada-pytorch.')
def prune(teacher, ratio, widths, criterion, out, force, trust, host_dir):
    """Prune a trained generator to a smaller one, ready to be distilled.

    The file written is an ordinary network pickle: every tool of the host opens it, and train.py resumes from it.

    \b
    Examples:
      # 30 % of the channels of every layer, those with the largest weights
      stylegan2-compress prune --teacher ffhq.pkl --ratio 0.7 --out student.pkl
    \b
      # Explicit widths
      stylegan2-compress prune --teacher mnist.pkl --widths 4:20,8:20,16:20,32:10 --out student.pkl
    """
    from stylegan2_compress import host, pickles

    if (ratio is None) == (widths is None):
        raise UserError('Say either --ratio or --widths, one of the two.')
    _refuse_to_overwrite(out, force)
    host.activate(host_dir)
    from stylegan2_compress import pruning

    data = pickles.load(teacher, trust=trust)
    if widths is None:
        channels = pruning.widths_for_ratio(data['G_ema'], ratio)
    else:
        channels = pruning.widths_from_text(data['G_ema'], widths)
    pickles.save(out, pruning.make_student(data, channels, criterion))


def _refuse_to_overwrite(path: str, force: bool) -> None:
    if Path(path).exists() and not force:
        raise UserError(f'{path} exists: name another file, or add --force to replace it.')
    if not os.access(Path(path).absolute().parent, os.W_OK):
        raise UserError(f'Cannot write {path}: its directory does not exist or is not writable.')


# --- stats --------------------------------------------------------------------------------------------------------


# --- distill, quickstart ------------------------------------------------------------------------------------------
