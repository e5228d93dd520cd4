"""`quickstart`: compress a small StyleGAN2 of real digits on a CPU in minutes, and compare the generators."""

import os
import shlex
import time
from dataclasses import dataclass
from importlib import resources

import numpy as np
import PIL.Image
import torch
from training.networks import Generator

from stylegan2_compress import images, pickles, pruning, report
from stylegan2_compress.compression.distill import distill
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation import records
from stylegan2_compress.evaluation.distances import frechet_distance
from stylegan2_compress.evaluation.names import count_text
from stylegan2_compress.evaluation.samples import generate
from stylegan2_compress.export.export import export
from stylegan2_compress.export.options import ExportOptions
from stylegan2_compress.files import make_directory, require_writable_directory
from stylegan2_compress.host import profiling
from stylegan2_compress.quickstart import digits, mnist
from stylegan2_compress.runs.directory import RunDirectory
from stylegan2_compress.runs.resume import LATEST

TEACHER = 'mnist_teacher.safetensors'
# Small networks in short runs need a higher learning rate and a shorter moving average than the host's configurations.
RECIPE = dict(batch=16, lr=0.012, ema_kimg=0.5, kimg_per_tick=1, state_kimg=2)
# Nearer in fewer minutes than anything with a discriminator, see benchmarks/quickstart_ablation.py.
LOSS = 'stylegan2_compress.RegressionLoss+MomentMatchingLoss'
LOSS_ARGS = dict(embedding='efficientnet_lite0@size=32', normalize=True, moments_penalty=1)


@dataclass(frozen=True)
class Row:
    """One generator in the table at the end."""

    name: str
    parameters: int
    macs: int
    frechet_distance: float
    readable: float  # Share of images that the classifier assigns to the digit of their label.


def quickstart(outdir: str, ratio: float, kimg: int, seed: int, samples: int = 5000) -> str:
    """Compress the MNIST teacher that comes with the package, and compare teacher, pruned and distilled generator.

    Dataset and teacher are written to `outdir`, everything else to a run directory in it. A run that was interrupted is
    continued.

    Args:
        outdir: directory to write to; an existing `mnist.zip` or `teacher.pkl` in it is used, not replaced.
        ratio: share of channels to prune.
        kimg: length of the distillation in thousands of images.
        seed: seed of the run.
        samples: number of images for the Fréchet distances, a divisor of 5000, and for the teacher's moments.

    Returns:
        The run directory.

    Raises:
        UserError: an argument is not allowed, or nothing can be written to `outdir`.
    """
    start = time.time()
    # Small operations gain little from a second core, and wait long for one that another program uses.
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    require_writable_directory('--outdir', outdir)
    pruning.widths_for_ratio(load_teacher()['G_ema'], ratio)  # Checks the ratio.
    if kimg < 1:
        raise UserError(f'--kimg={kimg} must be at least 1.')
    make_directory(outdir)
    reals, _labels = mnist.load()
    data, teacher = write_inputs(outdir)
    run_dir = distill(
        teacher=teacher,
        data=data,
        outdir=outdir,
        ratio=ratio,
        kimg=kimg,
        loss=LOSS,
        loss_args=LOSS_ARGS | dict(samples=samples),
        seed=seed,
        workers=1,
        device='cpu',
        resume=LATEST,
        **RECIPE,
    )
    student = RunDirectory(run_dir).snapshots()[-1]
    generators = {
        'teacher': pickles.load(teacher)['G_ema'],
        'pruned': pickles.load(RunDirectory(run_dir).student_path)['G_ema'],
        'distilled': pickles.load(student)['G_ema'],
    }
    print('Comparing the three generators…')
    reals = reals[:: len(reals) // samples]  # The digits are sorted: take equally many of each.
    features = digit_features(torch.from_numpy(reals).float() / 127.5 - 1)
    rows = [measure(name, G, features) for name, G in generators.items()]
    save_comparison(generators, rows, f'{run_dir}/compare.png')
    for file, row in zip([teacher, RunDirectory(run_dir).student_path, student], rows, strict=True):
        put_on_record(str(file), row, samples, data)
    print_table(rows, samples)
    print(f'\nImages of the same z from all three: {run_dir}/compare.png')
    print(f'The compressed generator:            {student}')
    for line in export_student(str(student), teacher, run_dir):
        print(line)
    print(f'How it went, in the same browser:    {report.write([run_dir])}')
    print_what_next(teacher, str(student), outdir)
    print(f'Took {(time.time() - start) / 60:.1f} minutes.')
    return run_dir


def export_student(student: str, teacher: str, run_dir: str) -> list[str]:
    """Write a generator for ONNX Runtime, and a page with it and its teacher, where the packages for that are there.

    Returns:
        A line on each: where it is, or why it is not.
    """
    lines = []
    for name, what, options in [
        ('onnx', 'The same in ONNX Runtime:            ', dict(format='onnx')),
        ('page.html', 'A page to open in a browser:         ', dict(format='web', single_file=True, teacher=teacher)),
    ]:
        out = os.path.join(run_dir, name)
        try:
            export(student, ExportOptions(out=out, **options), force=True)
            lines.append(what + out)
        except UserError as error:
            lines.append(f'Not exported: {error.message}')
    return lines


def load_teacher() -> dict:
    """The contents of the network file that comes with the package."""
    with resources.as_file(resources.files('stylegan2_compress') / 'assets' / TEACHER) as path:
        return pickles.load(path)


def write_inputs(outdir: str) -> tuple[str, str]:
    """Paths of the dataset and the teacher in `outdir`; those that do not exist are written."""
    data, teacher = os.path.join(outdir, 'mnist.zip'), os.path.join(outdir, 'teacher.pkl')
    if not os.path.exists(data):
        print(f'Writing 5,000 MNIST digits to {data}')
        mnist.write_zip(data)
    if not os.path.exists(teacher):
        print(f'Writing the teacher, a StyleGAN2 trained on them, to {teacher}')
        pickles.save(teacher, load_teacher())
    return data, teacher


def measure(name: str, G: Generator, real_features: np.ndarray) -> Row:
    """Cost and quality of a generator, the latter with as many images as there are real features [N, 64]."""
    fakes, labels = generate(G, len(real_features), seed=1)
    features = digit_features(fakes)
    distance = frechet_distance(features, real_features)
    read = digits.load_classifier().head(torch.from_numpy(features)).argmax(1)
    readable = (read == labels.argmax(1)).float().mean().item()
    return Row(name, profiling.parameters(G), profiling.macs(G), distance, readable)


def digit_features(batch: torch.Tensor) -> np.ndarray:
    """The classifier's features [N, 64] of images [N, 1, 32, 32] in [-1, 1]."""
    with torch.no_grad():
        return digits.load_classifier().features(batch).numpy()


def put_on_record(file: str, row: Row, samples: int, data: str) -> None:
    """Append what was measured to the file beside a network that `report` and `compare` read."""
    metric = f'digits{count_text(samples)}'
    results = {f'{metric}_frechet_distance': row.frechet_distance, f'{metric}_readable': row.readable}
    records.append(file, dict(results=results, metric=metric, data=data))


def print_table(rows: list[Row], samples: int) -> None:
    """Print cost and quality of the generators, compared with the first."""
    facts = digits.classifier_facts()
    first = rows[0]
    print(f'\n{"":10} {"parameters":>18} {"MACs per image":>22} {"Fréchet distance":>18} {"readable":>10}')
    for row in rows:
        parameters = f'{row.parameters:,} ({first.parameters / row.parameters:.1f}x)'
        macs = f'{row.macs:,} ({first.macs / row.macs:.1f}x)'
        print(f'{row.name:10} {parameters:>18} {macs:>22} {row.frechet_distance:>18.1f} {row.readable:>10.1%}')
    print(
        f'Fréchet distance of {samples:,} images to {samples:,} real digits, in features of a digit classifier that\n'
        'was not used in training. Readable: the share of images that it assigns to the digit of their label; its\n'
        f'accuracy on real digits that it was not trained on is {facts["test_accuracy"]:.1%}.'
    )


def print_what_next(teacher: str, student: str, outdir: str) -> None:
    """Print what a user may want to type next."""
    walk = [teacher, student, '--seeds', '0-9', '--class', '0-9', '--interpolate', os.path.join(outdir, 'walk.gif')]
    print('\nWhat next:')
    for command, what in [
        (shlex.join(['generate', '--compare', *walk]), 'A walk through both.'),
        (shlex.join(['quickstart', '--ratio', '0.9', '--outdir', f'{outdir.rstrip(os.sep)}-0.9']), 'A smaller one.'),
        ('distill --teacher YOURS.pkl --ratio 0.8 --outdir runs', 'Your own; add --data if you have it.'),
    ]:
        print(f'  stylegan2-compress {command}    # {what}')


def save_comparison(generators: dict[str, Generator], rows: list[Row], path: str) -> None:
    """Write images of the same 100 latents from each generator side by side; each row shows one digit."""
    panels = {}
    for (name, G), row in zip(generators.items(), rows, strict=True):
        fakes, _labels = generate(G, 100, seed=2)
        by_digit = fakes.unflatten(0, (10, 10)).transpose(0, 1).flatten(0, 1)
        sheet = images.grid(images.to_uint8(by_digit), columns=10).resize((480, 480), PIL.Image.Resampling.LANCZOS)
        # Pillow's font has no é.
        panels[f'{name}: {row.parameters:,} parameters\nFrechet distance {row.frechet_distance:.1f}'] = sheet
    images.side_by_side(panels).save(path)
