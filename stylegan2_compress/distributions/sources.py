"""Sequences of images without end, in chunks: a teacher's, or a data set's."""

import functools
import hashlib
from collections.abc import Mapping

import dnnlib
import numpy as np
import torch

from stylegan2_compress import pickles
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import datasets


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


def check_size(source: Source, option: str, count: int) -> None:
    """Refuse more images than a data set has."""
    if source.size is not None and count > source.size:
        raise UserError(f'{option}={count} is more than the {source.size} images of the data set: give at most that.')
