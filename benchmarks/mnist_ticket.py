"""A strong lottery ticket on MNIST: a tenth of random weights that makes digits, found on a CPU without training any.

    python benchmarks/mnist_ticket.py --outdir runs/mnist-ticket [--kimg 100] [--loss-arg moving_average_lr=1e-4]

Searches class-conditionally, by moments of each digit's images in the layers of EfficientNet-Lite0, and compares

* the ticket,
* the same generator with as many weights kept at random: where the search starts,
* the same generator, dense, whose weights are trained with the same loss on as many images,
* the quickstart's teacher, a larger generator trained with a discriminator on 150 thousand images,

as the quickstart does: 5,000 images against 5,000 real digits in the features of a digit classifier that none of them
has seen. Prints the table and the search's course, and writes mnist_ticket.png. A run that `--outdir` has finished is
not run again.
"""

import glob
import json
import os
import time

import click
import PIL.Image
import torch

from stylegan2_compress import host

SHAPE = dict(z_dim=64, w_dim=64, channel_base=512, channel_max=64, mapping_layers=2)
BATCH, SCORE_LR, WEIGHT_LR, EMA_KIMG = 64, 3e-3, 2e-3, 2.0
EMBEDDING = 'efficientnet_lite0@size=32'
LOSS_ARGS = ('normalize=true',)


@click.command()
@click.option('--outdir', required=True, metavar='DIR')
@click.option('--kimg', default=100, show_default=True, help='Length of both runs in thousands of images.')
@click.option('--keep', default=0.1, show_default=True, help='Share of weights that the ticket keeps.')
@click.option('--rule', default='edge-popup', show_default=True, help="The search's, see find-ticket.")
@click.option('--seed', default=0, show_default=True)
@click.option('--loss-arg', 'loss_args', multiple=True, metavar='KEY=VALUE', help='Further ones of MomentMatchingLoss.')
def main(outdir: str, kimg: int, keep: float, rule: str, seed: int, loss_args: tuple[str, ...]) -> None:
    host.activate(host.find_or_fetch().path)
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    from stylegan2_compress import pickles
    from stylegan2_compress.quickstart import mnist
    from stylegan2_compress.quickstart import run as quickstart
    from stylegan2_compress.tickets import baking
    from stylegan2_compress.tickets.ticket_file import Ticket

    os.makedirs(outdir, exist_ok=True)
    data, teacher = quickstart.write_inputs(outdir)
    ticket_dir = finished(
        f'{outdir}/ticket', lambda: search(data, f'{outdir}/ticket', kimg, keep, rule, seed, loss_args)
    )
    dense_dir = finished(f'{outdir}/dense', lambda: train_dense(ticket_dir, f'{outdir}/dense'))

    ticket = Ticket.read(f'{ticket_dir}/last.ticket')
    generators = {
        'ticket': ticket.generator(f'{ticket_dir}/last.ticket'),
        'random mask': start_of(ticket).eval(),
        'dense': pickles.load(last_snapshot(dense_dir))['G_ema'],
        'teacher': pickles.load(teacher)['G_ema'],
    }
    features = quickstart.digit_features(torch.from_numpy(mnist.load()[0]).float() / 127.5 - 1)
    for name in ('ticket', 'random mask'):
        generators[name] = baking.bake(generators[name])
    rows = {name: quickstart.measure(name, G, features) for name, G in generators.items()}
    weights = {'ticket': f'{ticket.kept:,} of {ticket.total:,}', 'random mask': f'{ticket.kept:,} of {ticket.total:,}'}
    minutes = {'ticket': minutes_of(ticket_dir), 'dense': minutes_of(dense_dir)}
    print(f'\n| {kimg} thousand images, seed {seed} | weights | Fréchet distance | readable | minutes |')
    print('| --- | --- | --- | --- | --- |')
    for name, row in rows.items():
        print(
            f'| {name} | {weights.get(name, f"{row.parameters:,}")} | {row.frechet_distance:.1f} | {row.readable:.1%} '
            f'| {minutes.get(name, "")} |'
        )
    print(f'\nThe ticket file takes {os.path.getsize(f"{ticket_dir}/last.ticket"):,} bytes.')
    for file in sorted(glob.glob(f'{ticket_dir}/network-snapshot-*.pkl')):
        row = quickstart.measure(os.path.basename(file), baking.bake(pickles.load(file)['G_ema']), features)
        print(f'{row.name}: Fréchet distance {row.frechet_distance:.1f}, readable {row.readable:.1%}')
    save_picture(generators, rows, f'{outdir}/mnist_ticket.png')


def finished(outdir: str, run) -> str:
    """The run directory in `outdir` that is done, or that of a new run."""
    done = glob.glob(f'{outdir}/*/finished.json')
    if done:
        return os.path.dirname(done[-1])
    wall, cpu = time.time(), time.process_time()
    run_dir = run()
    with open(f'{run_dir}/finished.json', 'w') as file:
        json.dump({'minutes': (time.time() - wall) / 60, 'cpu_minutes': (time.process_time() - cpu) / 60}, file)
    return run_dir


def minutes_of(run_dir: str) -> str:
    with open(f'{run_dir}/finished.json') as file:
        times = json.load(file)
    return f'{times["minutes"]:.0f} ({times["cpu_minutes"]:.0f} of CPU time)'


def search(data: str, outdir: str, kimg: int, keep: float, rule: str, seed: int, loss_args: tuple[str, ...]) -> str:
    from stylegan2_compress.compression.find_ticket import find_ticket

    return find_ticket(
        data,
        outdir,
        keep=keep,
        rule=rule,
        embedding=EMBEDDING,
        loss_args=LOSS_ARGS + loss_args,
        lr=SCORE_LR,
        ema_kimg=EMA_KIMG,
        kimg_per_tick=4,
        eval_samples=500,
        device='cpu',
        cond=True,
        kimg=kimg,
        batch=BATCH,
        seed=seed,
        workers=1,
        snap=5,
        **SHAPE,
    )


def train_dense(ticket_dir: str, outdir: str) -> str:
    """The ticket's run again, with weights that train: the host's generator, and its own initialisation."""
    import dnnlib

    from stylegan2_compress.runs.directory import RunDirectory
    from stylegan2_compress.runs.resume import start_run

    with open(f'{ticket_dir}/training_options.json') as file:
        args = dnnlib.EasyDict(json.load(file))
    shape = ('z_dim', 'w_dim', 'mapping_kwargs', 'synthesis_kwargs')
    args.G_kwargs = dict(class_name='training.networks.Generator', **{name: args.G_kwargs[name] for name in shape})
    args.G_opt_kwargs = dict(args.G_opt_kwargs, lr=WEIGHT_LR)
    run_dir = os.fspath(RunDirectory.next(outdir, 'dense'))
    start_run(dnnlib.EasyDict({name: value for name, value in args.items() if name != 'run_dir'}), run_dir)
    return run_dir


def last_snapshot(run_dir: str) -> str:
    return sorted(glob.glob(f'{run_dir}/network-snapshot-*.pkl'))[-1]


def start_of(ticket):
    """The generator before the search: the same weights, masked at random."""
    from stylegan2_compress.networks.masked import ScoreMaskedGenerator

    return ScoreMaskedGenerator(**ticket.arguments)


def save_picture(generators, rows, path: str) -> None:
    """The same 100 latents through each generator; a row of a panel is a digit."""
    from stylegan2_compress import images
    from stylegan2_compress.evaluation import samples

    panels = {}
    for name, G in generators.items():
        fakes, _labels = samples.generate(G, 100, seed=2)
        by_digit = fakes.unflatten(0, (10, 10)).transpose(0, 1).flatten(0, 1)
        sheet = images.grid(images.to_uint8(by_digit), columns=10).resize((400, 400), PIL.Image.Resampling.LANCZOS)
        panels[f'{name}\nFrechet distance {rows[name].frechet_distance:.1f}'] = sheet  # Pillow's font has no é.
    images.side_by_side(panels).save(path)


if __name__ == '__main__':
    main()
