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
    from stylegan2_compress import host

    if (ratio is None) == (widths is None):
        raise UserError('Say either --ratio or --widths, one of the two.')
    _refuse_to_overwrite(out, force)
    host.activate(host_dir)
    from stylegan2_compress import pickles, pruning

    data = pickles.load(teacher, trust=trust)
    if widths is None:
        channels = pruning.widths_for_ratio(data['G_ema'], ratio)
    else:
        channels = pruning.widths_from_text(data['G_ema'], widths)
    pickles.save(out, pruning.make_student(data, channels, criterion))


@main.command()
@click.argument('files', nargs=-1, required=True, metavar='PKL…')
@click.option('--batch', type=click.IntRange(min=1), default=16, show_default=True, help='Measure at 1 and this size.')
@click.option('--layers', is_flag=True, help='Show every layer.')
@click.option('--no-measure', is_flag=True, help='Only count: nothing is run.')
@click.option('--json', 'as_json', is_flag=True, help='Write JSON instead of a table.')
@click.option('--device', metavar='NAME', help='Where to measure [default: cuda where there is one, else cpu].')
@click.option('--trust', is_flag=True, help='Run unknown code that the pickles contain.')
@click.option('--host', 'host_dir', metavar='DIR', help='Checkout of stylegan2-ada-pytorch.')
def profile(files, batch, layers, no_measure, as_json, device, trust, host_dir):
    """Parameters, multiply-accumulates, time and memory of generators (G_ema), compared with the first.

    MACs are counted as the GAN compression papers do: convolutions at their input's resolution, toRGB, mapping network
    and style affines, without blur and bias. Times are medians over repeated runs.

    \b
    Examples:
      # Teacher and student side by side
      stylegan2-compress profile ffhq.pkl student.pkl
    \b
      # Counts of every layer, for another program
      stylegan2-compress profile --no-measure --layers --json ffhq.pkl
    """
    import json
    from dataclasses import asdict

    import torch
    from tqdm import tqdm

    from stylegan2_compress import host

    host.activate(host_dir)
    from stylegan2_compress import pickles, profiling

    device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    generators = [pickles.load(file, trust=trust)['G_ema'].eval() for file in files]
    profiles = []
    for file, G in tqdm(zip(files, generators, strict=True), total=len(files), unit='file', disable=None, leave=False):
        G.to(device)
        profiles.append(
            profiling.Profile(
                file=file,
                file_bytes=Path(file).stat().st_size if Path(file).is_file() else None,
                parameters=profiling.parameters(G),
                macs=profiling.macs(G),
                layers=profiling.layer_costs(G) if layers else [],
                measurements=[] if no_measure else [profiling.measure(G, n) for n in sorted({1, batch})],
            )
        )
        G.cpu()
    if as_json:
        measured_on = None if no_measure else profiling.device_name(device)
        entries = [{**asdict(p), 'against_first': profiling.reductions(p, profiles[0])} for p in profiles]
        click.echo(json.dumps({'measured_on': measured_on, 'profiles': entries}, indent=2))
    else:
        click.echo(profiling.table(profiles))
        if not no_measure:
            click.echo(f'measured on {profiling.device_name(device)}')


def _refuse_to_overwrite(path: str, force: bool) -> None:
    if Path(path).exists() and not force:
        raise UserError(f'{path} exists: name another file, or add --force to replace it.')
    if not os.access(Path(path).absolute().parent, os.W_OK):
        raise UserError(f'Cannot write {path}: its directory does not exist or is not writable.')


# --- stats --------------------------------------------------------------------------------------------------------


# --- distill, quickstart ------------------------------------------------------------------------------------------
