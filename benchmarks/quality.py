"""Where the methods stand: students of one teacher, cut in the same way, trained by each method on as many images.

    python benchmarks/quality.py --data cifar10.zip --outdir runs/quality                 # hours on one core
    python benchmarks/quality.py --data cifar10.zip --outdir runs/quality --size smoke    # does it run: a minute

Needs a labelled dataset zip in the host's format, any. In turn: trains a classifier on its labels
(`image_classifier.py`), whose features measure everything and train nothing; trains a teacher with the host's own
loss, unless `--teacher` names one; prunes it; trains a student for each ratio, method and choice of training images
(`--trained-on`), `--repeats` times; measures the snapshots; and writes `table.md`, `results.json`, `curves-*.png` and
`images-*.png` into the output directory, anew after each ratio. A second table there compares each method with the best
that is not the paper's, seed by seed.

Beside the Fréchet distance to the data in the classifier's features: "fd teacher", to the teacher's images; "fd
places", in features that keep their places, as sFID does; "fd pixels", in principal components of the pixels; and, of
the snapshots that the table shows, the classification accuracy score (CAS; Ravuri and Vinyals, NeurIPS 2019), how many
real images are recognised by a classifier that was trained on generated ones and nothing else.

On a GPU, it trains students of NVIDIA's CIFAR-10 generator by the methods in `OVERVIEW`, at one ratio and on 3
million images each: hours for each, by the times of steps that were measured on an H200, and fewer with
`--cuda-graphs`. It has not been run there.

Started again with the same `--outdir`, it goes on where it was: what is finished is not done again, what was
interrupted is continued exactly, and the files of what was measured are not needed any more. `--jobs` trains several
students at a time, on all GPUs that there are in turn, or on one. With more ratios, methods, repeats or training
images, they are added; with a larger `--kimg` and `--lr-decay 0`, finished students are trained further. Anything
else that would change the numbers is refused.
"""

import concurrent.futures
import functools
import itertools
import json
import math
import multiprocessing
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import image_classifier
import numpy as np
import torch
from quality_methods import FULL, METHODS, NONE
from quality_report import draw_curves, draw_images, file_of, grouped, setting_of, tables

from stylegan2_compress import host


@dataclass(frozen=True)
class Settings:
    """All that decides what comes out; `settings.json` in the output directory keeps it."""

    data: str
    teacher: str | None
    teacher_kimg: int
    channel_base: int
    channel_max: int
    epochs: int
    ratios: tuple[float, ...]
    methods: tuple[str, ...]
    trained_on: tuple[str, ...]
    repeats: int
    criterion: str
    kimg: int
    batch: int
    lr: float
    lr_decay: float
    gamma: float
    ema_kimg: float
    embedding: str
    layers_embedding: str
    weight: float
    images_kimg: float  # Not a share of `kimg`, which may grow.
    statistics: int
    samples: int
    cas_samples: int
    also: tuple[str, ...]
    mirror: bool
    seed: int
    device: str | None
    cuda_graphs: bool


# What may change between two runs into one output directory: it adds rows and changes none.
MAY_GROW = ('ratios', 'methods', 'trained_on', 'repeats', 'kimg', 'device', 'cuda_graphs')

RATIOS = (0.7, 0.8, 0.9, 0.95)
OVERVIEW = ('teacher-d', 'dime', 'nickel', 'both', 'images', 'regression-moments', 'regression-moments-data')
SMALL = 'efficientnet_lite0@size=32'
SIZES = dict(
    smoke=dict(
        teacher=None, teacher_kimg=1, channel_base=64, channel_max=8, epochs=1,
        ratios=(0.5,), methods=('adversarial', 'both'), kimg=1, batch=64, lr=0.004, lr_decay=0.0, gamma=0.02,
        ema_kimg=1.0, embedding=SMALL, layers_embedding=SMALL, weight=1.0, statistics=64, samples=64,
        cas_samples=256, also=(),
        trained_on=(FULL,), images_kimg=0.5,
    ),
    cpu=dict(
        teacher=None, teacher_kimg=150, channel_base=1024, channel_max=64, epochs=6,
        ratios=RATIOS, methods=tuple(METHODS), kimg=24, batch=16, lr=0.004, lr_decay=0.0, gamma=0.02, ema_kimg=1.0,
        embedding=SMALL, layers_embedding=SMALL, weight=1.0, statistics=10000, samples=5000,
        cas_samples=40000, also=(),
        trained_on=(FULL,), images_kimg=12.0,
    ),
    gpu=dict(
        teacher='https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/cifar10.pkl',
        teacher_kimg=25000, channel_base=32768, channel_max=512, epochs=20,
        ratios=RATIOS[-1:], methods=OVERVIEW, kimg=3000, batch=64, lr=0.0025, lr_decay=0.0, gamma=0.01, ema_kimg=50.0,
        embedding='dino_resnet50', layers_embedding=SMALL, weight=20.0, statistics=50000, samples=50000,
        cas_samples=50000, also=('inception',), trained_on=(FULL,), images_kimg=1000.0,
    ),
)  # fmt: skip


def listed(kind: type):
    """A click callback: values of a kind, separated by commas."""
    return lambda _context, _parameter, text: None if text is None else tuple(map(kind, filter(None, text.split(','))))


def method_names(_context, _parameter, text: str | None) -> tuple[str, ...] | None:
    names = listed(str)(None, None, text)
    for name in names or ():
        if name not in METHODS:
            raise click.BadParameter(f'{name} is none of {", ".join(METHODS)}.')
    return names


def shares(_context, _parameter, text: str | None) -> tuple[str, ...] | None:
    """What students are trained on."""
    found = listed(str)(None, None, text)
    for share in found or ():
        if share not in (FULL, NONE) and not re.fullmatch(r'\d{1,2}(\.\d+)?%', share):
            raise click.BadParameter(f'{share} is none of full, none, and shares such as 1%.')
    return found


@click.command(epilog='Defaults that are not shown depend on --size; SIZES in the source lists them.')
@click.option('--data', required=True, metavar='ZIP', help='Labelled dataset in the host’s format.')
@click.option('--outdir', required=True, metavar='DIR', help='Everything goes there; used again to go on.')
@click.option('--size', type=click.Choice(list(SIZES)), help='smoke: does it run  [default: what the device is]')
@click.option('--teacher', metavar='PKL', help='A teacher that exists (path or URL)  [cpu: train one]')
@click.option('--teacher-kimg', type=click.IntRange(1), help='Else: length of its training.')
@click.option('--channel-base', type=click.IntRange(64), help='Else: its width; D has half of it.')
@click.option('--channel-max', type=click.IntRange(1), help='Else: its channels at most.')
@click.option('--epochs', type=click.IntRange(1), help='Of the classifier.')
@click.option('--ratios', metavar='A,B,…', callback=listed(float), help='Shares of channels to cut.')
@click.option('--methods', metavar='A,B,…', callback=method_names, help=f'Of {", ".join(METHODS)}.')
@click.option(
    '--trained-on',
    metavar='A,B,…',
    callback=shares,
    help='Of full, none (the teacher’s images), and shares such as 1%.',
)
@click.option('--repeats', type=click.IntRange(1), default=1, show_default=True, help='Trainings of each, by seed.')
@click.option('--criterion', default='l1-styled', show_default=True, help='Of pruning; one start for all methods.')
@click.option('--kimg', type=click.IntRange(1), help='Length of each student’s training.')
@click.option('--batch', type=click.IntRange(1))
@click.option('--lr', type=float)
@click.option('--lr-decay', type=float, help='Last share of a student’s training in which learning rates fall to 0.')
@click.option('--gamma', type=float, help='Weight of the R1 penalty.')
@click.option('--ema-kimg', type=float)
@click.option('--embedding', metavar='SPEC', help='Of DiME.')
@click.option('--layers-embedding', metavar='SPEC', help='Of methods that look at layers, such as `images`.')
@click.option('--weight', type=float, help='DiME’s weight λ.')
@click.option('--images-kimg', type=float, help='Over how many thousand images the weight of `…-images` falls to 0.')
@click.option('--statistics', type=click.IntRange(2), help='Teacher images that DiME’s moments are of.')
@click.option('--samples', type=click.IntRange(2), help='Images that each number is of.')
@click.option('--cas-samples', type=click.IntRange(128), help='Images that a classifier is trained on, for CAS.')
@click.option('--also', callback=listed(str), help='Embeddings for further Fréchet distances, such as inception.')
@click.option('--mirror/--no-mirror', default=True, show_default=True)
@click.option('--seed', default=0, show_default=True)
@click.option('--device', help='[default: CUDA where there is one]')
@click.option('--cuda-graphs/--no-cuda-graphs', default=False, show_default=True, help='Record the steps of students.')
@click.option('--jobs', type=click.IntRange(1), default=1, show_default=True, help='Students that train at a time.')
@click.option(
    '--at', metavar='A,B,…', callback=listed(int), help='Table of snapshots after so many kimg  [default: the last]'
)
@click.option('--minutes', type=float, help='Start no further training after so many minutes  [default: no limit]')
def main(
    outdir: str, size: str | None, jobs: int, minutes: float | None, at: tuple[int, ...] | None, **options
) -> None:
    host.activate(host.find_or_fetch().path)
    from stylegan2_compress.files import locked, make_directory
    from stylegan2_compress.host import devices

    devices.set_backends()
    size = size or devices.choose(options['device']).type.replace('cuda', 'gpu')
    given = {name: value for name, value in options.items() if value is not None}
    settings = Settings(**{'device': None, **SIZES[size], **given})
    directory = Path(outdir)
    make_directory(directory)
    with locked(directory / 'lock', f'--outdir={outdir} is in use by another process, whose numbers would be lost.'):
        keep(settings, directory / 'settings.json')
        fill(settings, directory, jobs, minutes, at)


def fill(settings: Settings, outdir: Path, jobs: int, minutes: float | None, at: tuple[int, ...] | None) -> None:
    """Do what is not yet done, and write the report."""
    end = time.time() + 60 * (math.inf if minutes is None else minutes)
    if not (outdir / 'classifier.json').exists():
        image_classifier.train(settings.data, str(outdir), settings.epochs, settings.seed)
    teacher = settings.teacher or train_teacher(settings, outdir)
    ruler = Ruler(settings, outdir, teacher)
    ruler.measure(teacher, dict(name='teacher'))
    for ratio in settings.ratios:
        ruler.measure(write_starts(settings, outdir, teacher, ratio)['teacher'], dict(name='pruned', ratio=ratio))
    seeds = range(settings.seed, settings.seed + settings.repeats)
    measured = {student_of(row) for row in ruler.rows if row.get('kimg') == settings.kimg}
    students = itertools.product(seeds, settings.ratios, settings.methods, settings.trained_on)
    students = [student for student in students if student not in measured and is_possible(student)]
    train = functools.partial(train_student, settings, outdir, teacher, end)
    for student, snapshots in zip(students, in_processes(train, students, jobs), strict=True):
        seed, ratio, name, trained_on = student
        if snapshots is None:
            print(f'Stopped after {minutes:g} minutes; the same command goes on.')
            break
        for snapshot in snapshots:
            row = dict(name=name, ratio=ratio, trained_on=trained_on, seed=seed, kimg=kimg_of(snapshot))
            ruler.measure(snapshot, row | dict(sec_per_kimg=seconds_per_kimg(snapshot.parent)))
        if (name, trained_on) == (settings.methods[-1], settings.trained_on[-1]) and student != students[-1]:
            ruler.write_report(at)
    ruler.write_report(at)


def is_possible(student: tuple[int, float, str, str]) -> bool:
    """Not if it is to match data that it does not see."""
    _seed, _ratio, name, trained_on = student
    return trained_on != NONE or 'reference=data' not in METHODS[name].arguments


def in_processes(function, arguments: list, jobs: int):
    """The results of a function in order, of which so many are computed at a time, each in a process of its own."""
    if jobs == 1:
        yield from map(function, arguments)
        return
    context = multiprocessing.get_context('spawn')  # CUDA does not survive a fork.
    gpus = os.environ.get('CUDA_VISIBLE_DEVICES') or ','.join(map(str, range(torch.cuda.device_count())))
    turns: Any = context.Queue()
    for number in range(jobs):
        turns.put(number)
    given = turns, gpus.split(',')
    with concurrent.futures.ProcessPoolExecutor(jobs, context, initializer=start_process, initargs=given) as pool:
        yield from pool.map(function, arguments)


def start_process(turns: Any, gpus: list[str]) -> None:
    """Make this process one of several that train, each on the next GPU."""
    os.environ['CUDA_VISIBLE_DEVICES'] = gpus[turns.get() % len(gpus)]  # Before anything is put on one.
    torch.set_num_threads(1)
    host.activate(host.find_or_fetch().path)


def keep(settings: Settings, path: Path) -> None:
    """Write the settings, unless what is in their place belongs to other numbers."""
    new = json.loads(json.dumps(asdict(settings))) | dict(data=Path(settings.data).name)
    old = json.loads(path.read_text()) if path.exists() else new
    old['data'] = Path(old['data']).name
    may_grow = [name for name in MAY_GROW if name != 'kimg' or not settings.lr_decay]
    for name in new:
        if name not in may_grow and new[name] != old.get(name, new[name]):
            raise click.UsageError(
                f'{path.parent} holds results with --{name.replace("_", "-")}={old.get(name)}, not {new[name]}; '
                'give another --outdir.'
            )
    path.write_text(json.dumps(new, indent=2))


# --- Training ---------------------------------------------------------------------------------------------------------


def train_teacher(settings: Settings, outdir: Path) -> str:
    """The last snapshot of a StyleGAN2, a small one by default, trained with the host's loss."""
    from stylegan2_compress.compression import planning
    from stylegan2_compress.compression.options import MethodOptions
    from stylegan2_compress.host import configurations
    from stylegan2_compress.runs.loops import OUR_LOOP
    from stylegan2_compress.runs.plan import Plan

    finished = last_snapshot(outdir / 'teacher', settings.teacher_kimg)
    if finished:
        return str(finished)
    desc, args = configurations.loop_arguments(
        settings.data,
        kimg=settings.teacher_kimg,
        batch=settings.batch,
        gamma=settings.gamma,
        aug='noaug',
        cond=True,
        mirror=settings.mirror,
        seed=settings.seed,
        workers=1,
        fp32=True,
        snap=1,
    )
    args.G_kwargs.update(z_dim=64, w_dim=64)
    args.G_kwargs.synthesis_kwargs.update(channel_base=settings.channel_base, channel_max=settings.channel_max)
    args.D_kwargs.update(channel_base=settings.channel_base // 2, channel_max=settings.channel_max)
    args.D_kwargs.epilogue_kwargs = dict(mbstd_group_size=8)
    args.loss_kwargs.update(pl_weight=0, style_mixing_prob=0)  # As the host's configuration for 32×32, --cfg=cifar.
    args.G_opt_kwargs.lr = args.D_opt_kwargs.lr = settings.lr
    args.update(ema_kimg=5, kimg_per_tick=5, state_kimg=5)
    args.device = settings.device
    plan = planning.compress(Plan(desc, args), MethodOptions(loop=OUR_LOOP))
    planning.run(plan, str(outdir / 'teacher'), resume='latest')
    return str(last_snapshot(outdir / 'teacher', settings.teacher_kimg))


def last_snapshot(outdir: Path, kimg: int) -> Path | None:
    """The snapshot with which a training of that length ended, in whichever run directory below `outdir`."""
    return next(iter(outdir.glob(f'*/network-snapshot-{kimg:06d}.pkl')), None)


def seconds_per_kimg(run_dir: Path) -> float:
    """Of training in a run directory, the median over ticks but the first, which is one step of all phases."""
    ticks = [json.loads(line) for line in (run_dir / 'stats.jsonl').read_text().splitlines()]
    return float(np.median([tick['Timing/sec_per_kimg']['mean'] for tick in ticks[1:] or ticks]))


def write_starts(settings: Settings, outdir: Path, teacher: str, ratio: float) -> dict[str, Path]:
    """The pruned teacher as every method starts from it: with the teacher's D, and with a D from scratch."""
    from stylegan2_compress import pickles, pruning

    paths = {start: outdir / f'ratio{ratio:g}' / f'start-{start}.pkl' for start in ('teacher', 'scratch')}
    if not all(path.exists() for path in paths.values()):
        data = pickles.load(teacher)
        widths = pruning.widths_for_ratio(data['G_ema'], ratio)
        student = pruning.make_student(data, widths, settings.criterion)
        paths['teacher'].parent.mkdir(parents=True, exist_ok=True)
        pickles.save(paths['teacher'], student)
        torch.manual_seed(settings.seed)
        D = student['D']
        student['D'] = type(D)(*D.init_args, **D.init_kwargs).eval().requires_grad_(False)
        pickles.save(paths['scratch'], student)
    return paths


def filled_in(argument: str, settings: Settings) -> str:
    """An argument of a loss with the numbers that depend on the settings."""
    return argument.format(
        memory=64 * settings.batch,
        large_batch=8 * settings.batch,
        images_kimg=settings.images_kimg,
        kimg=settings.kimg,
        half_kimg=settings.kimg / 2,
        layers_embedding=settings.layers_embedding,
    )


def suffix_of(trained_on: str) -> str:
    """What the names of files and directories end with, for students of something else than all of the data."""
    return '' if trained_on == FULL else f'-on-{trained_on.rstrip("%")}'


def images_of(settings: Settings, trained_on: str, seed: int) -> dict:
    """The options of `distill` that say what a student is trained on; a share of the data is another for each seed."""
    if trained_on == NONE:
        return dict(data=None)
    options = dict(data=settings.data, mirror=settings.mirror)
    if trained_on != FULL:
        from stylegan2_compress.host import datasets

        training_set, _kwargs = datasets.open_training_set(settings.data)
        options.update(subset=max(round(float(trained_on.rstrip('%')) / 100 * len(training_set)), 1))
    return options


def train_student(
    settings: Settings, outdir: Path, teacher: str, end: float, student: tuple[int, float, str, str]
) -> list[Path] | None:
    """Snapshots of one student's training, which is run unless it is finished.

    Args:
        end: `time.time()` after which no training starts: the result is then None.
        student: seed, ratio, method, and what it is trained on.
    """
    from stylegan2_compress.compression.distill import distill

    if time.time() > end:
        return None
    seed, ratio, name, trained_on = student
    directory = outdir / f'ratio{ratio:g}' / f'{name}{suffix_of(trained_on)}' / f'seed{seed}'
    method = METHODS[name]
    start = write_starts(settings, outdir, teacher, ratio)[method.start]
    loss_args = ['style_mixing_prob=0'] if method.adversarial else []
    loss_args += [filled_in(argument, settings) for argument in method.arguments]
    if method.embeds:
        loss_args += [f'embeddings={settings.embedding}', f'estimator={method.estimator}']
        if not method.balanced:
            loss_args += [f'weights={settings.weight * method.weight:g}']
        if method.estimator.endswith('moments'):
            loss_args += [f'samples={settings.statistics}']
    if method.layers:
        loss_args += [f'embedding={settings.layers_embedding}']
    of_adversarial_loss = dict(gamma=settings.gamma, pl_weight=0) if method.adversarial else {}
    if last_snapshot(directory, settings.kimg) is None:
        distill(
            teacher,
            outdir=str(directory),
            **images_of(settings, trained_on, seed),
            student=str(start),
            loss=f'stylegan2_compress.{method.loss}',
            loss_args=tuple(loss_args),
            kimg=settings.kimg,
            batch=settings.batch,
            lr=settings.lr * method.lr,
            lr_decay=settings.lr_decay or None,
            ema_kimg=settings.ema_kimg,
            **of_adversarial_loss,
            kimg_per_tick=settings.kimg / 3,
            snap=1,
            state_kimg=max(settings.kimg / 75, 1),
            resume='latest',
            seed=seed,
            workers=1,
            device=settings.device,
            cuda_graphs=settings.cuda_graphs or None,
        )
    run_dir = last_snapshot(directory, settings.kimg).parent
    return [path for path in sorted(run_dir.glob('network-snapshot-*.pkl')) if kimg_of(path)]


def kimg_of(snapshot: Path) -> int:
    return int(snapshot.stem.rpartition('-')[2])


# --- Measuring --------------------------------------------------------------------------------------------------------


class Ruler:
    """Measures generators in the classifier's features, remembers what it measured, and writes the report."""

    def __init__(self, settings: Settings, outdir: Path, teacher: str):
        from stylegan2_compress import embeddings
        from stylegan2_compress.evaluation import features
        from stylegan2_compress.host import datasets, devices

        self.settings, self.outdir, self.teacher = settings, outdir, teacher
        self.device = devices.choose(settings.device)
        training_set, self.training_set_kwargs = datasets.open_training_set(settings.data)
        spec = f'torchscript:{outdir / "classifier.pt"}'
        self.embedding = embeddings.load(f'{spec}@size={training_set.resolution}', self.device)
        self.places = embeddings.load(f'{spec}#places@size={training_set.resolution}', self.device)
        self.head = torch.jit.load(outdir / 'classifier.pt').head
        self.reals = features.data_features(self.embedding, self.training_set_kwargs, self.device)
        self.reals_places = features.data_features(self.places, self.training_set_kwargs, self.device)
        self.pixels = Pixels(training_set)
        self.others = {spec: embeddings.load(spec, self.device) for spec in settings.also}
        self.path = outdir / 'results.json'
        self.rows = json.loads(self.path.read_text()) if self.path.exists() else []
        if not self.rows:
            order = np.random.default_rng(settings.seed).permutation(len(self.reals))
            count = min(settings.samples, len(order) // 2)
            half, rest = self.reals[order[:count]], self.reals[order[count:]]
            self._add(dict(name='data', **self._distances(half, rest)))

    def measure(self, pkl: str | Path, row: dict) -> None:
        """Add what was measured of a snapshot to a row, and the row to the results, unless the snapshot is in them."""
        from stylegan2_compress.evaluation import features
        from stylegan2_compress.evaluation.distances import frechet_distance
        from stylegan2_compress.host import profiling

        row['file'] = str(Path(pkl).relative_to(self.outdir)) if self.outdir in Path(pkl).parents else str(pkl)
        if any(other.get('file') == row['file'] for other in self.rows):
            return
        G = self._load(row)
        fakes, c = self._fakes(G, self.settings.samples, self.settings.seed + 1)
        embed = functools.partial(features.embed, images=fakes, device=self.device, count=len(c), label=row['name'])
        seen = embed(self.embedding)
        row.update(self._distances(seen, self.reals))
        row['fd teacher'] = frechet_distance(seen, self._features_of_teacher)
        row['fd places'] = frechet_distance(embed(self.places), self.reals_places)
        row['fd pixels'] = frechet_distance(np.concatenate([self.pixels(part) for part in fakes]), self.pixels.reals)
        if G.c_dim:
            classes = self.head(torch.from_numpy(seen)).argmax(1)
            row['recognised'] = (classes == c.argmax(1)).float().mean().item()
        for spec, embedding in self.others.items():
            reals = features.data_features(embedding, self.training_set_kwargs, self.device)
            row[f'fd {spec}'] = frechet_distance(embed(embedding), reals)
        self._add(row | dict(parameters=profiling.parameters(G), macs=profiling.macs(G)))

    def complete(self, row: dict) -> None:
        """Measure what a row lacks and takes long, the score, unless its file is gone or has no labels."""
        is_there = row['name'] == 'data' or ('recognised' in row and file_of(row, self.outdir) is not None)
        if 'CAS' in row or not is_there:
            return
        [network] = image_classifier.fit(*self._training_images(row), epochs=1, seed=self.settings.seed)
        images, labels = self._data
        test = image_classifier.held_out(len(images))
        row['CAS'] = image_classifier.measure(network, images[test], labels[test])
        print(f'{row["name"]}, {row.get("file", "")}: CAS {row["CAS"]:.3f}', flush=True)
        self._save()

    def _load(self, row: dict):
        """The generator that a row is of."""
        from stylegan2_compress import pickles

        return pickles.load(file_of(row, self.outdir))['G_ema'].to(self.device)

    def _fakes(self, G, count: int, seed: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        from stylegan2_compress.evaluation import samples

        c = samples.draw_labels(self.training_set_kwargs, G.c_dim, count, seed)
        return list(samples.fakes(G, samples.latents(G, count, seed), c, noise_seed=seed)), c

    @functools.cached_property
    def _features_of_teacher(self) -> np.ndarray:
        """Of images of other latents than those that are measured."""
        from stylegan2_compress.evaluation import features

        G = self._load(dict(name='teacher', file=self.teacher))
        fakes, c = self._fakes(G, self.settings.samples, self.settings.seed + 2)
        return features.embed(self.embedding, fakes, self.device, len(c), 'teacher')

    def _training_images(self, row: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """What the classifier of the score is trained on: uint8 images and classes, of a generator or of the data."""
        from stylegan2_compress.images import to_uint8

        count, seed = self.settings.cas_samples, self.settings.seed + 3
        if row['name'] == 'data':
            images, labels = self._data
            order = np.random.default_rng(seed).permutation(np.flatnonzero(~image_classifier.held_out(len(images))))
            return images[order[:count]], labels[order[:count]]
        fakes, c = self._fakes(self._load(row), count, seed)
        images = torch.cat([torch.from_numpy(to_uint8(part)) for part in fakes])
        return images.expand(-1, 3, -1, -1), c.argmax(1).cpu()

    @functools.cached_property
    def _data(self) -> tuple[torch.Tensor, torch.Tensor]:
        return image_classifier.load(self.settings.data)

    def _distances(self, features: np.ndarray, reals: np.ndarray) -> dict[str, float]:
        from stylegan2_compress.evaluation import distances

        some = reals[np.random.default_rng(0).permutation(len(reals))[: len(features)]]
        density, coverage = distances.density_coverage(some, features, device=self.device)
        fd = distances.frechet_distance(features, reals)
        return dict(frechet_distance=fd, density=density, coverage=coverage)

    def _add(self, row: dict) -> None:
        print(json.dumps(row), flush=True)
        self.rows.append(row)
        self._save()

    def _save(self) -> None:
        from stylegan2_compress.files import atomic_write

        with atomic_write(self.path) as file:  # Hours of training are in it.
            file.write(json.dumps(self.rows, indent=1).encode())

    def write_report(self, at: tuple[int, ...] | None) -> None:
        """Tables, curves and images of what has been measured so far."""
        shown = grouped(self.rows, at)
        for row in itertools.chain(*shown.values()):
            self.complete(row)
        (self.outdir / 'table.md').write_text(tables(shown))
        for ratio in sorted({row['ratio'] for row in self.rows if 'seed' in row}):
            of_ratio = [row for row in self.rows if row.get('ratio') == ratio]
            draw_curves(self.rows, ratio, self.outdir / f'curves-{ratio:g}.png')
            for trained_on in {setting_of(row) for row in of_ratio} - {''}:
                mine = [row for row in of_ratio if setting_of(row) in ('', trained_on)]
                of_one_seed = [row for row in mine if row.get('seed', self.settings.seed) == self.settings.seed]
                last = {row['name']: row for row in [self.rows[1], *of_one_seed]}
                path = self.outdir / f'images-{ratio:g}{suffix_of(trained_on)}.png'
                draw_images(self.outdir, list(last.values()), path)


class Pixels:
    """A second space to measure in, of nothing that was learned from labels: principal components of real images.

    Attributes:
        reals: [N, COMPONENTS], of all images of the data.
    """

    COMPONENTS = 64

    def __init__(self, training_set):
        from stylegan2_compress.evaluation import samples

        count, total, products = 0, 0, 0
        for batch in samples.reals(training_set):
            x = batch.flatten(1).double()
            count, total, products = count + len(x), total + x.sum(0), products + x.T @ x
        self.mean = total / count
        _values, vectors = torch.linalg.eigh(products / count - torch.outer(self.mean, self.mean))
        self.components = vectors[:, -self.COMPONENTS :]
        self.reals = np.concatenate([self(batch) for batch in samples.reals(training_set)])

    def __call__(self, images: torch.Tensor) -> np.ndarray:
        """[N, COMPONENTS] of images in [-1, 1]."""
        return ((images.cpu().clamp(-1, 1).flatten(1).double() - self.mean) @ self.components).numpy()


def student_of(row: dict) -> tuple[int | None, float | None, str, str]:
    """Which student a row was measured of."""
    return row.get('seed'), row.get('ratio'), row['name'], setting_of(row)


if __name__ == '__main__':
    main()
