"""The host's own metrics, by the host's own code: on any device, with any number of images."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import torch
from metrics import (
    frechet_inception_distance,
    inception_score,
    kernel_inception_distance,
    metric_main,
    metric_utils,
    perceptual_path_length,
    precision_recall,
)
from training.networks import Generator

from stylegan2_compress.embeddings.torchscript import INCEPTION, VGG16
from stylegan2_compress.evaluation.base import Metric, Setting
from stylegan2_compress.evaluation.data_statistics import of_the_data
from stylegan2_compress.evaluation.names import HOST_SAMPLES, host_name
from stylegan2_compress.evaluation.settings import MIRROR
from stylegan2_compress.host import downloads
from stylegan2_compress.host.devices import precision
from stylegan2_compress.host.progress_bars import progress_bar

DETECTORS = {'fid': INCEPTION, 'kid': INCEPTION, 'is': INCEPTION, 'pr': VGG16, 'ppl': VGG16}
MIRRORING = ('fid', 'kid', 'pr')  # Use the data, with mirrored images if asked for; the names in `_full` never do.
COMPUTED_BY = (  # Each metric is one call of one of these functions; the argument is the number of generated images.
    (frechet_inception_distance, 'compute_fid', 'num_gen'),
    (kernel_inception_distance, 'compute_kid', 'num_gen'),
    (precision_recall, 'compute_pr', 'num_gen'),
    (inception_score, 'compute_is', 'num_gen'),
    (perceptual_path_length, 'compute_ppl', 'num_samples'),
)


class HostMetric(Metric):
    """A metric of the host's `metric_main`.

    The result equals that of the host's calc_metrics.py on the same device, if the data's statistics are in its cache
    and the random generators of torch and NumPy are seeded just before.

    Args:
        metric: its name in `metric_main`.
        samples: number of images to generate; None for the host's 50,000.
    """

    samples: int
    random_noise = True  # Path lengths keep it for two images, and draw it anew for the next.

    def __init__(self, metric: str, samples: int | None):
        super().__init__(samples or HOST_SAMPLES)
        self.metric = metric
        self.name = host_name(metric, self.samples)
        self.mirrors = metric.startswith(MIRRORING) and not metric.endswith('_full')

    def prepare(self, setting: Setting) -> None:
        super().prepare(setting)
        require_detector(self.metric)
        downloads.writable_cache(downloads.STATISTICS)

    def facts(self) -> dict[str, object]:
        return {MIRROR: bool(self.setting.training_set_kwargs.get('xflip'))} if self.mirrors else {}

    def measure(self, G: Generator, seed: int) -> dict[str, float]:
        with progress_bar(total=1000, desc=self.name, bar_format='{l_bar}{bar}| {elapsed}') as bar:
            progress = metric_utils.ProgressMonitor(
                progress_fn=lambda done, _total: bar.update(min(done, bar.total) - bar.n)
            )
            with generating(self.samples), seeding(seed), of_the_data():
                result = metric_main.calc_metric(
                    metric=self.metric,
                    G=G,
                    G_kwargs=precision(self.setting.device),
                    dataset_kwargs=self.setting.training_set_kwargs,
                    device=self.setting.device,
                    progress=progress,
                )
        return {self.name + name.removeprefix(self.metric): value for name, value in result.results.items()}


@contextlib.contextmanager
def generating(samples: int) -> Iterator[None]:
    """Make the host's metrics generate `samples` images instead of the number they ask for."""
    with contextlib.ExitStack() as stack:
        for module, name, argument in COMPUTED_BY:
            compute = getattr(module, name)
            stack.enter_context(
                mock.patch.object(module, name, functools.partial(_call_with, compute, {argument: samples}))
            )
        yield


def _call_with(compute: Callable, changed: dict, *args, **kwargs):
    return compute(*args, **{**kwargs, **changed})


@contextlib.contextmanager
def seeding(seed: int) -> Iterator[None]:
    """Make the images that the host's metrics generate depend on the seed only.

    Without this they would also depend on whether the data's statistics are in the cache, because computing them draws
    from torch's random generator.
    """
    compute = metric_utils.compute_feature_stats_for_generator

    def compute_seeded(*args, **kwargs):
        _seed_all(seed)
        return compute(*args, **kwargs)

    with mock.patch.object(metric_utils, 'compute_feature_stats_for_generator', compute_seeded):
        _seed_all(seed)  # For path lengths, which compute no such features.
        yield


def _seed_all(seed: int) -> None:
    np.random.seed(seed)  # noqa: NPY002  (the host draws from it)
    torch.manual_seed(seed)


def require_detector(metric: str) -> None:
    """Download the detector of one of the host's metrics, unless it is in the host's cache.

    Raises:
        UserError: it cannot be downloaded.
    """
    url = next(url for prefix, url in DETECTORS.items() if metric.startswith(prefix))
    way_out = f'leave out --metrics={metric}, or get the file in another way and save it as {downloads.place_of(url)}'
    downloads.download(url, way_out=way_out)
