"""What `ticket` does: tickets from network files, network files from tickets, and what a ticket holds."""

import json
from pathlib import Path

from stylegan2_compress import pickles
from stylegan2_compress.errors import UserError
from stylegan2_compress.host.networks import class_name, require_generator
from stylegan2_compress.tickets import baking
from stylegan2_compress.tickets.ticket_file import Ticket
from stylegan2_compress.training_loops import snapshots


def save_ticket(source: str, dest: str, network: str = 'G_ema') -> str:
    """Write the ticket of a masked generator in a network file.

    Args:
        source: network file or URL.
        dest: file to write.
        network: 'G' or 'G_ema'.

    Returns:
        One line about its size.

    Raises:
        UserError: the network is not masked, or its weights could not be brought back.
    """
    data = pickles.load(source)
    require_generator(source, data)
    if class_name(data[network]) != 'ScoreMaskedGenerator':
        raise UserError(
            f'{source} holds a {class_name(data[network])}, whose weights are not masked: tickets are made of '
            "find-ticket's network snapshots."
        )
    ticket = Ticket.from_generator(data[network], {'snapshot': source, 'network': network})
    return f'{ticket.write(dest):,} bytes for {ticket.kept:,} of {ticket.total:,} weights'


def write_networks(source: str, dest: str, teacher: str | None = None, baked: bool = False) -> None:
    """Write the generator of a ticket as a network pickle, with a placeholder for D.

    Args:
        source: ticket.
        dest: file to write.
        teacher: network file that the weights are from, if they are not random.
        baked: whether masks are multiplied out, which makes it an ordinary generator of the host's.

    Raises:
        UserError: the ticket cannot be read, or not without a teacher, or with that one.
    """
    G = Ticket.read(source).generator(source, teacher)
    if baked:
        G = baking.bake(G)
    pickles.save(dest, snapshots.generator_alone(dict(G_ema=G.eval().requires_grad_(False), training_set_kwargs={})))


def describe(source: str, layers: bool = False, as_json: bool = False) -> str:
    """What a ticket holds, as text or JSON; with `layers`, how many weights of each are kept."""
    ticket = Ticket.read(source)
    arguments = ticket.arguments
    sparsity = {name: [int(mask.sum()), mask.size] for name, mask in ticket.masks.items()}
    if as_json:
        return json.dumps({'arguments': arguments, 'facts': ticket.facts, 'layers': sparsity})
    origin = f'seed {arguments["seed"]}, {arguments["weight_init"]}'
    if arguments['teacher'] is not None:
        origin = f'a teacher with SHA-256 {arguments["teacher"]}'
    shape = (arguments[name] for name in ('img_resolution', 'img_channels', 'c_dim'))
    share = ticket.kept / ticket.total
    bits = 8 * Path(source).stat().st_size / ticket.total
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
    return '\n'.join(lines)
