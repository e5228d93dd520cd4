"""Spec strings: an embedding network, and how images are prepared for it.

    NAME[@key=value]...        a preset:     efficientnet_lite0@size=64, dino_resnet50@preprocess=raw
    KIND:REST[@key=value]...   an open form: hf:facebook/dinov2-large, torchscript:classifier.pt@size=32@dtype=bf16

Options:
    size=PIXELS|image          resize images to this side; `image` leaves them as they are
    preprocess=own|raw         the network's own preprocessing (default), or what DiME's published code does
    dtype=fp32|bf16|fp16|fp64  precision of the network
    layers=0+4+17|all          feature maps of layers, counted from 0, averaged over positions, as one vector
    weights=PATH               local weights for a preset, instead of a download
    compile=0|1                run the network through `torch.compile`
    checkpoint=N               keep no activations: the backward pass recomputes them for N images at a time
"""

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from stylegan2_compress.embeddings.preprocessing import Preprocessing
from stylegan2_compress.errors import UserError

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16, 'fp64': torch.float64}


@dataclasses.dataclass(frozen=True)
class Spec:
    """A parsed spec string. `str` gives its canonical form."""

    name: str
    size: int | str | None = None
    preprocess: str = 'own'
    dtype: str = 'fp32'
    layers: str | None = None
    weights: str | None = None
    compile: int = 0
    checkpoint: int = 0

    def __str__(self) -> str:
        fields = dataclasses.fields(self)[1:]
        given = [
            (field.name, getattr(self, field.name)) for field in fields if getattr(self, field.name) != field.default
        ]
        return self.name + ''.join(f'@{key}={value}' for key, value in given)

    @property
    def key(self) -> str:
        """The canonical string without options that change only speed and memory."""
        return str(dataclasses.replace(self, compile=0, checkpoint=0))

    @property
    def kind(self) -> str:
        """`hf`, `hub`, ... of an open form, or the name of a preset."""
        return self.name.partition(':')[0]

    @property
    def rest(self) -> str:
        """The part of an open form behind its kind."""
        return self.name.partition(':')[2]

    @property
    def layer_numbers(self) -> list[int] | None:
        """The layers that are chosen; None for all of them."""
        return None if self.layers in (None, 'all') else [int(number) for number in self.layers.split('+')]

    def preprocessing(self, own: Preprocessing) -> Preprocessing:
        """A network's own preprocessing with the options of this spec.

        Raises:
            UserError: the network does not take that size.
        """
        chosen = own if self.preprocess == 'own' else own.raw()
        if self.size is None:
            return chosen
        if own.fixed and self.size != own.size:
            raise UserError(f'Embedding {self} cannot change its size: {self.name} takes {own.size} pixels only.')
        return dataclasses.replace(chosen, size=None if self.size == 'image' else self.size)


def split(specs: str | Sequence[str]) -> list[str]:
    """Several spec strings, from a list or separated by commas.

    Raises:
        UserError: there is none, an empty one, one that is named twice, or something that is not text.
    """
    parts = specs.split(',') if isinstance(specs, str) else specs
    if not (isinstance(parts, (list, tuple)) and all(isinstance(part, str) for part in parts)):
        raise UserError(f'Embeddings {specs!r} cannot be parsed: write NAME or NAME,NAME.')
    parts = [part.strip() for part in parts]
    if not parts or not all(parts):
        raise UserError(f'Embeddings {specs!r} contain an empty name: write NAME or NAME,NAME.')
    for part in parts:
        if parts.count(part) > 1:
            raise UserError(f'Embedding {part} is named twice: leave one out.')
    return parts


def parse_options(text: str) -> Spec:
    """Parse a spec string without checking whether its network exists.

    Raises:
        UserError: an unknown option or value, an option given twice, or weights that do not exist.
    """
    name, options = text.strip(), {}
    while match := re.fullmatch(r'(.*)@(\w+)=([^@]*)', name):
        name, key, value = match.groups()
        if key not in _OPTIONS:
            raise UserError(f'Embedding {text!r} has an unknown option {key!r}: choose from {", ".join(_OPTIONS)}.')
        if key in options:
            raise UserError(f'Embedding {text!r} gives {key!r} twice: leave one of them out.')
        wanted, parser = _OPTIONS[key]
        options[key] = parser(value)
        if options[key] is None:
            raise UserError(f'Embedding {text!r} has {key}={value!r}: it has to be {wanted}.')
    return Spec(name, **options)


def _one_of(*values: str) -> Callable[[str], str | None]:
    return lambda text: text if text in values else None


def _layers(text: str) -> str | None:
    """Layer numbers in one spelling: each once, and in order."""
    if text == 'all':
        return text
    numbers = [_whole_number(part, 0) for part in text.split('+')]
    return None if None in numbers or len(set(numbers)) < len(numbers) else '+'.join(map(str, sorted(numbers)))  # pyright: ignore[reportArgumentType]


def _whole_number(text: str, lowest: int) -> int | None:
    return int(text) if re.fullmatch(r'[0-9]{1,9}', text) and int(text) >= lowest else None


# What each option has to be, and its parser, which returns None for anything else.
_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    'size': ('a number of pixels or `image`', lambda text: text if text == 'image' else _whole_number(text, 1)),
    'preprocess': ('own or raw', _one_of('own', 'raw')),
    'dtype': (' or '.join(DTYPES), _one_of(*DTYPES)),
    'layers': ('layer numbers, each once, such as 0+4+17, or all', _layers),
    'weights': ('a file or directory that exists', lambda text: text if os.path.exists(text) else None),
    'compile': ('0 or 1', lambda text: int(text) if text in ('0', '1') else None),
    'checkpoint': ('a number of images, 0 for none', lambda text: _whole_number(text, 0)),
}
