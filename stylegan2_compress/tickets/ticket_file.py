"""The ticket file: what a generator of frozen weights is, in about half a bit per weight.

    magic, 12 bytes · version, 2 · length of the header, 4 (little-endian) · header, JSON · masks, each as the bytes of
    its quotients and of its remainders (see `coding`) · trained tensors, float32, little-endian · SHA-256 of all that

The header has the constructor arguments of a `ScoreMaskedGenerator`, among them the seed and the rule by which weights
come from it, or the SHA-256 of the teacher they come from; a digest of the weights, so that others than those that were
masked are refused; and what the reader must know of each mask.
"""

import hashlib
import json
import os
import struct
from dataclasses import dataclass

import numpy as np
import torch

from stylegan2_compress import files, pickles
from stylegan2_compress.errors import UserError
from stylegan2_compress.networks.masked import ScoreMaskedGenerator
from stylegan2_compress.pickles import rebuild
from stylegan2_compress.pickles.machine import Malformed
from stylegan2_compress.tickets import baking, coding

MAGIC = b'\x89SG2TICKET\r\n'
VERSION = 1
MAX_HEADER = 1 << 20
MAX_WEIGHTS = 1 << 27
TRAINED = 'w_avg'  # The one tensor that changes in a search beside scores: the average of W, for truncation.


@dataclass(frozen=True)
class Ticket:
    """The contents of a file.

    Attributes:
        arguments: of `ScoreMaskedGenerator`.
        weights: SHA-256 of all weights and constants, see `digest`.
        masks: by name, boolean arrays.
        trained: by name, float32 arrays.
        facts: what its maker noted: metrics, say.
    """

    arguments: dict
    weights: str
    masks: dict[str, np.ndarray]
    trained: dict[str, np.ndarray]
    facts: dict

    @property
    def kept(self) -> int:
        return sum(int(mask.sum()) for mask in self.masks.values())

    @property
    def total(self) -> int:
        return sum(mask.size for mask in self.masks.values())


def of(G: ScoreMaskedGenerator, facts: dict | None = None) -> Ticket:
    """The ticket of a masked generator.

    Raises:
        UserError: Its weights are neither those of its seed nor said to be a teacher's: a ticket could not bring them
            back.
    """
    arguments = baking.arguments(G)
    if arguments['rule'] == 'imp':
        raise UserError('The rule imp trains weights, which no seed brings back: keep the network pickle, or bake it.')
    G.update_masks()
    weights = digest(G)
    if arguments['teacher'] is None and digest(ScoreMaskedGenerator(**arguments)) != weights:
        raise UserError(
            f'The weights of this generator are not those of its seed {arguments["seed"]}, so that a ticket cannot '
            'bring them back: keep the network pickle, or bake it.'
        )
    masks = {
        f'{part_name}.{name}': mask.cpu().numpy()
        for part_name, part in zip(('mapping', 'synthesis'), G.parts, strict=True)
        for name, mask in part.masks().items()
    }
    trained = {
        name: getattr(layer, leaf).detach().cpu().numpy() for name, _, layer, leaf in G.tensors() if leaf == TRAINED
    }
    return Ticket(arguments, weights, masks, trained, facts or {})


def digest(G: ScoreMaskedGenerator) -> str:
    """SHA-256 over names and bits of what a search leaves alone: weights, constants, biases."""
    found = hashlib.sha256()
    for name, _part, layer, leaf in sorted(G.tensors(), key=lambda entry: entry[0]):
        tensor = getattr(layer, leaf)
        if tensor is not None and leaf not in (TRAINED, 'resample_filter'):
            found.update(f'{name} {tuple(tensor.shape)}'.encode())
            found.update(tensor.detach().cpu().contiguous().numpy().astype('<f4').tobytes())
    return found.hexdigest()


def save(path: str | os.PathLike, ticket: Ticket) -> int:
    """Write a ticket. Returns the file's size in bytes."""
    coded = {name: coding.encode(mask.ravel()) for name, mask in ticket.masks.items()}
    header = {
        'arguments': ticket.arguments,
        'weights': ticket.weights,
        'masks': {name: [code.ones, code.shift, len(code.quotients)] for name, code in coded.items()},
        'trained': {name: list(array.shape) for name, array in ticket.trained.items()},
        'facts': ticket.facts,
    }
    text = json.dumps(header).encode()
    pieces = [MAGIC, struct.pack('<HI', VERSION, len(text)), text]
    pieces += [piece for code in coded.values() for piece in (code.quotients, code.remainders)]
    pieces += [array.astype('<f4').tobytes() for array in ticket.trained.values()]
    content = b''.join(pieces)
    with files.atomic_write(path) as file:
        file.write(content + hashlib.sha256(content).digest())
    return len(content) + hashlib.sha256().digest_size


def read(path: str | os.PathLike) -> Ticket:
    """Read a ticket. Nothing in it is executed, and no more memory is taken than its masks need.

    Raises:
        UserError: It is no ticket, or one of a later version, or damaged.
    """
    with files.opened(path) as (file, _size):
        content = file.read()
    start = len(MAGIC) + struct.calcsize('<HI')
    if not content.startswith(MAGIC):
        raise UserError(f'{path} is no ticket: `stylegan2-compress ticket save` writes them.')
    body, checksum = content[: -hashlib.sha256().digest_size], content[-hashlib.sha256().digest_size :]
    if len(body) < start or hashlib.sha256(body).digest() != checksum:
        raise UserError(f'{path} is damaged or not complete (its checksum is wrong): get it again.')
    version, length = struct.unpack('<HI', body[len(MAGIC) : start])
    if version != VERSION:
        raise UserError(f'{path} is a ticket of version {version}, and this package knows only {VERSION}: update it.')
    try:
        if length > MAX_HEADER:
            raise ValueError('its header is too long')
        return parse(json.loads(body[start : start + length]), memoryview(body)[start + length :])
    except (ValueError, KeyError, TypeError, AttributeError, Malformed, RecursionError) as error:
        raise UserError(f'{path} is a ticket that makes no sense ({rebuild.one_line(error)}).') from error


def parse(header: dict, payload: memoryview) -> Ticket:
    """A ticket from its header and what follows it.

    Raises:
        ValueError, KeyError, TypeError: They do not fit together.
    """
    shapes = weight_shapes(header['arguments'])
    if list(header['masks']) != list(shapes):
        raise ValueError('its masks are not those of its generator')
    masks, trained = {}, {}
    for name, (ones, shift, length) in header['masks'].items():
        size = int(np.prod(shapes[name], dtype=np.int64))
        if not all(isinstance(number, int) and number >= 0 for number in (ones, shift, length)) or ones > size:
            raise ValueError(f'its mask of {name} keeps more than there is')
        quotients, payload = payload[:length], payload[length:]
        length = coding.remainder_bytes(ones, size, min(shift, coding.MAX_SHIFT))
        remainders, payload = payload[:length], payload[length:]
        masks[name] = coding.decode(coding.Coded(ones, shift, quotients, remainders), size).reshape(shapes[name])
    for name, shape in header['trained'].items():
        length = 4 * int(np.prod([int(side) for side in shape], dtype=np.float64))
        data, payload = payload[:length], payload[length:]
        trained[name] = np.frombuffer(data, '<f4').reshape(shape)
    if len(payload):
        raise ValueError('there is something behind its end')
    return Ticket(header['arguments'], str(header['weights']), masks, trained, dict(header['facts']))


def weight_shapes(arguments: dict) -> dict[str, tuple[int, ...]]:
    """Shapes of the masked weights of a generator with such constructor arguments, which is not built in earnest.

    Raises:
        Malformed, ValueError: There is no such generator, or it is enormous.
    """
    rebuild.check_numbers(arguments)
    try:
        with rebuild.without_data(2000):
            G = ScoreMaskedGenerator(**arguments)
    except Exception as error:  # A constructor that gets arbitrary arguments can raise anything.
        raise ValueError(f'no generator takes its arguments: {rebuild.one_line(error)}') from error
    if sum(tensor.numel() for tensor in (*G.parameters(), *G.buffers())) > 2 * MAX_WEIGHTS:
        raise ValueError(f'its generator has more than {MAX_WEIGHTS:,} weights')
    return {
        f'{part_name}.{name}': tuple(part.tensor(name).shape)
        for part_name, part in zip(('mapping', 'synthesis'), G.parts, strict=True)
        for name in part.names
    }


@torch.no_grad()
def generator(ticket: Ticket, path: str | os.PathLike, teacher: str | None = None) -> ScoreMaskedGenerator:
    """The masked generator of a ticket, in eval mode.

    Args:
        ticket: its contents.
        path: where they are from, for errors.
        teacher: the network file its weights come from, if they are not random.

    Raises:
        UserError: The teacher is missing or another one, or the weights are not those that were masked.
    """
    wanted = ticket.arguments['teacher']
    if (wanted is None) != (teacher is None):
        missing = f'has the weights of a teacher (SHA-256 {str(wanted)[:16]}…): name its file with --teacher'
        raise UserError(f'{path} {missing if wanted else "has random weights: leave --teacher out"}.')
    G = ScoreMaskedGenerator(**ticket.arguments)
    if teacher is not None:
        found = pickles.sha256(pickles.local_file(teacher))
        if found != wanted:
            raise UserError(f'--teacher={teacher} (SHA-256 {found[:16]}…) is not the one of {path} ({wanted[:16]}…).')
        baking.put_weights(G, pickles.load(teacher)['G_ema'])
    if digest(G) != ticket.weights:
        raise UserError(f'{path} cannot be brought back: the weights come out otherwise here than where it was made.')
    for name, _part, layer, leaf in G.tensors():
        if name in ticket.trained:
            getattr(layer, leaf).copy_(torch.from_numpy(ticket.trained[name].copy()))
        if name in ticket.masks:
            mask = torch.from_numpy(ticket.masks[name])
            getattr(layer, f'{leaf}_scores').copy_(mask)
            if hasattr(layer, f'{leaf}_alive'):
                getattr(layer, f'{leaf}_alive').copy_(mask)
    G.update_masks()
    for part_name, part in zip(('mapping', 'synthesis'), G.parts, strict=True):
        for name, mask in part.masks().items():
            if not np.array_equal(mask.numpy(), ticket.masks[f'{part_name}.{name}']):
                raise UserError(f"{path} makes no sense: its mask of {part_name}.{name} is none of its rule's.")
    return G.eval().requires_grad_(False)
