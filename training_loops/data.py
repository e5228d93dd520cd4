"""The inputs of a step as a function of its position in the run: randomness, real images, latents, labels.

A run is one long sequence of images. A step takes the next `batch_size` of them, in rounds of `batch_gpu`, spread over
the processes; everything random about a round is a function of the seed of the run and the position of the round's
images. So a run can start anywhere in the sequence, and several processes compute in a step what one process computes
in as many rounds.
"""

import functools
import itertools
import random
import signal
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from stylegan2_compress.distributions.teacher_dataset import TeacherDataset
from stylegan2_compress.host import datasets
from stylegan2_compress.runs.signals import STOPPING

# Purposes of random numbers: each has a stream of its own.
SETUP, GRID, ORDER, LATENTS, ROUND, REALS, METRICS = range(7)


def generator(random_seed: int, *position: int) -> np.random.Generator:
    """A random generator that is determined by the run's seed and a purpose and position in the run."""
    return np.random.default_rng(np.random.SeedSequence(random_seed, spawn_key=position))


def seed_everything(random_seed: int, *position: int) -> None:
    """Seed torch on every device, Python and NumPy; see `generator`."""
    torch_seed, other_seed = generator(random_seed, *position).integers(2**32, size=2).tolist()
    torch.manual_seed(torch_seed)
    random.seed(other_seed)
    np.random.seed(other_seed)  # noqa: NPY002 (for code that draws from it)


@dataclass(frozen=True)
class Share:
    """The part of every batch that one process computes: some rounds of `batch_gpu` images.

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
                f'batch_size={self.batch_size} is not a multiple of batch_gpu={self.batch_gpu} times '
                f'num_gpus={self.num_gpus}.'
            )

    @property
    def rounds(self) -> int:
        """How many rounds there are per batch."""
        return self.batch_size // (self.batch_gpu * self.num_gpus)

    def offsets(self) -> list[int]:
        """Where each round starts in the batch."""
        return [(index * self.num_gpus + self.rank) * self.batch_gpu for index in range(self.rounds)]


class ShuffledSampler(torch.utils.data.Sampler):
    """Indices of a process's real images, without end: every epoch has all images once, in an order of its own.

    Args:
        size: number of images in the data set.
        share: of the batches that this process has.
        random_seed: of the run.
        start: how many images all processes of the run together have seen already.
    """

    def __init__(self, size: int, share: Share, random_seed: int, start: int = 0):
        super().__init__()
        self.size = size
        self.share = share
        self.start = start
        self.order = functools.lru_cache(maxsize=2)(
            lambda epoch: generator(random_seed, ORDER, epoch).permutation(size)
        )

    def __iter__(self) -> Iterator[int]:
        for batch_start in itertools.count(self.start, self.share.batch_size):
            for offset in self.share.offsets():
                for position in range(batch_start + offset, batch_start + offset + self.share.batch_gpu):
                    yield int(self.order(position // self.size)[position % self.size])


Batches = Generator[list[tuple[torch.Tensor, torch.Tensor]], None, None]  # Of `real_batches`.


def real_batches(
    training_set, share: Share, random_seed: int, start: int, device: torch.device, **loader_kwargs
) -> Batches:
    """Yield, for each batch, this process's rounds: images [batch_gpu, C, H, W] in [-1, 1], labels [batch_gpu, c_dim].

    Args:
        training_set: the host's dataset.
        share, random_seed, start: see `ShuffledSampler`.
        device: of the images and labels.
        loader_kwargs: of torch's `DataLoader`.
    """
    order_from = functools.partial(ShuffledSampler, len(training_set), share, random_seed)
    batch_size = share.batch_gpu * share.rounds
    loader = torch.utils.data.DataLoader(
        dataset=training_set,
        sampler=order_from(start),
        batch_size=batch_size,
        worker_init_fn=_leave_signals_to_the_trainer,
        **loader_kwargs,
    )
    batches = iter(loader)
    try:
        for batch_start in itertools.count(start, share.batch_size):
            with datasets.reading(training_set, itertools.islice(order_from(batch_start), batch_size)):
                images, labels = next(batches)
            images = images.to(device).to(torch.float32) / 127.5 - 1
            yield list(zip(images.split(share.batch_gpu), labels.to(device).split(share.batch_gpu), strict=True))
    finally:
        # Deleting it would do, were it not for the traceback of an error, which keeps it until Python has ended; and
        # Python does not end before the workers, to which signals mean nothing.
        if hasattr(batches, '_shutdown_workers'):
            batches._shutdown_workers()  # pyright: ignore[reportAttributeAccessIssue] (only with workers)


def teacher_batches(training_set: TeacherDataset, share: Share, random_seed: int, start: int) -> Batches:
    """Yield what `real_batches` does, of a teacher's images: each is made for its place in the run, and never again.

    Args:
        training_set: of the teacher, on whose device images and labels are.
        share, random_seed, start: see `ShuffledSampler`.
    """
    for batch_start in itertools.count(start, share.batch_size):
        all_z, all_c = training_set.draw(generator(random_seed, REALS, batch_start), share.batch_size)
        rounds = []
        for offset in share.offsets():
            own = slice(offset, offset + share.batch_gpu)
            (noise_seed,) = generator(random_seed, REALS, batch_start, offset).integers(2**31, size=1).tolist()
            rounds.append((training_set.make(all_z[own], all_c[own], noise_seed), all_c[own]))
        yield rounds


def blank_batches(training_set, share: Share, device: torch.device) -> Batches:
    """Yield what `real_batches` does, for a loss that looks at no real images: black ones, without labels."""
    shape = [share.batch_gpu, *training_set.image_shape], [share.batch_gpu, training_set.label_dim]
    images, labels = (torch.zeros(each, device=device) for each in shape)
    while True:
        yield [(images, labels)] * share.rounds


def _leave_signals_to_the_trainer(_worker: int) -> None:
    """Ignore the signals that end a run, which reach workers too: their images are needed until the step is done."""
    for which in STOPPING:
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
    """Yield the arguments of `accumulate_gradients` for each round of a phase that this process does.

    Before each, everything random is seeded. Latents are drawn for the whole batch, of which the process takes its
    own: an image has the same latent however the batch is split. The labels for them are those of random real images.

    Args:
        real_rounds: of the batch, from `real_batches` or what stands for it.
        training_set: where labels come from.
        z_dim: width of the latents.
        share: of the batch that this process has.
        random_seed: of the run.
        cur_nimg: how many images the run had seen before this batch.
        phase: index of the phase.
    """
    rnd = generator(random_seed, LATENTS, cur_nimg, phase)
    all_z = rnd.standard_normal([share.batch_size, z_dim], np.float32)
    label_indices = rnd.integers(len(training_set), size=share.batch_size)
    for offset, (real_img, real_c) in zip(share.offsets(), real_rounds, strict=True):
        own = slice(offset, offset + share.batch_gpu)
        gen_c = np.stack([training_set.get_label(index) for index in label_indices[own]])
        seed_everything(random_seed, ROUND, cur_nimg, phase, offset)
        yield dict(
            real_img=real_img,
            real_c=real_c,
            gen_z=torch.from_numpy(all_z[own]).to(real_img.device),
            gen_c=torch.from_numpy(gen_c).to(real_img.device),
            sync=offset == share.offsets()[-1],
        )
