"""A teacher's images in the place of a training set."""

import functools
import json

import numpy as np
import torch
from training.dataset import Dataset
from training.networks import Generator

from stylegan2_compress import files, images
from stylegan2_compress.distributions.sources import TeacherImages
from stylegan2_compress.errors import UserError
from stylegan2_compress.host.datasets import TEACHERS_IMAGES
from stylegan2_compress.pickles.networks import Networks

IMAGES = 10000  # That the data set says to have. Grids show some of them; training draws its own, without end.


class TeacherDataset(Dataset):
    """The images of a teacher as a data set of the host's: 8-bit, with labels where the teacher takes any.

    Nothing is loaded before the first image is made: a run asks its data set for shapes and labels much more often.

    Attributes:
        device: where the teacher runs.
        classes: class numbers, of which all are equally likely; [0] where there are no labels.

    Args:
        path: network pickle (path or URL), whose G_ema makes the images.
        resolution, channels: of its images.
        label_dim: number of its classes, 0 for none.
        label_counts: how often each class occurs; None is all alike.
        truncation: truncation ψ of the images.
        others: arguments of the host's data sets, which do nothing here.
    """

    def __init__(
        self,
        path: str,
        resolution: int,
        channels: int,
        label_dim: int = 0,
        label_counts: list[int] | None = None,
        truncation: float = 1,
        **others,
    ):
        self.path = path
        self.truncation = truncation
        self.device = torch.device('cpu')
        counts = np.array([1] * max(label_dim, 1) if label_counts is None else label_counts)
        self.classes = np.arange(len(counts)).repeat(counts // np.gcd.reduce(counts))
        size = -(-IMAGES // len(self.classes)) * len(self.classes)
        super().__init__('teacher', [size, channels, resolution, resolution], use_labels=label_dim > 0)
        self._label_shape = [label_dim]

    @property
    def label_table(self) -> np.ndarray:
        """[rows, label_dim] float32: labels, of which all rows are equally likely."""
        return self._one_hot(self.classes)

    @functools.cached_property
    def teacher(self) -> TeacherImages:
        """Opened when it is first asked for, unless `open` has been called."""
        return TeacherImages(self.path, truncation_psi=self.truncation, device=self.device)

    def open(self, device: torch.device, networks: Networks) -> None:
        """Take the teacher from network files that are open already, and put it where images are to be made."""
        self.device = device
        self.teacher = TeacherImages(self.path, networks, truncation_psi=self.truncation, device=device)

    def draw(self, rnd: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents [count, z_dim] and labels [count, label_dim] of random images, on the device."""
        z = rnd.standard_normal([count, self.teacher.G.z_dim], np.float32)
        c = self._one_hot(self.classes[rnd.integers(len(self.classes), size=count)])
        return torch.from_numpy(z).to(self.device), torch.from_numpy(c).to(self.device)

    def make(self, z: torch.Tensor, c: torch.Tensor, noise_seed: int) -> torch.Tensor:
        """Images [N, C, H, W] in [-1, 1] on the device, of 256 values as in a file."""
        return images.quantised(self.teacher.make(z, c, noise_seed))

    def _one_hot(self, classes: np.ndarray) -> np.ndarray:
        return (classes[:, None] == np.arange(self.label_dim)).astype(np.float32)

    def _load_raw_image(self, raw_idx: int) -> np.ndarray:
        z, _random = self.draw(np.random.default_rng([0, raw_idx]), 1)
        c = torch.from_numpy(self.get_label(raw_idx))[None].to(self.device)
        return images.to_uint8(self.teacher.make(z, c, noise_seed=int(raw_idx)))[0]

    def _load_raw_labels(self) -> np.ndarray:
        return np.resize(self.classes, self._raw_shape[0]).astype(np.int64)


def arguments(path: str, G: Generator, truncation: float = 1, labels: str | None = None) -> dict:
    """Class name and constructor arguments of a teacher's data set, as `training_options.json` has them.

    Args:
        path: network pickle of the teacher.
        G: its G_ema.
        truncation: truncation ψ.
        labels: what the user says about labels, see `counts_of`.

    Raises:
        UserError: the teacher has no such labels.
    """
    return dict(
        class_name=TEACHERS_IMAGES,
        path=path,
        resolution=G.img_resolution,
        channels=G.img_channels,
        label_dim=G.c_dim,
        label_counts=None if labels is None else counts_of(labels, G.c_dim),
        truncation=truncation,
        use_labels=G.c_dim > 0,
    )


def counts_of(labels: str, label_dim: int) -> list[int]:
    """How often each class occurs.

    Args:
        labels: class numbers such as `0,3,3`, or the path of a dataset.json in the host's format.
        label_dim: number of classes there are.

    Raises:
        UserError: that cannot be read, or names classes that there are not.
    """
    found = _classes_of(labels)
    if found is None:
        raise UserError(f'--labels={labels} must be class numbers, such as 0,3,3, or a dataset.json with such labels.')
    if label_dim == 0:
        raise UserError(f'--labels={labels} is for teachers that take labels, and this one takes none.')
    if max(found) >= label_dim:
        raise UserError(f'--labels={labels} names class {max(found)}, but the teacher has 0 to {label_dim - 1}.')
    return np.bincount(found, minlength=label_dim).tolist()


def _classes_of(labels: str) -> list[int] | None:
    """The class numbers of `counts_of`, of any size; None if these are none.

    Raises:
        UserError: there is no such file.
    """
    try:
        if labels.endswith('.json'):
            with files.opened(labels) as (file, _size):
                numbers = [label for _file, label in json.load(file)['labels']]
        else:
            numbers = [int(part) for part in labels.split(',')]
        are_classes = all(number >= 0 and number % 1 == 0 for number in numbers)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return [int(number) for number in numbers] if numbers and are_classes else None
