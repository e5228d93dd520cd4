"""`ticket`: strong lottery tickets as files."""

import click

from stylegan2_compress.cli.shared import NETWORK_FILES, force_option, host_option, json_option, load
from stylegan2_compress.errors import UserError
from stylegan2_compress.files import check_output
from stylegan2_compress.runs.directory import network_file

teacher_option = click.option(
    '--teacher',
    callback=lambda _context, _option, value: None if value is None else network_file(value),
    metavar='PKL|RUN_DIR|URL',
    help='Where the weights are from, if they are not random.',
)


trust_option = click.option(
    '--trust', is_flag=True, help='Run the code that the file has or names, such as the module of a mask rule.'
)


@click.group()
def ticket():
    """Tickets: generators of frozen weights in less than a bit per weight.

    A ticket file holds the seed and the rule that random weights come from, or the SHA-256 of the teacher they are of,
    and the mask.
    """


@ticket.command()
@click.argument('source', metavar='PKL|RUN_DIR|URL')
@click.argument('dest', metavar='TICKET', type=click.Path(dir_okay=False))
@click.option('--network', default='G_ema', show_default=True, metavar='G|G_ema', help='Which of the two.')
@trust_option
@force_option
@host_option
def save(source, dest, network, trust, force, host_dir):
    """Write the ticket of a masked generator in a network pickle of find-ticket's; of a run directory, in the last one.

    \b
    Example:
      stylegan2-compress ticket save runs/00000-ffhq/network-snapshot-010000.pkl face.ticket
    """
    if network not in ('G', 'G_ema'):
        raise UserError(f'--network={network} does not exist; there are G and G_ema.')
    source = network_file(source)
    check_output(dest, force, ['.ticket'], inputs=[source])
    click.echo(load('compression.ticket_files:save_ticket', host_dir)(source, dest, network, trust))


@ticket.command('load')
@click.argument('source', metavar='TICKET|URL')
@click.argument('dest', metavar='PKL', type=click.Path(dir_okay=False))
@teacher_option
@trust_option
@force_option
@host_option
def load_ticket(source, dest, teacher, trust, force, host_dir):
    """Write the masked generator of a ticket, weights, scores and all, as a network pickle.

    Scores are 1 for the weights that the ticket keeps and 0 for the others. For images, `ticket bake` is the better
    choice: its pickle has nothing but weights.

    \b
    Example:
      stylegan2-compress ticket load face.ticket masked.pkl
    """
    check_output(dest, force, NETWORK_FILES, inputs=[source, teacher])
    load('compression.ticket_files:load_ticket', host_dir)(source, dest, teacher, trust)


@ticket.command()
@click.argument('source', metavar='TICKET|PKL|RUN_DIR|URL')
@click.argument('dest', metavar='PKL', type=click.Path(dir_okay=False))
@teacher_option
@trust_option
@force_option
@host_option
def bake(source, dest, teacher, trust, force, host_dir):
    """Write the generator of a ticket, or a snapshot of find-ticket's, as an ordinary network pickle.

    Masks are multiplied out.

    The host opens it, with generate.py for example, without this package. Its discriminator is a
    placeholder that has learnt nothing.

    \b
    Examples:
      stylegan2-compress ticket bake face.ticket face.pkl
      python generate.py --network=face.pkl --seeds=0-9 --outdir=out
    \b
      # A ticket in a teacher's weights needs the teacher.
      stylegan2-compress ticket bake --teacher ffhq256.pkl face.ticket face.pkl
    """
    source = network_file(source)
    check_output(dest, force, NETWORK_FILES, inputs=[source, teacher])
    load('compression.ticket_files:bake', host_dir)(source, dest, teacher, trust)


@ticket.command()
@click.argument('source', metavar='TICKET|URL')
@click.option('--layers', is_flag=True, help='Show how many weights of every layer are kept.')
@json_option
@trust_option
@host_option
def show(source, layers, as_json, trust, host_dir):
    """Show what a ticket holds: where weights come from, how many are kept, what it was measured at.

    \b
    Example:
      stylegan2-compress ticket show --layers face.ticket
    """
    click.echo(load('compression.ticket_files:describe', host_dir)(source, layers, as_json, trust))
