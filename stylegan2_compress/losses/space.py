"""An embedding space in which the student's images are compared with a reference."""

from dataclasses import dataclass
from typing import Any

import torch

from stylegan2_compress.distributions.memory import FeatureMemory
from stylegan2_compress.embeddings import Embedding
from stylegan2_compress.losses.spread import Spread


@dataclass(frozen=True)
class Space:
    """φ_k, and how images are compared there."""

    network: Embedding  # φ_k.
    distance: Any  # d_k, from features [N, dim] to a scalar, as `ESTIMATORS` builds it.
    weight: float = 1  # λ_k.
    memory: FeatureMemory | None = None  # Of the student's latest features.
    spread: Spread | None = None  # Follows the features within a batch.

    def measure(self, features: torch.Tensor) -> torch.Tensor:
        """d_k of features [N, dim], which enter the memory; those that are there count beside them."""
        if self.memory is None:
            return self.distance(features)
        distance = self.distance(features, self.memory.before(features))
        self.memory.note(features)
        return distance
