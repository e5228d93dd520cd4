"""`inspect`, `convert`, `prune` and `profile`: network files in, network files and tables out."""

import dataclasses
import json
from pathlib import Path

import click

from stylegan2_compress.cli.shared import SEED, force_option, host_option
from stylegan2_compress.errors import UserError
from stylegan2_compress.files import refuse_to_overwrite


@click.command()
@click.argument('file', metavar='FILE|URL')
@click.option('--json', 'as_json', is_flag=True, help='As JSON, for machines.')
@host_option
def inspect(file, as_json, host_dir):
    """Show what is inside a network file, without running any of it.

    Classes, resolution, widths, dimensions, parameters, multiply-accumulates, SHA-256, and anything suspicious: names
    that no network needs, source code that is not the local host's, state that does not fit the constructor arguments.

    \b
    Examples:
      stylegan2-compress inspect ffhq.pkl
      stylegan2-compress inspect --json student.safetensors
    """
    from stylegan2_compress import host

    host.activate(host_dir)
    from stylegan2_compress import pickles

    report = pickles.inspect(file)
    click.echo(json.dumps(dataclasses.asdict(report), default=repr) if as_json else report.text())


@click.command()
@click.argument('source', metavar='IN|URL')
@click.argument('dest', metavar='OUT')
@force_option
@click.option('--trust', is_flag=True, help='Run unknown code that IN contains.')
@host_option
def convert(source, dest, force, trust, host_dir):
    """Convert networks between .pkl and .safetensors, in both directions without loss.

    Pickles of the TensorFlow era are converted to the host's networks on the way. Safetensors files contain weights and
    constructor arguments and no code; they are for our tools, the host opens pickles.

    \b
    Examples:
      stylegan2-compress convert ffhq.pkl ffhq.safetensors
      stylegan2-compress convert student.safetensors student.pkl
    """
    from stylegan2_compress import host

    if not dest.endswith(('.pkl', '.safetensors')):
        raise UserError(f'Cannot tell what to convert to: {dest} ends neither in .pkl nor in .safetensors.')
    refuse_to_overwrite(dest, force)
    host.activate(host_dir)
    from stylegan2_compress import pickles

    pickles.save(dest, pickles.load(source, trust=trust))


@click.command()
@click.option('--teacher', required=True, metavar='PKL|URL', help='Network pickle whose G_ema is pruned.')
@click.option('--ratio', type=float, metavar='P', help='Part, in [0, 1), of the channels of every layer to leave out.')
@click.option('--widths', metavar='RES:N,…', help='Instead: channels to keep by resolution; the others stay whole.')
@click.option(
    '--criterion',
    default='l1',
    show_default=True,
    metavar='NAME',
    help='How channels are chosen: l1, l1-styled, random, content-aware, diversity.',
)
@click.option('--init', default='none', show_default=True, metavar='NAME', help='Then change the weights: none, svs.')
@click.option('--samples', type=click.IntRange(min=1), default=400, show_default=True, help='Images to judge by.')
@click.option('--batch', type=click.IntRange(min=1), default=8, show_default=True, help='Images at a time.')
@click.option('--seed', type=SEED, default=0, show_default=True, help='Seed of the criterion.')
@click.option('--mask', metavar='FILE.pt', help='TorchScript: images [N,C,H,W] in [-1,1] to content masks [N,1,H,W].')
@click.option('--device', metavar='NAME', help='Where to judge channels  [default: cuda where there is one, else cpu]')
@click.option('--out', required=True, type=click.Path(dir_okay=False), metavar='PKL', help='File to write.')
@force_option
@click.option('--trust', is_flag=True, help='Run unknown code that the teacher pickle contains.')
@host_option
def prune(teacher, ratio, widths, criterion, init, samples, batch, seed, mask, device, out, force, trust, host_dir):
    """Prune a trained generator to a smaller one, ready to be distilled.

    The file written is an ordinary network pickle: every tool of the host opens it, and train.py resumes from it.

    \b
    Examples:
      # 30 % of the channels of every layer, those with the largest weights
      stylegan2-compress prune --teacher ffhq.pkl --ratio 0.7 --out student.pkl
    \b
      # Explicit widths
      stylegan2-compress prune --teacher mnist.pkl --widths 4:20,8:20,16:20,32:10 --out student.pkl
    \b
      # The channels that faces depend on, found by a face parser of your own
      stylegan2-compress prune --teacher ffhq.pkl --ratio 0.9 --criterion content-aware --mask parser.pt --out s.pkl
    """
    from stylegan2_compress import host

    if (ratio is None) == (widths is None):
        raise UserError('Say either --ratio or --widths, one of the two.')
    if mask is not None and criterion != 'content-aware':
        raise UserError(f'--mask has no meaning for the criterion {criterion}, only for content-aware.')
    refuse_to_overwrite(out, force)
    host.activate(host_dir)
    from stylegan2_compress import pickles, pruning
    from stylegan2_compress.host import devices, profiling
    from stylegan2_compress.host.networks import require_generator

    device = devices.choose(device)
    content_mask = None if mask is None else pruning.load_content_mask(mask, device)
    criterion_options = pruning.CriterionOptions(samples, batch, seed, content_mask)
    data = pickles.load(teacher, trust=trust)
    require_generator(teacher, data)
    if type(data['G_ema']).__name__ == 'ScoreMaskedGenerator':
        raise UserError(f'{teacher} has masked weights: prune what `ticket save` and `ticket bake` make of it.')
    if data['D'] is None:
        raise UserError(f'{teacher} has no discriminator, without which the host opens no pickle: name one that has.')
    if widths is None:
        channels = pruning.widths_for_ratio(data['G_ema'], ratio)
    else:
        channels = pruning.widths_from_text(data['G_ema'], widths)
    data['G_ema'].to(device)
    student = pruning.make_student(data, channels, criterion, criterion_options, init)
    for network in (student['G'], student['G_ema']):
        network.cpu()
    pickles.save(out, student)
    for what, count in (('parameters', profiling.parameters), ('MACs per image', profiling.macs)):
        before, after = count(data['G_ema']), count(student['G_ema'])
        click.echo(f'{what}: {before:,} -> {after:,} ({after / before - 1:+.2%})')


@click.command()
@click.argument('files', nargs=-1, required=True, metavar='PKL|URL…')
@click.option('--batch', type=click.IntRange(min=1), default=16, show_default=True, help='Measure at 1 and this size.')
@click.option('--layers', is_flag=True, help='Show every layer.')
@click.option('--no-measure', is_flag=True, help='Only count: nothing is run.')
@click.option('--json', 'as_json', is_flag=True, help='Write JSON instead of a table.')
@click.option('--device', metavar='NAME', help='Where to measure  [default: cuda where there is one, else cpu]')
@click.option('--trust', is_flag=True, help='Run unknown code that the pickles contain.')
@host_option
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
    from tqdm import tqdm

    from stylegan2_compress import host

    host.activate(host_dir)
    from stylegan2_compress import pickles
    from stylegan2_compress.host import devices, profiling
    from stylegan2_compress.host.networks import require_generator
    from stylegan2_compress.tickets import baking

    device = devices.choose(device)
    generators = []
    for file in files:
        data = pickles.load(file, trust=trust)
        require_generator(file, data)
        generators.append(baking.plain(data['G_ema']).eval())
    profiles = []
    for file, G in tqdm(zip(files, generators, strict=True), total=len(files), unit='file', disable=None, leave=False):
        file_bytes = Path(pickles.local_file(file)).stat().st_size
        batches = [] if no_measure else sorted({1, batch})
        try:
            profiles.append(profiling.profile(G.to(device), file, file_bytes, layers, batches))
        except RuntimeError as error:
            if 'memory' not in str(error):  # What the allocators of all devices say.
                raise
            raise UserError(f'--batch={batch} is more than memory holds on {device}: give a smaller one.') from error
        G.cpu()
    if as_json:
        measured_on = None if no_measure else profiling.device_name(device)
        entries = [{**dataclasses.asdict(p), 'against_first': profiling.reductions(p, profiles[0])} for p in profiles]
        click.echo(json.dumps({'measured_on': measured_on, 'profiles': entries}, indent=2))
    else:
        click.echo(profiling.table(profiles))
        if not no_measure:
            click.echo(f'measured on {profiling.device_name(device)}')
