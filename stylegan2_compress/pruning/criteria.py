"""Which channels matter: functions from a generator to one score vector per feature map, higher meaning keep."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from stylegan2_compress.pruning import graph


@dataclass
class CriterionOptions:
    """What criteria that sample need to know.

    Attributes:
        seed: Seed of everything drawn at random.
    """

    seed: int = 0


Criterion = Callable[[torch.nn.Module, CriterionOptions], dict[str, torch.Tensor]]


def l1(G: torch.nn.Module, options: CriterionOptions) -> dict[str, torch.Tensor]:
    """Mean absolute value of the weights that read a channel."""
    return {name: reader.weight.detach().abs().mean(dim=[0, 2, 3]) for name, reader in graph.readers(G).items()}


CRITERIA: dict[str, Criterion] = {
    'l1': l1,
}
