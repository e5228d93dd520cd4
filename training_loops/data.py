"""What a step gets, as a function of where it is in the run: randomness, real images, latents, labels.

A run is one long row of images. A step takes the next `batch_size` of them, in rounds of `batch_gpu`, spread over the
processes; everything random about a round follows from the seed of the run and the place of the round's images. So a
run can start anywhere in the row, and the processes of a step make what one process makes in as many rounds.
"""

import itertools
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from stylegan2_compress.host import datasets

# What is drawn: numbers that keep the random streams of one seed apart.
SETUP, GRID, ORDER, LATENTS, ROUND = range(5)


def generator(random_seed: int, *where: int) -> np.random.Generator:
    """A random generator that the run's seed and `where` determine."""
    return np.random.default_rng(np.random.SeedSequence(random_seed, spawn_key=where))


def seed_everything(random_seed: int, *where: int) -> None:
    """Make torch's randomness on every device, and Python's and NumPy's, a function of the run's seed and `where`."""
    torch_seed, other_seed = generator(random_seed, *where).integers(2**32, size=2).tolist()
    torch.manual_seed(torch_seed)
    random.seed(other_seed)
    np.random.seed(other_seed)  # noqa: NPY002 (for code that draws from it)


@dataclass(frozen=True)
class Share:
    """What one process does of every batch: some rounds of `batch_gpu` images.

    Round k of process r has the images from (k · num_gpus + r) · batch_gpu on: the k-th rounds of all processes are
    neighbours, so that together they are what one process does in a round that is `num_gpus` times as large.
    """

    batch_size: int
    batch_gpu: int
    num_gpus: int = 1
    rank: int = 0

    def __post_init__(self):
        if self.batch_size % (self.batch_gpu * self.num_gpus):
            raise ValueError(
                f'batch_size={self.batch_size} is no multiple of batch_gpu={self.batch_gpu} times '
                f'num_gpus={self.num_gpus}.'
            )

    @property
    def rounds(self) -> int:
        return self.batch_size // (self.batch_gpu * self.num_gpus)

    def offsets(self) -> list[int]:
        """Where each round starts in the batch."""
        return [(index * self.num_gpus + self.rank) * self.batch_gpu for index in range(self.rounds)]


class ShuffledSampler(torch.utils.data.Sampler):
    """Indices of a process's real images without end: every epoch all images once, each in another order.

    Args:
        size: of the data set.
        share: of the batches.
        random_seed: of the order.
        start: how many images the run, all processes together, has seen already.
    """

    def __init__(self, size: int, share: Share, random_seed: int, start: int = 0):
        super().__init__()
        self.size = size
        self.share = share
        self.start = start
        self.order = lru_cache(maxsize=2)(lambda epoch: generator(random_seed, ORDER, epoch).permutation(size))

    def __iter__(self) -> Iterator[int]:
        for batch_start in itertools.count(self.start, self.share.batch_size):
            for offset in self.share.offsets():
                for place in range(batch_start + offset, batch_start + offset + self.share.batch_gpu):
                    yield int(self.order(place // self.size)[place % self.size])


def real_batches(
    training_set, share: Share, random_seed: int, start: int, device: torch.device, **loader_kwargs
) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Yield, for each batch, this process's rounds: images [batch_gpu, C, H, W] in [-1, 1], labels [batch_gpu, c_dim].

    Args:
        training_set: the host's dataset.
        share, random_seed, start: see `ShuffledSampler`.
        device: where the images are to be.
        loader_kwargs: of torch's `DataLoader`.
    """
    loader = torch.utils.data.DataLoader(
        dataset=training_set,
        sampler=ShuffledSampler(len(training_set), share, random_seed, start),
        batch_size=share.batch_gpu * share.rounds,
        worker_init_fn=_leave_signals_to_the_trainer,
        **loader_kwargs,
    )
    batches = iter(loader)
    while True:
        with datasets.reading(training_set):
            images, labels = next(batches)
        images = images.to(device).to(torch.float32) / 127.5 - 1
        yield list(zip(images.split(share.batch_gpu), labels.to(device).split(share.batch_gpu), strict=True))


def _leave_signals_to_the_trainer(_worker: int) -> None:
    """Ctrl-C and a cluster's SIGTERM reach workers too, whose images are wanted until the step is done."""
    for which in (signal.SIGINT, signal.SIGTERM):
        signal.signal(which, signal.SIG_IGN)


def rounds(
    real_rounds: list[tuple[torch.Tensor, torch.Tensor]],
    training_set,
    z_dim: int,
    share: Share,
    random_seed: int,
    cur_nimg: int,
    phase: int,
) -> Iterator[dict]:
    """Yield what `accumulate_gradients` takes in each of this process's rounds of a phase, with its randomness seeded.

    Latents are drawn for the whole batch and one's own taken: an image gets its latent whatever the rounds are. The
    labels that go with them are those of real images.

    Args:
        real_rounds: of the batch, from `real_batches`.
        training_set: where labels come from.
        z_dim: width of latents.
        share: of the batch.
        random_seed: of the run.
        cur_nimg: images that the run had seen before this batch.
        phase: number of the phase.
    """
    rnd = generator(random_seed, LATENTS, cur_nimg, phase)
    all_z = rnd.standard_normal([share.batch_size, z_dim], np.float32)
    label_of = rnd.integers(len(training_set), size=share.batch_size)
    for offset, (real_img, real_c) in zip(share.offsets(), real_rounds, strict=True):
        mine = slice(offset, offset + share.batch_gpu)
        gen_c = np.stack([training_set.get_label(index) for index in label_of[mine]])
        seed_everything(random_seed, ROUND, cur_nimg, phase, offset)
        yield dict(
            real_img=real_img,
            real_c=real_c,
            gen_z=torch.from_numpy(all_z[mine]).to(real_img.device),
            gen_c=torch.from_numpy(gen_c).to(real_img.device),
            sync=offset == share.offsets()[-1],
        )
