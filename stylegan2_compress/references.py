"""What a student is to match: statistics of images in an embedding space, computed once and kept.

A *source* is a sequence of images without end, in chunks: a teacher's, or a data set's. Each chunk depends on its index
and on the source's facts alone, so that processes can share the work, and a bank can be refreshed with images that no
one has seen before.
"""

import functools
import hashlib
import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import dnnlib
import numpy as np
import torch
import torch.distributed
from tqdm import tqdm

from stylegan2_compress import datasets, files, pickles, statistics
from stylegan2_compress.cache import cache_dir
from stylegan2_compress.embeddings import Embedding
from stylegan2_compress.errors import UserError


@dataclass(frozen=True)
class Statistics:
    """What one embedding makes of a source's images."""

    m1: torch.Tensor  # [dim] float64, the first raw moment.
    m2: torch.Tensor  # [dim] float64, the second raw moment.
    bank: torch.Tensor  # [bank, dim] float32, the features of the first images.


# --- Sources of images ------------------------------------------------------------------------------------------------


class TeacherImages:
    """A teacher's images.

    Attributes:
        facts: everything that determines the images, under the names by which a refusal calls it.
        size: how many different images there are, None for a teacher.
        chunk: images per chunk. At 256 pixels and below 32, above that fewer, for memory.

    Args:
        file: network pickle (path or URL).
        G: its G_ema, which is moved to the device.
        truncation_psi: 1 is the distribution the teacher was trained for.
        seed: of latents, labels and noise. (The noise also depends on the kind of device.)
        training_set_kwargs: where labels come from, see `LabelSource`.
        device: where the teacher runs.
    """

    size = None

    def __init__(
        self,
        file: str,
        G: torch.nn.Module,
        *,
        truncation_psi: float = 1,
        seed: int = 0,
        training_set_kwargs: Mapping | None = None,
        device: torch.device | str = 'cpu',
    ):
        self.device = torch.device(device)
        self.G = G.to(self.device).eval().requires_grad_(False)
        self.labels = LabelSource(G.c_dim, training_set_kwargs)
        self.chunk = int(np.clip(32 * 256**2 // G.img_resolution**2, 4, 32))
        self.facts = {
            'teacher': pickles.sha256(pickles.local_file(file)),
            'labels': self.labels.fingerprint,
            'truncation': truncation_psi,
            'seed': seed,
        }

    @torch.no_grad()
    def draw(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Chunk `index`: images [chunk, C, H, W] in [-1, 1] and labels [chunk, c_dim].

        Other random state neither matters nor changes.
        """
        rnd = np.random.default_rng([self.facts['seed'], index])
        z = torch.from_numpy(rnd.standard_normal([self.chunk, self.G.z_dim], np.float32)).to(self.device)
        c = self.labels.draw(self.chunk, rnd, self.device)
        precision = {'force_fp32': True} if self.device.type == 'cpu' else {}
        with torch.random.fork_rng([self.device] if self.device.type == 'cuda' else []):
            torch.manual_seed(int(rnd.integers(2**31)))  # Of the noise inputs.
            return self.G(z, c, truncation_psi=self.facts['truncation'], **precision), c


class DatasetImages:
    """A data set's images, in random order; after the last one they come again, in another order.

    Attributes as of `TeacherImages`.

    Args:
        training_set_kwargs: of the host's data set, which may be mirrored or a subset.
        seed: of the order.
        device: where the images are wanted.
    """

    chunk = 32

    def __init__(self, training_set_kwargs: Mapping, *, seed: int = 0, device: torch.device | str = 'cpu'):
        self.device = torch.device(device)
        self.training_set = dnnlib.util.construct_class_by_name(**training_set_kwargs)
        self.size = len(self.training_set)
        details = (self.training_set.get_details(index) for index in range(self.size))
        chosen = np.array([(image.raw_idx, image.xflip) for image in details], np.int64)
        self.facts = {
            'data': datasets.fingerprint(training_set_kwargs['path']),
            'subset or mirroring': hashlib.sha256(chosen.tobytes()).hexdigest(),
            'seed': seed,
        }
        self._order = functools.lru_cache(2)(lambda epoch: np.random.default_rng([seed, epoch]).permutation(self.size))

    def draw(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Chunk `index`: images [chunk, C, H, W] in [-1, 1] and labels [chunk, c_dim]."""
        places = range(index * self.chunk, (index + 1) * self.chunk)
        with datasets.reading(self.training_set):
            chosen = [self.training_set[self._order(place // self.size)[place % self.size]] for place in places]
        images, labels = (torch.from_numpy(np.stack(each)).to(self.device) for each in zip(*chosen, strict=True))
        return images.to(torch.float32) / 127.5 - 1, labels


Source = TeacherImages | DatasetImages


class LabelSource:
    """Labels of a conditional generator's images: drawn from a training set as the training loops draw them.

    Without a training set, or for a generator without labels, classes are equally likely.
    """

    def __init__(self, c_dim: int, training_set_kwargs: Mapping | None):
        self.table = np.eye(c_dim, dtype=np.float32) if c_dim else np.zeros([1, 0], np.float32)
        if c_dim and training_set_kwargs:
            # Mirrored images have the same labels once more: the same distribution.
            training_set = dnnlib.util.construct_class_by_name(**{**training_set_kwargs, 'xflip': False})
            self.table = datasets.labels(training_set)
        self.fingerprint = hashlib.sha256(self.table.tobytes()).hexdigest() if c_dim else ''

    def draw(self, count: int, rnd: np.random.Generator, device: torch.device) -> torch.Tensor:
        """[count, c_dim] float32."""
        return torch.from_numpy(self.table[rnd.integers(len(self.table), size=count)]).to(device)


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
    first = statistics.world() is None or torch.distributed.get_rank() == 0
    found = [_read_cache(source, embedding, samples, bank) if first else None for embedding in embeddings]
    if statistics.world() is not None:  # The first process decides: another might see a file that is just appearing.
        on = source.device if source.device.type == 'cuda' else None
        torch.distributed.broadcast_object_list(found, src=0, device=on)
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
    group = statistics.world()
    rank, processes = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if group else (0, 1)
    moments = [statistics.MomentAccumulator(embedding.dim, source.device) for embedding in embeddings]
    banks = [torch.zeros([bank, embedding.dim], device=source.device) for embedding in embeddings]
    chunks = range(-(-samples // source.chunk))[rank::processes]
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
        if group is not None:
            torch.distributed.all_reduce(features, group=group)  # Each row is zero in all processes but one.
        if not accumulator.moments()[1].isfinite().all():
            raise UserError(f'Embedding {embedding.spec} is not finite on the images to match: add @dtype=fp32.')
    return [Statistics(*accumulator.moments(), features) for accumulator, features in zip(moments, banks, strict=True)]


def check_size(source: Source, option: str, count: int) -> None:
    """Refuse more images than a data set has."""
    if source.size is not None and count > source.size:
        raise UserError(f'{option}={count} is more than the {source.size} images of the data set: give at most that.')


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
