"""`quickstart`: compress a small StyleGAN2 on real digits, on a CPU, in minutes, and show what came out."""

import os
import time
from dataclasses import dataclass
from importlib import resources

import numpy as np
import PIL.Image
import torch

from stylegan2_compress import images, pickles, pruning
from stylegan2_compress.compression.distill import distill
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation.distances import frechet_distance
from stylegan2_compress.evaluation.samples import generate
from stylegan2_compress.files import require_writable_directory
from stylegan2_compress.host import profiling
from stylegan2_compress.quickstart import digits, mnist
from stylegan2_compress.runs.directory import RunDirectory
from stylegan2_compress.runs.resume import LATEST

TEACHER = 'mnist_teacher.safetensors'
# Networks this small, in runs this short, want a higher learning rate and a shorter average than the host's
# configurations have; R1's weight and the missing path length and mixing are those of the teacher's training.
RECIPE = dict(batch=16, gamma=2.0, lr=0.006, ema_kimg=0.5, pl_weight=0, kimg_per_tick=1, state_kimg=2)
LOSS = 'stylegan2_compress.NickelDimeLoss'
EMBEDDING = 'efficientnet_lite0@size=32'
WEIGHT = 0.5  # At 20, the paper's for DINO, moments of 16 images of ten digits drown the discriminator's gradient.


@dataclass(frozen=True)
class Row:
    """One generator in the closing table."""

    name: str
    parameters: int
    macs: int
    frechet_distance: float
    readable: float  # Share of images in which the classifier reads the digit that was asked for.


def quickstart(outdir: str, ratio: float, kimg: int, seed: int, samples: int = 5000) -> str:
    """Compress the shipped MNIST teacher: dataset and teacher in `outdir`, everything else in a run directory.

    One that was interrupted goes on where it was.

    Args:
        outdir: an existing `mnist.zip` or `teacher.pkl` there is used, not replaced.
        ratio: share of channels to cut.
        kimg: length of the distillation in thousands of images.
        seed: of the run.
        samples: how many images the teacher's statistics and the Fréchet distances are taken over; divides 5000.

    Returns:
        The run directory.
    """
    start = time.time()
    # Operations this small gain little from a second core, and wait for long where another program has it.
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    require_writable_directory('--outdir', outdir)
    pruning.widths_for_ratio(load_teacher()['G_ema'], ratio)  # Refuses a bad one.
    if kimg < 1:
        raise UserError(f'--kimg={kimg} must be at least 1.')
    reals, _labels = mnist.load()

    os.makedirs(outdir, exist_ok=True)
    data, teacher = write_inputs(outdir)
    run_dir = distill(
        teacher=teacher,
        data=data,
        outdir=outdir,
        ratio=ratio,
        kimg=kimg,
        loss=LOSS,
        loss_args=loss_args(WEIGHT, samples),
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
    reals = reals[:: len(reals) // samples]  # They are sorted by digit.
    features = digit_features(torch.from_numpy(reals).float() / 127.5 - 1)
    rows = [measure(name, G, features) for name, G in generators.items()]
    save_comparison(generators, rows, f'{run_dir}/compare.png')
    print_table(rows, samples)
    print(f'\nThe same z through all three: {run_dir}/compare.png')
    print(f'The compressed generator:     {student}')
    print(f'Took {(time.time() - start) / 60:.1f} minutes.')
    return run_dir


def load_teacher() -> dict:
    """The networks that ship with the package."""
    with resources.as_file(resources.files('stylegan2_compress') / 'assets' / TEACHER) as path:
        return pickles.load(path)


def write_inputs(outdir: str) -> tuple[str, str]:
    """Paths of the dataset and the teacher in `outdir`, written where they are not there yet."""
    data, teacher = os.path.join(outdir, 'mnist.zip'), os.path.join(outdir, 'teacher.pkl')
    if not os.path.exists(data):
        print(f'Writing 5,000 MNIST digits to {data}')
        mnist.write_zip(data)
    if not os.path.exists(teacher):
        print(f'Writing the teacher, a StyleGAN2 trained on them, to {teacher}')
        pickles.save(teacher, load_teacher())
    return data, teacher


def loss_args(weight: float, samples: int) -> dict[str, object]:
    """The quickstart's arguments of the loss."""
    return dict(embeddings=EMBEDDING, weights=weight, samples=samples, style_mixing_prob=0)


def measure(name: str, G: torch.nn.Module, real_features: np.ndarray) -> Row:
    fakes, labels = generate(G, len(real_features), seed=1)
    distance = frechet_distance(digit_features(fakes), real_features)
    with torch.no_grad():
        readable = (digits.load_classifier()(fakes).argmax(1) == labels.argmax(1)).float().mean().item()
    return Row(name, profiling.parameters(G), profiling.macs(G), distance, readable)


def digit_features(batch: torch.Tensor) -> np.ndarray:
    """The shipped classifier's 64 features of images [N, 1, 32, 32]."""
    with torch.no_grad():
        return digits.load_classifier().features(batch).numpy()


def print_table(rows: list[Row], samples: int) -> None:
    facts = digits.classifier_facts()
    first = rows[0]
    print(f'\n{"":10} {"parameters":>18} {"MACs per image":>22} {"Fréchet distance":>18} {"readable":>10}')
    for row in rows:
        parameters = f'{row.parameters:,} ({first.parameters / row.parameters:.1f}x)'
        macs = f'{row.macs:,} ({first.macs / row.macs:.1f}x)'
        print(f'{row.name:10} {parameters:>18} {macs:>22} {row.frechet_distance:>18.1f} {row.readable:>10.1%}')
    print(
        f'Fréchet distance of {samples:,} images to {samples:,} real digits, in features of a digit classifier that\n'
        'the run did not train on. Readable: the share of images in which it reads the digit that was asked for; of\n'
        f'real digits it never saw, it reads {facts["test_accuracy"]:.1%} right.'
    )


def save_comparison(generators: dict[str, torch.nn.Module], rows: list[Row], path: str) -> None:
    """The same 100 latents through each generator, next to each other; a row of the picture is a digit."""
    panels = {}
    for (name, G), row in zip(generators.items(), rows, strict=True):
        fakes, _labels = generate(G, 100, seed=2)
        by_digit = fakes.unflatten(0, (10, 10)).transpose(0, 1).flatten(0, 1)
        sheet = images.grid(images.to_uint8(by_digit), columns=10).resize((480, 480), PIL.Image.Resampling.LANCZOS)
        panels[f'{name}: {row.parameters:,} parameters\nFrechet distance {row.frechet_distance:.1f}'] = (
            sheet  # Pillow's font has no é.
        )
    images.side_by_side(panels).save(path)
