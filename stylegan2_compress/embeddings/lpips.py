"""LPIPS (Zhang et al., CVPR 2018) with VGG-16: the paper's weights of channels, from its package, over torchvision's
ImageNet weights, without torchvision."""

import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from stylegan2_compress.embeddings import weights
from stylegan2_compress.embeddings.preprocessing import IMAGENET, Preprocessing
from stylegan2_compress.embeddings.specs import Spec

URL = 'https://download.pytorch.org/models/vgg16-397923af.pth'
OWN = Preprocessing(size=None, **IMAGENET)
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # Width and convolutions of each, with pooling in between.


class LPIPS(nn.Module):
    """The convolutional part of VGG-16, and how much each channel of its five feature maps counts.

    The layers in `features` are numbered as torchvision's, so that the names of weights agree.

    Args:
        channel_weights: [channels] for each of the five.
    """

    def __init__(self, channel_weights: Iterable[Tensor]):
        super().__init__()
        members, inputs = [], 3
        for outputs, convolutions in STAGES:
            for _ in range(convolutions):
                members += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
                inputs = outputs
            members.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*members[:-1])
        self.channel_weights = nn.ParameterList(map(nn.Parameter, channel_weights))

    def _maps(self, x: Tensor) -> Iterator[Tensor]:
        for member in self.features:
            if isinstance(member, nn.MaxPool2d):
                yield x
            x = member(x)
        yield x

    def layers(self, x: Tensor) -> list[Tensor]:
        """The last feature map of each stage, input side first."""
        return list(self._maps(x))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W] to the last feature map, [N, 512, H/16, W/16]."""
        return self.features(x)


def load(spec: Spec, device: torch.device) -> tuple[nn.Module, Preprocessing]:
    """Load `lpips`."""
    network = LPIPS(_channel_weights())
    path = weights.local_path(spec, URL)
    weights.fill(network.features, spec, path, lambda name: name.partition('features.')[2] or None)
    return network, OWN


def _channel_weights() -> list[Tensor]:
    """What the package `lpips` has learned of human judgements. Its code is not imported: that needs torchvision."""
    package = importlib.util.find_spec('lpips')
    path = Path(str(package and package.origin)).parent / 'weights' / 'v0.1' / 'vgg.pth'
    learned = torch.load(path, map_location='cpu', weights_only=True)
    return [learned[f'lin{stage}.model.1.weight'].flatten() for stage in range(len(STAGES))]
