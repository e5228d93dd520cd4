"""`find-ticket` and `ticket`: strong lottery tickets."""

import click


@click.command('find-ticket')
@click.option('--data', required=True, metavar='PATH', help="Training images: directory or zip in the host's format.")
@click.option('--outdir', required=True, metavar='DIR', help='Where the run directory is created.')
@click.option('--teacher', metavar='PKL|URL', help='Mask the weights of its G_ema  [default: random weights]')
@click.option('--reference', default='data', show_default=True, metavar='data|teacher', help='Whose moments to match.')
@click.option('--keep', type=float, default=0.1, show_default=True, metavar='K', help='Share of weights to keep.')
@click.option('--rule', default='edge-popup', show_default=True, help='edge-popup, global-edge-popup, gem-miner, imp.')
@click.option('--masked', multiple=True, default=['*weight'], show_default=True, metavar='PATTERN', help='To mask.')
@click.option('--unmasked', multiple=True, metavar='PATTERN', help='Exceptions, such as "mapping.*"; may be repeated.')
@click.option(
    '--weight-init', default='signed-constant', show_default=True, help='signed-constant, kaiming-normal, gaussian.'
)
@click.option('--score-init', metavar='NAME', help='kaiming-uniform, uniform, unit  [default: what the rule wants]')
@click.option('--embedding', default='vgg19_bn', show_default=True, metavar='SPEC', help='Whose layers to match in.')
@click.option(
    '--loss-arg', 'loss_args', multiple=True, metavar='KEY=VALUE', help='Argument of the loss; may be repeated.'
)
@click.option('--lr', type=float, default=5e-5, show_default=True, help='Learning rate of scores.')
@click.option('--kimg', type=int, metavar='N', help='Length of the search in thousands of images.')
@click.option('--batch', type=int, default=64, show_default=True, metavar='N', help='Batch size.')
@click.option('--ema-kimg', type=float, metavar='N', help='Half-life of the averaged scores in thousands of images.')
@click.option('--cfg', metavar='NAME', help='Base configuration of the host  [default: auto]')
@click.option('--cond', type=bool, metavar='BOOL', help="Use the dataset's labels  [default: if the teacher does]")
@click.option('--mirror', type=bool, metavar='BOOL', help='Add flipped images  [default: false]')
@click.option('--subset', type=int, metavar='N', help='Search with only N images  [default: all]')
@click.option('--z-dim', type=int, metavar='N', help='Width of z, of random weights.')
@click.option('--w-dim', type=int, metavar='N', help='Width of w, likewise.')
@click.option('--channel-base', type=int, metavar='N', help='Channels times resolution, likewise.')
@click.option('--channel-max', type=int, metavar='N', help='Most channels of a layer, likewise.')
@click.option('--mapping-layers', type=int, metavar='N', help='Layers of the mapping network, likewise.')
@click.option('--eval-embedding', metavar='SPEC', help='In whose features snapshots are compared  [default: the same]')
@click.option('--eval-samples', type=int, default=2000, show_default=True, metavar='N', help='Images for that.')
@click.option('--snap', type=int, metavar='TICKS', help='Ticks between snapshots  [default: 50]')
@click.option('--kimg-per-tick', type=float, metavar='N', help='Thousands of images between lines  [default: 4]')
@click.option('--seed', type=int, metavar='N', help='Of weights, scores and everything else  [default: 0]')
@click.option('--workers', type=int, metavar='N', help='DataLoader worker processes  [default: 3]')
@click.option('--device', metavar='DEVICE', help='cpu, cuda, cuda:1  [default: CUDA where there is one]')
@click.option('-n', '--dry-run', is_flag=True, help='Print the options and exit.')
@click.option('--host', 'host_dir', metavar='DIR', help='Checkout of stylegan2-ada-pytorch.')
def find_ticket(host_dir, **options):
    """Search for a strong lottery ticket: the mask under which a generator of random weights generates.

    No weight is ever trained. The run directory holds what other runs leave (training_options.json, log.txt,
    stats.jsonl, fakes*.png, network-snapshot-*.pkl), and at the end best.ticket, last.ticket and tickets.jsonl, which
    compares all snapshots with the data.

    \b
    Examples:
      # A tenth of random weights, as in the paper
      stylegan2-compress find-ticket --data ffhq64.zip --outdir runs --keep 0.1 --kimg 10000
    \b
      # Digits, by label, on a CPU
      stylegan2-compress find-ticket --data mnist.zip --cond 1 --outdir runs --keep 0.1 --kimg 150 --lr 3e-3 \\
          --channel-base 512 --channel-max 64 --z-dim 64 --w-dim 64 --mapping-layers 2 \\
          --embedding efficientnet_lite0@size=32 --loss-arg normalize=true
    \b
      # A teacher's weights instead of random ones: pruning without training
      stylegan2-compress find-ticket --data ffhq256.zip --teacher ffhq256.pkl --reference teacher --outdir runs
    """
    from stylegan2_compress import host

    host.activate(host_dir)
    from stylegan2_compress.tickets import search

    search.find_ticket(**options)
