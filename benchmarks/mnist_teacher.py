"""Train the quickstart's teacher: a class-conditional StyleGAN2 with the host's own loss on MNIST, on a CPU.

    python benchmarks/mnist_teacher.py --outdir runs/mnist-teacher [--kimg 150]

The last snapshot's G_ema and D become `mnist_teacher.safetensors` in the run's directory. The file that ships in
`stylegan2_compress/assets` was made by this script with its defaults; benchmarks/quickstart.md says for how long.
"""

import glob
import os

import click

from stylegan2_compress import host
from stylegan2_compress.quickstart import mnist


@click.command()
@click.option('--outdir', required=True, metavar='DIR', help='Where the dataset and the run go.')
@click.option('--kimg', default=150, show_default=True, help='Length of the training in thousands of images.')
@click.option('--gamma', default=2.0, show_default=True, help='Weight of the R1 penalty.')
@click.option('--seed', default=0, show_default=True)
def main(outdir: str, kimg: int, gamma: float, seed: int) -> None:
    host.activate()
    from stylegan2_compress import pickles
    from stylegan2_compress.compression import planning
    from stylegan2_compress.compression.options import MethodOptions
    from stylegan2_compress.host import configurations
    from stylegan2_compress.runs.plan import Plan

    os.makedirs(outdir, exist_ok=True)
    data = os.path.join(outdir, 'mnist.zip')
    if not os.path.exists(data):
        mnist.write_zip(data)
    desc, args = configurations.loop_arguments(
        data, kimg=kimg, batch=16, gamma=gamma, aug='noaug', cond=True, seed=seed, workers=1, fp32=True, snap=1
    )
    args.G_kwargs.update(z_dim=64, w_dim=64)
    args.G_kwargs.synthesis_kwargs.update(channel_base=1024, channel_max=64)
    args.D_kwargs.update(channel_base=512, channel_max=64, epilogue_kwargs=dict(mbstd_group_size=8))
    args.loss_kwargs.update(pl_weight=0, style_mixing_prob=0)  # As the host's configuration for 32×32, --cfg=cifar.
    args.update(kimg_per_tick=10, device='cpu')
    run_dir = planning.run(planning.compress(Plan(desc, args), MethodOptions()), outdir)
    data = pickles.load(sorted(glob.glob(f'{run_dir}/network-snapshot-*.pkl'))[-1])
    data['training_set_kwargs']['path'] = 'mnist.zip'  # Wherever it was on this machine.
    pickles.save(f'{run_dir}/mnist_teacher.safetensors', data)


if __name__ == '__main__':
    main()
