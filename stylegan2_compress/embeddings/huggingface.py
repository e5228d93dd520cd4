"""Networks of transformers: vision transformers, CLIP and similar models, ResNets."""

import os
import re
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stylegan2_compress import caches
from stylegan2_compress.embeddings import weights
from stylegan2_compress.embeddings.preprocessing import CLIP, IMAGENET, Preprocessing
from stylegan2_compress.embeddings.specs import Spec
from stylegan2_compress.errors import UserError

HUB = 'https://huggingface.co/'
DINO_RESNET50 = 'https://dl.fbaipublicfiles.com/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth'

# DINO's own evaluation resizes to 256 pixels and then crops 224 from the centre. We do not crop, which leaves 256: also
# the size of images in the DiME paper.
DINO_256 = Preprocessing(size=256, **IMAGENET)
DINO_224 = Preprocessing(size=224, **IMAGENET, fixed=True)
DINOV2_224 = Preprocessing(size=224, **IMAGENET)  # Takes other multiples of 14, too.
CLIP_224 = Preprocessing(size=224, **CLIP, fixed=True)

_FILTERS = {2: 'bilinear', 3: 'bicubic'}  # By their numbers in Pillow.


class HuggingFace(nn.Module):
    """The image features of a transformers model.

    For models of images and text, the projected image features (`encode_image` of CLIP). For others, the pooled output,
    or the class token if the pooling layer has no trained weights.
    """

    def __init__(self, model: nn.Module, pooled: bool):
        super().__init__()
        self.model: Any = model  # Which methods it has depends on its kind.
        self.pooled = pooled
        self.library = f'transformers {_transformers().__version__}'
        for name in ('text_model', 'text_projection'):
            if hasattr(model, name):
                delattr(model, name)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self.model, 'get_image_features'):
            features = self.model.get_image_features(pixel_values=x)
            return features if isinstance(features, Tensor) else features.pooler_output
        output = self.model(pixel_values=x)
        if self.pooled and getattr(output, 'pooler_output', None) is not None:
            return output.pooler_output
        last = output.last_hidden_state  # Maps [N, dim, h, w] or tokens [N, tokens, dim].
        return last if last.ndim == 4 else last[:, 0]


def load(spec: Spec, device: torch.device) -> tuple[nn.Module, Preprocessing]:
    """Load `hf:MODEL_OR_DIR`, preprocessing included."""
    model = _read(spec, spec.rest)
    own = _processor(spec, spec.rest) if spec.preprocess == 'own' else Preprocessing(size=None, **IMAGENET)
    return model, own


def check(spec: Spec) -> None:
    """Refuse an `hf:` spec whose directory does not exist."""
    if spec.rest.startswith(('.', '/', '~')) and not os.path.isdir(spec.rest):
        raise UserError(f'Embedding {spec} cannot be loaded: there is no directory {spec.rest!r}.')


def preset(
    model: str, model_type: str, own: Preprocessing
) -> Callable[[Spec, torch.device], tuple[nn.Module, Preprocessing]]:
    """Loader of a preset whose weights are a model on huggingface.co, or a copy of it in a directory.

    Args:
        model: name on huggingface.co.
        model_type: `model_type` of its config.json, which a copy must have, too.
        own: the model's own preprocessing.
    """

    def load(spec: Spec, device: torch.device) -> tuple[nn.Module, Preprocessing]:
        network = _read(spec, spec.weights or model)
        loaded_type = network.model.config.model_type
        if loaded_type != model_type:
            raise UserError(
                f'Embedding {spec} holds a {loaded_type} network: {spec.name} is {HUB}{model}, a {model_type}.'
            )
        return network, own

    return load


def load_dino_resnet50(spec: Spec, device: torch.device) -> tuple[nn.Module, Preprocessing]:
    """Load `dino_resnet50`: DINO's ResNet-50 without a classifier, 2048 features.

    The weights are DINO's own file. They were trained in torchvision's ResNet; transformers' ResNet is the same
    function and, unlike torchvision, does not depend on one version of torch.
    """
    transformers = _transformers()
    model = transformers.ResNetModel(transformers.ResNetConfig())
    weights.fill(model, spec, weights.local_path(spec, DINO_RESNET50), _renamed)
    return HuggingFace(model, pooled=True), DINO_256


def _read(spec: Spec, model: str) -> HuggingFace:
    transformers = _transformers()
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # It would advise to train missing weights. Whether they matter is decided below.
    try:
        network, loading = transformers.AutoModel.from_pretrained(model, output_loading_info=True)
    except (OSError, ValueError) as error:
        where = repr(model) if os.path.exists(model) else HUB + model
        local_spec = 'hf:DIR' if spec.kind == 'hf' else f'{spec.name}@weights=DIR'
        raise UserError(
            f"Embedding {spec} cannot be loaded from {where} ({type(error).__name__}): put the model's config.json, "
            f'model.safetensors and preprocessor_config.json into a directory DIR and use {local_spec}.'
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    missing = set(loading['missing_keys'])
    pooler = {name for name in missing if name.startswith('pooler.')}
    if missing - pooler:
        raise UserError(
            f'Embedding {spec} lacks weights in {model!r}, for example {min(missing - pooler)}: use a complete model.'
        )
    return HuggingFace(network, pooled=not pooler)


def _processor(spec: Spec, model: str) -> Preprocessing:
    """The preprocessing in a model's preprocessor_config.json, without its crop."""
    way_out = f'use {spec.name}@preprocess=raw, or a model that comes with this file'
    try:
        settings, _ = _transformers().ImageProcessingMixin.get_image_processor_dict(model)
    except OSError as error:
        raise UserError(f'Embedding {spec} has no preprocessor_config.json: {way_out}.') from error
    try:
        size = settings['crop_size'] if settings.get('do_center_crop') else settings['size']
        filter = _FILTERS[settings['resample']]
        scale = 255 * settings.get('rescale_factor', 1 / 255) if settings.get('do_rescale', True) else 255
        normalize = settings.get('do_normalize', True)
        mean, std = (settings['image_mean'], settings['image_std']) if normalize else ([0] * 3, [1] * 3)
    except KeyError as error:
        raise UserError(
            f'Embedding {spec} has a preprocessor_config.json without a usable {error}: {way_out}.'
        ) from error
    return Preprocessing(
        size=min(size.values()) if isinstance(size, dict) else size,
        mean=tuple(value / scale for value in mean),
        std=tuple(value / scale for value in std),
        filter=filter,
    )


def _transformers() -> types.ModuleType:
    """The package transformers."""
    caches.make_hugging_faces_writable()
    import transformers  # Of the extra `foundation`, which need not be installed; and slow to import.

    return transformers


def _renamed(name: str) -> str:
    """Name of a weight in transformers' ResNet, given its name in torchvision's."""
    for old, new in (
        (r'^conv1\.', 'embedder.embedder.convolution.'),
        (r'^bn1\.', 'embedder.embedder.normalization.'),
        (r'^layer(\d)\.', lambda match: f'encoder.stages.{int(match[1]) - 1}.'),
        (r'stages\.(\d)\.(\d+)\.', r'stages.\1.layers.\2.'),
        (r'downsample\.0\.', 'shortcut.convolution.'),
        (r'downsample\.1\.', 'shortcut.normalization.'),
        (r'layers\.(\d+)\.conv(\d)\.', lambda match: f'layers.{match[1]}.layer.{int(match[2]) - 1}.convolution.'),
        (r'layers\.(\d+)\.bn(\d)\.', lambda match: f'layers.{match[1]}.layer.{int(match[2]) - 1}.normalization.'),
    ):
        name = re.sub(old, new, name)
    return name
