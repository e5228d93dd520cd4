"""Features of several layers of an embedding as one vector, and their moments over a reference."""

from collections.abc import Sequence

import torch

from stylegan2_compress.distributions.sources import Source
from stylegan2_compress.distributions.statistics import reference_statistics
from stylegan2_compress.embeddings import Embedding
from stylegan2_compress.errors import UserError


class LayerFeatures:
    """Feature maps of a frozen network, flattened and concatenated.

    For `statistics`, it is an embedding like any other.

    Attributes:
        sizes: number of entries of the vector by layer.
        sides: of the feature maps by layer, the root of height times width.
        dim: of the vector.

    Args:
        embedding: one with layers.
        image_shape: (C, H, W) of the images.
        layers: numbers of layers, from 0; all by default. See `parse_layers`.
        pool: maps with a larger side are averaged over parts of the image until they have this side; 0: never.
        device: where the embedding is.

    Raises:
        UserError: the embedding has no layers, or has no layer with such a number.
    """

    def __init__(
        self,
        embedding: Embedding,
        image_shape: Sequence[int],
        layers: str | int | Sequence[int] | None = None,
        pool: int = 0,
        device: torch.device | str = 'cpu',
    ):
        self.embedding = embedding
        self.layers = parse_layers(layers)
        self.pool = pool
        with torch.no_grad():
            maps = self._chosen(embedding.layers(torch.zeros([1, *image_shape], device=device)))
        self.sizes = [x[0].numel() for x in maps]
        self.sides = [x[0, 0].numel() ** 0.5 for x in maps]
        self.dim = sum(self.sizes)
        self.spec = f'{embedding.spec} layers={self.layers} pool={pool}'
        self.fingerprint = embedding.fingerprint
        self.library = embedding.library
        self.preprocessing = embedding.preprocessing

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features [N, dim] float32 of images [N, C, H, W] in [-1, 1]."""
        return self.of_maps(self.embedding.layers(images))

    def of_maps(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Features [N, dim] float32 of images of which the embedding's layers are known."""
        return torch.cat([x.flatten(1) for x in self._chosen(maps)], dim=1).float()

    def _chosen(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        if self.layers is not None:
            if max(self.layers) >= len(maps):
                raise UserError(
                    f'--loss-arg layers={max(self.layers)} does not exist: embedding {self.embedding.spec} has the '
                    f'layers 0 to {len(maps) - 1}.'
                )
            maps = [maps[layer] for layer in self.layers]
        if self.pool:
            maps = [torch.nn.functional.adaptive_avg_pool2d(x, min(self.pool, x.shape[-1])) for x in maps]
        return maps


def parse_layers(layers: str | int | Sequence[int] | None) -> list[int] | None:
    """Sorted layer numbers from a number, a list, or text such as `0,4-7`; None (all layers) stays None.

    Raises:
        UserError: the value cannot be parsed, or names no layer.
    """
    if layers is None:
        return None
    parts = layers.split(',') if isinstance(layers, str) else [layers] if isinstance(layers, int) else layers
    try:
        numbers = sorted({number for part in parts for number in _parse_range(str(part))})
    except (ValueError, TypeError):
        numbers = []
    if not numbers:
        raise UserError(f'--loss-arg layers={layers} must be numbers from 0 on, such as 3 or 0,4-7.')
    return numbers


def _parse_range(text: str) -> range:
    first, dash, last = text.partition('-')
    return range(int(first), int(last if dash else first) + 1)


def reference_moments(
    features: LayerFeatures, source: Source, samples: int | None, classes: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased variance of features over the images of a source, cached.

    Args:
        features: computed for each image.
        source: a teacher's or a data set's images.
        samples: number of images; None for all of a source that has a limit.
        classes: number of labels, each of which gets its own moments (over its share of `samples`); 0 for moments of
            all images together.

    Returns:
        Two tensors [max(classes, 1), dim], float32, on the source's device. A label that no image has, which nothing
        asks for, has the mean of the others.

    Raises:
        UserError: there are fewer than two images, or fewer than two of a label.
    """
    parts = [source.of_class(label, classes) for label in range(classes)] or [source]
    means, variances, without_images = [], [], []
    for label, part in enumerate(parts):
        if part.size == 0:
            without_images.append(label)
            continue
        count = part.size if samples is None else -(-samples // len(parts))
        if count is None:
            raise ValueError('There is no limit of images: say how many samples.')
        if part.size is not None and classes:
            count = min(count, part.size)
        if count < 2:
            which = f' of label {label}' if classes else ''
            raise UserError(f'There are {count} images{which}: a variance needs at least two.')
        (statistics,) = reference_statistics(part, [features], samples=count)
        means.append(statistics.m1)
        variances.append((statistics.m2 - statistics.m1.square()).clamp_min(0) * (count / (count - 1)))
    for by_label in (means, variances):
        mean_of_all = torch.stack(by_label).mean(0)
        for label in without_images:
            by_label.insert(label, mean_of_all)
    return torch.stack(means).float(), torch.stack(variances).float()
