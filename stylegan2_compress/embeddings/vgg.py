"""VGG-19 with batch norm and ImageNet weights in torchvision's format, without torchvision."""

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stylegan2_compress.embeddings import weights
from stylegan2_compress.embeddings.preprocessing import IMAGENET, Preprocessing
from stylegan2_compress.embeddings.specs import Spec

URL = 'https://download.pytorch.org/models/vgg19_bn-c79401a0.pth'
OWN = Preprocessing(size=None, **IMAGENET)  # Convolutions take any size, and SLT does not resize.
STAGES = (
    (64, 2),
    (128, 2),
    (256, 4),
    (512, 4),
    (512, 4),
)  # Width and convolutions of each stage, which ends in a pooling.


class VGG19(nn.Module):
    """The convolutional part of the network: 16 feature maps, each after its ReLU.

    The layers in `features` are numbered as torchvision's, so that the names of weights agree.
    """

    def __init__(self):
        super().__init__()
        members, inputs = [], 3
        for outputs, convolutions in STAGES:
            for _ in range(convolutions):
                members += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            members.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*members[:-1])  # No map comes after the last pooling.

    def _maps(self, x: Tensor) -> Iterator[Tensor]:
        for member in self.features:
            x = member(x)
            if isinstance(member, nn.ReLU):
                yield x

    def layers(self, x: Tensor) -> list[Tensor]:
        """The 16 feature maps, input side first."""
        return list(self._maps(x))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W] to the last feature map, [N, 512, H/16, W/16]."""
        return deque(self._maps(x), maxlen=1).pop()


def load(spec: Spec, device: torch.device) -> tuple[nn.Module, Preprocessing]:
    """Load `vgg19_bn`."""
    network = VGG19()
    path = weights.local_path(spec, URL)
    weights.fill(network, spec, path, lambda name: name if name.startswith('features.') else None)
    return network, OWN
