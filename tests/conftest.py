"""What every test file shares: an activated host, tiny networks, a tiny dataset, the markers `checkout` and `gpu`.

`STYLEGAN2_ADA_PYTORCH` names the host to test with. Without it the cached copy is used, or one is fetched.
`STYLEGAN2_COMPRESS_TEST_DEVICE` names the device of the tests marked `gpu`.
"""

import io
import json
import os
import zipfile
from pathlib import Path

import forked
import numpy as np
import PIL.Image
import pytest
import tiny_runs
import torch

from stylegan2_compress import host

# Tiny networks: more threads only get in the way, here and in the processes that tests start.
torch.set_num_threads(int(os.environ.setdefault('OMP_NUM_THREADS', '1')))
host.find_or_fetch()
HOST = host.activate()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `checkout` unless a real checkout (one with a train.py) is named, and `gpu` without one.

    Files with slow tests come first, so that at the end no worker waits for another.
    """
    slow = {item.path for item in items if item.get_closest_marker('slow')}
    items.sort(key=lambda item: item.path not in slow)
    named = os.environ.get('STYLEGAN2_ADA_PYTORCH')
    if not (named and Path(named, 'train.py').is_file()):
        skip(items, 'checkout', 'set STYLEGAN2_ADA_PYTORCH to a git checkout of NVlabs/stylegan2-ada-pytorch to run')
    if not (torch.cuda.is_available() or 'STYLEGAN2_COMPRESS_TEST_DEVICE' in os.environ):
        skip(items, 'gpu', 'needs a GPU; with STYLEGAN2_COMPRESS_TEST_DEVICE=cpu it runs on the CPU')


def skip(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our cache is empty, and the test's own."""
    monkeypatch.setenv('STYLEGAN2_COMPRESS_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def forked_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of the test begin as copies of this one."""
    forked.processes_are_forked(monkeypatch)


@pytest.fixture
def small_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grids of snapshots have 4 images: the host's have 1,024 of small ones."""
    from stylegan2_compress.training_loops import image_grid

    monkeypatch.setattr(image_grid, 'grid_size', lambda _shape: (2, 2))


@pytest.fixture(scope='session')
def make_generator():
    """Builder of tiny host generators: `make_generator(seed=0, **overrides)`; nothing outside sees its seed."""
    return lambda seed=0, **overrides: _construct(
        seed,
        class_name='training.networks.Generator',
        z_dim=16,
        c_dim=0,
        w_dim=16,
        img_resolution=16,
        img_channels=3,
        mapping_kwargs={'num_layers': 2},
        synthesis_kwargs={'channel_base': 256, 'channel_max': 16},
        overrides=overrides,
    )


@pytest.fixture(scope='session')
def make_discriminator():
    """Builder of tiny host discriminators: `make_discriminator(seed=0, **overrides)`, fitting `make_generator()`."""
    return lambda seed=0, **overrides: _construct(
        seed,
        class_name='training.networks.Discriminator',
        c_dim=0,
        img_resolution=16,
        img_channels=3,
        channel_base=256,
        channel_max=16,
        overrides=overrides,
    )


def _construct(seed: int, overrides: dict, **kwargs) -> torch.nn.Module:
    import dnnlib

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dnnlib.util.construct_class_by_name(**{**kwargs, **overrides})


@pytest.fixture(scope='session')
def make_dataset_zip():
    """Writer of random datasets in the host's format: see `_write_dataset_zip`."""
    return _write_dataset_zip


@pytest.fixture
def labelled_data(tmp_path, make_dataset_zip):
    """The host's arguments for a small data set of three labels."""
    path = str(make_dataset_zip(tmp_path, n=23, labels=3))
    return dict(class_name='training.dataset.ImageFolderDataset', path=path, use_labels=True)


@pytest.fixture
def data(tmp_path, make_dataset_zip):
    """A zip of twenty images of three labels; a file of tests may have another `data`."""
    return tiny_runs.labelled_data(tmp_path, make_dataset_zip)


@pytest.fixture
def teacher(tmp_path, make_generator, make_discriminator):
    """The path of a network pickle that fits them; a file of tests may have another `teacher`."""
    return tiny_runs.labelled_teacher(tmp_path, make_generator, make_discriminator)


def _write_dataset_zip(
    directory: Path,
    n: int = 16,
    resolution: int = 16,
    channels: int = 3,
    labels: int = 0,
    name: str = 'data.zip',
    vectors: bool = False,
    of_images: list[int] | None = None,
) -> Path:
    """Write `n` random PNGs and return the zip's path.

    For `labels` > 0, dataset.json has that many classes, or with `vectors` so many numbers for each image; or classes
    `of_images`.
    """
    rnd = np.random.RandomState(0)
    path = Path(directory, name)
    with zipfile.ZipFile(path, 'w') as archive:
        fnames = [f'{i // 1000:05d}/img{i:08d}.png' for i in range(n)]
        for fname in fnames:
            pixels = rnd.randint(256, size=[resolution, resolution, channels]).astype(np.uint8)
            png = io.BytesIO()
            PIL.Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels).save(png, format='png')
            archive.writestr(fname, png.getvalue())
        if labels:
            of_images = [rnd.rand(labels).tolist() if vectors else i % labels for i in range(n)]
        pairs = None if of_images is None else list(zip(fnames, of_images, strict=True))
        archive.writestr('dataset.json', json.dumps({'labels': pairs}))
    return path
