"""Precision and recall are computed of any number of images on a CPU."""

import functools
from collections.abc import Callable

import torch
from metrics import precision_recall

WHAT = 'pr metrics: distances on a CPU are computed in FP32 and rounded to FP16'
WHY = 'torch.cdist has no FP16 kernel for 25 vectors or fewer on a CPU: NotImplementedError after all images are seen.'
VERSIONS = 'all of them'


def needed() -> bool:
    """Whether distances of a few FP16 vectors cannot be computed on a CPU."""
    few = torch.zeros([1, 2, 2], dtype=torch.float16)
    try:
        torch.cdist(few, few)
    except RuntimeError:
        return True
    return False


def apply() -> None:
    """Let the distances of FP16 features on a CPU, of any number, be those of FP32, rounded."""
    precision_recall.compute_distances = _in_fp32(precision_recall.compute_distances)


def _in_fp32(compute: Callable) -> Callable:
    @functools.wraps(compute)
    def compute_distances(row_features: torch.Tensor, col_features: torch.Tensor, **more) -> torch.Tensor:
        if row_features.device.type != 'cpu':
            return compute(row_features=row_features, col_features=col_features, **more)
        distances = compute(row_features=row_features.float(), col_features=col_features.float(), **more)
        return distances.to(row_features.dtype)

    return compute_distances
