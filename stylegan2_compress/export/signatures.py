"""Names and shapes of what the two networks of an export take and give."""

from dataclasses import dataclass
from typing import Any

import torch

from stylegan2_compress.export import graph


@dataclass(frozen=True)
class Signature:
    """Names and shapes of a network's inputs and of its output. The batch is None where it is dynamic."""

    inputs: dict[str, list[int | None]]
    output: str
    output_shape: list[int | None]

    def examples(self, batch: int = 2) -> dict[str, torch.Tensor]:
        """Inputs to trace the network with."""
        return {name: torch.ones([size or batch for size in shape]) for name, shape in self.inputs.items()}


def signatures_of(G: Any, mapping: graph.Mapping, batch: int | None) -> dict[str, Signature]:
    """The signatures of `mapping` and `synthesis`.

    Args:
        G: the generator.
        mapping: its mapping network as a graph.
        batch: images at a time, None for any.
    """
    ws_shape = [batch, G.num_ws, G.w_dim]
    image_shape = [batch, G.img_channels, G.img_resolution, G.img_resolution]
    shapes: dict[str, list[int | None]] = {'z': [batch, G.z_dim], 'c': [batch, G.c_dim], 'psi': [1], 'cutoff': [1]}
    return {
        'mapping': Signature({name: shapes[name] for name in mapping.inputs}, 'ws', ws_shape),
        'synthesis': Signature({'ws': ws_shape}, 'image', image_shape),
    }
