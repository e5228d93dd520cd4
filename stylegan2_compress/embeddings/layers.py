"""Several layers of a network as one vector: `@layers=0+4+17`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stylegan2_compress.embeddings.specs import Spec
from stylegan2_compress.errors import UserError


class LayerMeans(nn.Module):
    """The means over positions of a network's feature maps, one after the other.

    Args:
        network: one with layers.
        spec: of the embedding, which says which of them.

    Raises:
        UserError: the network has no layers; in a forward pass, not those that are named.
    """

    def __init__(self, network: nn.Module, spec: Spec):
        super().__init__()
        if not hasattr(network, 'layers'):
            raise UserError(f'Embedding {spec} shows no layers: leave @layers out, or use efficientnet_lite0, say.')
        self.network = network
        self.spec = spec

    @property
    def channel_weights(self):
        """Those of the network, for a perceptual distance."""
        return getattr(self.network, 'channel_weights', None)

    def layers(self, x: Tensor) -> list[Tensor]:
        """All layers of the network."""
        return self.network.layers(x)  # pyright: ignore[reportCallIssue]  # A method.

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, channels of the layers together]."""
        return self.means(self.layers(x))

    def means(self, maps: Sequence[Tensor]) -> Tensor:
        """[N, channels of the layers together], of all layers of the network."""
        numbers = self.spec.layer_numbers
        if numbers is None:
            numbers = range(len(maps))
        elif numbers[-1] >= len(maps):
            raise UserError(f'Embedding {self.spec} has the layers 0 to {len(maps) - 1}: choose among them.')
        return torch.cat([maps[number].mean(dim=(2, 3)) for number in numbers], dim=1)
