"""Metrics of a run's snapshots: the host's, and those of `evaluate` that need no second network."""

import os
from typing import Any

import dnnlib
import torch
from metrics import metric_main
from training.networks import Generator

from stylegan2_compress import distributed
from stylegan2_compress.evaluation import metrics, records
from stylegan2_compress.evaluation.base import Metric, Setting
from stylegan2_compress.host import datasets, downloads

SEED = 0  # All snapshots make images of the same z.


def is_hosts(name: str) -> bool:
    """Whether a metric is measured by the host's code, in all processes."""
    return metric_main.is_valid_metric(name)


def share_hosts_cache(device: torch.device) -> bool:
    """Let all processes use the host's cache of rank 0, where it keeps its statistics of data.

    Args:
        device: of this process.

    Returns:
        Whether all can: with a temporary cache, they have to be on one machine.
    """
    shared = distributed.result_of_rank_zero(lambda: str(downloads.writable_cache(downloads.STATISTICS).parent))
    if shared != dnnlib.make_cache_dir_path():
        os.environ[downloads.CACHE] = shared
    return not distributed.any_process(not os.path.isdir(shared), device)


class OwnMetrics:
    """Metrics that are not the host's, each prepared when it is first measured. Only rank 0 measures them.

    Args:
        training_set_kwargs: arguments of the host's data set.
        samples: number of images that each generates; None for its own number.
        device: where to compute.
    """

    def __init__(self, training_set_kwargs: dict, samples: int | None, device: torch.device):
        self.training_set_kwargs = training_set_kwargs
        self.samples = samples
        self.device = device
        self._prepared: dict[str, Metric] = {}

    def measure(self, name: str, G: Generator) -> dict[str, Any]:
        """What the host's `calc_metric` returns, for a generator in eval mode on the device."""
        metric = self._prepared.get(name)
        if metric is None:
            (metric,) = metrics.parse(name, self.samples)
            metric.prepare(Setting(self._dataset_kwargs(G), self.device, G))
            self._prepared[name] = metric
        record = records.measured(metric, G, SEED)
        metric.setting.latest.clear()  # They are of weights that change.
        return record

    def _dataset_kwargs(self, G: Generator) -> dict:
        return datasets.metric_dataset_kwargs(self.training_set_kwargs['path'], G, mirror=False)
