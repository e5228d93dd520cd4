"""Distributions of features and labels together: equal ones are equal in both, label by label."""

from collections.abc import Sequence

import torch

from stylegan2_compress.distributions.sources import DatasetImages, Source, TeacherImages
from stylegan2_compress.distributions.statistics import Features, Statistics, reference_statistics


def at_labels(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Features [N, dim] at the place of their label, and 0 at those of the others: [N, labels * dim], for moments.

    Args:
        labels: [N, labels], one-hot.
    """
    return (labels.to(features)[:, :, None] * features[:, None]).flatten(1)


def beside_labels(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Features [N, dim] and labels [N, labels], one-hot, in one tensor: [N, dim + labels], for `mmd.same_label`."""
    return torch.cat([features, labels.to(features)], dim=1)


def labelled_statistics(
    source: Source, embeddings: Sequence[Features], shares: Sequence[float], *, samples: int, bank: int = 0
) -> list[Statistics]:
    """Statistics of features and labels over a source's images, from those of each label, which are cached.

    Args:
        source: a teacher's or a data set's images, of which each label gets its share.
        embeddings: frozen networks, on the source's device.
        shares: of the labels, see `shares_of`.
        samples: number of images that moments are taken over, of all labels together.
        bank: number of images whose features are kept, likewise.

    Returns:
        Statistics by embedding, on the source's device: moments of `at_labels`, or a bank of `beside_labels` and its
        moments.

    Raises:
        UserError: there is one image of a label alone.
    """
    by_label = []
    for label, share in enumerate(shares):
        if not share:
            by_label.append([_of_nothing(embedding, source.device) for embedding in embeddings])
            continue
        part = source.of_class(label, len(shares))
        most = part.size or max(samples, bank)
        rows = min(max(round(bank * share), 1), most) if bank else 0
        count = max(min(max(round(samples * share), 2), most), rows)
        found = reference_statistics(part, embeddings, samples=count, bank=min(max(rows, 2), most) if bank else 0)
        by_label.append([Statistics(each.m1, each.m2, each.bank[:rows]) for each in found])
    return [_together(each, shares) for each in zip(*by_label, strict=True)]


def shares_of(source: Source, classes: int) -> list[float]:
    """How many of a source's images have each of so many labels, as shares of all."""
    if isinstance(source, TeacherImages):
        return source.labels.drawn.shares()
    if isinstance(source, DatasetImages):
        return [source.of_class(label, classes).size / source.size for label in range(classes)]
    raise TypeError(f'{type(source).__name__} does not say what labels its images have')


def _of_nothing(embedding: Features, device: torch.device) -> Statistics:
    """The statistics of a label that no image has."""
    zeros = torch.zeros([embedding.dim], device=device)
    return Statistics(zeros, zeros, zeros.expand(0, -1))


def _together(parts: Sequence[Statistics], shares: Sequence[float]) -> Statistics:
    """The statistics of all labels from those of each."""
    if any(len(part.bank) for part in parts):
        each_label = torch.eye(len(parts), device=parts[0].bank.device)
        pairs = zip((part.bank for part in parts), each_label, strict=True)
        bank = torch.cat([beside_labels(of_one, label.expand(len(of_one), -1)) for of_one, label in pairs])
        return Statistics(bank.mean(0), bank.square().mean(0), bank)
    m1, m2 = (
        torch.cat([share * getattr(part, name) for share, part in zip(shares, parts, strict=True)])
        for name in ('m1', 'm2')
    )
    return Statistics(m1, m2, parts[0].bank)
