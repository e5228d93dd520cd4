"""What each method adds on the quickstart's digits, and by how much the quickstart's own numbers differ by seed.

    python benchmarks/quickstart_ablation.py --outdir runs/ablation [--kimg 24] [--rows 'NICKEL;both']
    python benchmarks/quickstart_ablation.py --outdir runs/seeds --kimg 28 --rows 'regression and moments' --repeats 5

The second is the quickstart. Every run uses its recipe, but half its learning rate where not said otherwise, and starts
from the pruned teacher, cut as the row says; the discriminator, where there is one, starts from the teacher's, with
NICKEL a second one from scratch. Started again with the same options, the script leaves out the runs that are done.
"""

import glob
import json
import os
import time
from dataclasses import dataclass, field

import click
import numpy as np
import torch

from stylegan2_compress import host


@dataclass(frozen=True)
class Row:
    """What a row of the table trains, all else being the quickstart's."""

    loss: str
    has_dime: bool = False  # Takes the arguments `DIME`.
    has_moments: bool = False  # Takes those of the quickstart itself.
    loss_args: dict[str, object] = field(default_factory=dict)  # Further ones, or others.
    times: int = 1  # How many times --kimg it trains.
    criterion: str = 'l1'  # Of pruning.
    adversarial: bool = True  # Trains against a discriminator.
    lr: float = 0.5  # Learning rate, in units of the quickstart's.


# With the weight 20, the paper's for DINO, moments of 16 images of ten digits dominate the discriminator's gradient.
DIME = dict(embeddings='efficientnet_lite0@size=32', weights=0.5, samples=5000)
ALL_LAYERS = 'efficientnet_lite0@size=32@layers=all'
LAYERS_AND_IMAGES = dict(
    embeddings=ALL_LAYERS, estimator='rbf', weights=0.2, images=3, images_kimg=4, images_embedding=ALL_LAYERS
)
# As in the teacher's training.
OF_ADVERSARIAL_LOSS = dict(gamma=2.0, pl_weight=0)
# A step of `both` takes about twice as long as one without distillation, so that twice the images are about what the
# same minutes would give.
ROWS = {
    'no distillation': Row('AdversarialLoss'),
    'no distillation, l1-styled': Row('AdversarialLoss', criterion='l1-styled'),
    'no distillation, twice the images': Row('AdversarialLoss', times=2),
    'image distillation, l1-styled': Row(
        'ImageDistillationLoss', loss_args=dict(embedding='efficientnet_lite0@size=32'), criterion='l1-styled'
    ),
    'DiME': Row('DiMELoss', has_dime=True),
    'NICKEL': Row('NICKELLoss'),
    'both': Row('NickelDimeLoss', has_dime=True),
    'NICKEL and moments': Row('NICKELLoss+MomentMatchingLoss', has_moments=True),
    'image distillation and moments': Row('ImageDistillationLoss+MomentMatchingLoss', has_moments=True),
    'regression and moments': Row('RegressionLoss+MomentMatchingLoss', has_moments=True, adversarial=False, lr=1),
    'regression and moments, damped': Row(
        'RegressionLoss+MomentMatchingLoss',
        has_moments=True,
        loss_args=dict(moments_penalty=5),
        adversarial=False,
        lr=1,
    ),
    'regression and moments, half the learning rate': Row(
        'RegressionLoss+MomentMatchingLoss', has_moments=True, adversarial=False
    ),
    'regression and moments of the data': Row(
        'RegressionLoss+MomentMatchingLoss', has_moments=True, loss_args=dict(reference='data'), adversarial=False
    ),
    'both, kernel of all layers, images, l1-styled': Row(
        'NickelDimeLoss', has_dime=True, loss_args=LAYERS_AND_IMAGES, criterion='l1-styled'
    ),
}


def row_names(_context, _parameter, text: str | None) -> list[str]:
    names = list(ROWS) if text is None else [name.strip() for name in text.split(';')]
    for name in names:
        if name not in ROWS:
            raise click.BadParameter(f'{name} is none of {"; ".join(ROWS)}.')
    return names


@click.command()
@click.option('--outdir', required=True, metavar='DIR')
@click.option('--kimg', default=24, show_default=True, help='Length of each run in thousands of images.')
@click.option('--ratio', default=0.7, show_default=True, help='Share of channels cut.')
@click.option('--rows', metavar='A;B;…', callback=row_names, help=f'Of {"; ".join(ROWS)}  [default: all]')
@click.option('--seed', default=0, show_default=True, help='Of the first run.')
@click.option('--repeats', default=1, show_default=True, help='Runs per row, by seed.')
def main(outdir: str, kimg: int, ratio: float, rows: list[str], seed: int, repeats: int) -> None:
    host.activate(host.find_or_fetch().path)
    from stylegan2_compress.quickstart import mnist
    from stylegan2_compress.quickstart import run as quickstart

    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    os.makedirs(outdir, exist_ok=True)
    data, teacher = quickstart.write_inputs(outdir)
    reals = quickstart.digit_features(torch.from_numpy(mnist.load()[0]).float() / 127.5 - 1)
    seeds = range(seed, seed + repeats)
    print(f'| {kimg} thousand images, ratio {ratio:g} | seeds | Fréchet distance | readable | minutes of CPU time |')
    print('| --- | --- | --- | --- | --- |')
    for name in rows:
        results = [result_of(name, data, teacher, outdir, reals, kimg, ratio, each) for each in seeds]
        cells = [
            spread([result['frechet_distance'] for result in results], '{:.1f}'),
            spread([100 * result['readable'] for result in results], '{:.1f}') + ' %',
            f'{np.mean([result["cpu_minutes"] for result in results]):.1f}',
        ]
        print(f'| {name} | {repeats} | {" | ".join(cells)} |', flush=True)


def result_of(name: str, data: str, teacher: str, outdir: str, reals, kimg: int, ratio: float, seed: int) -> dict:
    """What a run of a row was measured at, which is run and written down unless it has been."""
    path = os.path.join(outdir, f'{name}-kimg{kimg}-ratio{ratio:g}-seed{seed}.json')
    if not os.path.exists(path):
        result = train_and_measure(ROWS[name], data, teacher, outdir, reals, kimg, ratio, seed)
        with open(path, 'w') as file:
            json.dump(result, file)
    with open(path) as file:
        return json.load(file)


def train_and_measure(
    row: Row, data: str, teacher: str, outdir: str, reals, kimg: int, ratio: float, seed: int
) -> dict:
    from stylegan2_compress import pickles
    from stylegan2_compress.compression.distill import distill
    from stylegan2_compress.quickstart import run as quickstart

    moments = quickstart.LOSS_ARGS | dict(samples=5000)
    loss_args = (DIME if row.has_dime else {}) | (moments if row.has_moments else {}) | row.loss_args
    if loss_args.get('estimator') == 'rbf':
        del loss_args['samples']
    if row.adversarial:
        loss_args['style_mixing_prob'] = 0
    start = time.process_time()
    run_dir = distill(
        teacher,
        data,
        outdir,
        ratio=ratio,
        criterion=row.criterion,
        kimg=kimg * row.times,
        loss=f'stylegan2_compress.{row.loss}',
        loss_args=loss_args,
        seed=seed,
        workers=1,
        device='cpu',
        **quickstart.RECIPE | dict(lr=quickstart.RECIPE['lr'] * row.lr),
        **(OF_ADVERSARIAL_LOSS if row.adversarial else {}),
    )
    minutes = (time.process_time() - start) / 60
    snapshot = sorted(glob.glob(f'{run_dir}/network-snapshot-*.pkl'))[-1]
    measured = quickstart.measure(row.loss, pickles.load(snapshot)['G_ema'], reals)
    return dict(
        frechet_distance=measured.frechet_distance,
        readable=measured.readable,
        cpu_minutes=minutes,
        snapshot=snapshot,
    )


def spread(values: list[float], form: str) -> str:
    """Mean and, of several, the least and the greatest."""
    mean = form.format(np.mean(values))
    return mean if len(values) == 1 else f'{mean} ({form.format(min(values))} to {form.format(max(values))})'


if __name__ == '__main__':
    main()
