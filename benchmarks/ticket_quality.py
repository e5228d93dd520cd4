"""Strong lottery tickets against trained generators: a tenth of random weights that makes images, on a CPU.

    python benchmarks/ticket_quality.py --outdir runs/tickets [--repeats 5] [--row steady --row dense] [--kimg 100]
    python benchmarks/ticket_quality.py --outdir runs/tickets-cifar10 --data cifar10.zip --row steady --row dense

Each row of the table is a search, or a training, that this file describes in `ROWS`, by moments in the layers of
EfficientNet-Lite0: of the quickstart's digits, class-conditional, or unconditional of the data that `--data` names, a
labelled dataset zip. All rows see the same number of images, with seeds from 0 on. Beside them are the generator that
each search starts from, with as many weights kept at random, and for digits the quickstart's teacher, a larger
generator trained with a discriminator on 150 thousand images.

Generators are compared in the features of a classifier that none of them has seen: 5,000 images against 5,000 real
digits, as the quickstart does it, or against all of `--data`, in the classifier that image_classifier.py trains on its
labels. Compared are those at the end, and of searches also `best.ticket`, which they choose from their snapshots. The
script prints the table and the courses, and writes tickets.png, with the images of the first seed. What `--outdir`
holds is not run again, and a run that was interrupted goes on (its minutes are then those of the last part).
"""

import glob
import json
import os
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import image_classifier
import PIL.Image
import torch

from stylegan2_compress import host

SHAPE = dict(z_dim=64, w_dim=64, channel_base=512, channel_max=64, mapping_layers=2)
WIDE = dict(z_dim=128, w_dim=128, channel_base=1024, channel_max=128, mapping_layers=2)
# Its own rate takes millions of steps. What else is not its own is as in `steady`, so that the search alone differs.
PAPER = dict(
    preset='paper',
    lr=3e-3,
    ema_kimg=2.0,
    masked=('*weight',),
    score_init='kaiming-uniform',
    loss_args=('normalize=true',),
)
WEIGHT_LRS = {'dense-paper': 2e-3, 'dense': 6e-3}
# By name, options of `find-ticket` beside what all have in common; a name in `WEIGHT_LRS` trains the weights of the
# host's generator with the same loss, at that learning rate.
ROWS = {
    'paper': dict(SHAPE, **PAPER),
    'steady': dict(SHAPE),
    'uniform': dict(SHAPE, density='uniform'),
    'erk': dict(SHAPE, density='erk'),
    'without-penalty': dict(SHAPE, loss_args=('moments_penalty=0',)),
    'without-sides': dict(SHAPE, loss_args=('side_power=0',)),
    'signed': dict(SHAPE, rule='signed-edge-popup'),
    'global': dict(SHAPE, rule='global-edge-popup'),
    'gem-miner': dict(SHAPE, rule='gem-miner'),
    'imp': dict(SHAPE, rule='imp'),
    'train-unmasked': dict(SHAPE, train_unmasked=True),
    'rbf': dict(SHAPE, distance='rbf', embedding='efficientnet_lite0@size=32@layers=all'),
    'wide': dict(WIDE),
    'teacher': dict(teacher=True),
    'teacher-erk': dict(teacher=True, density='erk'),
    'dense-paper': dict(SHAPE, **PAPER),
    'dense': dict(SHAPE),
}
POINTS = 10  # Snapshots of a run that are measured, the last one at its end.
SAMPLES = 5000  # Images that are measured of each.


@dataclass(frozen=True)
class Measured:
    """What is known of one finished run: a row of results.jsonl."""

    row: str
    keep: float | None  # Share of weights of a ticket; None where weights are trained.
    seed: int
    weights: str
    course: list[list]  # [thousand images, Fréchet distance, readable or None] of each snapshot.
    best: list | None  # The same of best.ticket, which the search chose from them.
    start: float | None  # Fréchet distance of a search before its first step.
    minutes: float
    cpu_minutes: float


class Subject(ABC):
    """What is made images of: its data, and how generators are measured.

    Attributes:
        data: path of the dataset zip.
        teacher: path of a generator that was trained with a discriminator; None if there is none.
        conditional: whether searches know labels.
    """

    data: str
    teacher: str | None = None
    conditional: bool

    @abstractmethod
    def measure(self, G) -> tuple[float, float | None]:
        """Fréchet distance of a generator's images, and the share that is read as what their labels say."""


class Digits(Subject):
    """The quickstart's, with its classifier."""

    conditional = True

    def __init__(self, outdir: str):
        from stylegan2_compress.quickstart import mnist
        from stylegan2_compress.quickstart import run as quickstart

        self.data, self.teacher = quickstart.write_inputs(outdir)
        self.reals = quickstart.digit_features(torch.from_numpy(mnist.load()[0]).float() / 127.5 - 1)

    def measure(self, G) -> tuple[float, float | None]:
        from stylegan2_compress.quickstart import run as quickstart

        row = quickstart.measure('', G, self.reals)
        return row.frechet_distance, row.readable


class Labelled(Subject):
    """Any labelled data, without their labels, and the classifier of them that is or will be in `outdir`."""

    conditional = False

    def __init__(self, data: str, outdir: str):
        from stylegan2_compress.evaluation.base import Setting
        from stylegan2_compress.evaluation.embedding_metrics import FrechetDistance
        from stylegan2_compress.host import datasets

        classifier = Path(outdir) / 'classifier.pt'
        if not classifier.exists():
            image_classifier.train(data, outdir, epochs=6, seed=0)
        self.data = data
        training_set, kwargs = datasets.open_training_set(data)
        self.metric = FrechetDistance(f'torchscript:{classifier}@size={training_set.resolution}', SAMPLES)
        self.metric.prepare(Setting(kwargs, torch.device('cpu'), teacher=None))

    def measure(self, G) -> tuple[float, float | None]:
        return self.metric.measure(G, seed=1)[self.metric.name], None


@click.command()
@click.option('--outdir', required=True, metavar='DIR')
@click.option('--data', metavar='ZIP', help="Labelled dataset zip.  [default: the quickstart's digits]")
@click.option('--row', 'rows', multiple=True, type=click.Choice(list(ROWS)), help='Only this row; may be repeated.')
@click.option('--repeats', default=1, show_default=True, help='Runs of each row, with seeds from --seed on.')
@click.option('--seed', default=0, show_default=True)
@click.option('--kimg', default=100, show_default=True, help='Length of each run in thousands of images.')
@click.option(
    '--keep', 'keeps', multiple=True, default=(0.1,), show_default=True, help='Share of weights; may be repeated.'
)
def main(
    outdir: str, data: str | None, rows: tuple[str, ...], repeats: int, seed: int, kimg: int, keeps: tuple[float, ...]
) -> None:
    host.activate(host.find_or_fetch().path)
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    os.makedirs(outdir, exist_ok=True)
    subject = Digits(outdir) if data is None else Labelled(data, outdir)
    rows = rows or tuple(row for row in ROWS if subject.teacher or row != 'teacher')
    if 'teacher' in rows and subject.teacher is None:
        raise click.UsageError('--row teacher needs a teacher, which there is for digits alone')
    what = [(row, keep) for row in rows for keep in ([None] if row in WEIGHT_LRS else keeps)]
    results = []
    for each in range(seed, seed + repeats):  # Seed by seed, so that all rows have as many while it runs.
        for row, keep in what:
            results.append(measured(row, each, run_place(outdir, row, kimg, keep, each), subject, kimg, keep))
            print_tables(results)
    save_picture([each for each in results if each.seed == seed], outdir, kimg, subject)


def run_place(outdir: str, row: str, kimg: int, keep: float | None, seed: int) -> str:
    share = '' if keep is None else f'-{keep:g}'
    return f'{outdir}/{row}-{kimg}{share}-seed{seed}'


def measured(row: str, seed: int, where: str, subject: Subject, kimg: int, keep: float | None) -> Measured:
    """The result of a run, from its file if it is finished."""
    path = f'{where}/measured.json'
    if not os.path.exists(path):
        wall, cpu = time.time(), time.process_time()
        run_dir = train(row, where, subject, kimg, keep, seed)
        minutes, cpu_minutes = (time.time() - wall) / 60, (time.process_time() - cpu) / 60
        course = [[number, *subject.measure(plain(file))] for number, file in snapshots(run_dir)]
        best = chosen_by_the_search(run_dir, course)
        weights, start = start_of(run_dir, subject)
        with open(path, 'w') as file:
            json.dump(asdict(Measured(row, keep, seed, weights, course, best, start, minutes, cpu_minutes)), file)
    with open(path) as file:
        return Measured(**json.load(file))


def train(row: str, where: str, subject: Subject, kimg: int, keep: float | None, seed: int) -> str:
    """Run what a row describes. Returns the run directory."""
    from stylegan2_compress.compression import planning
    from stylegan2_compress.compression.find_ticket import find_ticket, plan_search
    from stylegan2_compress.compression.options import TicketOptions
    from stylegan2_compress.runs.resume import LATEST

    given: dict[str, Any] = dict(
        data=subject.data,
        outdir=where,
        embedding='efficientnet_lite0@size=32',
        kimg_per_tick=kimg / POINTS / 2,
        snap=2,
        state_kimg=10,
        eval_samples=1000,
        device='cpu',
        cond=subject.conditional,
        kimg=kimg,
        seed=seed,
        workers=1,
        resume=LATEST,
    )
    given.update(ROWS[row], **({} if keep is None else dict(keep=keep)))
    if given.get('teacher'):
        given['teacher'] = subject.teacher
    os.makedirs(where, exist_ok=True)
    if row not in WEIGHT_LRS:
        return find_ticket(**given)
    plan = plan_search(TicketOptions(**given))
    G = plan.args.G_kwargs
    shape = ('z_dim', 'w_dim', 'mapping_kwargs', 'synthesis_kwargs')
    plan.args.G_kwargs = type(G)(class_name='training.networks.Generator', **{name: G[name] for name in shape})
    plan.args.G_opt_kwargs.lr = WEIGHT_LRS[row]
    return planning.run(plan, where, LATEST)


def snapshots(run_dir: str) -> list[tuple[int, str]]:
    """The snapshots of a run after its start: thousand images, and path."""
    paths = sorted(glob.glob(f'{run_dir}/network-snapshot-*.pkl'))
    return [(number, path) for path in paths if (number := int(path[-10:-4]))]


def chosen_by_the_search(run_dir: str, course: list[list[float]]) -> list[float] | None:
    """The point of a course that is best.ticket; None if that is the start, or the run makes no tickets."""
    from stylegan2_compress.tickets.ticket_file import Ticket

    if not os.path.exists(f'{run_dir}/best.ticket'):
        return None
    number = int(Ticket.read(f'{run_dir}/best.ticket').facts['snapshot'][-10:-4])
    return next((point for point in course if point[0] == number), None)


def plain(path: str):
    """A snapshot's G_ema, as the host's own generator."""
    from stylegan2_compress import pickles
    from stylegan2_compress.tickets import baking

    return baking.plain(pickles.load(path)['G_ema'])


def start_of(run_dir: str, subject: Subject) -> tuple[str, float | None]:
    """How many weights a run has, in words; and of a search, the distance of as many weights chosen at random."""
    from stylegan2_compress.host import profiling
    from stylegan2_compress.tickets import baking
    from stylegan2_compress.tickets.ticket_file import Ticket

    if not os.path.exists(f'{run_dir}/last.ticket'):
        return f'{profiling.parameters(plain(snapshots(run_dir)[-1][1])):,}', None
    ticket = Ticket.read(f'{run_dir}/last.ticket')
    size = os.path.getsize(f'{run_dir}/last.ticket')
    distance, _readable = subject.measure(baking.bake(random_mask(ticket, subject.teacher)))
    trained = sum(values.size for name, values in ticket.trained.items() if not name.endswith('w_avg'))
    return f'{ticket.kept:,} of {ticket.total:,}, {trained or "none"} trained, {size:,} bytes', distance


def random_mask(ticket, teacher: str | None):
    """The generator before the search: the same weights, masked at random."""
    from stylegan2_compress import pickles
    from stylegan2_compress.networks.masked import ScoreMaskedGenerator
    from stylegan2_compress.tickets import baking

    G = ScoreMaskedGenerator(**ticket.arguments)
    if ticket.arguments['teacher'] is not None:
        baking.put_weights(G, pickles.load(teacher)['G_ema'])
    return G.eval()


def print_tables(results: list[Measured]) -> None:
    """The results so far, as Markdown: the ends, and the courses."""
    print(
        '\n| | k | runs | weights | best.ticket | readable | at the end | readable | random mask | minutes (CPU time) |'
    )
    print(f'|{" --- |" * 10}')
    kinds = dict.fromkeys((each.row, each.keep) for each in results)
    runs_of = {kind: [each for each in results if (each.row, each.keep) == kind] for kind in kinds}
    for (row, keep), runs in runs_of.items():
        starts = [each.start for each in runs if each.start is not None]
        cells = [
            row,
            '' if keep is None else f'{keep:g}',
            f'{len(runs)}',
            runs[0].weights,
            *distance_and_readable([each.best for each in runs]),
            *distance_and_readable([each.course[-1] for each in runs]),
            spread(starts, three_digits) if starts else '',
            f'{statistics.mean(each.minutes for each in runs):.0f} '
            f'({statistics.mean(each.cpu_minutes for each in runs):.0f})',
        ]
        print(as_row(cells))
    points = [point[0] for point in results[0].course]
    print(f'\n| Fréchet distance after | k | seed | {" | ".join(f"{point:g}" for point in points)} thousand images |')
    print(f'|{" --- |" * (3 + len(points))}')
    for (row, keep), runs in runs_of.items():
        for each in runs:
            distances = [three_digits(point[1]) for point in each.course]
            print(as_row([row, '' if keep is None else f'{keep:g}', f'{each.seed}', *distances]))
    print(flush=True)


def as_row(cells: list[str]) -> str:
    return f'|{"|".join(f" {cell} " if cell else " " for cell in cells)}|'


def distance_and_readable(points: list[list | None]) -> list[str]:
    """Cells of a table on points of several courses; empty where a run has none."""
    known = [point for point in points if point is not None]
    if len(known) < len(points):
        return ['', '']
    readable = [100 * point[2] for point in known if point[2] is not None]
    return [
        spread([point[1] for point in known], three_digits),
        spread(readable, '{:.1f} %'.format) if readable else '',
    ]


def three_digits(value: float) -> str:
    return f'{value:.0f}' if value >= 100 else f'{value:.3g}'


def spread(values: list[float], form: Callable[[float], str]) -> str:
    """Mean of one or more values, with the standard deviation of several."""
    mean = form(statistics.mean(values))
    return mean if len(values) < 2 else f'{mean} ± {statistics.stdev(values):.2g}'


def save_picture(results: list[Measured], outdir: str, kimg: int, subject: Subject) -> None:
    """The same 100 latents through the generators of some runs, and the teacher; a row is a label."""
    from stylegan2_compress import images
    from stylegan2_compress.evaluation import samples

    files = {} if subject.teacher is None else {'teacher (GAN)': subject.teacher}
    for each in results:
        (run_dir,) = glob.glob(f'{run_place(outdir, each.row, kimg, each.keep, each.seed)}/*/')
        number, *_quality = each.best or each.course[-1]
        files[each.row if each.keep is None else f'{each.row}, k = {each.keep:g}'] = dict(snapshots(run_dir))[number]
    panels = {}
    for name, file in files.items():
        G = plain(file)
        distance, _readable = subject.measure(G)
        fakes, _labels = samples.generate(G, 100, seed=2)
        by_label = fakes.unflatten(0, (10, 10)).transpose(0, 1).flatten(0, 1)
        sheet = images.grid(images.to_uint8(by_label), columns=10).resize((400, 400), PIL.Image.Resampling.LANCZOS)
        panels[f'{name}\nFrechet distance {three_digits(distance)}'] = sheet  # Pillow's font has no é.
    images.side_by_side(panels).save(f'{outdir}/tickets.png')


if __name__ == '__main__':
    main()
