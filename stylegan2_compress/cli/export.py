"""`export`: a generator for other runtimes."""

import click

from stylegan2_compress.arguments import command_options
from stylegan2_compress.cli.shared import force_option, host_option, load, trust_option
from stylegan2_compress.export.options import ExportOptions


@click.command()
@click.argument('file', metavar='PKL|RUN_DIR|URL')
@command_options(ExportOptions)
@force_option
@trust_option
@host_option
def export(file, force, trust, host_dir, **options):
    """Write a generator (G_ema) as files that run without the host: in ONNX Runtime, OpenVINO, torch, ExecuTorch,
    LiteRT, Core ML, or browsers. Of a run directory, the last snapshot is exported.

    What is written is run in its runtime and compared with the network: a file that differs is not kept. The directory
    has the mapping and the synthesis network, export.json about them, and run.py, which makes an image.

    \b
    Examples:
      # For ONNX Runtime: student-onnx/
      stylegan2-compress export student.pkl --format onnx
    \b
      # A page that opens from disk, with teacher and student side by side
      stylegan2-compress export student.pkl --format web --single-file --teacher ffhq256.pkl --out faces.html
    """
    chosen = ExportOptions(**options)
    click.echo(load('export.export:export', host_dir)(file, chosen, force, trust))
