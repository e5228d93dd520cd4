"""Distances between data and generated images in any embedding: `fd:SPEC`, `kd:SPEC`, `dc:SPEC`."""

from abc import abstractmethod

import dnnlib
import numpy as np
from training.networks import Generator

from stylegan2_compress import embeddings
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation import features, samples
from stylegan2_compress.evaluation.base import Metric, Setting
from stylegan2_compress.evaluation.distances import density_coverage, frechet_distance, kernel_distance
from stylegan2_compress.evaluation.names import HOST_SAMPLES, count_text, slug

NEIGHBOURS = 5  # As in the paper on density and coverage.


class EmbeddingMetric(Metric):
    """Compares features of generated images with the features of all images of the data.

    Attributes:
        kind: name of the metric in `--metrics`.

    Args:
        spec: of the embedding.
        samples: number of images to generate; None for 50,000.
    """

    kind: str
    random_noise = True
    samples: int

    def __init__(self, spec: str, samples: int | None):
        super().__init__(samples or HOST_SAMPLES)
        self.spec = str(embeddings.parse(spec))
        self.name = f'{self.kind}{count_text(self.samples)}{self.suffix()}_{slug(self.spec)}'

    def suffix(self) -> str:
        """A parameter of the metric, as part of its name."""
        return ''

    def prepare(self, setting: Setting) -> None:
        super().prepare(setting)
        self.embedding = embeddings.load(self.spec, setting.device, setting.training_set_kwargs['resolution'])

    def facts(self) -> dict[str, object]:
        return dict(embedding=self.embedding.spec, fingerprint=self.embedding.fingerprint)

    def measure(self, G: Generator, seed: int) -> dict[str, float]:
        kwargs, device = self.setting.training_set_kwargs, self.setting.device
        fingerprint, reals = self.embedding.fingerprint, self.setting.reals
        if fingerprint not in reals:
            reals[fingerprint] = features.data_features(self.embedding, kwargs, device)
        images = (fingerprint, id(G), self.samples, seed)
        if images not in self.setting.latest:
            labels = samples.draw_labels(kwargs, G.c_dim, self.samples, seed)
            self.setting.latest.clear()
            self.setting.latest[images] = features.generator_features(self.embedding, G, labels, seed, device)
        return self.compare(reals[fingerprint], self.setting.latest[images], np.random.default_rng(seed))

    @abstractmethod
    def compare(self, reals: np.ndarray, fakes: np.ndarray, rnd: np.random.Generator) -> dict[str, float]:
        """Results by name, from features [N, dim] and [samples, dim]."""


class FrechetDistance(EmbeddingMetric):
    """Fréchet distance: FID in the features of any embedding."""

    kind = 'fd'

    def compare(self, reals: np.ndarray, fakes: np.ndarray, rnd: np.random.Generator) -> dict[str, float]:
        return {self.name: frechet_distance(fakes, reals)}


class KernelDistance(EmbeddingMetric):
    """Kernel distance: KID in the features of any embedding, over 100 subsets of at most 1,000 images."""

    kind = 'kd'

    def compare(self, reals: np.ndarray, fakes: np.ndarray, rnd: np.random.Generator) -> dict[str, float]:
        return {self.name: kernel_distance(fakes, reals, rnd)}


class DensityCoverage(EmbeddingMetric):
    """Density and coverage against as many real images, drawn at random, as are generated (or all of them)."""

    kind = 'dc'

    def suffix(self) -> str:
        return str(NEIGHBOURS)

    def prepare(self, setting: Setting) -> None:
        super().prepare(setting)
        count = len(dnnlib.util.construct_class_by_name(**setting.training_set_kwargs))
        if count <= NEIGHBOURS:
            data = setting.training_set_kwargs['path']
            raise UserError(f'--data={data} has {count} images, but {self.name} needs more than {NEIGHBOURS}.')

    def compare(self, reals: np.ndarray, fakes: np.ndarray, rnd: np.random.Generator) -> dict[str, float]:
        some = reals[rnd.permutation(len(reals))[: len(fakes)]]
        density, coverage = density_coverage(some, fakes, NEIGHBOURS, self.setting.device)
        return {f'{self.name}_density': density, f'{self.name}_coverage': coverage}
