"""Strong lottery tickets on MNIST: a tenth of random weights that makes digits, found on a CPU without training any.

    python benchmarks/mnist_ticket.py --outdir runs/mnist-ticket [--repeats 5] [--row steady --row dense] [--kimg 100]

Each row of the table is a search, or a training, that this file describes in `ROWS`: class-conditional, by moments of
each digit's images in the layers of EfficientNet-Lite0. All rows see the same number of images, with seeds from 0 on.
Beside them are the generator that each search starts from, with as many weights kept at random, and the quickstart's
teacher, a larger generator trained with a discriminator on 150 thousand images.

Generators are compared as the quickstart does it: 5,000 images against 5,000 real digits in the features of a digit
classifier that none of them has seen: those at the end, and of searches also `best.ticket`, which they choose from
their snapshots. The script prints the table and the courses, and writes mnist_ticket.png, with the images of seed 0.
What `--outdir` holds is not run again, and a run that was interrupted goes on (its minutes are then those of the last
part).
"""

import glob
import json
import os
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import click
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
    'without-penalty': dict(SHAPE, loss_args=('moments_penalty=0',)),
    'without-sides': dict(SHAPE, loss_args=('side_power=0',)),
    'signed': dict(SHAPE, rule='signed-edge-popup'),
    'wide': dict(WIDE),
    'teacher': dict(teacher=True),
    'dense-paper': dict(SHAPE, **PAPER),
    'dense': dict(SHAPE),
}
POINTS = 10  # Snapshots of a run that are measured, the last one at its end.


@dataclass(frozen=True)
class Measured:
    """What is known of one finished run: a row of results.jsonl."""

    row: str
    seed: int
    weights: str
    course: list[list[float]]  # [thousand images, Fréchet distance, readable] of each snapshot.
    best: list[float] | None  # The same of best.ticket, which the search chose from them.
    start: float | None  # Fréchet distance of a search before its first step.
    minutes: float
    cpu_minutes: float


@click.command()
@click.option('--outdir', required=True, metavar='DIR')
@click.option('--row', 'rows', multiple=True, type=click.Choice(list(ROWS)), help='Only this row; may be repeated.')
@click.option('--repeats', default=1, show_default=True, help='Runs of each row, with seeds from --seed on.')
@click.option('--seed', default=0, show_default=True)
@click.option('--kimg', default=100, show_default=True, help='Length of each run in thousands of images.')
@click.option('--keep', default=0.1, show_default=True, help='Share of weights that tickets keep.')
def main(outdir: str, rows: tuple[str, ...], repeats: int, seed: int, kimg: int, keep: float) -> None:
    host.activate(host.find_or_fetch().path)
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    from stylegan2_compress.quickstart import mnist
    from stylegan2_compress.quickstart import run as quickstart

    os.makedirs(outdir, exist_ok=True)
    data, teacher = quickstart.write_inputs(outdir)
    features = quickstart.digit_features(torch.from_numpy(mnist.load()[0]).float() / 127.5 - 1)
    results = []
    for each in range(seed, seed + repeats):  # Seed by seed, so that all rows have as many while it runs.
        for row in rows or ROWS:
            where = f'{outdir}/{row}-{kimg}-{keep:g}-seed{each}'
            results.append(measured(row, each, where, data, teacher, kimg, keep, features))
            print_tables(results)
    save_picture(results, outdir, kimg, keep, seed, teacher, features)


def measured(row: str, seed: int, where: str, data: str, teacher: str, kimg: int, keep: float, features) -> Measured:
    """The result of a run, from its file if it is finished."""
    path = f'{where}/measured.json'
    if not os.path.exists(path):
        wall, cpu = time.time(), time.process_time()
        run_dir = train(row, where, data, teacher, kimg, keep, seed)
        minutes, cpu_minutes = (time.time() - wall) / 60, (time.process_time() - cpu) / 60
        course = [[number, *quality(file, features)] for number, file in snapshots(run_dir)]
        best = chosen_by_the_search(run_dir, course)
        weights, start = start_of(run_dir, teacher, features)
        with open(path, 'w') as file:
            json.dump(asdict(Measured(row, seed, weights, course, best, start, minutes, cpu_minutes)), file)
    with open(path) as file:
        return Measured(**json.load(file))


def train(row: str, where: str, data: str, teacher: str, kimg: int, keep: float, seed: int) -> str:
    """Run what a row describes. Returns the run directory."""
    from stylegan2_compress.compression import plan as planning
    from stylegan2_compress.compression.find_ticket import find_ticket, plan_search
    from stylegan2_compress.compression.options import TicketOptions
    from stylegan2_compress.runs.resume import LATEST

    given: dict[str, Any] = dict(
        data=data,
        outdir=where,
        embedding='efficientnet_lite0@size=32',
        kimg_per_tick=kimg / POINTS / 2,
        snap=2,
        state_kimg=10,
        eval_samples=1000,
        device='cpu',
        cond=True,
        kimg=kimg,
        keep=keep,
        seed=seed,
        workers=1,
        resume=LATEST,
    )
    given.update(ROWS[row])
    if given.get('teacher'):
        given['teacher'] = teacher
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


def quality(path: str, features) -> tuple[float, float]:
    """Fréchet distance and share of readable digits of a snapshot's G_ema."""
    from stylegan2_compress import pickles
    from stylegan2_compress.quickstart import run as quickstart
    from stylegan2_compress.tickets import baking

    row = quickstart.measure('', baking.plain(pickles.load(path)['G_ema']), features)
    return row.frechet_distance, row.readable


def start_of(run_dir: str, teacher: str, features) -> tuple[str, float | None]:
    """How many weights a run has, in words; and of a search, the distance of as many weights chosen at random."""
    from stylegan2_compress import pickles
    from stylegan2_compress.host import profiling
    from stylegan2_compress.quickstart import run as quickstart
    from stylegan2_compress.tickets import baking
    from stylegan2_compress.tickets.ticket_file import Ticket

    if not os.path.exists(f'{run_dir}/last.ticket'):
        return f'{profiling.parameters(pickles.load(snapshots(run_dir)[-1][1])["G_ema"]):,}', None
    ticket = Ticket.read(f'{run_dir}/last.ticket')
    size = os.path.getsize(f'{run_dir}/last.ticket')
    start = random_mask(ticket, teacher)
    distance = quickstart.measure('', baking.bake(start), features).frechet_distance
    return f'{ticket.kept:,} of {ticket.total:,}, {size:,} bytes', distance


def random_mask(ticket, teacher: str):
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
    print('\n| | runs | weights | best.ticket | readable | at the end | readable | random mask | minutes (CPU time) |')
    print(f'|{" --- |" * 9}')
    by_row = {row: [each for each in results if each.row == row] for row in dict.fromkeys(each.row for each in results)}
    for row, runs in by_row.items():
        starts = [each.start for each in runs if each.start is not None]
        cells = [
            row,
            f'{len(runs)}',
            runs[0].weights,
            *distance_and_readable([each.best for each in runs]),
            *distance_and_readable([each.course[-1] for each in runs]),
            spread(starts, '{:.0f}') if starts else '',
            f'{statistics.mean(each.minutes for each in runs):.0f} '
            f'({statistics.mean(each.cpu_minutes for each in runs):.0f})',
        ]
        print(f'| {" | ".join(cells)} |'.replace('|  |', '| |'))
    points = [point[0] for point in results[0].course]
    print(f'\n| Fréchet distance after | seed | {" | ".join(f"{point:g}" for point in points)} thousand images |')
    print(f'| --- | --- |{" --- |" * len(points)}')
    for row, runs in by_row.items():
        for each in runs:
            print(f'| {row} | {each.seed} | {" | ".join(f"{point[1]:.1f}" for point in each.course)} |')
    print(flush=True)


def distance_and_readable(points: list[list[float] | None]) -> list[str]:
    """Cells of a table on points of several courses; empty if a run has none."""
    known = [point for point in points if point is not None]
    if len(known) < len(points):
        return ['', '']
    return [spread([point[1] for point in known], '{:.1f}'), spread([100 * point[2] for point in known], '{:.1f} %')]


def spread(values: list[float], form: str) -> str:
    """Mean of one or more values, with the standard deviation of several."""
    mean = form.format(statistics.mean(values))
    return mean if len(values) < 2 else f'{mean} ± {statistics.stdev(values):.1f}'


def save_picture(
    results: list[Measured], outdir: str, kimg: int, keep: float, seed: int, teacher: str, features
) -> None:
    """The same 100 latents through each row's generator of the first seed, and the teacher; a row is a digit."""
    from stylegan2_compress import images, pickles
    from stylegan2_compress.evaluation import samples
    from stylegan2_compress.tickets import baking

    files = {'teacher (GAN)': (teacher, quality(teacher, features)[0])}
    for each in results:
        if each.seed == seed:
            (run_dir,) = glob.glob(f'{outdir}/{each.row}-{kimg}-{keep:g}-seed{seed}/*/')
            number, distance, _readable = each.best or each.course[-1]
            files[each.row] = dict(snapshots(run_dir))[number], distance
    panels = {}
    for name, (file, distance) in files.items():
        fakes, _labels = samples.generate(baking.plain(pickles.load(file)['G_ema']), 100, seed=2)
        by_digit = fakes.unflatten(0, (10, 10)).transpose(0, 1).flatten(0, 1)
        sheet = images.grid(images.to_uint8(by_digit), columns=10).resize((400, 400), PIL.Image.Resampling.LANCZOS)
        panels[f'{name}\nFrechet distance {distance:.1f}'] = sheet  # Pillow's font has no é.
    images.side_by_side(panels).save(f'{outdir}/mnist_ticket.png')


if __name__ == '__main__':
    main()
