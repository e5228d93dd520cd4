"""What we ask of the host's data sets beyond their images."""

import contextlib
import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import dnnlib
import numpy as np
import torch

from stylegan2_compress.errors import UserError


def fingerprint(path: str) -> str:
    """SHA-256 of names, sizes and check sums of a data set's files; the same for a zip and for what it was made from.

    A zip has the check sums on record; a directory is read.
    """
    # Times of change would be quicker, but they differ for every copy of the same images. To read a directory takes
    # 0.4 of the time of opening its images (20,000 PNGs of 32×32: 0.7 s and 2.0 s of one core), which comes next anyway
    # unless the cache knows what is wanted.
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            found = [(member.filename, member.file_size, member.CRC) for member in archive.infolist()]
    else:
        contents = ((file, file.read_bytes()) for file in Path(path).rglob('*') if file.is_file())
        found = [(file.relative_to(path).as_posix(), len(data), zlib.crc32(data)) for file, data in contents]
    return hashlib.sha256(json.dumps(sorted(entry for entry in found if entry[0][-1] != '/')).encode()).hexdigest()


@contextlib.contextmanager
def reading(training_set) -> Iterator[None]:
    """Name, where something fails in the block, the image of one of the host's data sets that cannot be read.

    The host looks at the first image when it opens a data set, and trusts that the others are like it.

    Raises:
        UserError: An image is damaged, of another size than the first, or has another number of channels.
    """
    try:
        yield
    except Exception as error:
        for index in range(len(training_set)):
            reason = _unreadable(training_set, index)
            if reason is not None:
                name = training_set._image_fnames[training_set.get_details(index).raw_idx]
                raise UserError(
                    f'The image {name} in --data={training_set._path} cannot be used ({reason}); make the data set '
                    f"with the host's dataset_tool.py."
                ) from error
        raise  # All images are well: something else is wrong.


def _unreadable(training_set, index: int) -> str | None:
    try:
        training_set[index]
    except AssertionError:
        return 'it is not 8-bit, or differs from the first in size or channels'
    except Exception as error:
        return str(error)
    return None


def labels(training_set) -> np.ndarray:
    """[N, label_dim]: the label of every image of one of the host's data sets, mirrored ones included, in its order."""
    return np.stack([training_set.get_label(index) for index in range(len(training_set))])


def open_training_set(path: str):
    """The host's dataset at `path` (a directory or zip of images), or a sentence about what is wrong with it."""
    kwargs = dnnlib.EasyDict(class_name='training.dataset.ImageFolderDataset', path=path, use_labels=True)
    kwargs.update(max_size=None, xflip=False)
    try:
        training_set = dnnlib.util.construct_class_by_name(**kwargs)
        kwargs.update(resolution=training_set.resolution, max_size=len(training_set))
    except (OSError, zipfile.BadZipFile, AssertionError) as error:
        reason = str(error) or 'its images are not all square and of one size'
        raise UserError(
            f"--data={path} cannot be used as a dataset ({reason}); make one with the host's dataset_tool.py."
        ) from error
    if training_set.num_channels not in (1, 3):
        raise UserError(
            f'--data={path} has images of {training_set.num_channels} channels, and 1 or 3 are possible; make a data '
            f"set with the host's dataset_tool.py."
        )
    resolution = training_set.resolution
    if resolution < 4 or resolution & (resolution - 1):
        raise UserError(f'--data={path} has images of resolution {resolution}, which must be a power of 2 from 4 on.')
    try:
        kwargs.update(use_labels=training_set.has_labels)
    except (OSError, KeyError, ValueError, TypeError, AssertionError) as error:
        raise UserError(
            f'--data={path} has a dataset.json that cannot be used: "labels" in it has to be null, or a class from 0 '
            f'on for every image, as [[FILE, CLASS], …].'
        ) from error
    return training_set, kwargs


def metric_dataset_kwargs(path: str, G: torch.nn.Module, mirror: bool) -> dict:
    """Data set arguments for the host's metrics, as its calc_metrics.py makes them for a generator.

    Their order matters: the host's cache of data statistics depends on it.
    """
    kwargs = dnnlib.EasyDict(class_name='training.dataset.ImageFolderDataset', path=path)
    kwargs.update(resolution=G.img_resolution, use_labels=G.c_dim != 0)
    if mirror:
        kwargs.xflip = True
    return kwargs
