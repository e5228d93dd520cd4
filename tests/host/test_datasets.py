"""What we ask of the host's data sets: which they are, and what their images are called."""

import hashlib
import itertools
import shutil
import zipfile

import numpy as np
import PIL.Image
import pytest
import torch
from training.dataset import ImageFolderDataset

from stylegan2_compress.errors import UserError
from stylegan2_compress.host import datasets
from stylegan2_compress.training_loops.data import Share, ShuffledSampler, real_batches


def test_data_are_known_by_their_contents(make_dataset_zip, tmp_path):
    data = make_dataset_zip(tmp_path, n=4)
    fingerprint = datasets.fingerprint(str(data))
    shutil.copy(data, tmp_path / 'copy.zip')
    with zipfile.ZipFile(data) as archive:
        archive.extractall(tmp_path / 'folder')
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(tmp_path / 'packed.zip', 'w', zipfile.ZIP_DEFLATED) as packed:
        for name, content in reversed(entries):
            packed.writestr(name, content)
    (tmp_path / 'folder' / 'statistics.npz').write_bytes(b'Which the host does not look at.')
    for same_contents in ('copy.zip', 'folder', 'packed.zip'):
        assert datasets.fingerprint(str(tmp_path / same_contents)) == fingerprint
    assert datasets.fingerprint(str(make_dataset_zip(tmp_path, n=5, name='other.zip'))) != fingerprint
    file = next((tmp_path / 'folder').rglob('*.png'))
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    assert datasets.fingerprint(str(tmp_path / 'folder')) != fingerprint


@pytest.mark.parametrize('kind', ['folder', 'zip'])
def test_images_with_a_palette_are_a_sentence(kind, tmp_path):
    """The host would take indices of colours for grey values."""
    (tmp_path / 'data').mkdir()
    rnd = np.random.default_rng(0)
    for name in ('a.png', 'b.png'):
        image = PIL.Image.fromarray(rnd.integers(256, size=[8, 8, 3], dtype=np.uint8))
        image.convert('P').save(tmp_path / 'data' / name)
    data = str(tmp_path / 'data')
    if kind == 'zip':
        data = shutil.make_archive(data, 'zip', data)
    with pytest.raises(UserError, match=r'--data=.* has images with a palette, .*: convert them to RGB'):
        datasets.open_training_set(data)


@pytest.mark.parametrize('xflip', [False, True])
def test_labels_are_those_of_the_images(make_dataset_zip, tmp_path, xflip):
    data = make_dataset_zip(tmp_path, n=4, labels=3)  # Classes 0, 1, 2, 0.
    found = datasets.labels(ImageFolderDataset(str(data), use_labels=True, xflip=xflip))
    assert found[:].dtype == np.float32
    assert found[:].argmax(1).tolist() == found.classes().tolist() == [0, 1, 2, 0] * (2 if xflip else 1)
    assert found.rows.tolist() == np.eye(3).tolist()
    assert found.shares() == [0.5, 0.25, 0.25]
    assert found.sha256 == hashlib.sha256(found[:].tobytes()).hexdigest()
    assert datasets.labels(ImageFolderDataset(str(data), xflip=xflip))[:].shape == (8 if xflip else 4, 0)


class WithOneError(ImageFolderDataset):
    """Of which a worker cannot read one image, once it has read so many."""

    reads_left = 6

    def __getitem__(self, idx):
        if torch.utils.data.get_worker_info() is not None:
            self.reads_left -= 1
            if self.reads_left < 0:
                raise OSError('Stale file handle')
        return super().__getitem__(idx)


def test_after_an_error_only_the_images_of_the_batch_are_tried(make_dataset_zip, tmp_path, monkeypatch):
    """As it is with one error of a file system: to try all images takes hours."""
    training_set = WithOneError(str(make_dataset_zip(tmp_path, n=16)))
    batches = real_batches(training_set, Share(4, 4), 0, 0, torch.device('cpu'), num_workers=1)
    next(batches)
    tried = []
    monkeypatch.setattr(datasets, '_unreadable', lambda _training_set, index: tried.append(index))
    with pytest.raises(OSError, match='Stale file handle'):
        next(batches)
    assert tried == list(itertools.islice(ShuffledSampler(16, Share(4, 4), 0, start=4), 4))
