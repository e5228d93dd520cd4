"""Good files and bad ones, as the command lines of `tests/cli/test_bad_input.py` name them."""

import io
import json
import pickle
import shutil
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from stylegan2_compress import pickles
from stylegan2_compress.compression.convert import convert
from stylegan2_compress.compression.options import PruneOptions, StatsOptions
from stylegan2_compress.compression.prune import prune
from stylegan2_compress.compression.stats import write_statistics
from stylegan2_compress.networks.masked import ScoreMaskedGenerator
from stylegan2_compress.runs import states
from stylegan2_compress.runs.directory import RunDirectory
from stylegan2_compress.tickets.ticket_file import Ticket

TINY = 'module:tiny_embeddings:tiny@size=16'
SMALL = dict(synthesis_kwargs=dict(channel_base=64, channel_max=8))
SMALL_D = dict(channel_base=64, channel_max=8)


class NoContent(torch.nn.Module):
    """A content mask that finds nothing."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :1] * 0


class Evil:
    """What a hostile pickle runs, if it is allowed to."""

    def __reduce__(self):
        return subprocess.check_output, (['touch', 'executed'],)


def write_all(directory: Path, make_generator: Callable, make_discriminator: Callable, make_dataset_zip: Callable):
    """Write everything into a directory."""
    write_networks(directory, make_generator, make_discriminator)
    write_data(directory, make_dataset_zip)
    write_what_is_no_network(directory)
    write_tickets(directory)
    write_runs(directory)
    for name, source in [('statistics', 'teacher'), ('other', 'teacher2')]:
        options = StatsOptions(
            teacher=str(directory / f'{source}.pkl'), embeddings=(TINY,), samples=4, out=str(directory / f'{name}.npz'),
            device='cpu',
        )  # fmt: skip
        write_statistics(options)


def write_networks(directory: Path, make_generator: Callable, make_discriminator: Callable) -> None:
    """The teacher and its like, and those that do not fit it or are broken."""

    def networks(seed=0, **shape):
        G = make_generator(seed, **SMALL, **shape).eval().requires_grad_(False)
        D = make_discriminator(seed, **SMALL_D, **shape).eval().requires_grad_(False)
        return dict(G=G, D=D, G_ema=G, training_set_kwargs=None, augment_pipe=None)

    teacher = networks()
    for name, contents in {
        'teacher': teacher,
        'teacher2': networks(seed=1),
        'labels': networks(c_dim=3),
        'tiny': dict(teacher, G_ema=make_generator(**SMALL, img_resolution=4).eval()),
        'res8': networks(img_resolution=8),
        'grey': networks(img_channels=1),
        'wide': dict(teacher, G=None, D=None, G_ema=make_generator(z_dim=24, **SMALL).eval()),
        'no_average': dict(teacher, G_ema=make_generator(**SMALL, mapping_kwargs=dict(w_avg_beta=None)).eval()),
        'only_d': dict(teacher, G=None, G_ema=None),
        'only_g': dict(teacher, D=None),
    }.items():
        pickles.save(directory / f'{name}.pkl', contents)
    pickles.save(directory / 'teacher.safetensors', teacher)
    convert(str(directory / 'teacher.pkl'), str(directory / 'alone.pkl'), only='G_ema')
    prune(PruneOptions(teacher=str(directory / 'teacher.pkl'), ratio=0.5, out=str(directory / 'student.pkl')))
    for name, layers, value in [('nan', ['const'], float('nan')), ('loud', ['torgb.bias'], 3e38)]:
        contents = networks()
        for block in ('b4', 'b8', 'b16'):
            for layer in layers:
                module, _dot, weights = f'synthesis.{block}.{layer}'.rpartition('.')
                tensor = getattr(contents['G_ema'].get_submodule(module), weights, None)
                if tensor is not None:
                    tensor.data[:] = value
        pickles.save(directory / f'{name}.pkl', contents)


def write_data(directory: Path, make_dataset_zip: Callable) -> None:
    """Data sets: a good one, and those of too few, no, odd and different images."""
    for name, given in {
        'data': dict(n=12),
        'classes': dict(n=12, labels=3),
        'two_classes': dict(n=12, labels=2),
        'few': dict(n=5),
        'one': dict(n=1),
        'odd': dict(n=4, resolution=12),
        'tiny': dict(n=8, resolution=4),
    }.items():
        make_dataset_zip(directory, name=f'{name}.zip', **given)
    with zipfile.ZipFile(directory / 'empty.zip', 'w'):
        pass
    with zipfile.ZipFile(directory / 'data.zip') as good, zipfile.ZipFile(directory / 'mixed.zip', 'w') as mixed:
        for index, name in enumerate(good.namelist()):
            mixed.writestr(name, b'no image' if index == 5 else good.read(name))
    for name, image in {
        'sixteen': png(np.zeros([16, 16], np.uint16)),
        'vast': vast_png(),
        'bits': png(np.zeros([16, 16], bool)),
    }.items():
        with zipfile.ZipFile(directory / f'{name}.zip', 'w') as archive:
            archive.writestr('0.png', image)
            archive.writestr('1.png', image)
    for name, label in {
        'big_label': 10**30,
        'nan_label': float('nan'),
        'half_label': 1.5,
        'nan_vector': [float('nan'), 1.0],
        'large_vector': [1e39, 1.0],
    }.items():
        write_labels(directory, name, lambda files, label=label: json.dumps({'labels': [[f, label] for f in files]}))
    write_labels(directory, 'deep_labels', lambda _files: '[' * 100000)
    write_labels(directory, 'no_json', lambda _files: 'labels')


def png(pixels: np.ndarray) -> bytes:
    """An image as a PNG file."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format='png')
    return buffer.getvalue()


def vast_png() -> bytes:
    """A PNG file that claims to be 2³⁰ pixels."""
    small = png(np.zeros([1, 1], np.uint8))
    header = b'IHDR' + struct.pack('>II', 2**15, 2**15) + small[24:29]
    return small[:12] + header + struct.pack('>I', zlib.crc32(header)) + small[33:]


def write_labels(directory: Path, name: str, text: Callable[[list[str]], str]) -> None:
    """Write a copy of the good data with another dataset.json, whose text is a function of the files' names."""
    with zipfile.ZipFile(directory / 'data.zip') as good, zipfile.ZipFile(directory / f'{name}.zip', 'w') as changed:
        files = [file for file in good.namelist() if file.endswith('.png')]
        for file in files:
            changed.writestr(file, good.read(file))
        changed.writestr('dataset.json', text(files))


def write_what_is_no_network(directory: Path) -> None:
    """Files that people give by mistake, and files that broke on the way."""
    torch.jit.script(NoContent()).save(str(directory / 'no_content.pt'))
    good = (directory / 'teacher.pkl').read_bytes()
    tensors = bytearray((directory / 'teacher.safetensors').read_bytes())
    tensors[-9] ^= 64
    for name in ('dir', 'dir.html'):
        (directory / name).mkdir()
    (directory / 'link').symlink_to('dir')
    (directory / 'lost.pkl').symlink_to('nodir/out.pkl')
    for name, contents in {
        'text.pkl': b'This is text.\n' * 20,
        'text.safetensors': b'This is text.\n' * 20,
        'empty.pkl': b'',
        'there.png': b'no image',
        'image.png': b'\x89PNG\r\n\x1a\n' + bytes(100),
        'page.pkl': b'<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n',
        'lfs.pkl': b'version https://git-lfs.github.com/spec/v1\noid sha256:' + b'0' * 64 + b'\nsize 363\n',
        'cut.pkl': good[: len(good) // 2],
        'list.pkl': pickle.dumps([1, 2]),
        'evil.pkl': pickle.dumps({'G_ema': Evil()}),
        'flipped.safetensors': bytes(tensors),
        'cut.safetensors': bytes(tensors[:-100]),
    }.items():
        (directory / name).write_bytes(contents)
    torch.save({'state_dict': {'weight': torch.zeros(3)}}, directory / 'checkpoint.pt')


def write_tickets(directory: Path) -> None:
    """A masked generator, its ticket, one in a teacher's weights, and broken ones."""
    shape = dict(
        z_dim=16, c_dim=0, w_dim=16, img_resolution=16, img_channels=3, mapping_kwargs={'num_layers': 2}, **SMALL
    )
    G = ScoreMaskedGenerator(**shape, keep=0.3).eval().requires_grad_(False)
    D = pickles.load(directory / 'teacher.pkl')['D']
    pickles.save(directory / 'masked.pkl', dict(G=G, D=D, G_ema=G, training_set_kwargs=None, augment_pipe=None))
    Ticket.from_generator(G).write(directory / 'a.ticket')
    contents = bytearray((directory / 'a.ticket').read_bytes())
    (directory / 'cut.ticket').write_bytes(contents[:-20])
    contents[-30] ^= 16
    (directory / 'flipped.ticket').write_bytes(contents)


def write_runs(directory: Path) -> None:
    """Run directories: with options only, with damaged states, with a damaged line of metrics, with a broken snapshot.

    The last one's older snapshot is a good one.
    """
    args = dict(total_kimg=1, run_dir='run', loss_kwargs=dict(), training_set_kwargs=dict(path='data.zip'))
    for name in ('run', 'damaged', 'badmetrics', 'badsnapshot'):
        (directory / name).mkdir()
        RunDirectory(directory / name).write_options(dict(args, run_dir=name))
    path = states.save_state(RunDirectory(directory / 'damaged'), 1000, {'a': torch.zeros(9)}, finished=False)
    shutil.copy(path, directory / 'state.pt')
    path.write_bytes(path.read_bytes()[:-9])
    shutil.copy(directory / 'teacher.pkl', directory / 'badmetrics' / 'network-snapshot-000001.pkl')
    shutil.copy(directory / 'teacher.pkl', directory / 'badsnapshot' / 'network-snapshot-000001.pkl')
    shutil.copy(directory / 'text.pkl', directory / 'badsnapshot' / 'network-snapshot-000002.pkl')
    record = dict(results=dict(fid='low'), metric='fid', snapshot_pkl='network-snapshot-000001.pkl')
    (directory / 'badmetrics' / 'metric-fid.jsonl').write_text(json.dumps(record) + '\n')


def snapshot(directory: Path) -> dict[str, tuple]:
    """Everything below a directory: kind, size, mode and time of the last change."""
    found = {}
    for path in directory.rglob('*'):
        status = path.lstat()
        found[str(path.relative_to(directory))] = (status.st_mode, path.is_dir() or status.st_size, status.st_mtime_ns)
    return found
