"""Metrics run on machines without an accelerator."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator

import torch
from metrics import metric_utils, perceptual_path_length

WHAT = 'metrics: no pinned memory where there is no accelerator to copy it to'
WHY = 'Labels of generated images go through Tensor.pin_memory(), which raises RuntimeError without an accelerator.'
VERSIONS = 'torch >= 2, without CUDA or another accelerator'


def needed() -> bool:
    """Whether memory cannot be pinned; where there is CUDA it can, and trying would claim the first GPU."""
    if torch.cuda.is_available():
        return False
    try:
        torch.empty([1]).pin_memory()
    except RuntimeError:
        return True
    return False


def apply() -> None:
    """Make `pin_memory` do nothing while a metric looks at images or paths."""
    metric_utils.compute_feature_stats_for_dataset = _with_plain_loader(metric_utils.compute_feature_stats_for_dataset)
    metric_utils.compute_feature_stats_for_generator = _without_pinning(
        metric_utils.compute_feature_stats_for_generator
    )
    perceptual_path_length.compute_ppl = _without_pinning(perceptual_path_length.compute_ppl)


def _with_plain_loader(compute: Callable) -> Callable:
    """Give the data loader the host's own options less `pin_memory`, about which it would warn."""

    @functools.wraps(compute)
    def compute_feature_stats_for_dataset(*args, data_loader_kwargs: dict | None = None, **kwargs):
        if data_loader_kwargs is None:
            # Torch warns of more workers than cores.
            data_loader_kwargs = {'num_workers': min(3, os.cpu_count() or 1), 'prefetch_factor': 2}
        return compute(*args, data_loader_kwargs=data_loader_kwargs, **kwargs)

    return compute_feature_stats_for_dataset


def _without_pinning(compute: Callable) -> Callable:
    @functools.wraps(compute)
    def compute_without_pinning(*args, **kwargs):
        with _pin_memory_does_nothing():
            return compute(*args, **kwargs)

    return compute_without_pinning


@contextlib.contextmanager
def _pin_memory_does_nothing() -> Iterator[None]:
    # Shadows the method of torch.Tensor's base class.
    torch.Tensor.pin_memory = lambda self: self  # pyright: ignore[reportAttributeAccessIssue]  # The host gives no device.
    try:
        yield
    finally:
        del torch.Tensor.pin_memory
