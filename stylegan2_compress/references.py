"""What a student is to match: statistics of a teacher's images in an embedding space, computed once and kept."""

import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import dnnlib
import numpy as np
import torch
from tqdm import tqdm

from stylegan2_compress import files, pickles, statistics
from stylegan2_compress.cache import cache_dir
from stylegan2_compress.embeddings import Embedding


@dataclass(frozen=True)
class Population:
    """Which images the statistics are of. Two equal ones have the same images."""

    teacher: str  # SHA-256 of the network pickle whose G_ema makes the images.
    labels: str  # SHA-256 of the labels the images are drawn for, '' without labels.
    samples: int
    truncation_psi: float
    seed: int


class LabelSource:
    """Labels of a conditional generator's images: drawn from a training set as the training loops draw them.

    Without a training set, or for a generator without labels, classes are equally likely.
    """

    def __init__(self, c_dim: int, training_set_kwargs: dict | None):
        self.table = np.eye(c_dim, dtype=np.float32) if c_dim else np.zeros([1, 0], np.float32)
        if c_dim and training_set_kwargs:
            training_set = dnnlib.util.construct_class_by_name(**training_set_kwargs)
            self.table = np.stack([training_set.get_label(index) for index in range(len(training_set))])
        self.fingerprint = hashlib.sha256(self.table.tobytes()).hexdigest() if c_dim else ''

    def draw(self, count: int, rnd: np.random.Generator, device: torch.device) -> torch.Tensor:
        """[count, c_dim] float32."""
        return torch.from_numpy(self.table[rnd.integers(len(self.table), size=count)]).to(device)


def teacher_moments(
    teacher: str,
    embeddings: list[Embedding],
    *,
    samples: int,
    truncation_psi: float = 1,
    seed: int = 0,
    batch: int = 32,
    training_set_kwargs: dict | None = None,
    device: torch.device | str = 'cpu',
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """First and second raw moments m1, m2 of each embedding over a teacher's images (DiME, arXiv 2405.11614).

    Computed in float64 and constant memory, in one pass of the generator for all embeddings that have none in the
    cache yet.

    Args:
        teacher: network pickle (path or URL), of which G_ema is used.
        embeddings: frozen networks, on `device`.
        samples: how many images.
        truncation_psi: 1 is the distribution the teacher was trained for.
        seed: of the latents, labels and noise.
        batch: how many images at a time.
        training_set_kwargs: where labels come from, see `LabelSource`.
        device: where the teacher runs.

    Returns:
        Per embedding two float64 tensors [dim] on `device`.
    """
    device = torch.device(device)
    G = pickles.load(teacher, device=device)['G_ema'].eval().requires_grad_(False)
    labels = LabelSource(G.c_dim, training_set_kwargs)
    sha256 = pickles.sha256(pickles.local_file(teacher))
    population = Population(sha256, labels.fingerprint, samples, truncation_psi, seed)
    found = {
        embedding: read_moments(cache_path(population, embedding), population, embedding) for embedding in embeddings
    }
    missing = {
        embedding: statistics.MomentAccumulator(embedding.dim, device)
        for embedding in embeddings
        if not found[embedding]
    }
    if missing:
        for images in tqdm(
            teacher_images(G, population, labels, batch), total=-(-samples // batch), desc='teacher statistics'
        ):
            for embedding, accumulator in missing.items():
                accumulator.update(embedding(images))
    for embedding, accumulator in missing.items():
        found[embedding] = accumulator.moments()
        write_moments(cache_path(population, embedding), population, embedding, *found[embedding])
    return [tuple(moment.to(device) for moment in found[embedding]) for embedding in embeddings]


@torch.no_grad()
def teacher_images(G, population: Population, labels: LabelSource, batch: int):
    """Yield the population's images in batches [N, C, H, W]; their values do not depend on other random state."""
    device = next(G.buffers()).device
    precision = {'force_fp32': True} if device.type == 'cpu' else {}
    rnd = np.random.default_rng(population.seed)
    for start in range(0, population.samples, batch):
        count = min(batch, population.samples - start)
        z = torch.from_numpy(rnd.standard_normal([count, G.z_dim], np.float32)).to(device)
        c = labels.draw(count, rnd, device)
        with torch.random.fork_rng([device] if device.type == 'cuda' else []):
            torch.manual_seed(int(rnd.integers(2**31)))  # Of the noise inputs.
            yield G(z, c, truncation_psi=population.truncation_psi, **precision)


def cache_path(population: Population, embedding: Embedding) -> Path:
    return cache_dir('statistics') / f'{hashlib.sha256(key_of(population, embedding).encode()).hexdigest()}.npz'


def key_of(population: Population, embedding: Embedding) -> str:
    """Everything that determines the moments, as JSON."""
    return json.dumps(asdict(population) | {'embedding': embedding.spec, 'fingerprint': embedding.fingerprint})


def read_moments(path: Path, population: Population, embedding: Embedding) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The moments at `path`, or None where there are none, or damaged ones, or those of something else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file['key']) != key_of(population, embedding):
                return None
            return torch.from_numpy(file['m1']), torch.from_numpy(file['m2'])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write_moments(path: Path, population: Population, embedding: Embedding, m1: torch.Tensor, m2: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(path) as file:
        np.savez(file, key=key_of(population, embedding), m1=m1.cpu().numpy(), m2=m2.cpu().numpy())
