"""The ticket file: a generator of frozen weights in less than a bit per weight.

    magic, 12 bytes · version, 2 · length of the header, 4 (little-endian) · header, JSON · masks, each as the bytes of
    its quotients and of its remainders (see `coding`) · of signed rules, a bit for each weight that is kept, of each
    mask by itself: 1 if its sign is turned · trained tensors, float32, little-endian · SHA-256 of all that

Tensors that a search has trained are the average of W, and with `train_unmasked` all that is not masked, and factors.

The header has the constructor arguments of a `ScoreMaskedGenerator`, among them the seed and the initialisation of the
weights, or the SHA-256 of the teacher that has them; a digest of the weights, so that no others are used; and the
numbers that the reader needs to decode each mask. Version 2 has the signs, and version 3 what else was trained, with or
without signs; tickets without either are written as version 1, so that earlier readers have them.
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
from stylegan2_compress.host.networks import bound_arguments
from stylegan2_compress.networks.masked import ScoreMaskedGenerator, rule_of
from stylegan2_compress.pickles import rebuild
from stylegan2_compress.pickles.contents import Refused
from stylegan2_compress.pickles.machine import Malformed
from stylegan2_compress.tickets import baking, coding

MAGIC = b'\x89SG2TICKET\r\n'
PLAIN, SIGNED, TRAINED_UNMASKED = VERSIONS = 1, 2, 3
MAX_HEADER = 1 << 20
MAX_WEIGHTS = 1 << 27
ARGUMENTS = {'seed', 'weight_init', 'teacher', 'rule', 'keep'}  # On record in every ticket, whatever their defaults.
TRAINED = 'w_avg'  # The one tensor besides scores that every search changes: the average of W, for truncation.


def is_ticket(path: str | os.PathLike) -> bool:
    """Whether a file begins as tickets do."""
    with files.opened(path) as (file, _size):
        return file.read(len(MAGIC)) == MAGIC


@dataclass(frozen=True)
class Ticket:
    """What brings a masked generator back.

    Attributes:
        arguments: constructor arguments of the `ScoreMaskedGenerator`.
        weights: `weights_sha256` of the generator.
        masks: boolean arrays by name of the weight.
        turned: of signed rules, boolean arrays by name: the weights that count with their sign turned.
        trained: float32 arrays by name.
        facts: notes of its maker, such as metrics.
    """

    arguments: dict
    weights: str
    masks: dict[str, np.ndarray]
    turned: dict[str, np.ndarray]
    trained: dict[str, np.ndarray]
    facts: dict

    @property
    def kept(self) -> int:
        """How many weights the masks keep."""
        return sum(int(mask.sum()) for mask in self.masks.values())

    @property
    def total(self) -> int:
        """How many weights are masked."""
        return sum(mask.size for mask in self.masks.values())

    @classmethod
    def from_generator(cls, G: ScoreMaskedGenerator, facts: dict | None = None) -> 'Ticket':
        """The ticket of a masked generator.

        Args:
            G: the generator.
            facts: notes, as JSON takes them.

        Raises:
            UserError: its weights come neither from its seed nor from a teacher, so that no ticket could restore them.
        """
        arguments = bound_arguments(G, defaults=True)
        for name, usual in (('train_unmasked', False), ('density', 'uniform')):
            if arguments[name] == usual:
                del arguments[name]  # Which earlier readers do not know.
        rule = arguments['rule']
        if not rule_of(rule).scored:
            raise UserError(
                f'The rule {rule} trains weights, which no seed restores: keep the network pickle, or make an ordinary '
                'one of it with `ticket bake`.'
            )
        G.update_masks()
        weights = weights_sha256(G)
        if arguments['teacher'] is None and weights_sha256(ScoreMaskedGenerator(**arguments)) != weights:
            raise UserError(
                f'The weights of this generator are not those of its seed {arguments["seed"]}, so a ticket cannot '
                'restore them: keep the network pickle, or make an ordinary one of it with `ticket bake`.'
            )
        masks = {name: mask.cpu().numpy() for name, mask in G.masks().items()}
        turned = {name: turned.cpu().numpy() for name, turned in G.turned().items()}
        trained = {
            name: getattr(layer, leaf).detach().cpu().numpy()
            for name, _part, layer, leaf in G.tensors()
            if leaf == TRAINED
        }
        trained.update((name, tensor.detach().cpu().numpy()) for name, tensor in G.trained().items())
        return cls(arguments, weights, masks, turned, trained, facts or {})

    @classmethod
    def read(cls, path: str | os.PathLike, trust: bool = False) -> 'Ticket':
        """Read a file. Nothing in it is executed, and it takes no more memory than its masks need.

        Args:
            path: of the file.
            trust: import the module of a mask rule that it names.

        Raises:
            UserError: it is not a ticket, has a later version, is damaged or inconsistent, or names a mask rule in a
                module that is not imported, or cannot be.
        """
        with files.opened(path) as (file, _size):
            content = file.read()
        start = len(MAGIC) + struct.calcsize('<HI')
        if not content.startswith(MAGIC):
            raise UserError(f'{path} is not a ticket: `stylegan2-compress ticket save` writes tickets.')
        body, checksum = content[: -hashlib.sha256().digest_size], content[-hashlib.sha256().digest_size :]
        if len(body) < start or hashlib.sha256(body).digest() != checksum:
            raise UserError(f'{path} is damaged or incomplete (its checksum is wrong): copy or download it again.')
        version, length = struct.unpack('<HI', body[len(MAGIC) : start])
        if version not in VERSIONS:
            raise UserError(
                f'{path} is a ticket of version {version}, but this stylegan2-compress reads versions up to '
                f'{max(VERSIONS)}: update it.'
            )
        try:
            if length > MAX_HEADER:
                raise ValueError('its header is too long')
            header = json.loads(body[start : start + length])
            if trust:
                rule_of(header['arguments']['rule'])
            return _decoded(header, memoryview(body)[start + length :], version)
        except Refused as error:
            raise UserError(f'{path} {error}. Nothing in it was run.') from error
        except (ValueError, KeyError, TypeError, AttributeError, Malformed, RecursionError) as error:
            raise UserError(f'{path} is not a valid ticket ({rebuild.one_line(error)}).') from error

    def write(self, path: str | os.PathLike) -> int:
        """Write a file, complete or not at all.

        Returns:
            Its size in bytes.
        """
        coded = {name: coding.encode(mask.ravel()) for name, mask in self.masks.items()}
        header = {
            'arguments': self.arguments,
            'weights': self.weights,
            'masks': {name: [code.ones, code.shift, len(code.quotients)] for name, code in coded.items()},
            'trained': {name: list(array.shape) for name, array in self.trained.items()},
            'facts': self.facts,
        }
        text = json.dumps(header).encode()
        pieces = [MAGIC, struct.pack('<HI', version_of(self.arguments), len(text)), text]
        pieces += [piece for code in coded.values() for piece in (code.quotients, code.remainders)]
        pieces += [np.packbits(turned[self.masks[name]]).tobytes() for name, turned in self.turned.items()]
        pieces += [array.astype('<f4').tobytes() for array in self.trained.values()]
        content = b''.join(pieces)
        with files.atomic_write(path) as file:
            file.write(content + hashlib.sha256(content).digest())
        return len(content) + hashlib.sha256().digest_size

    @torch.no_grad()
    def generator(self, path: str | os.PathLike, teacher: str | None = None) -> ScoreMaskedGenerator:
        """The masked generator, in eval mode.

        Its scores are 1 for the weights that are kept, -1 for those with their sign turned, and 0 for the others.

        Args:
            path: the ticket's file, for errors.
            teacher: the network file with the weights, if they are not random.

        Raises:
            UserError: the teacher is missing or another one, the weights are not those that were masked, or the rule
                does not allow the masks.
        """
        self._check_teacher(path, teacher)
        G = ScoreMaskedGenerator(**self.arguments)
        if teacher is not None:
            baking.put_weights(G, pickles.load(teacher)['G_ema'])
        if weights_sha256(G) != self.weights:
            raise UserError(
                f'{path} cannot be restored: its weights come out differently here than where the ticket was made.'
            )
        trained = dict(G.trained())
        for name, _part, layer, leaf in G.tensors():
            if leaf == TRAINED:
                trained[name] = getattr(layer, leaf)
            if name in self.masks:
                mask = torch.from_numpy(self.masks[name])
                scores = getattr(layer, f'{leaf}_scores').copy_(mask)
                if name in self.turned:
                    scores[torch.from_numpy(self.turned[name])] = -1
                if hasattr(layer, f'{leaf}_alive'):
                    getattr(layer, f'{leaf}_alive').copy_(mask)
        for name, tensor in trained.items():
            if name not in self.trained or self.trained[name].shape != tuple(tensor.shape):
                raise UserError(f'{path} is not a valid ticket: it lacks {name}, which was trained.')
            tensor.copy_(torch.from_numpy(self.trained[name].copy()))
        for name in self.trained.keys() - trained.keys():
            raise UserError(f'{path} is not a valid ticket: it changes {name[:100]!r}, which no search trains.')
        G.update_masks()
        for name, mask in G.masks().items():
            if not np.array_equal(mask.numpy(), self.masks[name]):
                rule = self.arguments['rule']
                raise UserError(f'{path} is not a valid ticket: the rule {rule} does not allow its mask of {name}.')
        return G.eval().requires_grad_(False)

    def _check_teacher(self, path: str | os.PathLike, teacher: str | None) -> None:
        wanted = self.arguments['teacher']
        if teacher is None:
            if wanted is None:
                return
            raise UserError(
                f'{path} has the weights of a teacher (SHA-256 {str(wanted)[:16]}…): name its file with --teacher.'
            )
        if wanted is None:
            raise UserError(f'{path} has random weights: leave --teacher out.')
        sha256 = files.sha256(pickles.local_file(teacher))
        if sha256 != wanted:
            raise UserError(
                f'--teacher={teacher} (SHA-256 {sha256[:16]}…) is not the teacher of {path} '
                f'(SHA-256 {str(wanted)[:16]}…).'
            )


def weights_sha256(G: ScoreMaskedGenerator) -> str:
    """SHA-256 of names and bits of all tensors that a search does not change: weights, constants, biases."""
    digest, trained = hashlib.sha256(), G.trained()
    for name, _part, layer, leaf in sorted(G.tensors(), key=lambda entry: entry[0]):
        tensor = getattr(layer, leaf)
        if tensor is not None and leaf not in (TRAINED, 'resample_filter') and name not in trained:
            digest.update(f'{name} {tuple(tensor.shape)}'.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().astype('<f4').tobytes())
    return digest.hexdigest()


def version_of(arguments: dict) -> int:
    """Of the file of a ticket with these arguments, the lowest that has all it needs."""
    if arguments.get('train_unmasked'):
        return TRAINED_UNMASKED
    return SIGNED if rule_of(arguments['rule']).signed else PLAIN


def require_readable(G: ScoreMaskedGenerator) -> None:
    """Refuse a generator whose ticket nobody could read, before it is searched for.

    Raises:
        UserError: it is too large.
    """
    try:
        weight_shapes(bound_arguments(G, defaults=True))
    except (Malformed, ValueError) as error:
        raise UserError(
            f'This generator is larger than tickets can be ({rebuild.one_line(error)}): lower --channel-max, '
            '--channel-base, --w-dim or --mapping-layers.'
        ) from error


def weight_shapes(arguments: dict) -> dict[str, tuple[int, ...]]:
    """Shapes of the masked weights by name, of a generator that is built without memory for its weights.

    Args:
        arguments: constructor arguments of the `ScoreMaskedGenerator`, from a file.

    Raises:
        Malformed, ValueError: there is no such generator, or it is enormous.
        Refused: they name a mask rule in a module that is not imported.
    """
    rebuild.check_numbers(arguments)
    rebuild.check_rule(arguments.get('rule'))
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


def _decoded(header: dict, payload: memoryview, version: int) -> Ticket:
    """The ticket of a header and the bytes after it.

    Raises:
        Malformed, Refused: see `weight_shapes`.
        ValueError, KeyError, TypeError, AttributeError: they do not fit together.
    """
    if lacking := ARGUMENTS - header['arguments'].keys():
        raise ValueError(f'it does not say its {", ".join(sorted(lacking))}')
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
    turned = {}
    if version_of(header['arguments']) != version:
        raise ValueError('its version is not that of its rule')
    if rule_of(header['arguments']['rule']).signed:
        for name, mask in masks.items():
            kept = int(mask.sum())
            bits, payload = payload[: -(-kept // 8)], payload[-(-kept // 8) :]
            turned[name] = np.zeros_like(mask)
            turned[name][mask] = np.unpackbits(np.frombuffer(bits, np.uint8), count=kept)
    for name, shape in header['trained'].items():
        length = 4 * int(np.prod([int(side) for side in shape], dtype=np.float64))
        data, payload = payload[:length], payload[length:]
        trained[name] = np.frombuffer(data, '<f4').reshape(shape)
    if len(payload):
        raise ValueError('there are bytes behind its end')
    return Ticket(header['arguments'], str(header['weights']), masks, turned, trained, dict(header['facts']))
