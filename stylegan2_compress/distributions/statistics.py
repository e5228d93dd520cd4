"""Reference statistics: moments and features of a source's images in an embedding space, computed once and cached."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from stylegan2_compress import caches, distributed, files
from stylegan2_compress.distributions.moments import MomentAccumulator
from stylegan2_compress.distributions.sources import Source, check_size
from stylegan2_compress.embeddings.preprocessing import Preprocessing
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import devices
from stylegan2_compress.host.progress_bars import progress_bar

CACHE = 'statistics'  # The directory in our cache.
FEATURE_BYTES = 2**28  # Of one embedding's features at a time: of all layers of VGG-19, an image of 256 px has 77 MB.


class Features(Protocol):
    """What statistics need of an embedding.

    Attributes:
        spec: canonical spec string.
        dim: width of the feature vectors.
        preprocessing: how images are prepared.
        fingerprint: SHA-256 of all that determines the features, in hexadecimal.
        library: whose code computes them, with its version, where that is not in the fingerprint.
    """

    spec: str
    dim: int
    preprocessing: Preprocessing

    @property
    def fingerprint(self) -> Any: ...  # A string; a cached_property is not seen as one.

    @property
    def library(self) -> str: ...

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features [N, dim] of images [N, C, H, W] in [-1, 1]."""
        ...


@dataclass(frozen=True)
class Statistics:
    """Statistics of a source's images in the space of one embedding."""

    m1: torch.Tensor  # [dim] float64, the first raw moment.
    m2: torch.Tensor  # [dim] float64, the second raw moment.
    bank: torch.Tensor  # [bank, dim] float32, the features of the first images.

    def to(self, device: torch.device | str) -> 'Statistics':
        """The same statistics on another device; in single precision where that has no other."""
        m1, m2 = (m if devices.has_float64(device) else m.float() for m in (self.m1, self.m2))
        return Statistics(m1.to(device), m2.to(device), self.bank.to(device))


def reference_statistics(
    source: Source, embeddings: Sequence[Features], *, samples: int, bank: int = 0
) -> list[Statistics]:
    """Moments and features of each embedding over the first images of a source (DiME, arXiv 2405.11614).

    Statistics that are not in the cache yet are computed in one pass over the images for all embeddings. Several
    processes share the work and have equal results, which rank 0 writes to the cache.

    Args:
        source: of the images.
        embeddings: frozen networks, on the source's device.
        samples: number of images that moments are taken over.
        bank: number of images whose features are kept, at most `samples`.

    Returns:
        Statistics by embedding, on the source's device.

    Raises:
        UserError: the source has fewer images, or features are not finite.
    """
    writes = distributed.is_rank_zero()
    cached = [_read_cache(source, embedding, samples, bank) if writes else None for embedding in embeddings]
    # Rank 0 decides: another process might see a file that has only just been written.
    cached = distributed.broadcast_object(cached, source.device)
    missing = [embedding for embedding, hit in zip(embeddings, cached, strict=True) if hit is None]
    computed = dict(zip(missing, compute_statistics(source, missing, samples, bank), strict=True)) if missing else {}
    if writes:
        for embedding, statistics in computed.items():
            write = functools.partial(
                write_statistics, source=source, samples=samples, embeddings=[embedding], statistics=[statistics]
            )
            caches.try_to_cache(CACHE, cache_path(source, embedding, samples, bank).name, write)
    return [(hit or computed[embedding]).to(source.device) for embedding, hit in zip(embeddings, cached, strict=True)]


@torch.no_grad()
def compute_statistics(source: Source, embeddings: Sequence[Features], samples: int, bank: int = 0) -> list[Statistics]:
    """`reference_statistics` without the cache: in float64, with memory that does not grow with `samples`."""
    check_size(source, 'samples', samples)
    group = distributed.world()
    rank, processes = distributed.rank(), distributed.world_size()
    accumulators = [MomentAccumulator(embedding.dim, source.device) for embedding in embeddings]
    banks = [torch.zeros([bank, embedding.dim], device=source.device) for embedding in embeddings]
    chunks = range(-(-samples // source.chunk))[rank::processes]
    if rank == 0:
        print(f'Computing reference statistics over {samples:,} images{source.of_label}...')
    for index in progress_bar(chunks, shown=rank == 0, desc='Reference statistics'):
        start = index * source.chunk
        images = source.draw(index)[0][: samples - start]
        for embedding, accumulator, kept in zip(embeddings, accumulators, banks, strict=True):
            row = start
            for part in images.split(images_at_a_time(embedding)):
                features = embedding(part)
                accumulator.update(features)
                rows = kept[row : row + len(features)]
                rows.copy_(features[: len(rows)])
                row += len(features)
    for embedding, accumulator, kept in zip(embeddings, accumulators, banks, strict=True):
        accumulator.merge_processes(group)
        distributed.sum_over_processes(kept, group)  # Each row is zero in all processes but one.
        if not accumulator.moments()[1].isfinite().all():
            raise UserError(f'Embedding {embedding.spec} is not finite on the images to match: add @dtype=fp32.')
    return [Statistics(*accumulator.moments(), kept) for accumulator, kept in zip(accumulators, banks, strict=True)]


def images_at_a_time(embedding: Features) -> int:
    """Of how many images features are computed together: as many as `FEATURE_BYTES` hold."""
    return max(FEATURE_BYTES // (4 * embedding.dim), 1)


# --- Files: one format for the cache and for `stylegan2-compress stats` -----------------------------------------------


def write_statistics(
    path: str | Path,
    source: Source,
    samples: int,
    embeddings: Sequence[Features],
    statistics: Sequence[Statistics],
) -> None:
    """Write an NPZ file of statistics, with a key that names everything that determines them.

    Args:
        path: file to write.
        source: of the images.
        samples: number of images that moments were taken over.
        embeddings: frozen networks.
        statistics: one per embedding.

    Raises:
        UserError: the file cannot be written.
    """
    key = {
        'images': source.facts | {'samples': samples},
        'embeddings': [_embedding_facts(embedding) for embedding in embeddings],
    }
    arrays: dict[str, Any] = {
        f'{index}/{name}': array.cpu().numpy()
        for index, (_, each) in enumerate(zip(embeddings, statistics, strict=True))
        for name, array in [('m1', each.m1), ('m2', each.m2), ('bank', each.bank)]
    }
    with files.atomic_write(path) as file:
        np.savez(file, key=json.dumps(key), **arrays)


def read_statistics(
    path: str | Path, source: Source, embedding: Features, samples: int | None = None, bank: int | None = 0
) -> Statistics:
    """Read the statistics of one embedding over a source's images.

    Args:
        path: a file by `write_statistics`.
        source: of the images that the statistics must be of; its seed may be another.
        embedding: whose statistics are wanted.
        samples: number of images that they must have been taken over; None for any number.
        bank: number of images whose features are wanted; None for all in the file, at least two.

    Returns:
        The statistics, on the CPU.

    Raises:
        UserError: the file cannot be read, or its statistics are of other images or of another embedding.
    """
    try:
        with files.opened(path) as (file, _), np.load(file, allow_pickle=False) as archive:
            key = json.loads(str(archive['key']))
            indices = {facts['embedding']: index for index, facts in enumerate(key['embeddings'])}
            images, index = key['images'], indices.get(embedding.spec)
            if index is None:
                raise UserError(
                    f'{path} has no statistics of embedding {embedding.spec}, only of {", ".join(indices)}.'
                )
            wanted = source.facts | ({} if samples is None else {'samples': samples})
            leave_out = ('seed', 'samples') if samples is None else ('seed',)
            _refuse_differences(path, source, images, wanted, leave_out)
            _refuse_differences(path, source, key['embeddings'][index], _embedding_facts(embedding))
            m1, m2, features = (torch.from_numpy(archive[f'{index}/{name}']) for name in ('m1', 'm2', 'bank'))
    except (*files.DAMAGED_NPZ, TypeError) as error:
        raise UserError(f'{path} holds no statistics: write them with `stylegan2-compress stats`.') from error
    if bank is None and len(features) < 2:
        raise UserError(
            f'{path} has no features of images, with which kernels compare: write it again with `stylegan2-compress '
            'stats --bank 2048`.'
        )
    bank = len(features) if bank is None else bank
    if len(features) < bank:
        raise UserError(
            f'{path} has the features of {len(features)} images, but --loss-arg bank={bank} needs more: write it '
            f'again with --bank {bank}.'
        )
    return Statistics(m1, m2, features[:bank])


def cache_path(source: Source, embedding: Features, samples: int, bank: int) -> Path:
    """Path of the cache file of these statistics, whether or not it exists."""
    key = json.dumps([source.facts, samples, bank, _embedding_facts(embedding), embedding.library])
    return caches.cache_dir(CACHE, f'{hashlib.sha256(key.encode()).hexdigest()}.npz')


def _read_cache(source: Source, embedding: Features, samples: int, bank: int) -> Statistics | None:
    """Cached statistics, or None if the file is missing, damaged or of something else."""
    try:
        return read_statistics(cache_path(source, embedding, samples, bank), source, embedding, samples, bank)
    except UserError:
        return None


def _refuse_differences(
    path: str | Path, source: Source, facts: Mapping, wanted: Mapping, leave_out: Sequence[str] = ()
) -> None:
    differences = [
        f'{name} {_shortened(facts.get(name))}, not {_shortened(wanted.get(name))}'
        for name in dict.fromkeys([*wanted, *facts])
        if name not in leave_out and facts.get(name) != wanted.get(name)
    ]
    if differences:
        way_out = f"write it again with `stylegan2-compress stats` and this run's {source.options}, or leave it out"
        if source.options is None:
            way_out = 'leave it out, as there are no such files of a --subset or of --labels'
        raise UserError(f'{path} does not fit this run ({"; ".join(differences)}): {way_out}.')


def _shortened(fact: object) -> str:
    """A fact for an error message; digests are shortened to their beginning."""
    if fact in (None, ''):
        return 'none'
    return str(fact)[:8] if len(str(fact)) == 64 else str(fact)


def _embedding_facts(embedding: Features) -> dict[str, str]:
    """Everything that determines an embedding's features, by the names that error messages use."""
    return {
        'embedding': embedding.spec,
        'preprocessing': json.dumps(asdict(embedding.preprocessing)),
        'weights': embedding.fingerprint,
    }
