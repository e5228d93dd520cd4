"""`run-host`: the scripts of stylegan2-ada-pytorch."""

import click

from stylegan2_compress.cli.shared import host_option, load


@click.command('run-host', context_settings=dict(ignore_unknown_options=True, allow_interspersed_args=False))
@click.argument('script')
@click.argument('arguments', nargs=-1, type=click.UNPROCESSED, metavar='[ARGUMENTS…]')
@click.option('--device', metavar='NAME', help='cpu, cuda, cuda:1, mps  [default: cuda where there is one, else cpu]')
@host_option
def run_host(script, arguments, device, host_dir):
    """Run one of the host's scripts with the repairs of this package, without CUDA, too.

    SCRIPT is generate.py, style_mixing.py, projector.py, calc_metrics.py, dataset_tool.py, train.py or legacy.py; its
    own options follow it. Where the script asks for CUDA, it gets the CPU if there is none, and generators of grey
    images are written as RGB. No file of the checkout is changed. As ever, the host runs the code in pickles.

    \b
    Examples:
      stylegan2-compress run-host generate.py --network student.pkl --seeds 0-7 --outdir fakes
      stylegan2-compress run-host projector.py --network student.pkl --target face.png --outdir projected
      stylegan2-compress run-host --device cpu train.py --help
    """
    load('host.scripts:run', host_dir)(script, arguments, host_dir, device)
