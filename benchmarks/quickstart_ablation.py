"""What distillation adds on the quickstart's digits: the same pruned student, the same number of images, other losses.

    python benchmarks/quickstart_ablation.py --outdir runs/ablation [--kimg 24]

Every row starts from the same pruned generator and the teacher's discriminator and uses the quickstart's recipe. The
runs take about a quarter of a minute per thousand images each, on two CPU cores.
"""

import glob
import os
import time

import click
import torch

from stylegan2_compress import host

DIME = 'stylegan2_compress.DiMELoss'
RUNS = {  # Name of the row: loss class, weight of the embedding.
    'no distillation': ('stylegan2_compress.AdversarialLoss', None),
    'DiME, weight 0.5 (the quickstart)': (DIME, 0.5),
    'DiME, weight 20': (DIME, 20),
}


@click.command()
@click.option('--outdir', required=True, metavar='DIR')
@click.option('--kimg', default=24, show_default=True, help='Length of each run in thousands of images.')
@click.option('--ratio', default=0.7, show_default=True, help='Share of channels cut.')
@click.option('--seed', default=0, show_default=True)
def main(outdir: str, kimg: int, ratio: float, seed: int) -> None:
    host.activate(host.find_or_fetch().path)
    from stylegan2_compress import mnist, pickles, quickstart
    from stylegan2_compress.distillation import distill

    os.makedirs(outdir, exist_ok=True)
    data, teacher = quickstart.write_inputs(outdir)
    reals = quickstart.digit_features(torch.from_numpy(mnist.load()[0]).float() / 127.5 - 1)
    table = []
    for name, (loss, weight) in RUNS.items():
        loss_args = ('style_mixing_prob=0',) if weight is None else quickstart.loss_args(weight, samples=5000)
        common = dict(ratio=ratio, kimg=kimg, seed=seed, workers=1, device='cpu', **quickstart.RECIPE)
        start = time.time()
        run_dir = distill(teacher, data, outdir, loss=loss, loss_args=loss_args, **common)
        minutes = (time.time() - start) / 60
        snapshot = sorted(glob.glob(f'{run_dir}/network-snapshot-*.pkl'))[-1]
        table.append((name, quickstart.measure(name, pickles.load(snapshot)['G_ema'], reals), minutes))
    print(f'\n| {kimg} thousand images, ratio {ratio:g}, seed {seed} | Fréchet distance | readable | minutes |')
    print('| --- | --- | --- | --- |')
    for name, row, minutes in table:
        print(f'| {name} | {row.frechet_distance:.1f} | {row.readable:.1%} | {minutes:.1f} |')


if __name__ == '__main__':
    main()
