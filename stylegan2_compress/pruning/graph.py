"""Which layer of a synthesis network reads and which one makes each feature map: all that pruning has to know.

A feature map has the name of what makes it: `b4.const`, then `b4.conv1`, `b8.conv0`, `b8.conv1`, `b16.conv0` and so on.
In `resnet` networks `skip` makes part of `conv1`'s feature map, because their outputs are added.
"""

from typing import NamedTuple

import torch


class Layer(NamedTuple):
    """A layer of the synthesis network between two feature maps."""

    name: str  # As in `G.synthesis.named_modules()`, e.g. 'b8.conv0'.
    module: torch.nn.Module
    source: str  # The feature map it reads.
    target: str | None  # The feature map it makes; None where that is the image.


def layers(G: torch.nn.Module) -> list[Layer]:
    """All convolutions of `G.synthesis`, from 4×4 up: a block's conv0, conv1, then skip and torgb where they exist."""
    result = []
    previous = None
    for res in G.synthesis.block_resolutions:
        name = f'b{res}'
        block = getattr(G.synthesis, name)
        first, second = f'{name}.conv0' if previous else f'{name}.const', f'{name}.conv1'
        if previous:
            result.append(Layer(first, block.conv0, previous, first))
        result.append(Layer(second, block.conv1, first, second))
        if hasattr(block, 'skip'):
            result.append(Layer(f'{name}.skip', block.skip, previous, second))
        if hasattr(block, 'torgb'):
            result.append(Layer(f'{name}.torgb', block.torgb, second, None))
        previous = second
    return result


def widths(G: torch.nn.Module) -> dict[str, int]:
    """Channels of every feature map of `G.synthesis`, from 4×4 up."""
    result = {'b4.const': G.synthesis.b4.const.shape[0]}
    for layer in layers(G):
        if layer.target is not None:
            result[layer.target] = layer.module.weight.shape[0]
    return result


def readers(G: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The layer that reads each feature map on the main path: the next convolution, at the very end torgb.

    The criteria judge a channel by the weights that read it. Weights that make it say little, because demodulation
    takes their scale away again.
    """
    result = {}
    for layer in layers(G):
        if layer.source not in result or layer.name.endswith('conv0'):
            result[layer.source] = layer.module
    return result
