"""What `ticket` does: tickets from network files, network files from tickets, and what a ticket holds."""

import json
from pathlib import Path
from typing import Any

from stylegan2_compress import files, pickles
from stylegan2_compress.errors import UserError
from stylegan2_compress.host.networks import class_name, require_generator
from stylegan2_compress.networks.masked import ScoreMaskedGenerator
from stylegan2_compress.pickles import report
from stylegan2_compress.tickets import baking
from stylegan2_compress.tickets.ticket_file import Ticket, is_ticket
from stylegan2_compress.training_loops import snapshots


def save_ticket(source: str, dest: str, network: str = 'G_ema', trust: bool = False) -> str:
    """Write the ticket of a masked generator in a network file.

    Args:
        source: network file or URL.
        dest: file to write.
        network: 'G' or 'G_ema'.
        trust: run the code that the file has or names.

    Returns:
        One line about its size.

    Raises:
        UserError: the network is not masked, or its weights could not be brought back.
    """
    ticket = Ticket.from_generator(
        _masked(source, network, trust), {'snapshot': files.public_name(source), 'network': network}
    )
    return f'{ticket.write(dest):,} bytes for {ticket.kept:,} of {ticket.total:,} weights'


def _masked(source: str, network: str, trust: bool) -> ScoreMaskedGenerator:
    """A masked generator of a network file.

    Raises:
        UserError: it is not masked.
    """
    data = pickles.load(source, trust=trust)
    require_generator(source, data)
    if class_name(data[network]) != 'ScoreMaskedGenerator':
        raise UserError(
            f'{source} holds a {class_name(data[network])}, whose weights are not masked: tickets are made of '
            "find-ticket's network snapshots."
        )
    return data[network]


def load_ticket(source: str, dest: str, teacher: str | None = None, trust: bool = False) -> None:
    """Write the masked generator of a ticket as a network pickle, with a placeholder for D.

    Args:
        source: ticket or URL.
        dest: file to write.
        teacher: network file that the weights are from, if they are not random.
        trust: run the code that the ticket names.

    Raises:
        UserError: the ticket cannot be read, or not without a teacher, or with that one.
    """
    _write(dest, _of_ticket(source, pickles.local_file(source), teacher, trust))


def bake(source: str, dest: str, teacher: str | None = None, trust: bool = False) -> None:
    """Write the generator of a ticket as an ordinary one of the host's, masks multiplied out, with a placeholder for D.

    Args:
        source: ticket or network file with a masked G_ema, or URL.
        dest: file to write.
        teacher: network file that a ticket's weights are from, if they are not random.
        trust: run the code that the file has or names.

    Raises:
        UserError: there is no masked generator, the ticket cannot be read, or not without a teacher, or with that one.
    """
    local = pickles.local_file(source)
    if is_ticket(local):
        masked = _of_ticket(source, local, teacher, trust)
    elif teacher is None:
        masked = _masked(source, 'G_ema', trust)
    else:
        raise UserError(f'{source} is no ticket, and has its weights itself: leave --teacher out.')
    _write(dest, baking.bake(masked))


def _of_ticket(source: str, local: str, teacher: str | None, trust: bool) -> ScoreMaskedGenerator:
    return Ticket.read(local, trust).generator(source, teacher)


def _write(dest: str, G: Any) -> None:
    pickles.save(dest, snapshots.generator_alone(dict(G_ema=G.eval().requires_grad_(False), training_set_kwargs=None)))


def describe(source: str, layers: bool = False, as_json: bool = False, trust: bool = False) -> str:
    """What a ticket holds, as text or JSON; with `layers`, how many weights of each are kept."""
    local = pickles.local_file(source)
    ticket = Ticket.read(local, trust)
    arguments = ticket.arguments
    sparsity = {name: [int(mask.sum()), mask.size] for name, mask in ticket.masks.items()}
    if as_json:
        return json.dumps({'arguments': arguments, 'facts': ticket.facts, 'layers': sparsity})
    origin = f'seed {arguments["seed"]}, {arguments["weight_init"]}'
    if arguments['teacher'] is not None:
        origin = f'a teacher with SHA-256 {arguments["teacher"]}'
    shape = (arguments[name] for name in ('img_resolution', 'img_channels', 'c_dim'))
    share = ticket.kept / ticket.total
    bits = 8 * Path(local).stat().st_size / ticket.total
    rule = ', '.join(filter(None, [arguments['rule'], arguments.get('density')]))
    lines = [
        'images   {0}x{0}, {1} channels, {2} labels'.format(*shape),
        f'weights  of {origin}',
        f'mask     {rule}: {ticket.kept:,} of {ticket.total:,} ({share:.2%})',
        *([f'signs    turned in {sum(int(each.sum()) for each in ticket.turned.values()):,}'] if ticket.turned else []),
        *(['trained  all that is not masked, and a factor of each mask'] if arguments.get('train_unmasked') else []),
        f'file     {bits:.3f} bits per weight',
        *(f'{name}: {value}' for name, value in ticket.facts.items()),
    ]
    if layers:
        lines += [
            f'{name:40} {kept:>10,} of {all_:>10,}  {kept / all_:7.2%}' for name, (kept, all_) in sparsity.items()
        ]
    return '\n'.join(map(report.printable, lines))
