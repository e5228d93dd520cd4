"""`quickstart`: compress a small StyleGAN2 on real digits, on a CPU, in minutes, and show what came out."""

import glob
import os
import shutil
import time
from dataclasses import dataclass
from importlib import resources

import numpy as np
import PIL.Image
import torch

from stylegan2_compress import digits, evaluation, images, mnist, options, pickles, profiling
from stylegan2_compress.distillation import distill

TEACHER = 'mnist_teacher.safetensors'
EMBEDDING = 'efficientnet_lite0@size=64'


@dataclass(frozen=True)
class Row:
    """One generator in the closing table."""

    name: str
    parameters: int
    macs: int
    frechet_distance: float


def quickstart(outdir: str, ratio: float, kimg: int, seed: int) -> None:
    """Compress the shipped MNIST teacher into `outdir`: dataset, teacher, run directory, table and picture."""
    options.check_outdir(outdir)
    start = time.time()
    os.makedirs(outdir, exist_ok=True)
    data, teacher = os.path.join(outdir, 'mnist.zip'), os.path.join(outdir, 'teacher.pkl')
    print(f'Writing 5,000 MNIST digits to {data} and the teacher, a StyleGAN2 trained on them, to {teacher}')
    mnist.write_zip(data)
    with resources.as_file(resources.files('stylegan2_compress') / 'assets' / TEACHER) as path:
        pickles.save(teacher, pickles.load(path))
    run_dir = distill(
        teacher=teacher,
        data=data,
        outdir=outdir,
        ratio=ratio,
        kimg=kimg,
        batch=32,
        loss_args=(f'embeddings={EMBEDDING}', 'samples=5000'),
        seed=seed,
        workers=1,
        device='cpu',
    )
    generators = {
        'teacher': pickles.load(teacher)['G_ema'],
        'pruned': pickles.load(f'{run_dir}/student.pkl')['G_ema'],
        'distilled': pickles.load(sorted(glob.glob(f'{run_dir}/network-snapshot-*.pkl'))[-1])['G_ema'],
    }
    reals = digit_features(torch.from_numpy(mnist.load()[0]).float() / 127.5 - 1)
    rows = [measure(name, G, reals) for name, G in generators.items()]
    student, picture = os.path.join(outdir, 'student.pkl'), os.path.join(outdir, 'compare.png')
    shutil.copyfile(sorted(glob.glob(f'{run_dir}/network-snapshot-*.pkl'))[-1], student)
    save_comparison(generators, rows, picture)
    print_table(rows)
    print(f'\nThe same z through all three: {picture}')
    print(f'The compressed generator:     {student}')
    print(f'Took {(time.time() - start) / 60:.1f} minutes.')


def measure(name: str, G: torch.nn.Module, reals: np.ndarray) -> Row:
    fakes = evaluation.generate(G, len(reals), seed=1)
    distance = evaluation.frechet_distance(digit_features(fakes), reals)
    return Row(name, profiling.parameters(G), profiling.macs(G), distance)


def digit_features(batch: torch.Tensor) -> np.ndarray:
    """The shipped classifier's 64 features of images [N, 1, 32, 32]."""
    with torch.no_grad():
        return digits.load_classifier().features(batch).numpy()


def print_table(rows: list[Row]) -> None:
    facts = digits.classifier_facts()
    first = rows[0]
    print(f'\n{"":10} {"parameters":>18} {"MACs per image":>24} {"Fréchet distance":>18}')
    for row in rows:
        parameters = f'{row.parameters:,} ({first.parameters / row.parameters:.1f}x)'
        macs = f'{row.macs:,} ({first.macs / row.macs:.1f}x)'
        print(f'{row.name:10} {parameters:>18} {macs:>24} {row.frechet_distance:>18.2f}')
    print('Fréchet distance: 5,000 generated against 5,000 real digits, in the 64 features of a digit classifier that')
    print(f'the run did not train on ({facts["test_accuracy"]:.1%} right on 1,000 digits it never saw).')


def save_comparison(generators: dict[str, torch.nn.Module], rows: list[Row], path: str) -> None:
    """10 × 10 digits of each generator for the same z, next to each other."""
    panels = {}
    for (name, G), row in zip(generators.items(), rows, strict=True):
        sheet = images.grid(images.to_uint8(evaluation.generate(G, 100, seed=2)), columns=10)
        caption = f'{name}: {row.parameters:,} parameters\nFréchet distance {row.frechet_distance:.2f}'
        panels[caption] = sheet.resize((480, 480), PIL.Image.Resampling.LANCZOS)
    images.side_by_side(panels).save(path)
