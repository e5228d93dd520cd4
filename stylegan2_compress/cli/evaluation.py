"""`evaluate` and `compare`: numbers."""

import click

from stylegan2_compress.arguments import command_options
from stylegan2_compress.cli.shared import host_option, load, trust_option
from stylegan2_compress.evaluation.options import EvaluateOptions


@click.command()
@click.argument('files', nargs=-1, required=True, metavar='PKL|RUN_DIR|URL|EXPORT…')
@command_options(EvaluateOptions)
@trust_option
@host_option
def evaluate(files, trust, host_dir, **options):
    """Measure generators (G_ema), side by side; differences are to the first one. Of a run directory, the last snapshot
    is measured.

    Every result is appended to metric-<name>.jsonl beside its file, in the host's format; `compare` reads them. Where
    nothing can be written there, --out names a file for all of them. Exports are measured as they run, beside the
    networks that they are of; results are written into them.

    With --gpus, several files or seeds are measured at a time; a number is the same with any of them.

    \b
    Metrics, separated by commas:
      fid50k_full, kid50k_full, pr50k3_full, ppl2_wend, is50k, …
                          the host's, through the host's code; with --samples 5000 it is called fid5k_full
      fd:EMBEDDING        Frechet distance in any embedding, as for `distill`: fd:dinov2_vits14
      kd:EMBEDDING        kernel distance (unbiased, cubic kernel, 100 subsets of 1000)
      dc:EMBEDDING        density and coverage, 5 neighbours
      agreement           mean difference of pixels to the first file's images for the same z
      agreement:EMBEDDING and of an embedding's layers, as LPIPS measures it
      fd_dinov2, kd_dinov2
                          short for DINOv2 ViT-L/14

    \b
    Examples:
      # A teacher and its student, in the host's terms
      stylegan2-compress evaluate ffhq256.pkl student.pkl --data ffhq256.zip --metrics fid50k_full,kid50k_full
    \b
      # Quick, on a CPU, three seeds, without Inception
      stylegan2-compress evaluate teacher.pkl student.pkl --data mnist.zip --samples 2000 --repeats 3 \\
          --metrics fd:efficientnet_lite0@size=64,agreement
    """
    chosen = EvaluateOptions(**options)
    click.echo(load('evaluation.evaluate:table', host_dir)(load('evaluation.evaluate:measure')(files, chosen, trust)))


@click.command()
@click.argument('places', nargs=-1, required=True, metavar='RUN_DIR|PKL|EXPORT…')
@click.option(
    '--format', 'form', type=click.Choice(['text', 'markdown', 'csv', 'json']), default='text', show_default=True
)
@trust_option
@host_option
def compare(places, form, trust, host_dir):
    """One table of earlier runs: how they were trained, how large the generator is, and every metric on record.

    Reads training_options.json, metric-*.jsonl and the network file, of our runs and the host's. Of a run directory the
    last snapshot with a metric counts; name the file for another one.

    \b
    Examples:
      stylegan2-compress compare runs/00000-* runs/00001-*
      stylegan2-compress compare teacher.pkl runs/00003-ffhq-DiMELoss --format markdown
    """
    rows = load('evaluation.compare:compare', host_dir)(places, trust)
    click.echo(load('evaluation.tables:render')(rows, form))
