"""What each method adds on the quickstart's digits: the same pruned student, the same number of images, other losses.

    python benchmarks/quickstart_ablation.py --outdir runs/ablation [--kimg 24] [--seed 0]

Every run starts from the same pruned generator and uses the quickstart's recipe; the discriminator starts from the
teacher's, with NICKEL a second one from scratch. Started again with the same options, the script leaves out the runs
that are done.
"""

import glob
import json
import os
import time

import click
import torch

from stylegan2_compress import host

# Name of the row: loss class, whether it takes DiME's arguments, how many times --kimg it trains. A step of `both`
# takes about twice as long as one without distillation, so the last row is about what the same minutes would give.
ROWS = {
    'no distillation': ('stylegan2_compress.AdversarialLoss', False, 1),
    'DiME': ('stylegan2_compress.DiMELoss', True, 1),
    'NICKEL': ('stylegan2_compress.NICKELLoss', False, 1),
    'both': ('stylegan2_compress.NickelDimeLoss', True, 1),
    'no distillation, twice the images': ('stylegan2_compress.AdversarialLoss', False, 2),
}


@click.command()
@click.option('--outdir', required=True, metavar='DIR')
@click.option('--kimg', default=24, show_default=True, help='Length of each run in thousands of images.')
@click.option('--ratio', default=0.7, show_default=True, help='Share of channels cut.')
@click.option('--seed', default=0, show_default=True)
def main(outdir: str, kimg: int, ratio: float, seed: int) -> None:
    host.activate(host.find_or_fetch().path)
    from stylegan2_compress.quickstart import mnist
    from stylegan2_compress.quickstart import run as quickstart

    os.makedirs(outdir, exist_ok=True)
    data, teacher = quickstart.write_inputs(outdir)
    reals = quickstart.digit_features(torch.from_numpy(mnist.load()[0]).float() / 127.5 - 1)
    print(f'| {kimg} thousand images, ratio {ratio:g}, seed {seed} | Fréchet distance | readable | minutes |')
    print('| --- | --- | --- | --- |')
    for name, (loss, has_dime, times) in ROWS.items():
        loss_args = quickstart.loss_args(quickstart.WEIGHT, samples=5000) if has_dime else ('style_mixing_prob=0',)
        result_json = os.path.join(outdir, f'{loss}-kimg{kimg * times}-ratio{ratio:g}-seed{seed}.json')
        if not os.path.exists(result_json):
            run = dict(loss=loss, loss_args=loss_args, kimg=kimg * times, ratio=ratio, seed=seed)
            result = train_and_measure(data, teacher, outdir, reals, run)
            with open(result_json, 'w') as file:
                json.dump(result, file)
        with open(result_json) as file:
            result = json.load(file)
        print('| {name} | {frechet_distance:.1f} | {readable:.1%} | {minutes:.1f} |'.format(name=name, **result))


def train_and_measure(data: str, teacher: str, outdir: str, reals, run: dict) -> dict:
    from stylegan2_compress import pickles
    from stylegan2_compress.compression.distill import distill
    from stylegan2_compress.quickstart import run as quickstart

    start = time.time()
    run_dir = distill(teacher, data, outdir, **run, workers=1, device='cpu', **quickstart.RECIPE)
    minutes = (time.time() - start) / 60
    snapshot = sorted(glob.glob(f'{run_dir}/network-snapshot-*.pkl'))[-1]
    row = quickstart.measure(run['loss'], pickles.load(snapshot)['G_ema'], reals)
    return dict(frechet_distance=row.frechet_distance, readable=row.readable, minutes=minutes, snapshot=snapshot)


if __name__ == '__main__':
    main()
