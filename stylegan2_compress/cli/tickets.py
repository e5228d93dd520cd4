"""`find-ticket` and `ticket`: strong lottery tickets."""

import json
from pathlib import Path

import click

from stylegan2_compress.cli.shared import data_option, force_option, host_option, outdir_option, run_options
from stylegan2_compress.errors import UserError


@click.command('find-ticket')
@data_option
@outdir_option
@click.option('--teacher', metavar='PKL|URL', help='Mask the weights of its G_ema  [default: random weights]')
@click.option('--reference', default='data', show_default=True, metavar='data|teacher', help='Whose moments to match.')
@click.option('--keep', type=float, default=0.1, show_default=True, metavar='K', help='Share of weights to keep.')
@click.option('--rule', default='edge-popup', show_default=True, help='edge-popup, global-edge-popup, gem-miner, imp.')
@click.option('--masked', multiple=True, default=['*weight'], show_default=True, metavar='PATTERN', help='To mask.')
@click.option('--unmasked', multiple=True, metavar='PATTERN', help='Exceptions, such as "mapping.*"; may be repeated.')
@click.option(
    '--weight-init', default='signed-constant', show_default=True, help='signed-constant, kaiming-normal, gaussian.'
)
@click.option('--score-init', metavar='NAME', help='kaiming-uniform, uniform, unit  [default: what the rule wants]')
@click.option('--embedding', default='vgg19_bn', show_default=True, metavar='SPEC', help='Whose layers to match in.')
@click.option(
    '--loss-arg', 'loss_args', multiple=True, metavar='KEY=VALUE', help='Argument of the loss; may be repeated.'
)
@click.option('--lr', type=float, default=5e-5, show_default=True, help='Learning rate of scores.')
@click.option('--kimg', type=int, metavar='N', help='Length of the search in thousands of images.')
@click.option('--batch', type=int, default=64, show_default=True, metavar='N', help='Batch size.')
@click.option('--ema-kimg', type=float, metavar='N', help='Half-life of the averaged scores in thousands of images.')
@click.option('--cfg', metavar='NAME', help='Base configuration of the host  [default: auto]')
@click.option('--z-dim', type=int, metavar='N', help='Width of z, of random weights.')
@click.option('--w-dim', type=int, metavar='N', help='Width of w, likewise.')
@click.option('--channel-base', type=int, metavar='N', help='Channels times resolution, likewise.')
@click.option('--channel-max', type=int, metavar='N', help='Most channels of a layer, likewise.')
@click.option('--mapping-layers', type=int, metavar='N', help='Layers of the mapping network, likewise.')
@click.option('--eval-embedding', metavar='SPEC', help='In whose features snapshots are compared  [default: the same]')
@click.option('--eval-samples', type=int, default=2000, show_default=True, metavar='N', help='Images for that.')
@run_options
def find_ticket(host_dir, **options):
    """Search for a strong lottery ticket: the mask under which a generator of random weights generates.

    No weight is ever trained. The run directory holds what other runs leave (training_options.json, log.txt,
    stats.jsonl, fakes*.png, network-snapshot-*.pkl), and at the end best.ticket, last.ticket and tickets.jsonl, which
    compares all snapshots with the data. With --resume=latest, the same command starts and continues.

    \b
    Examples:
      # A tenth of random weights, as in the paper
      stylegan2-compress find-ticket --data ffhq64.zip --outdir runs --keep 0.1 --kimg 10000
    \b
      # Digits, by label, on a CPU
      stylegan2-compress find-ticket --data mnist.zip --cond 1 --outdir runs --keep 0.1 --kimg 150 --lr 3e-3 \\
          --channel-base 512 --channel-max 64 --z-dim 64 --w-dim 64 --mapping-layers 2 \\
          --embedding efficientnet_lite0@size=32 --loss-arg normalize=true
    \b
      # A teacher's weights instead of random ones: pruning without training
      stylegan2-compress find-ticket --data ffhq256.zip --teacher ffhq256.pkl --reference teacher --outdir runs
    """
    from stylegan2_compress import host

    host.activate(host_dir)
    from stylegan2_compress.compression import find_ticket as search

    search.find_ticket(**options)


@click.group()
def ticket():
    """Tickets: generators of frozen weights in about half a bit per weight.

    A ticket file holds the seed and the rule that random weights come from, or the SHA-256 of the teacher they are of,
    and the mask.
    """


_teacher = click.option('--teacher', metavar='PKL|URL', help='Where the weights are from, if they are not random.')


@ticket.command()
@click.argument('source', metavar='PKL|URL')
@click.argument('dest', metavar='TICKET', type=click.Path(dir_okay=False))
@click.option('--network', default='G_ema', show_default=True, metavar='G|G_ema', help='Which of the two.')
@force_option
@host_option
def save(source, dest, network, force, host_dir):
    """Write the ticket of a masked generator in a network pickle of find-ticket's.

    \b
    Example:
      stylegan2-compress ticket save runs/00000-ffhq/network-snapshot-010000.pkl face.ticket
    """
    from stylegan2_compress import files, host

    if network not in ('G', 'G_ema'):
        raise UserError(f'--network={network} does not exist; there are G and G_ema.')
    files.refuse_to_overwrite(dest, force)
    host.activate(host_dir)
    from stylegan2_compress import pickles
    from stylegan2_compress.host.networks import require_generator
    from stylegan2_compress.tickets.ticket_file import Ticket

    data = pickles.load(source)
    require_generator(source, data)
    if type(data[network]).__name__ != 'ScoreMaskedGenerator':
        raise UserError(f'{source} holds a {type(data[network]).__name__}, whose weights are not masked: tickets are '
                        "made of find-ticket's network snapshots.")  # fmt: skip
    contents = Ticket.from_generator(data[network], {'snapshot': source, 'network': network})
    click.echo(f'{contents.write(dest):,} bytes for {contents.kept:,} of {contents.total:,} weights')


@ticket.command()
@click.argument('source', metavar='TICKET')
@click.argument('dest', metavar='PKL', type=click.Path(dir_okay=False))
@_teacher
@force_option
@host_option
def load(source, dest, teacher, force, host_dir):
    """Write the masked generator of a ticket, weights, scores and all, as a network pickle.

    Scores are 1 for the weights that the ticket keeps and 0 for the others. For images, `ticket bake` is the better
    choice: its pickle has nothing but weights.

    \b
    Example:
      stylegan2-compress ticket load face.ticket masked.pkl
    """
    _write_networks(source, dest, teacher, force, host_dir, lambda G: G)


@ticket.command()
@click.argument('source', metavar='TICKET')
@click.argument('dest', metavar='PKL', type=click.Path(dir_okay=False))
@_teacher
@force_option
@host_option
def bake(source, dest, teacher, force, host_dir):
    """Write the generator of a ticket as an ordinary network pickle, masks multiplied out.

    The host opens it, with generate.py and all its other tools, without this package. Its discriminator is a
    placeholder that has learnt nothing.

    \b
    Examples:
      stylegan2-compress ticket bake face.ticket face.pkl
      python generate.py --network=face.pkl --seeds=0-9 --outdir=out
    \b
      # A ticket in a teacher's weights needs the teacher.
      stylegan2-compress ticket bake --teacher ffhq256.pkl face.ticket face.pkl
    """

    def baked(G):
        from stylegan2_compress.tickets import baking

        return baking.bake(G)

    _write_networks(source, dest, teacher, force, host_dir, baked)


@ticket.command()
@click.argument('source', metavar='TICKET')
@click.option('--layers', is_flag=True, help='Show how many weights of every layer are kept.')
@click.option('--json', 'as_json', is_flag=True, help='As JSON, for machines.')
@host_option
def show(source, layers, as_json, host_dir):
    """Show what a ticket holds: where weights come from, how many are kept, what it was measured at.

    \b
    Example:
      stylegan2-compress ticket show --layers face.ticket
    """
    from stylegan2_compress import host

    host.activate(host_dir)
    from stylegan2_compress.tickets.ticket_file import Ticket

    contents = Ticket.read(source)
    sparsity = {name: [int(mask.sum()), mask.size] for name, mask in contents.masks.items()}
    if as_json:
        click.echo(json.dumps({'arguments': contents.arguments, 'facts': contents.facts, 'layers': sparsity}))
        return
    of = f'seed {contents.arguments["seed"]}, {contents.arguments["weight_init"]}'
    if contents.arguments['teacher'] is not None:
        of = f'a teacher with SHA-256 {contents.arguments["teacher"]}'
    bits = 8 * Path(source).stat().st_size / contents.total
    shape = (contents.arguments[name] for name in ('img_resolution', 'img_channels', 'c_dim'))
    click.echo('images   {0}x{0}, {1} channels, {2} labels'.format(*shape))
    click.echo(f'weights  of {of}')
    share = f'{contents.kept:,} of {contents.total:,} ({contents.kept / contents.total:.2%})'
    click.echo(f'mask     {contents.arguments["rule"]}: {share}')
    click.echo(f'file     {bits:.3f} bits per weight')
    for name, value in contents.facts.items():
        click.echo(f'{name}: {value}')
    for name, (kept, total) in sparsity.items() if layers else ():
        click.echo(f'{name:40} {kept:>10,} of {total:>10,}  {kept / total:7.2%}')


def _write_networks(source, dest, teacher, force, host_dir, made_of) -> None:
    """Read a ticket and write what `made_of` makes of its generator as a network pickle."""
    from stylegan2_compress import files, host

    files.refuse_to_overwrite(dest, force)
    host.activate(host_dir)
    from stylegan2_compress import pickles
    from stylegan2_compress.tickets.ticket_file import Ticket
    from stylegan2_compress.training_loops import snapshots

    G = made_of(Ticket.read(source).generator(source, teacher))
    networks = dict(G=G, G_ema=G, D=None, augment_pipe=None)
    pickles.save(dest, snapshots.network_snapshot(networks, {}))
