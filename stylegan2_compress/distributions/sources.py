"""Endless sequences of images in chunks: a teacher's images, or those of a data set.

A chunk depends only on its index and on the facts of its source, so that processes can share the work and a bank of
features can be refreshed with images that have not been used before.
"""

import copy
import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import dnnlib
import numpy as np
import torch
from training.dataset import Dataset

from stylegan2_compress.errors import UserError
from stylegan2_compress.host import datasets, devices
from stylegan2_compress.pickles.networks import Networks

REFERENCES = ('teacher', 'data')  # Whose images a method matches.
TEACHER_SAMPLES = 10000  # That stand for all of a teacher's images, unless an option says otherwise.


class Source(ABC):
    """Images by the chunk.

    Attributes:
        device: where the images are.
        facts: everything that determines the images, by the names that error messages use. Part of cache keys.
        resolution: of the images, in pixels.
        size: how many different images there are; None if there is no limit.
        chunk: images per chunk.
        options: of `stats` that say which images these are, for errors; None if there are no such options.
    """

    device: torch.device
    facts: dict[str, Any]
    resolution: int
    size: int | None
    chunk: int
    options: str | None

    @property
    def of_label(self) -> str:
        """' of label 3' if all images have that one, for messages."""
        return f' of label {self.facts["label"]}' if 'label' in self.facts else ''

    @abstractmethod
    def draw(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Chunk `index`: images [chunk, C, H, W] in [-1, 1] and labels [chunk, c_dim]."""

    @abstractmethod
    def of_class(self, label: int, classes: int) -> 'Source':
        """A source of only the images with one label.

        Args:
            label: from 0 to `classes` - 1.
            classes: number of labels.
        """

    @abstractmethod
    def shares(self) -> list[float]:
        """How many of the images have each label, as shares of all."""


class TeacherImages(Source):
    """Images of a teacher, without limit. At 256 pixels and below, a chunk has 32; above, fewer, to save memory.

    Args:
        file: network pickle (path or URL), whose G_ema is moved to the device.
        networks: contents of network pickles that are open already; by default the file is opened.
        truncation_psi: 1 is the distribution that the teacher was trained for.
        seed: of latents, labels and noise. (The noise also depends on the kind of device.)
        training_set_kwargs: arguments of the data set that labels are drawn from, see `LabelSource`.
        device: where the teacher runs.

    Raises:
        UserError: the file cannot be read.
    """

    size = None

    def __init__(
        self,
        file: str,
        networks: Networks | None = None,
        *,
        truncation_psi: float = 1,
        seed: int = 0,
        training_set_kwargs: Mapping | None = None,
        device: torch.device | str = 'cpu',
    ):
        networks = Networks() if networks is None else networks
        G = networks[file]['G_ema']
        self.device = torch.device(device)
        self.G = G.to(self.device).eval().requires_grad_(False)
        self.resolution = G.img_resolution
        self.labels = LabelSource(G.c_dim, training_set_kwargs)
        self.chunk = int(np.clip(32 * 256**2 // G.img_resolution**2, 4, 32))
        has_data = training_set_kwargs is not None and not datasets.is_teachers(training_set_kwargs)
        labels = (' and --data, whose labels count' if has_data else ', without --data') if G.c_dim else ''
        self.options = None if self.labels.of_some else f'--teacher{labels}'
        self.facts = {
            'teacher': networks.sha256(file),
            'labels': self.labels.fingerprint,
            'truncation': truncation_psi,
            'seed': seed,
        }

    @torch.no_grad()
    def draw(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Chunk `index`, as for `Source`. Neither uses nor changes the global random state."""
        rnd = np.random.default_rng([self.facts['seed'], index])
        z = torch.from_numpy(rnd.standard_normal([self.chunk, self.G.z_dim], np.float32)).to(self.device)
        c = self.labels.draw(self.chunk, rnd, self.device)
        return self.make(z, c, int(rnd.integers(2**31))), c

    @torch.no_grad()
    def make(self, z: torch.Tensor, c: torch.Tensor, noise_seed: int) -> torch.Tensor:
        """Images [N, C, H, W] of latents and labels. Neither uses nor changes the global random state."""
        with devices.seeded(noise_seed, self.device):
            return self.G(z, c, truncation_psi=self.facts['truncation'], **devices.precision(self.device))

    def of_class(self, label: int, classes: int) -> 'TeacherImages':
        one = copy.copy(self)
        one.facts = self.facts | {'label': label}
        one.labels = self.labels.of_class(label, classes)
        return one

    def shares(self) -> list[float]:
        return self.labels.drawn.shares()


class DatasetImages(Source):
    """Images of a data set in random order; each epoch has another order.

    Args:
        training_set_kwargs: arguments of the host's data set, which may be mirrored or a subset.
        seed: of the order.
        device: where the images go.
    """

    size: int
    chunk = 32

    def __init__(self, training_set_kwargs: Mapping, *, seed: int = 0, device: torch.device | str = 'cpu'):
        self.device = torch.device(device)
        self.training_set = dnnlib.util.construct_class_by_name(**training_set_kwargs)
        self.path, self.seed = training_set_kwargs['path'], seed
        self.options = None if datasets.is_subset(self.training_set) else '--data, without --teacher'
        self.resolution = self.training_set.resolution
        self.size = len(self.training_set)
        self._order = _orders(np.arange(self.size), seed)

    @functools.cached_property
    def facts(self) -> dict[str, Any]:  # Not before they are asked for: files of a directory are read for them.
        details = (self.training_set.get_details(index) for index in range(len(self.training_set)))
        chosen = np.array([(image.raw_idx, image.xflip) for image in details], np.int64)
        return {
            'data': datasets.fingerprint(self.path),
            'subset or mirroring': hashlib.sha256(chosen.tobytes()).hexdigest(),
            'seed': self.seed,
        }

    def draw(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        positions = range(index * self.chunk, (index + 1) * self.chunk)
        indices = [self._order(pos // self.size)[pos % self.size] for pos in positions]
        with datasets.reading(self.training_set, indices):
            chosen = [self.training_set[index] for index in indices]
        images, labels = (torch.from_numpy(np.stack(each)).to(self.device) for each in zip(*chosen, strict=True))
        return images.to(torch.float32) / 127.5 - 1, labels

    def of_class(self, label: int, classes: int) -> 'DatasetImages':
        members = np.flatnonzero(self._labels.classes() == label)
        one = copy.copy(self)
        one.facts = self.facts | {'label': label}
        one.size = len(members)
        one._order = _orders(members, self.seed)
        return one

    def shares(self) -> list[float]:
        return self._labels.shares()

    @functools.cached_property
    def _labels(self) -> datasets.Labels:
        """Those of the whole data set: each label's images are asked for by themselves."""
        return datasets.labels(self.training_set)


def _orders(members: np.ndarray, seed: int) -> Callable[[int], np.ndarray]:
    """The order of a data set's members, by epoch."""
    return functools.lru_cache(2)(lambda epoch: np.random.default_rng([seed, epoch]).permutation(members))


class LabelSource:
    """Labels for the images of a conditional generator, drawn from a training set as the training loops draw them.

    Without a training set, classes are equally likely. For a generator without labels, they are empty.

    Attributes:
        drawn: the labels that it draws from.
        of_some: whether they are those of some images of a data set, or of some classes.
        fingerprint: SHA-256 of all labels in hexadecimal; empty for a generator without labels.
    """

    def __init__(self, c_dim: int, training_set_kwargs: Mapping | None):
        self.of_some = False
        if c_dim and training_set_kwargs:
            # Mirrored images repeat the labels, which does not change their distribution.
            training_set = dnnlib.util.construct_class_by_name(**{**training_set_kwargs, 'xflip': False})
            self.drawn = datasets.labels(training_set)
            of_classes = training_set_kwargs.get('label_counts') is not None
            self.of_some = of_classes or datasets.is_subset(training_set)
        else:
            self.drawn = datasets.Labels(np.eye(c_dim, dtype=np.float32) if c_dim else np.zeros([1, 0], np.float32))
        self.fingerprint = self.drawn.sha256 if c_dim else ''

    def draw(self, count: int, rnd: np.random.Generator, device: torch.device) -> torch.Tensor:
        """[count, c_dim] float32."""
        return torch.from_numpy(self.drawn[rnd.integers(len(self.drawn), size=count)]).to(device)

    def of_class(self, label: int, classes: int) -> 'LabelSource':
        """A source of one label of `classes`. Keeps the fingerprint, which is that of the whole distribution."""
        one = copy.copy(self)
        one.drawn = datasets.Labels(np.eye(classes, dtype=np.float32)[label : label + 1])
        return one


def reference_images(
    teacher: str | None,
    networks: Networks,
    *,
    truncation_psi: float = 1,
    seed: int = 0,
    training_set_kwargs: Mapping | None,
    device: torch.device,
) -> Source:
    """The images that a student is to match: a teacher's, or without one those of the data set.

    Raises:
        UserError: there is neither, or the teacher's file cannot be read.
    """
    if teacher is not None:
        return TeacherImages(
            teacher,
            networks,
            truncation_psi=truncation_psi,
            seed=seed,
            training_set_kwargs=training_set_kwargs,
            device=device,
        )
    if training_set_kwargs is None:
        raise UserError('To match images of the data needs training_set_kwargs, the data set.')
    require_data(training_set_kwargs)
    return DatasetImages(training_set_kwargs, seed=seed, device=device)


def require_data(training_set_kwargs: Mapping) -> None:
    """Refuse to match the data of a run whose data are its teacher's images.

    Raises:
        UserError: they are.
    """
    if datasets.is_teachers(training_set_kwargs):
        raise UserError('--loss-arg reference=data needs --data: without it, there is only the teacher to match.')


def check_size(source: Source, option: str, count: int) -> None:
    """Refuse to draw more images than a data set has, or one, of which there are no statistics.

    Raises:
        UserError: `count`, which `option` gave, is too large, or there is one image.
    """
    if count < 2:  # No option may say so: it is all that the data set has.
        raise UserError(
            f'The data set has {count} image{"" if count == 1 else "s"}{source.of_label}, which is too few: '
            'statistics are of several.'
        )
    if source.size is not None and count > source.size:
        raise UserError(f'{option}={count} is more than the {source.size} images of the data set: use at most that.')


def require_several_of_each_label(training_set: Dataset, way_out: str) -> None:
    """Refuse a data set with one image of a label, of which there is no variance. A label with none is never asked for.

    Args:
        training_set: with labels that are classes.
        way_out: what else to do than to leave the label out.

    Raises:
        UserError: there is one.
    """
    counts = np.bincount(datasets.labels(training_set).classes())
    if 1 in counts:
        raise UserError(
            f'The data set has one image of label {counts.tolist().index(1)}, and moments of a label take two or more: '
            f'leave the label out, or {way_out}.'
        )
