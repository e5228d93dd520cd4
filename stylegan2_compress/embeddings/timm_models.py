"""Networks of timm: `timm:NAME`, with its preprocessing and its layers."""

from typing import Any

import torch
from torch import Tensor, nn

from stylegan2_compress.embeddings.preprocessing import Preprocessing
from stylegan2_compress.embeddings.specs import Spec
from stylegan2_compress.errors import UserError


class TimmModel(nn.Module):
    """The pooled features of a timm model, which are what its classifier sees."""

    def __init__(self, model: nn.Module, library: str):
        super().__init__()
        self.model: Any = model  # Which methods it has depends on its kind.
        self.library = library
        if hasattr(model, 'forward_intermediates'):
            self.layers = self._layers

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def _layers(self, x: Tensor) -> list[Tensor]:
        """The maps [N, channels, h, w] of its stages, or of its blocks if it is a transformer."""
        return self.model.forward_intermediates(x, intermediates_only=True, output_fmt='NCHW')


def load(spec: Spec, device: torch.device) -> tuple[nn.Module, Preprocessing]:
    """Load `timm:NAME`, or a directory in timm's format, `timm:local-dir:DIR`; without its classifier."""
    try:
        # Of the extra `timm`, which need not be installed; and slow to import.
        import timm  # pyright: ignore[reportMissingImports]
    except RuntimeError as error:  # What torchvision raises.
        raise UserError(
            f'Embedding {spec} needs timm, and timm a torchvision that is made for torch {torch.__version__}: '
            f'the one that is installed does not import ({error}).'
        ) from error
    try:
        model = timm.create_model(spec.rest, pretrained=True, num_classes=0)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f'Embedding {spec} cannot be loaded by timm ({reason}): check the name in timm.list_pretrained(); without '
            'internet access, put config.json and model.safetensors into a directory DIR and use timm:local-dir:DIR.'
        ) from error
    config = timm.data.resolve_model_data_config(model)
    own = Preprocessing(
        size=config['input_size'][-1],
        mean=tuple(config['mean']),
        std=tuple(config['std']),
        filter='bilinear' if config['interpolation'] == 'bilinear' else 'bicubic',
        fixed=bool(model.pretrained_cfg.get('fixed_input_size', False)),
    )
    return TimmModel(model, f'timm {timm.__version__}'), own
