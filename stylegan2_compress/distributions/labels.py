"""Distributions of features and labels together: each label with a space of its own."""

from collections.abc import Sequence

import torch

from stylegan2_compress.distributions.sources import DatasetImages, Source, TeacherImages
from stylegan2_compress.distributions.statistics import Features, Statistics, reference_statistics


def with_labels(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Features [N, dim] at the place of their label, and 0 at those of the others: [N, labels * dim].

    Equal distributions of these are equal distributions of features and labels together, whatever compares them.

    Args:
        labels: [N, labels], one-hot.
    """
    return (labels.to(features)[:, :, None] * features[:, None]).flatten(1)


def labelled_statistics(
    source: Source, embeddings: Sequence[Features], classes: int, *, samples: int, bank: int = 0
) -> list[Statistics]:
    """Statistics of `with_labels` over a source's images, from those of each label, which are cached.

    Args:
        source: a teacher's or a data set's images, of which each label gets its share.
        embeddings: frozen networks, on the source's device.
        classes: number of labels.
        samples: number of images that moments are taken over, of all labels together.
        bank: number of images whose features are kept, likewise.

    Returns:
        Statistics by embedding, on the source's device.

    Raises:
        UserError: there are fewer than two images of a label.
    """
    by_label = []
    parts = [source.of_class(label, classes) for label in range(classes)]
    shares = shares_of(source, parts)
    for part, share in zip(parts, shares, strict=True):
        count, kept = (min(max(round(number * share), 2), part.size or number) for number in (samples, bank or 2))
        by_label.append(reference_statistics(part, embeddings, samples=max(count, kept), bank=kept if bank else 0))
    return [_together(each, shares) for each in zip(*by_label, strict=True)]


def shares_of(source: Source, parts: Sequence[Source]) -> list[float]:
    """How many of a source's images have each label, as shares of all; `parts` are those with one label each."""
    if isinstance(source, TeacherImages):
        return source.labels.table.mean(0).tolist()
    if isinstance(source, DatasetImages):
        return [part.size / source.size for part in parts]  # pyright: ignore[reportOptionalOperand]  # Data have one.
    raise TypeError(f'{type(source).__name__} does not say what labels its images have')


def _together(parts: Sequence[Statistics], shares: Sequence[float]) -> Statistics:
    """The statistics of all labels from those of each."""
    banks = []
    for label, part in enumerate(parts):
        labels = torch.zeros([len(part.bank), len(parts)], device=part.bank.device)
        labels[:, label] = 1
        banks.append(with_labels(part.bank, labels))
    m1, m2 = (
        torch.cat([share * getattr(part, name) for share, part in zip(shares, parts, strict=True)])
        for name in ('m1', 'm2')
    )
    return Statistics(m1, m2, torch.cat(banks))
