"""The host's datasets: opened with errors a user can act on, identified by their contents, their labels."""

import contextlib
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import dnnlib
import numpy as np
import PIL.Image
from training.dataset import Dataset
from training.networks import Generator

from stylegan2_compress.errors import UserError

# The class of a data set that is not files but a network, which makes the images.
TEACHERS_IMAGES = 'stylegan2_compress.TeacherDataset'


def is_teachers(training_set_kwargs: Mapping | None) -> bool:
    """Whether these are the arguments of a teacher's data set, and not of one in files."""
    return training_set_kwargs is not None and training_set_kwargs.get('class_name') == TEACHERS_IMAGES


def fingerprint(path: str) -> str:
    """SHA-256 of names, sizes and checksums of a dataset's files: the same for a directory and a zip of it.

    A zip contains the checksums; the files of a directory are read. Those that the host does not look at, such as what
    else is in the directory, do not count.
    """
    PIL.Image.init()
    # Modification times would be quicker, but they differ for every copy of the same images. Reading a directory takes
    # 0.4 of the time of decoding its images (20,000 PNGs of 32×32: 0.7 s and 2.0 s of one core), which comes next
    # anyway unless the result is in the cache.
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if _is_of_data(member.filename)]
            entries = [(member.filename, member.file_size, member.CRC) for member in members]
    else:
        files = ((file, file.relative_to(path).as_posix()) for file in Path(path).rglob('*') if file.is_file())
        contents = ((name, file.read_bytes()) for file, name in files if _is_of_data(name))
        entries = [(name, len(data), zlib.crc32(data)) for name, data in contents]
    return hashlib.sha256(json.dumps(sorted(entries)).encode()).hexdigest()


def _is_of_data(name: str) -> bool:
    """Whether the host looks at a file of this name in a dataset."""
    return name == 'dataset.json' or os.path.splitext(name)[1].lower() in PIL.Image.EXTENSION


@contextlib.contextmanager
def reading(training_set: Dataset, indices: Iterable[int]) -> Iterator[None]:
    """If something fails in the block, name the image of the dataset that cannot be read, if there is one.

    The host checks only the first image when it opens a dataset. Its error does not say which image it is of.

    Args:
        training_set: of whose images some are read in the block, here or in a worker.
        indices: those.

    Raises:
        UserError: an image is damaged, or differs from the first in size or number of channels.
    """
    try:
        yield
    except Exception as error:
        if not hasattr(training_set, '_image_fnames'):
            raise
        for index in indices:
            reason = _unreadable(training_set, index)
            if reason is not None:
                name = training_set._image_fnames[training_set.get_details(index).raw_idx]
                raise UserError(
                    f'The image {name} in --data={training_set._path} cannot be used ({reason}); make the dataset with '
                    f"the host's dataset_tool.py."
                ) from error
        raise  # All can be read: something else is wrong.


def _unreadable(training_set: Dataset, index: int) -> str | None:
    """Why an image cannot be read; None if it can."""
    try:
        training_set[index]
    except AssertionError:
        return 'it is not 8-bit, or differs from the first in size or channels'
    except Exception as error:
        return str(error)
    return None


class Labels:
    """Labels of images, each different one once: a million of a thousand classes would take gigabytes.

    `labels[indices]` are those of images [len(indices), label_dim].

    Args:
        each: label [label_dim] of every image, in order.

    Attributes:
        rows: [K, label_dim], the different ones.
        index: [N], which of them each image has.
        sha256: of all labels as one array, in hexadecimal.
    """

    def __init__(self, each: Iterable[np.ndarray]):
        hashed, places, rows, index = hashlib.sha256(), {}, [], []
        for label in each:
            content = label.tobytes()
            hashed.update(content)
            index.append(places.setdefault(content, len(rows)))
            if index[-1] == len(rows):
                rows.append(label)
        self.rows = np.stack(rows)
        self.index = np.array(index)
        self.sha256 = hashed.hexdigest()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, indices: np.ndarray | slice) -> np.ndarray:
        return self.rows[self.index[indices]]

    def classes(self) -> np.ndarray:
        """[N]: the class of every image, of one-hot labels."""
        return self.rows.argmax(1)[self.index]

    def shares(self) -> list[float]:
        """The mean of all labels: of classes, which share of the images has each."""
        counts = np.bincount(self.index, minlength=len(self.rows))
        return (counts @ self.rows.astype(np.float64) / len(self)).tolist()


def labels(training_set: Dataset) -> Labels:
    """The label of every image of a dataset in its order, mirrored images included.

    Of a dataset that says so itself, all that can be drawn (`label_table`).
    """
    if hasattr(training_set, 'label_table'):
        return Labels(training_set.label_table)
    return Labels(training_set.get_label(index) for index in range(len(training_set)))


def has_classes(training_set_kwargs: Mapping) -> bool:
    """Whether a dataset has labels that are classes, and not vectors of any other kind, which the host takes, too."""
    training_set = dnnlib.util.construct_class_by_name(**training_set_kwargs)
    return training_set.has_labels and training_set.has_onehot_labels


def is_subset(training_set: Dataset) -> bool:
    """Whether a dataset shows some of its images only (`--subset`)."""
    return len(set(training_set._raw_idx)) < training_set._raw_shape[0]


def open_training_set(path: str) -> tuple[Dataset, dnnlib.EasyDict]:
    """The dataset at `path`, a directory or zip of images, and its class name and constructor arguments.

    Raises:
        UserError: the host cannot use it.
    """
    kwargs = dnnlib.EasyDict(class_name='training.dataset.ImageFolderDataset', path=path, use_labels=True)
    kwargs.update(max_size=None, xflip=False)
    try:
        training_set = dnnlib.util.construct_class_by_name(**kwargs)
        kwargs.update(resolution=training_set.resolution, max_size=len(training_set))
    except Exception as error:  # Of archives and decoders of images, each with its own, and assertions of the host.
        reason = str(error).rstrip('.') or 'its images are not all square and of one size'
        raise UserError(
            f"--data={path} cannot be used as a dataset ({reason}); make one with the host's dataset_tool.py."
        ) from error
    if training_set.num_channels not in (1, 3):
        raise UserError(
            f'--data={path} has images of {training_set.num_channels} channels, and 1 or 3 are possible; make a '
            f"dataset with the host's dataset_tool.py."
        )
    resolution = training_set.resolution
    if resolution < 4 or resolution & (resolution - 1):
        raise UserError(f'--data={path} has images of resolution {resolution}, which must be a power of 2, at least 4.')
    if training_set._load_raw_image(0).dtype != np.uint8:
        raise UserError(f'--data={path} has images that are not 8-bit: convert them to grey or RGB of 8 bits.')
    if training_set.num_channels == 1 and _has_palette(training_set):
        raise UserError(
            f'--data={path} has images with a palette, of which the host would see the indices: convert them to RGB, '
            'for example with its dataset_tool.py.'
        )
    try:
        written = _written_labels(training_set)
        finite = written is None or written.dtype.kind != 'f' or np.isfinite(written).all()
        if finite:
            with np.errstate(over='ignore'):
                labels = training_set._get_raw_labels()
            kwargs.update(use_labels=training_set.has_labels)
            finite = np.isfinite(labels).all()
            if written is not None and written.ndim == 1 and (written.astype(np.float64) != labels).any():
                raise ValueError('classes are whole numbers')
    except json.JSONDecodeError as error:
        raise UserError(f'--data={path} has a dataset.json that is not JSON ({error}): correct it.') from error
    except Exception as error:  # Of archives and NumPy, and assertions of the host.
        raise UserError(
            f'--data={path} has a dataset.json that cannot be used: its "labels" must be null, or a class (0, 1, …) '
            f'for every image, as [[FILE, CLASS], …].'
        ) from error
    if not finite:
        raise UserError(f'--data={path} has labels in its dataset.json that are NaN or infinite: correct them.')
    return training_set, kwargs


def _has_palette(training_set: Dataset) -> bool:
    """Whether the first image is a file whose values are indices of colours."""
    with training_set._open_file(training_set._image_fnames[0]) as file, PIL.Image.open(file) as image:
        return image.mode == 'P'


def _written_labels(training_set: Dataset) -> np.ndarray | None:
    """The labels in dataset.json, before the host makes whole numbers of classes; None without any."""
    if 'dataset.json' not in training_set._all_fnames:
        return None
    with training_set._open_file('dataset.json') as file:
        labels = json.load(file)['labels']
    if labels is None:
        return None
    by_image = dict(labels)
    return np.array([by_image[name.replace('\\', '/')] for name in training_set._image_fnames])


def metric_dataset_kwargs(path: str, G: Generator, mirror: bool) -> dict:
    """Data set arguments for the host's metrics, as its calc_metrics.py makes them for a generator.

    Their order matters: the host's cache of data statistics depends on it.
    """
    kwargs = dnnlib.EasyDict(class_name='training.dataset.ImageFolderDataset', path=path)
    kwargs.update(resolution=G.img_resolution, use_labels=G.c_dim != 0)
    if mirror:
        kwargs.xflip = True
    return kwargs
