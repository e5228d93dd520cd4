"""Intermediate feature maps of the host's networks, by forward hooks on their own blocks."""

import contextlib
from collections.abc import Iterable, Iterator

import torch


@contextlib.contextmanager
def block_outputs(network: torch.nn.Module, names: Iterable[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Record what blocks put out while the context is open.

    Args:
        network: a `SynthesisNetwork` or `Discriminator` of the host's, or one with blocks like theirs, which return
            their feature maps and an image.
        names: of blocks, such as 'b64'.

    Yields:
        A dictionary that the forward passes fill: feature maps [N, channels, side, side] by block name.
    """
    found = {}

    def recorder(name):
        def record(_block, _inputs, outputs):
            found[name] = outputs[0]

        return record

    hooks = [getattr(network, name).register_forward_hook(recorder(name)) for name in names]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
