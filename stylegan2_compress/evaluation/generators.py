"""Generators to make images with, by whatever names them: network files, run directories, URLs, names, exports."""

import os
from typing import Any

from training.networks import Generator

from stylegan2_compress import files, pickles
from stylegan2_compress.errors import UserError
from stylegan2_compress.export import exported
from stylegan2_compress.export.record import RECORD
from stylegan2_compress.host.networks import require_generator
from stylegan2_compress.runs.directory import network_file


def resolve(place: str) -> str:
    """The export or network file that is meant: of a run's directory, its last snapshot."""
    return place if exported.is_export(place) else network_file(place)


def open_generator(file: str, trust: bool = False) -> Any:
    """G_ema of a network file, or an export, which has its interface, for forward passes; on the CPU.

    Args:
        file: as `resolve` returns it.
        trust: run unknown code that the file contains, or may contain.

    Raises:
        UserError: the file cannot be read, or has no generator.
    """
    if exported.is_export(file):
        return exported.Exported(file, trust=trust)
    contents = pickles.load(file, trust=trust)
    require_generator(file, contents)
    return contents['G_ema'].eval().requires_grad_(False)


def sha256(file: str) -> str:
    """Of the contents of a network file, or of the record of an export, which has those of its files; hexadecimal."""
    return files.sha256(os.path.join(file, RECORD) if exported.is_export(file) else pickles.local_file(file))


def require_same_latents(file: str, G: Generator, first_file: str, first: Generator, way_out: str) -> None:
    """Check that a generator takes z and labels of the same sizes as the first.

    Raises:
        UserError: it takes others; `way_out` ends the sentence.
    """
    if (G.z_dim, G.c_dim) != (first.z_dim, first.c_dim):
        raise UserError(
            f'{file} takes z of {G.z_dim} and labels of {G.c_dim} numbers, but {first_file} takes {first.z_dim} and '
            f'{first.c_dim}: {way_out}.'
        )
