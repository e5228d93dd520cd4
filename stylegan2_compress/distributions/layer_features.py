"""Features of several layers of an embedding as one vector, and their moments over a reference."""

import copy
import functools
from collections.abc import Sequence

import numpy as np
import torch

from stylegan2_compress.distributions import sources, statistics
from stylegan2_compress.embeddings import Embedding
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import datasets


class LayerFeatures:
    """Feature maps of a frozen network, flattened and put one behind the other.

    To `references` it is an embedding like any other.

    Attributes:
        sizes: how many entries of the vector each layer has.
        dim: of the vector.

    Args:
        embedding: shows its layers.
        image_shape: (C, H, W) of the images.
        layers: which, counted from 0; all by default. See `parse_layers`.
        pool: maps with a larger side are averaged over parts of the image until they have this one; 0: never.
        device: where the embedding is.

    Raises:
        UserError: The embedding shows no layers, or has none with such a number.
    """

    def __init__(
        self,
        embedding: Embedding,
        image_shape: Sequence[int],
        layers: str | int | Sequence[int] | None = None,
        pool: int = 0,
        device: torch.device | str = 'cpu',
    ):
        if not embedding.has_layers:
            raise UserError(
                f'Embedding {embedding.spec} shows no layers: use one that does, such as vgg19_bn or '
                'efficientnet_lite0.'
            )
        self.embedding = embedding
        self.layers = parse_layers(layers)
        self.pool = pool
        with torch.no_grad():
            maps = self._maps(torch.zeros([1, *image_shape], device=device))
        self.sizes = [x[0].numel() for x in maps]
        self.dim = sum(self.sizes)
        self.spec = f'{embedding.spec} layers={self.layers} pool={pool}'
        self.fingerprint = embedding.fingerprint
        self.preprocessing = embedding.preprocessing

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """[N, dim] float32 of images [N, C, H, W] in [-1, 1]."""
        return torch.cat([x.flatten(1) for x in self._maps(images)], dim=1)

    def _maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps = self.embedding.layers(images)
        if self.layers is not None:
            if max(self.layers) >= len(maps):
                raise UserError(
                    f'--loss-arg layers={max(self.layers)} is none of the {len(maps)} layers, counted from 0, that '
                    f'embedding {self.embedding.spec} has.'
                )
            maps = [maps[layer] for layer in self.layers]
        if self.pool:
            maps = [torch.nn.functional.adaptive_avg_pool2d(x, min(self.pool, x.shape[-1])) for x in maps]
        return maps


def parse_layers(layers: str | int | Sequence[int] | None) -> list[int] | None:
    """Layer numbers from a number, a list, or text such as `0,4-7`; None stands for all.

    Raises:
        UserError: It is nothing of that.
    """
    if layers is None:
        return None
    found = set()
    try:
        for part in [layers] if isinstance(layers, int) else layers.split(',') if isinstance(layers, str) else layers:
            first, dash, last = str(part).partition('-')
            found |= set(range(int(first), int(last if dash else first) + 1))
    except (ValueError, TypeError):
        found = set()
    if not found:
        raise UserError(f'--loss-arg layers={layers} must be numbers from 0 on, such as 3 or 0,4-7.')
    return sorted(found)


def reference_moments(
    features: LayerFeatures, source: sources.Source, samples: int | None, classes: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased variance of features over a source of images, cached.

    Args:
        features: what is computed of each image.
        source: a teacher's images, or a data set's.
        samples: how many images; None for all of a data set.
        classes: how many labels there are, each of which gets moments of its own (over its share of `samples`); 0 for
            moments of all images together.

    Returns:
        Two tensors [max(classes, 1), dim], float32, on the source's device.

    Raises:
        UserError: There are fewer than two images, of a label where it matters.
    """
    sources = [of_class(source, label, classes) for label in range(classes)] or [source]
    means, variances = [], []
    for label, part in enumerate(sources):
        count = part.size if samples is None else -(-samples // len(sources))
        if part.size is not None:
            count = min(count, part.size) if classes else count
        if count < 2:
            what = f' of label {label}' if classes else ''
            raise UserError(f'There are {count} images{what} to take a variance over; two is the least.')
        (found,) = statistics.statistics_of(part, [features], samples=count)
        means.append(found.m1)
        variances.append((found.m2 - found.m1.square()).clamp_min(0) * (count / (count - 1)))
    return torch.stack(means).float(), torch.stack(variances).float()


def of_class(source: sources.Source, label: int, classes: int) -> sources.Source:
    """The images of one label among a source's."""
    part = copy.copy(source)
    part.facts = source.facts | {'label': label}
    if isinstance(source, sources.TeacherImages):
        part.labels = copy.copy(source.labels)
        part.labels.table = np.eye(classes, dtype=np.float32)[label : label + 1]
        return part
    members = np.flatnonzero(datasets.labels(source.training_set).argmax(1) == label)
    part.size = len(members)
    part._order = functools.lru_cache(2)(
        lambda epoch: np.random.default_rng([source.facts['seed'], epoch]).permutation(members)
    )
    return part
