"""`distill`, `find-ticket` and `quickstart`: runs."""

import click

from stylegan2_compress.arguments import LAST_SEED, command_options
from stylegan2_compress.cli.shared import host_option, load, load_light
from stylegan2_compress.compression.options import DistillOptions, TicketOptions


@click.command()
@command_options(DistillOptions)
@host_option
def distill(host_dir, **options):
    """Train a small generator to do what a big one does.

    What is not given is read off the teacher or taken from the host's published configuration that it fits. The run
    directory holds what the host's train.py leaves: training_options.json, log.txt, stats.jsonl, fakes*.png,
    network-snapshot-*.pkl. Beside them lie training-state-*.pt, from which --resume continues exactly: after Ctrl-C,
    SIGTERM or a crash, or to a larger --kimg. With --resume=latest, the same command starts and continues.

    \b
    Examples:
      # FFHQ at 256x256: cut 80 % of the channels, match DINO and CLIP embeddings
      stylegan2-compress distill --teacher ffhq256.pkl --data ffhq256.zip --outdir runs --ratio 0.8 --mirror 1
    \b
      # The published configuration: NICKEL and DiME, from a content-aware student
      stylegan2-compress distill --teacher ffhq256.pkl --data ffhq256.zip --outdir runs --ratio 0.8 --mirror 1 \\
          --criterion content-aware --loss stylegan2_compress.NickelDimeLoss --kimg 40000
    \b
      # A student that is pruned already, another embedding, on a CPU
      stylegan2-compress distill --teacher teacher.pkl --student student.pkl --data mnist.zip --outdir runs \\
          --loss-arg embeddings=efficientnet_lite0@size=64 --kimg 10 --batch 16 --device cpu
    \b
      # On 4 GPUs; on 2 machines with 8 each, run on both (docs/long-runs.md has SLURM)
      stylegan2-compress distill --teacher ffhq256.pkl --data ffhq256.zip --outdir runs --gpus 4 --resume latest
      torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 --max-restarts=3 \\
          -m stylegan2_compress distill --teacher ffhq256.pkl --data ffhq256.zip --outdir runs --resume latest
    """
    DistillOptions(**options)  # Refuses what it can before torch is imported.
    load('compression.distill:distill', host_dir)(**options)


@click.command('find-ticket')
@command_options(TicketOptions)
@host_option
def find_ticket(host_dir, **options):
    """Search for a strong lottery ticket: the mask under which a generator of random weights generates.

    Weights stay as they are: only --rule imp, the baseline, trains them, and --train-unmasked what is not masked. The
    run directory holds what other runs leave (training_options.json, log.txt, stats.jsonl, fakes*.png,
    network-snapshot-*.pkl), and at the end best.ticket, last.ticket and tickets.jsonl, which compares all snapshots
    with the data. With --resume=latest, the same command starts and continues.

    \b
    Examples:
      # A tenth of random weights
      stylegan2-compress find-ticket --data ffhq64.zip --outdir runs --keep 0.1 --kimg 10000
    \b
      # With the paper's settings
      stylegan2-compress find-ticket --data ffhq64.zip --outdir runs --preset paper
    \b
      # Digits, by label, on a CPU
      stylegan2-compress find-ticket --data mnist.zip --cond 1 --outdir runs --keep 0.1 --kimg 100 \\
          --channel-base 512 --channel-max 64 --z-dim 64 --w-dim 64 --mapping-layers 2
    \b
      # A teacher's weights instead of random ones: pruning without training
      stylegan2-compress find-ticket --data ffhq256.zip --teacher ffhq256.pkl --reference teacher --outdir runs
    """
    TicketOptions(**options)  # Refuses what it can before torch is imported.
    load('compression.find_ticket:find_ticket', host_dir)(**options)


@click.command()
@click.option('--outdir', default='quickstart', show_default=True, metavar='DIR', help='Where everything is written.')
@click.option('--ratio', default=0.7, show_default=True, help='Share of channels to cut.')
@click.option('--kimg', default=28, show_default=True, help='Length of the distillation in thousands of images.')
@click.option('--seed', type=click.IntRange(0, LAST_SEED), default=0, show_default=True, help='Random seed.')
@click.option('--host', 'host_dir', metavar='DIR', help='Checkout of stylegan2-ada-pytorch  [default: fetch one]')
def quickstart(host_dir, **options):
    """Compress a small StyleGAN2 on real digits, on a CPU, in minutes.

    Needs the extra `quickstart`: pip install ".[quickstart]" in a checkout. Interrupted, it goes on when it is started
    again.

    \b
    Example:
      stylegan2-compress quickstart --outdir quickstart
    """
    host = load_light('host:find_or_fetch')(host_dir)
    load('quickstart.run:quickstart', host.path)(**options)
