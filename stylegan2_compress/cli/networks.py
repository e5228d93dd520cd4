"""`teachers`, `inspect`, `convert`, `prune` and `profile`: network files in, network files and tables out."""

import dataclasses
import json

import click

from stylegan2_compress.arguments import command_options
from stylegan2_compress.cli.shared import (
    NETWORK_FILES,
    force_option,
    host_option,
    json_option,
    load,
    load_light,
    trust_option,
)
from stylegan2_compress.compression.options import ONLY, PruneOptions
from stylegan2_compress.evaluation.options import ProfileOptions
from stylegan2_compress.files import check_ending, check_output
from stylegan2_compress.runs.directory import network_file


@click.command()
def teachers():
    """List NVIDIA's published StyleGAN2 networks, which every command takes by name.

    They are downloaded when they are first used, into the host's cache (DNNLIB_CACHE_DIR).

    \b
    Examples:
      stylegan2-compress teachers
      stylegan2-compress prune --teacher ffhq256 --ratio 0.8 --out student.pkl
    """
    click.echo(load_light('host.teachers:table')())


@click.command()
@click.argument('file', metavar='FILE|RUN_DIR|URL')
@json_option
@host_option
def inspect(file, as_json, host_dir):
    """Show what is inside a network file, without running any of it. Of a run directory, the last snapshot is shown.

    Classes, resolution, widths, dimensions, parameters, multiply-accumulates, SHA-256, and anything suspicious: names
    that no network needs, source code that is not the local host's, state that does not fit the constructor arguments.

    \b
    Examples:
      stylegan2-compress inspect ffhq.pkl
      stylegan2-compress inspect --json student.safetensors
    """
    report = load('pickles:inspect', host_dir)(network_file(file))
    click.echo(json.dumps(dataclasses.asdict(report), default=repr) if as_json else report.text())


@click.command()
@click.argument('source', metavar='IN|RUN_DIR|URL')
@click.argument('dest', metavar='OUT|hf://OWNER/REPOSITORY/FILE')
@click.option(
    '--only', type=click.Choice(ONLY), help='Write the network that makes the images, without those for training.'
)
@force_option
@trust_option
@host_option
def convert(source, dest, only, force, trust, host_dir):
    """Convert networks between .pkl, .safetensors and .pt.

    Pickles of the TensorFlow era and of stylegan3's StyleGAN2 are converted to the host's networks on the way.
    Safetensors files contain weights and constructor arguments and no code; they are for our tools, the host opens
    pickles. A .pt file has state dicts as stylegan2-pytorch, content-aware GAN compression, StyleKD and DCP-GAN write
    them: g_ema, g, d and latent_avg.

    A network that is converted to hf://… is published on the Hugging Face Hub, in a repository that is made (private)
    if there is none, with a model card that says what it is, what it was made of and what was measured. For this,
    log in with `hf auth login` first.

    \b
    Examples:
      stylegan2-compress convert ffhq.pkl ffhq.safetensors
      stylegan2-compress convert student.safetensors student.pkl
      # A checkpoint of content-aware GAN compression
      stylegan2-compress convert 256px_11x.pt student.pkl
      # Publish a student
      stylegan2-compress convert runs/00000/network-snapshot-010000.pkl hf://OWNER/REPOSITORY/student.safetensors
    \b
      # For others to make images with: a fraction of the size, since discriminator and second generator stay here
      stylegan2-compress convert --only G_ema runs/00000-ffhq/network-snapshot-025000.pkl small.pkl
    """
    if dest.startswith('hf://'):
        check_ending(dest, NETWORK_FILES)
        click.echo(load('compression.publish:publish', host_dir)(source, dest, force, trust, only))
        return
    check_output(dest, force, NETWORK_FILES, inputs=[network_file(source)])
    load('compression.convert:convert', host_dir)(source, dest, trust, only)


@click.command()
@command_options(PruneOptions)
@force_option
@trust_option
@host_option
def prune(force, trust, host_dir, **options):
    """Prune a trained generator to a smaller one, ready to be distilled. Of a run directory, the last snapshot is
    pruned.

    The file written is an ordinary network pickle: the host opens it, and `--student` of train.py and distill trains
    it.

    \b
    Examples:
      # Keep 30 % of the channels of every layer, those with the largest weights
      stylegan2-compress prune --teacher ffhq.pkl --ratio 0.7 --out student.pkl
    \b
      # Explicit widths
      stylegan2-compress prune --teacher mnist.pkl --widths 4:20,8:20,16:20,32:10 --out student.pkl
    \b
      # The channels that faces depend on, where a face parser of your own sees a face
      stylegan2-compress prune --teacher ffhq.pkl --ratio 0.9 --criterion content-aware --mask parser.pt --out s.pkl
    """
    chosen = PruneOptions(**options)
    check_output(chosen.out, force, NETWORK_FILES, inputs=[chosen.teacher, chosen.mask])
    click.echo(load('compression.prune:prune', host_dir)(chosen, trust))


@click.command()
@click.argument('files', nargs=-1, required=True, metavar='PKL|RUN_DIR|URL…')
@command_options(ProfileOptions)
@trust_option
@host_option
def profile(files, trust, host_dir, **options):
    """Parameters, multiply-accumulates, time and memory of generators (G_ema), compared with the first. Of a run
    directory, the last snapshot counts.

    MACs are counted as the GAN compression papers do: convolutions at their input's resolution, toRGB, mapping network
    and style affines, without blur and bias. Times are medians over repeated runs.

    \b
    Examples:
      # Teacher and student side by side
      stylegan2-compress profile ffhq.pkl student.pkl
    \b
      # And as fast as they can be exported to run
      stylegan2-compress profile ffhq.pkl student.pkl --runtime onnx --runtime openvino
    \b
      # Counts of every layer, for another program
      stylegan2-compress profile --no-measure --layers --json ffhq.pkl
    """
    click.echo(load('evaluation.profile:profile', host_dir)(files, ProfileOptions(**options), trust))
