"""`convert`: networks from one file format to another, all of them or the one that makes the images."""

import sys
from typing import Any

from stylegan2_compress import pickles
from stylegan2_compress.host.networks import require_generator
from stylegan2_compress.runs.directory import network_file
from stylegan2_compress.training_loops import snapshots


def convert(source: str, dest: str, trust: bool = False, only: str | None = None) -> None:
    """Write the networks of a file to another one, whose name says the format.

    Args:
        source: network file, URL, or run directory, whose last snapshot counts.
        dest: file to write.
        trust: run unknown code that the source contains.
        only: 'G_ema' leaves out what is for training: a file for making images, which no run starts from.

    Raises:
        UserError: the source cannot be read, or has no G_ema to write alone; or the file cannot be written.
    """
    data = networks_for(dest, network_file(source), trust, only)
    pickles.save(dest, data)
    if dest.endswith('.pkl') and data['D'] is None:
        way_out = '; `convert --only G_ema` writes one that it opens' if data['G_ema'] is not None else ''
        print(f'{dest} has no discriminator, without which the host opens no pickle; we do{way_out}.', file=sys.stderr)


def networks_for(dest: str, source: str, trust: bool = False, only: str | None = None) -> dict[str, Any]:
    """The networks of a file, as they are written to another one.

    Args:
        dest, trust, only: see `convert`.
        source: network file or URL.

    Raises:
        UserError: the source cannot be read, or has no G_ema to write alone.
    """
    data = pickles.load(source, trust=trust, as_stored=True)
    if only is None:
        return data
    require_generator(source, data)
    return images_only(data, is_pickle=dest.endswith('.pkl'))


def images_only(data: dict[str, Any], is_pickle: bool) -> dict[str, Any]:
    """The contents of a network file with G_ema alone.

    The host opens only pickles with three networks: there G is G_ema, which is stored once, and D a placeholder.
    """
    if is_pickle:
        return snapshots.generator_alone(data)
    return {'G_ema': data['G_ema'], 'training_set_kwargs': data['training_set_kwargs'], 'augment_pipe': None}
