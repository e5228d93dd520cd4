"""Which layers of a synthesis network read and which compute each feature map.

A feature map has the name of the layer that computes it: `b4.const`, then `b4.conv1`, `b8.conv0`, `b8.conv1`,
`b16.conv0` and so on. In `resnet` networks `skip` also contributes to `conv1`'s feature map: their outputs are added.
"""

from typing import Any, NamedTuple

from training.networks import Generator


class Layer(NamedTuple):
    """A layer of the synthesis network between two feature maps."""

    name: str  # As in `G.synthesis.named_modules()`, e.g. 'b8.conv0'.
    module: Any  # A SynthesisLayer, ToRGBLayer or Conv2dLayer, of the host or as a trusted pickle defines it.
    source: str  # The feature map that it reads.
    target: str | None  # The feature map that it computes; None for toRGB.


def layers(G: Generator) -> list[Layer]:
    """All convolutions of `G.synthesis`, from 4×4 up: a block's conv0, conv1, then skip and torgb if they exist."""
    result = []
    previous = None
    for res in G.synthesis.block_resolutions:
        name = f'b{res}'
        block = getattr(G.synthesis, name)
        first, second = f'{name}.conv0' if previous else f'{name}.const', f'{name}.conv1'
        if previous:
            result.append(Layer(first, block.conv0, previous, first))
        result.append(Layer(second, block.conv1, first, second))
        if previous and hasattr(block, 'skip'):
            result.append(Layer(f'{name}.skip', block.skip, previous, second))
        if hasattr(block, 'torgb'):
            result.append(Layer(f'{name}.torgb', block.torgb, second, None))
        previous = second
    return result


def widths(G: Generator) -> dict[str, int]:
    """Channels of every feature map of `G.synthesis`, from 4×4 up."""
    result = {'b4.const': G.synthesis.b4.const.shape[0]}
    for layer in layers(G):
        if layer.target is not None:
            result[layer.target] = layer.module.weight.shape[0]
    return result


def readers(G: Generator) -> dict[str, Any]:
    """The layer that reads each feature map on the main path: the next convolution, and torgb for the last one.

    The criteria score a channel by the weights that read it. The weights that compute it say little about it, because
    demodulation removes their scale.
    """
    result = {}
    for layer in layers(G):
        if layer.source not in result or layer.name.endswith('conv0'):
            result[layer.source] = layer.module
    return result
