"""`distill` and `quickstart`: runs."""

import os

import click

from stylegan2_compress.cli.shared import SEED, data_option, outdir_option, run_options


@click.command()
@click.option('--teacher', required=True, metavar='PKL|URL', help='Network pickle to learn from.')
@data_option
@outdir_option
@click.option('--student', metavar='PKL|URL', help='Network pickle to start from  [default: the teacher, pruned]')
@click.option('--ratio', type=float, metavar='P', help='Without --student: share of channels to cut  [default: 0.7]')
@click.option('--loss', default='stylegan2_compress.DiMELoss', show_default=True, metavar='CLASS', help='Loss class.')
@click.option(
    '--loss-arg', 'loss_args', multiple=True, metavar='KEY=VALUE', help='Argument of the loss class; may be repeated.'
)
@click.option('--loop', metavar='MODULE.FUNCTION', help='Training loop  [default: ours]')
@click.option(
    '--cfg', metavar='NAME', help='Base configuration of the host  [default: the one the teacher fits, or auto]'
)
@click.option('--kimg', type=int, metavar='N', help='Length of the training in thousands of images.')
@click.option('--batch', type=int, metavar='N', help='Batch size.')
@click.option(
    '--batch-gpu',
    type=int,
    metavar='N',
    help="How much of it a GPU works on at a time; DiME compares that many images  [default: the configuration's]",
)
@click.option('--gamma', type=float, help='Weight of the R1 penalty.')
@click.option('--lr', type=float, help='Learning rate of generator and discriminator.')
@click.option('--ema-kimg', type=float, metavar='N', help='Half-life of the averaged generator in thousands of images.')
@click.option('--pl-weight', type=float, help='Weight of path length regularisation; 0 switches it off.')
@click.option('--aug', metavar='noaug|ada|fixed', help='Augmentation  [default: noaug, as in the paper]')
@click.option('--p', type=float, help='Augmentation probability for --aug=fixed.')
@click.option('--target', type=float, help='ADA target for --aug=ada  [default: 0.6]')
@click.option('--augpipe', metavar='NAME', help='Augmentation pipeline  [default: bgc]')
@click.option('--freezed', type=int, metavar='N', help='Freeze the first N layers of the discriminator.')
@click.option('--fp32', type=bool, metavar='BOOL', help='No mixed precision  [default: false; on a CPU always true]')
@click.option('--metrics', default='none', show_default=True, metavar='NAME,…', help="The host's metrics, or none.")
@run_options
def distill(host_dir, **options):
    """Train a small generator to do what a big one does.

    What is not given is read off the teacher or taken from the host's published configuration that it fits. The run
    directory holds what the host's train.py leaves: training_options.json, log.txt, stats.jsonl, fakes*.png,
    network-snapshot-*.pkl. Beside them lie training-state-*.pt, from which --resume continues exactly: after Ctrl-C,
    SIGTERM or a crash, or to a larger --kimg. With --resume=latest, the same command starts and continues.

    \b
    Examples:
      # FFHQ at 256x256: cut 80 % of the channels, match DINO and CLIP embeddings (the paper's recipe)
      stylegan2-compress distill --teacher ffhq256.pkl --data ffhq256.zip --outdir runs --ratio 0.8 --mirror 1
    \b
      # A student that is pruned already, another embedding, on a CPU
      stylegan2-compress distill --teacher teacher.pkl --student student.pkl --data mnist.zip --outdir runs \\
          --loss-arg embeddings=efficientnet_lite0@size=64 --kimg 10 --batch 16 --device cpu
    \b
      # On 4 GPUs; on 2 machines with 8 each, run on both (see the README for SLURM)
      stylegan2-compress distill --teacher ffhq256.pkl --data ffhq256.zip --outdir runs --gpus 4 --resume latest
      torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 --max-restarts=3 \\
          -m stylegan2_compress distill --teacher ffhq256.pkl --data ffhq256.zip --outdir runs --resume latest
    """
    from stylegan2_compress import host

    host.activate(host_dir)
    from stylegan2_compress.compression.distill import distill

    distill(**options)


@click.command()
@click.option('--outdir', default='quickstart', show_default=True, metavar='DIR', help='Where everything is written.')
@click.option('--ratio', default=0.7, show_default=True, help='Share of channels to cut.')
@click.option('--kimg', default=16, show_default=True, help='Length of the distillation in thousands of images.')
@click.option('--seed', type=SEED, default=0, show_default=True, help='Random seed.')
@click.option('--host', 'host_dir', metavar='DIR', help='Checkout of stylegan2-ada-pytorch  [default: fetch one]')
def quickstart(host_dir, **options):
    """Compress a small StyleGAN2 on real digits, on a CPU, in minutes.

    Needs the extra: pip install "stylegan2-compress[quickstart]". Interrupted, it goes on when it is started again.

    \b
    Example:
      stylegan2-compress quickstart --outdir quickstart
    """
    from stylegan2_compress import host

    host.activate(host.find_or_fetch(host_dir).path)
    import torch

    from stylegan2_compress.quickstart.run import quickstart

    # Operations this small gain little from a second core, and wait for long where another program has it.
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    quickstart(**options)
