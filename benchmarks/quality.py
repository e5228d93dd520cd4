"""Where the methods stand: students of one teacher, cut in the same way, trained by each method on as many images.

    python benchmarks/quality.py --data cifar10.zip --outdir runs/quality                 # hours on one core
    python benchmarks/quality.py --data cifar10.zip --outdir runs/quality --size smoke    # does it run: a minute

Needs a labelled dataset zip in the host's format, any. In turn: trains a classifier on its labels
(`image_classifier.py`), whose features measure everything and train nothing, beside a second space, the principal
components of the pixels ("fd teacher" is the distance to the teacher's images in place of the data's); trains a
teacher with the host's own loss, unless `--teacher` names one; prunes it; trains a student for each ratio, method and
choice of training images (`--trained-on`), `--repeats` times; measures the snapshots; and writes `table.md`,
`results.json`, `curves-*.png` and `images-*.png` into the output directory, anew after each ratio. The table compares
each method with the best that is not the paper's, seed by seed.

Started again with the same `--outdir`, it goes on where it was: what is finished is not done again, what was
interrupted is continued exactly, and the files of what was measured are not needed any more. `--jobs` trains several
students at a time, on one GPU too. With more ratios, methods, repeats or training images, they are added; with a larger
`--kimg` and `--lr-decay 0`, finished students are trained further. Anything else that would change the numbers is
refused.
"""

import concurrent.futures
import functools
import itertools
import json
import math
import multiprocessing
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import image_classifier
import numpy as np
import PIL.Image
import PIL.ImageDraw
import scipy.stats
import torch

from stylegan2_compress import host


@dataclass(frozen=True)
class Method:
    """One row of the table per ratio."""

    loss: str
    start: str = 'teacher'  # Where D starts: the teacher's, or from scratch.
    embeds: bool = False  # Takes DiME's arguments.
    estimator: str = 'moments'  # DiME's.
    weight: float = 1  # DiME's, in units of --weight.
    layers: bool = False  # Takes an embedding that shows its layers.
    arguments: tuple[str, ...] = ()  # Further ones; {…} is filled in, see `filled_in`.
    balanced: bool = False  # DiME finds its weights.
    adversarial: bool = True  # Trains against a discriminator.


RBF = dict(estimator='rbf', weight=0.2)  # Moments pull 0.18 to 0.27 times as hard (estimator_weights.py).
SQUARED = dict(estimator='squared-moments', weight=0.04)
MEMORY, LARGE = ('memory={memory}',), ('large_batch={large_batch}',)
IMAGES = ('images=3', 'images_kimg={images_kimg:g}', 'images_embedding={layers_embedding}')
MOMENTS = ('normalize=true', 'moments_penalty=1')
DUAL = dict(start='scratch', embeds=True)
METHODS = {
    'adversarial': Method('AdversarialLoss', start='scratch'),
    'teacher-d': Method('AdversarialLoss'),
    'images': Method('ImageDistillationLoss', layers=True),
    'stylekd': Method('StyleKDLoss', layers=True),
    'itgc': Method('ITGCLoss', layers=True),
    'gcc': Method('GCCLoss'),
    'dime': Method('DiMELoss', embeds=True),
    'dime-rbf': Method('DiMELoss', embeds=True, **RBF),
    'nickel': Method('NICKELLoss', start='scratch'),
    'both': Method('NickelDimeLoss', start='scratch', embeds=True),
    'both-rbf': Method('NickelDimeLoss', start='scratch', embeds=True, **RBF),
    'both-teacher-d': Method('NickelDimeLoss', embeds=True, arguments=('student_d=teacher',)),
    'dime-memory': Method('DiMELoss', embeds=True, arguments=MEMORY),
    'both-memory': Method('NickelDimeLoss', **DUAL, arguments=MEMORY),
    'both-squared': Method('NickelDimeLoss', **DUAL, **SQUARED),
    'both-squared-memory': Method('NickelDimeLoss', **DUAL, **SQUARED, arguments=MEMORY),
    'both-rbf-memory': Method('NickelDimeLoss', **DUAL, **RBF, arguments=MEMORY),
    'both-rbf-large': Method('NickelDimeLoss', **DUAL, **RBF, arguments=LARGE),
    'both-rbf-balance': Method('NickelDimeLoss', **DUAL, **RBF, balanced=True, arguments=('balance=0.5', *MEMORY)),
    'both-images': Method('NickelDimeLoss', **DUAL, arguments=IMAGES),
    'both-rbf-images': Method('NickelDimeLoss', **DUAL, **RBF, arguments=IMAGES),
    'both-rbf-memory-images': Method('NickelDimeLoss', **DUAL, **RBF, arguments=(*MEMORY, *IMAGES)),
    'images-moments': Method('ImageDistillationLoss+MomentMatchingLoss', layers=True, arguments=MOMENTS),
    'images-moments-slow': Method(
        'ImageDistillationLoss+MomentMatchingLoss', layers=True, arguments=(*MOMENTS, 'moving_average_lr=2e-6')
    ),
    'regression': Method('RegressionLoss', layers=True, adversarial=False),
    'regression-moments': Method(
        'RegressionLoss+MomentMatchingLoss', layers=True, arguments=MOMENTS, adversarial=False
    ),
    'regression-moments-data': Method(
        'RegressionLoss+MomentMatchingLoss', layers=True, arguments=(*MOMENTS, 'reference=data'), adversarial=False
    ),
    'moments-data': Method(
        'MomentMatchingLoss', layers=True, arguments=(*MOMENTS, 'reference=data'), adversarial=False
    ),
    'nickel-images': Method('NICKELLoss+ImageDistillationLoss', start='scratch', layers=True),
}
# Not the paper's, which the others are compared with.
OTHERS = ('adversarial', 'teacher-d', 'images', 'regression', 'stylekd', 'itgc', 'gcc')
IN_WORDS = {
    'adversarial': 'adversarial only, D from scratch',
    'teacher-d': "adversarial only, the teacher's D",
    'images': 'L1 and perceptual distance to the teacher’s images',
    'stylekd': 'StyleKD',
    'itgc': 'ITGC',
    'gcc': 'GCC, its distillation',
    'dime': 'DiME',
    'dime-rbf': 'DiME, Gaussian kernel',
    'nickel': 'NICKEL',
    'both': 'NICKEL and DiME',
    'both-rbf': 'NICKEL and DiME, Gaussian kernel',
    'both-teacher-d': "NICKEL and DiME, both D the teacher's",
    'dime-memory': 'DiME, memory',
    'both-memory': 'NICKEL and DiME, memory',
    'both-squared': 'NICKEL and DiME, squared moments',
    'both-squared-memory': 'NICKEL and DiME, squared moments, memory',
    'both-rbf-memory': 'NICKEL and DiME, Gaussian kernel, memory',
    'both-rbf-large': 'NICKEL and DiME, Gaussian kernel, large batches',
    'both-rbf-balance': 'NICKEL and DiME, Gaussian kernel, memory, balanced',
    'both-images': 'NICKEL and DiME, images',
    'both-rbf-images': 'NICKEL and DiME, Gaussian kernel, images',
    'both-rbf-memory-images': 'NICKEL and DiME, Gaussian kernel, memory, images',
    'images-moments': 'the same distance and moment matching',
    'images-moments-slow': 'the same, v at a fifth of its rate',
    'regression': 'the same distance alone, without D',
    'regression-moments': 'the same distance and moment matching, without D',
    'regression-moments-data': 'the same distance and moments of the data, without D',
    'moments-data': 'moments of the data alone, without D',
    'nickel-images': 'NICKEL, images throughout',
}
FULL, NONE = 'full', 'none'  # What students are trained on: all of the data, or the teacher's images. Or P%.


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
    also: tuple[str, ...]
    mirror: bool
    seed: int
    device: str | None
    cuda_graphs: bool


# What may change between two runs into one output directory: it adds rows and changes none.
MAY_GROW = ('ratios', 'methods', 'trained_on', 'repeats', 'kimg', 'device', 'cuda_graphs')

RATIOS = (0.7, 0.8, 0.9, 0.95)
SMALL = 'efficientnet_lite0@size=32'
SIZES = dict(
    smoke=dict(
        teacher=None, teacher_kimg=1, channel_base=64, channel_max=8, epochs=1,
        ratios=(0.5,), methods=('adversarial', 'both'), kimg=1, batch=64, lr=0.004, lr_decay=0.0, gamma=0.02,
        ema_kimg=1.0, embedding=SMALL, layers_embedding=SMALL, weight=1.0, statistics=64, samples=64, also=(),
        trained_on=(FULL,), images_kimg=0.5,
    ),
    cpu=dict(
        teacher=None, teacher_kimg=150, channel_base=1024, channel_max=64, epochs=6,
        ratios=RATIOS, methods=tuple(METHODS), kimg=24, batch=16, lr=0.004, lr_decay=0.0, gamma=0.02, ema_kimg=1.0,
        embedding=SMALL, layers_embedding=SMALL, weight=1.0, statistics=10000, samples=5000, also=(),
        trained_on=(FULL,), images_kimg=12.0,
    ),
    gpu=dict(
        teacher='https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/cifar10.pkl',
        teacher_kimg=25000, channel_base=32768, channel_max=512, epochs=20,
        ratios=RATIOS, methods=tuple(METHODS), kimg=3000, batch=64, lr=0.0025, lr_decay=0.0, gamma=0.01, ema_kimg=50.0,
        embedding='dino_resnet50', layers_embedding=SMALL, weight=20.0, statistics=50000, samples=50000,
        also=('inception',), trained_on=(FULL,), images_kimg=1000.0,
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
@click.option('--also', callback=listed(str), help='Embeddings for further Fréchet distances, such as inception.')
@click.option('--mirror/--no-mirror', default=True, show_default=True)
@click.option('--seed', default=0, show_default=True)
@click.option('--device', help='[default: CUDA where there is one]')
@click.option('--cuda-graphs/--no-cuda-graphs', default=False, show_default=True, help='Record the steps of students.')
@click.option('--jobs', type=click.IntRange(1), default=1, show_default=True, help='Students that train at a time.')
@click.option('--at', metavar='KIMG', type=int, help='Table of snapshots after so many  [default: the last of each]')
@click.option('--minutes', type=float, help='Start no further training after so many minutes  [default: no limit]')
def main(outdir: str, size: str | None, jobs: int, minutes: float | None, at: int | None, **options) -> None:
    host.activate(host.find_or_fetch().path)
    from stylegan2_compress.host import devices

    size = size or devices.choose(options['device']).type.replace('cuda', 'gpu')
    given = {name: value for name, value in options.items() if value is not None}
    settings = Settings(**{'device': None, **SIZES[size], **given})
    outdir = Path(outdir)
    keep(settings, outdir / 'settings.json')
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
    with concurrent.futures.ProcessPoolExecutor(jobs, context, initializer=start_process) as pool:
        yield from pool.map(function, arguments)


def start_process() -> None:
    """Make this process one of several that train."""
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
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(new, indent=2))


# --- Training ---------------------------------------------------------------------------------------------------------


def train_teacher(settings: Settings, outdir: Path) -> str:
    """The last snapshot of a StyleGAN2, a small one by default, trained with the host's loss."""
    from stylegan2_compress.compression import plan as planning
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
            lr=settings.lr,
            lr_decay=settings.lr_decay or None,
            ema_kimg=settings.ema_kimg,
            **of_adversarial_loss,
            kimg_per_tick=settings.kimg / 3,
            snap=1,
            state_kimg=1,
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
        self.head = torch.jit.load(outdir / 'classifier.pt').head
        self.reals = features.data_features(self.embedding, self.training_set_kwargs, self.device)
        self.pixels = Pixels(training_set)
        self.others = {spec: embeddings.load(spec, self.device) for spec in settings.also}
        self.path = outdir / 'results.json'
        self.rows = json.loads(self.path.read_text()) if self.path.exists() else []
        if not self.rows:
            order = np.random.default_rng(settings.seed).permutation(len(self.reals))
            count = min(settings.samples, len(order) // 2)
            half, rest = self.reals[order[:count]], self.reals[order[count:]]
            self._add(dict(name='data', **self._distances(half, rest)))

    def _fd_pixels(self, fakes: list[torch.Tensor]) -> float:
        from stylegan2_compress.evaluation.distances import frechet_distance

        return frechet_distance(np.concatenate([self.pixels(part) for part in fakes]), self.pixels.reals)

    def measure(self, pkl: str | Path, row: dict) -> None:
        """Add what was measured of a snapshot to a row, and the row to the results, unless the snapshot is in them."""
        from stylegan2_compress import pickles
        from stylegan2_compress.evaluation import features
        from stylegan2_compress.evaluation.distances import frechet_distance
        from stylegan2_compress.host import profiling

        row['file'] = str(Path(pkl).relative_to(self.outdir)) if self.outdir in Path(pkl).parents else str(pkl)
        if any(other.get('file') == row['file'] for other in self.rows):
            return
        G = pickles.load(pkl)['G_ema'].to(self.device)
        count = self.settings.samples
        fakes, c = self._fakes(G, self.settings.seed + 1)
        seen = features.embed(self.embedding, fakes, self.device, count, row['name'])
        row.update(self._distances(seen, self.reals))
        row['fd teacher'] = frechet_distance(seen, self._features_of_teacher)
        row['fd pixels'] = self._fd_pixels(fakes)
        if G.c_dim:
            classes = self.head(torch.from_numpy(seen)).argmax(1)
            row['recognised'] = (classes == c.argmax(1)).float().mean().item()
        for spec, embedding in self.others.items():
            reals = features.data_features(embedding, self.training_set_kwargs, self.device)
            others = features.embed(embedding, fakes, self.device, count, row['name'])
            row[f'fd {spec}'] = frechet_distance(others, reals)
        self._add(row | dict(parameters=profiling.parameters(G), macs=profiling.macs(G)))

    def _fakes(self, G, seed: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        from stylegan2_compress.evaluation import samples

        c = samples.draw_labels(self.training_set_kwargs, G.c_dim, self.settings.samples, seed)
        return list(samples.fakes(G, samples.latents(G, self.settings.samples, seed), c, noise_seed=seed)), c

    @functools.cached_property
    def _features_of_teacher(self) -> np.ndarray:
        """Of images of other latents than those that are measured."""
        from stylegan2_compress import pickles
        from stylegan2_compress.evaluation import features

        G = pickles.load(self.teacher)['G_ema'].to(self.device)
        fakes, _c = self._fakes(G, self.settings.seed + 2)
        return features.embed(self.embedding, fakes, self.device, self.settings.samples, 'teacher')

    def _distances(self, features: np.ndarray, reals: np.ndarray) -> dict[str, float]:
        from stylegan2_compress.evaluation import distances

        some = reals[np.random.default_rng(0).permutation(len(reals))[: len(features)]]
        density, coverage = distances.density_coverage(some, features, device=self.device)
        fd = distances.frechet_distance(features, reals)
        return dict(frechet_distance=fd, density=density, coverage=coverage)

    def _add(self, row: dict) -> None:
        print(json.dumps(row), flush=True)
        self.rows.append(row)
        self.path.write_text(json.dumps(self.rows, indent=1))

    def write_report(self, at: int | None) -> None:
        """Table (see `table`), curves and images of what has been measured so far."""
        (self.outdir / 'table.md').write_text(table(self.rows, at))
        settings = {(row['ratio'], setting_of(row)) for row in self.rows if 'seed' in row}
        for ratio, trained_on in sorted(settings):
            of_ratio = [row for row in self.rows if row.get('ratio') == ratio]
            mine = [row for row in of_ratio if setting_of(row) in ('', trained_on)]
            on = suffix_of(trained_on)
            draw_curves(mine, f'ratio {ratio:g}, data {trained_on}', self.outdir / f'curves-{ratio:g}{on}.png')
            of_one_seed = [row for row in mine if row.get('seed', self.settings.seed) == self.settings.seed]
            last = {row['name']: row for row in [self.rows[1], *of_one_seed]}
            draw_images(self.outdir, list(last.values()), self.outdir / f'images-{ratio:g}{on}.png')


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


def table(rows: list[dict], at: int | None) -> str:
    """Snapshots as Markdown: mean and standard deviation over seeds, the best of each setting in bold.

    Of each method the last, or that after `at` thousand images. The last column is the difference to the best of
    `OTHERS`, of which seeds are compared in pairs.
    """
    others = list(dict.fromkeys(key for row in rows for key in row if key.startswith('fd ')))
    titles = ['ratio', 'MACs', '', 'trained on', 'kimg', 'seeds', 'Fréchet distance', 'recognised', 'density']
    titles += ['coverage', *others, 's per thousand', 'beside the best other (95 %)']
    lines = [f'| {" | ".join(titles)} |', f'| {" | ".join(["---"] * len(titles))} |']
    groups = last_by_method(rows if at is None else [row for row in rows if row.get('kimg', at) == at])
    for (ratio, trained_on, name), group in groups.items():
        beside = {key[2]: other for key, other in groups.items() if key[:2] == (ratio, trained_on)}
        rivals = [mean(other, 'frechet_distance') for other in beside.values()]
        best = trained_on != '' and mean(group, 'frechet_distance') == min(rivals)
        fd = spread(group, 'frechet_distance', '{:.2f}')
        cells = [
            '' if ratio is None else f'{ratio:g}',
            f'{group[0]["macs"]:,}' if 'macs' in group[0] else '',
            IN_WORDS.get(name, name),
            trained_on,
            str(group[0].get('kimg', '')),
            str(len(group)) if 'seed' in group[0] else '',
            f'**{fd}**' if best else fd,
            spread(group, 'recognised', '{:.1%}'),
            spread(group, 'density', '{:.2f}'),
            spread(group, 'coverage', '{:.2f}'),
            *(spread(group, key, '{:.2f}') for key in others),
            seconds(group),
            '' if name in OTHERS else difference(group, [beside[other] for other in OTHERS if other in beside]),
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def difference(rows: list[dict], others: list[list[dict]]) -> str:
    """How much nearer than the best other, in per cent, with the interval of the mean of pairs of the same seed."""
    if not others:
        return ''
    best = {row['seed']: row for row in min(others, key=lambda other: mean(other, 'frechet_distance'))}
    pairs = [(row['frechet_distance'], best[row['seed']]['frechet_distance']) for row in rows if row['seed'] in best]
    if not pairs:
        return ''
    ours, theirs = np.array(pairs).T
    share = 100 / theirs.mean()
    if len(pairs) == 1:
        return f'{share * (ours - theirs).mean():+.0f} %'
    half = scipy.stats.t.ppf(0.975, len(pairs) - 1) * scipy.stats.sem(ours - theirs)
    low, middle, high = (share * ((ours - theirs).mean() + each) for each in (-half, 0, half))
    return f'{middle:+.0f} % [{low:+.0f}, {high:+.0f}]'


def seconds(rows: list[dict]) -> str:
    """The median of training times per thousand images, of the rows that have them."""
    times = [row['sec_per_kimg'] for row in rows if 'sec_per_kimg' in row]
    return f'{np.median(times):.2g}' if times else ''


def student_of(row: dict) -> tuple[int | None, float | None, str, str]:
    """Which student a row was measured of."""
    return row.get('seed'), row.get('ratio'), row['name'], setting_of(row)


def setting_of(row: dict) -> str:
    """What the student of a row was trained on; empty of what was not trained here."""
    return row.get('trained_on', FULL) if 'seed' in row else ''


def last_by_method(rows: list[dict]) -> dict[tuple[float | None, str, str], list[dict]]:
    """By ratio, training images and method, in the table's order: for each seed the snapshot after as many images as
    any has seen."""
    groups = {}
    for row in rows:
        groups.setdefault((row.get('ratio'), setting_of(row), row['name']), []).append(row)
    names = ['data', 'teacher', 'pruned', *METHODS]
    order = sorted(groups, key=lambda key: (key[0] or 0, key[1] not in ('', FULL), key[1], names.index(key[2])))
    kimg = {key: max(row.get('kimg', 0) for row in groups[key]) for key in order}
    return {key: [row for row in groups[key] if row.get('kimg', 0) == kimg[key]] for key in order}


def mean(rows: list[dict], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def spread(rows: list[dict], name: str, form: str) -> str:
    """Mean and, of several, standard deviation; nothing where it was not measured."""
    if any(name not in row for row in rows):
        return ''
    deviation = float(np.std([row[name] for row in rows], ddof=1)) if len(rows) > 1 else None
    return form.format(mean(rows, name)) + ('' if deviation is None else f' ± {form.format(deviation)}')


COLOURS = ('#4269d0', '#efb118', '#ff725c', '#6cc5b0', '#1b7f79', '#3ca951', '#a463f2', '#5b2a9d', '#9c6b4e')


def draw_curves(
    rows: list[dict], title: str, path: Path, width: int = 560, height: int = 360, margin: int = 48
) -> None:
    """Fréchet distance, on a logarithmic axis, over thousands of images: a point per seed, a line through the means."""
    rows = [row for row in rows if row['name'] in METHODS]
    if not rows:
        return
    heights = [math.log10(row['frechet_distance']) for row in rows]
    low, high, longest = min(heights), max(heights) + 1e-3, max(row['kimg'] for row in rows)
    picture = PIL.Image.new('RGB', (width + 200, height), 'white')
    draw = PIL.ImageDraw.Draw(picture)

    def place(kimg: float, distance: float) -> tuple[float, float]:
        up = (math.log10(distance) - low) / (high - low)
        return margin + kimg / longest * (width - 2 * margin), height - margin - up * (height - 2 * margin)

    draw.rectangle([margin, margin, width - margin, height - margin], outline='#888')
    draw.text((margin, 8), f'{title}: Frechet distance over thousand images', fill='black')
    for kimg in sorted({row['kimg'] for row in rows}):
        draw.text((place(kimg, 10**low)[0] - 6, height - margin + 6), str(kimg), fill='black')
    for distance in (10**low, 10 ** ((low + high) / 2), 10**high):
        draw.text((4, place(0, distance)[1] - 6), f'{distance:.3g}', fill='black')
    for index, name in enumerate(name for name in METHODS if any(row['name'] == name for row in rows)):
        mine = [row for row in rows if row['name'] == name]
        at = {kimg: [row for row in mine if row['kimg'] == kimg] for kimg in sorted({row['kimg'] for row in mine})}
        means = [place(kimg, mean(some, 'frechet_distance')) for kimg, some in at.items()]
        colour = COLOURS[index % len(COLOURS)]
        draw.line(means, fill=colour, width=2)
        for x, y in [place(row['kimg'], row['frechet_distance']) for row in mine]:
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
        if mine:
            draw.text((width, margin + 14 * index), name, fill=colour)
    picture.save(path)


def draw_images(outdir: Path, rows: list[dict], path: Path, columns: int = 20) -> None:
    """The same latents through each generator whose file is still there: one per row, named on the left."""
    from stylegan2_compress import images, pickles
    from stylegan2_compress.evaluation import samples

    strips = []
    for row in rows:
        file = outdir / row['file']
        if not file.exists() and row['name'] != 'teacher':
            continue
        G = pickles.load(file if file.exists() else row['file'])['G_ema']  # A teacher may be a URL.
        fakes, _labels = samples.generate(G, columns, seed=0)
        strips.append((row['name'], images.grid(images.to_uint8(fakes), columns=columns)))
    wide, high = strips[0][1].width * 2, strips[0][1].height * 2
    margin = 12 + 6 * max(len(name) for name, _strip in strips)  # The default font's letters are up to 6 wide.
    picture = PIL.Image.new('RGB', (wide + margin, high * len(strips)), 'white')
    draw = PIL.ImageDraw.Draw(picture)
    for index, (name, strip) in enumerate(strips):
        draw.text((4, index * high + high // 2 - 6), name, fill='black')
        picture.paste(strip.resize((wide, high), PIL.Image.Resampling.NEAREST), (margin, index * high))
    picture.save(path)


if __name__ == '__main__':
    main()
