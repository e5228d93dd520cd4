"""What we ask of the host's data sets: which they are, and what their images are called."""

import hashlib
import multiprocessing
import shutil
import zipfile

import numpy as np
import pytest
import torch
from training.dataset import ImageFolderDataset

from stylegan2_compress.host import datasets


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


def test_the_death_of_a_worker_has_nothing_to_do_with_images(make_dataset_zip, tmp_path, monkeypatch):
    training_set = ImageFolderDataset(str(make_dataset_zip(tmp_path, n=16)))
    loader = torch.utils.data.DataLoader(training_set, num_workers=1)
    batches = iter(loader)
    next(batches)
    read = []
    monkeypatch.setattr(datasets, '_unreadable', lambda _training_set, index: read.append(index))
    (worker,) = multiprocessing.active_children()

    def rest():
        worker.kill()
        yield from batches

    with pytest.raises((RuntimeError, OSError, EOFError)), datasets.reading(training_set):  # As it happens.
        list(rest())
    assert not read
