"""Distributions of features and labels together: equal ones are equal in both, label by label."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stylegan2_compress.distributions.sources import Source
from stylegan2_compress.distributions.statistics import Features, Statistics, reference_statistics


def beside_labels(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Features [N, dim] and labels [N, labels], one-hot, in one tensor: [N, dim + labels]."""
    return torch.cat([features, labels.to(features)], dim=1)


@dataclass(frozen=True)
class LabelledStatistics:
    """Statistics of a source's images of each label, in the space of one embedding."""

    m1: torch.Tensor  # [labels, dim] float64, the first raw moment of each label's images.
    m2: torch.Tensor  # [labels, dim] float64, the second.
    bank: torch.Tensor  # [bank, dim + labels] float32: features `beside_labels`, in the order of these.
    shares: torch.Tensor  # [labels] float64: how many of all images have each label.

    def of_all(self) -> Statistics:
        """Moments of all images together, each label by its share."""
        m1, m2 = (self.shares @ moment for moment in (self.m1, self.m2))
        return Statistics(m1, m2, self.bank[:, : m1.shape[0]])


def labelled_statistics(
    source: Source, embeddings: Sequence[Features], shares: Sequence[float], *, samples: int, bank: int = 0
) -> list[LabelledStatistics]:
    """Statistics of features and labels over a source's images, from those of each label, which are cached.

    A label has two rows of the bank at least, so that they can be compared with each other. Where it has more or fewer
    rows than its share, the one in their labels makes up for that: it is the label's share of the images over that of
    the rows.

    Args:
        source: a teacher's or a data set's images, of which each label gets its share.
        embeddings: frozen networks, on the source's device.
        shares: of the labels, see `Source.shares`.
        samples: number of images that moments are taken over, of all labels together.
        bank: number of images whose features are kept, likewise.

    Returns:
        Statistics by embedding, on the source's device.

    Raises:
        UserError: there is one image of a label alone.
    """
    by_label = []
    for label, share in enumerate(shares):
        if not share:
            by_label.append([_of_nothing(embedding, source.device) for embedding in embeddings])
            continue
        part = source.of_class(label, len(shares))
        most = part.size or max(samples, bank, 2)
        rows = min(max(round(bank * share), 2), most) if bank else 0
        count = max(min(max(round(samples * share), 2), most), rows)
        by_label.append(reference_statistics(part, embeddings, samples=count, bank=rows))
    return [_together(each, shares) for each in zip(*by_label, strict=True)]


def _of_nothing(embedding: Features, device: torch.device) -> Statistics:
    """The statistics of a label that no image has."""
    zeros = torch.zeros([embedding.dim], device=device)
    return Statistics(zeros, zeros, zeros.expand(0, -1))


def _together(parts: Sequence[Statistics], shares: Sequence[float]) -> LabelledStatistics:
    """The statistics of all labels from those of each."""
    m1, m2 = (torch.stack([getattr(part, name) for part in parts]) for name in ('m1', 'm2'))
    bank, rows = torch.cat([part.bank for part in parts]), torch.tensor([len(part.bank) for part in parts])
    weights = torch.tensor(shares) * len(bank) / rows.clamp_min(1)
    labels = torch.diag(weights).repeat_interleave(rows, dim=0)
    return LabelledStatistics(m1, m2, beside_labels(bank, labels.to(bank.device)), m1.new_tensor(shares))
