"""What a student is to match: statistics of images in an embedding space, computed once and kept.

A *source* is a sequence of images without end, in chunks: a teacher's, or a data set's. Each chunk depends on its index
and on the source's facts alone, so that processes can share the work, and a bank can be refreshed with images that no
one has seen before.
"""

import hashlib
import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from stylegan2_compress import distributed, files
from stylegan2_compress.distributions.moments import MomentAccumulator
from stylegan2_compress.distributions.sources import Source, check_size
from stylegan2_compress.embeddings import Embedding
from stylegan2_compress.errors import UserError
from stylegan2_compress.files import cache_dir


@dataclass(frozen=True)
class Statistics:
    """What one embedding makes of a source's images."""

    m1: torch.Tensor  # [dim] float64, the first raw moment.
    m2: torch.Tensor  # [dim] float64, the second raw moment.
    bank: torch.Tensor  # [bank, dim] float32, the features of the first images.


# --- Sources of images ------------------------------------------------------------------------------------------------


# --- Statistics -------------------------------------------------------------------------------------------------------


def statistics_of(source: Source, embeddings: Sequence[Embedding], *, samples: int, bank: int = 0) -> list[Statistics]:
    """Moments and features of each embedding over the first images of a source (DiME, arXiv 2405.11614).

    In one pass of the source for all embeddings that have none in the cache yet. Several processes share the work and
    have the same result, which the first one keeps in the cache.

    Args:
        source: of the images.
        embeddings: frozen networks, on the source's device.
        samples: over how many images the moments are taken.
        bank: how many images' features to keep, at most `samples`.

    Returns:
        Per embedding its statistics, on the source's device.

    Raises:
        UserError: the source has fewer images, or an embedding is not finite.
    """
    first = distributed.is_rank_zero()
    found = [_read_cache(source, embedding, samples, bank) if first else None for embedding in embeddings]
    # Rank 0 decides: another process might see a file that is just appearing.
    found = distributed.broadcast_object(found, source.device)
    missing = [embedding for embedding, cached in zip(embeddings, found, strict=True) if cached is None]
    made = dict(zip(missing, compute(source, missing, samples, bank), strict=True)) if missing else {}
    for embedding, new in made.items():
        if first:
            path = cache_path(source, embedding, samples, bank)
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, source, samples, [(embedding, new)])
    return [to(cached or made[embedding], source.device) for embedding, cached in zip(embeddings, found, strict=True)]


@torch.no_grad()
def compute(source: Source, embeddings: Sequence[Embedding], samples: int, bank: int = 0) -> list[Statistics]:
    """What `statistics_of` returns, without the cache: in float64, and in memory that does not grow with `samples`."""
    check_size(source, 'samples', samples)
    group, rank = distributed.world(), distributed.rank()
    moments = [MomentAccumulator(embedding.dim, source.device) for embedding in embeddings]
    banks = [torch.zeros([bank, embedding.dim], device=source.device) for embedding in embeddings]
    chunks = range(-(-samples // source.chunk))[rank :: distributed.world_size()]
    if rank == 0:
        print(f'Computing reference statistics over {samples:,} images...')
    quiet = (
        rank != 0 or not sys.__stderr__.isatty()
    )  # The host's Logger stands in for sys.stderr and would log the bar.
    for index in tqdm(chunks, desc='Reference statistics', file=sys.__stderr__, disable=quiet):
        start = index * source.chunk
        images = source.draw(index)[0][: samples - start]
        for embedding, accumulator, features in zip(embeddings, moments, banks, strict=True):
            new = embedding(images)
            accumulator.update(new)
            kept = features[start : start + len(new)]
            kept.copy_(new[: len(kept)])
    for embedding, accumulator, features in zip(embeddings, moments, banks, strict=True):
        accumulator.merge_processes(group)
        distributed.sum_over_processes(features, group)  # Each row is zero in all processes but one.
        if not accumulator.moments()[1].isfinite().all():
            raise UserError(f'Embedding {embedding.spec} is not finite on the images to match: add @dtype=fp32.')
    return [Statistics(*accumulator.moments(), features) for accumulator, features in zip(moments, banks, strict=True)]


def to(found: Statistics, device: torch.device) -> Statistics:
    """The same on another device."""
    return Statistics(found.m1.to(device), found.m2.to(device), found.bank.to(device))


# --- Files: one format for the cache and for `stylegan2-compress stats` -----------------------------------------------


def write(path: str | Path, source: Source, samples: int, of: Sequence[tuple[Embedding, Statistics]]) -> None:
    """Write statistics of a source's images, by embedding, with the key to all that determines them."""
    key = {'images': source.facts | {'samples': samples}, 'embeddings': [_facts(embedding) for embedding, _ in of]}
    arrays = {
        f'{index}/{name}': array.cpu().numpy()
        for index, (_, found) in enumerate(of)
        for name, array in [('m1', found.m1), ('m2', found.m2), ('bank', found.bank)]
    }
    with files.atomic_write(path) as file:
        np.savez(file, key=json.dumps(key), **arrays)


def read(
    path: str | Path, source: Source, embedding: Embedding, samples: int | None = None, bank: int | None = 0
) -> Statistics:
    """Read the statistics of one embedding over a source's images, on the CPU.

    Args:
        path: file written by `write`.
        source: whose images they are to be of, with any seed.
        embedding: whose statistics are wanted.
        samples: over how many images, or None for any number.
        bank: how many images' features are wanted, or None for all there are, at least two.

    Raises:
        UserError: it is no such file, or of other images, or of another embedding.
    """
    try:
        with files.opened(path) as (file, _), np.load(file, allow_pickle=False) as archive:
            key = json.loads(str(archive['key']))
            of = {facts['embedding']: index for index, facts in enumerate(key['embeddings'])}
            images, index = key['images'], of.get(embedding.spec)
            if index is None:
                raise UserError(f'{path} has no statistics of embedding {embedding.spec}, but of {", ".join(of)}.')
            wanted = source.facts | ({} if samples is None else {'samples': samples})
            _refuse_differences(path, images, wanted, leave_out=('seed', 'samples') if samples is None else ('seed',))
            _refuse_differences(path, key['embeddings'][index], _facts(embedding))
            m1, m2, features = (torch.from_numpy(archive[f'{index}/{name}']) for name in ('m1', 'm2', 'bank'))
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f'{path} holds no statistics: `stylegan2-compress stats` writes files that do.') from error
    bank = max(len(features), 2) if bank is None else bank
    if len(features) < bank:
        raise UserError(f'{path} has the features of {len(features)} images, but bank={bank} are wanted: make it again '
                        f'with --bank {bank}.')  # fmt: skip
    return Statistics(m1, m2, features[:bank])


def _refuse_differences(path, found: Mapping, wanted: Mapping, leave_out: Sequence[str] = ()) -> None:
    differing = [
        f'{name} {_short(found.get(name))}, not {_short(wanted.get(name))}'
        for name in dict.fromkeys([*wanted, *found])
        if name not in leave_out and found.get(name) != wanted.get(name)
    ]
    if differing:
        raise UserError(f'{path} was made for something else ({"; ".join(differing)}): make it again with '
                        '`stylegan2-compress stats`, or leave it out.')  # fmt: skip


def _short(fact) -> str:
    """A fact as a refusal shows it: of digests, which are long, the beginning."""
    return 'none' if fact in (None, '') else str(fact)[:8] if len(str(fact)) == 64 else str(fact)


def cache_path(source: Source, embedding: Embedding, samples: int, bank: int) -> Path:
    key = json.dumps([source.facts, samples, bank, _facts(embedding)])
    return cache_dir('statistics') / f'{hashlib.sha256(key.encode()).hexdigest()}.npz'


def _read_cache(source: Source, embedding: Embedding, samples: int, bank: int) -> Statistics | None:
    """What the cache has, or None where there is nothing, or something damaged, or something else."""
    try:
        return read(cache_path(source, embedding, samples, bank), source, embedding, samples, bank)
    except UserError:
        return None


def _facts(embedding: Embedding) -> dict:
    """Everything that determines an embedding's features, under the names by which a refusal calls it."""
    return {
        'embedding': embedding.spec,
        'preprocessing': json.dumps(asdict(embedding.preprocessing)),
        'weights': embedding.fingerprint,
    }
