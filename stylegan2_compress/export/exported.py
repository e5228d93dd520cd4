"""Exports that are opened again, in the place of the generator that they are of."""

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stylegan2_compress import files
from stylegan2_compress.errors import UserError
from stylegan2_compress.export.base import exporter
from stylegan2_compress.export.options import FORMATS
from stylegan2_compress.export.record import RECORD
from stylegan2_compress.export.running import Function

SIZES = 'z_dim', 'c_dim', 'w_dim', 'num_ws', 'img_resolution', 'img_channels'  # Of the host's generators.


def is_export(path: str) -> bool:
    """Whether this is a directory that `export` wrote."""
    return os.path.isfile(os.path.join(path, RECORD))


class Exported(torch.nn.Module):
    """An export with the interface of the host's generators, as far as evaluation uses it.

    It computes on the CPU, with the noise that it was exported with, in FP32, whatever is asked for.

    Args:
        directory: of the export.
        threads: of the runtime.
        trust: open files that may run code.

    Attributes:
        noise: what it was exported with, 'const' or 'none'.

    Raises:
        UserError: the record cannot be read, a file is not the one on record, it may run code, or a package is missing.
    """

    def __init__(self, directory: str, threads: int | None = None, trust: bool = False):
        super().__init__()
        about = read_record(directory)
        if FORMATS[about['format']].runs_code and not trust:
            raise UserError(
                f'{directory} is an export to {about["format"]}, which runs code that it finds in such files. Nothing '
                'in it was run; if you trust whoever wrote it, open it with --trust.'
            )
        for name in SIZES:
            setattr(self, name, about['generator'][name])
        self.noise: str = about['noise']
        num_ws = about['generator']['num_ws']
        batch = about['batch'] if isinstance(about['batch'], int) else None
        paths = {name: Path(directory, entry['file']) for name, entry in about['networks'].items()}
        networks = exporter(about['format'], directory).open(paths, threads or torch.get_num_threads())
        run_mapping, run_synthesis = (functools.partial(networks, name) for name in ('mapping', 'synthesis'))
        self.mapping = _Mapping(run_mapping, set(about['networks']['mapping']['inputs']), batch, num_ws)
        self.synthesis = _Synthesis(run_synthesis, batch)
        self.register_buffer('device_of_results', torch.zeros([]))  # Generators are asked for the one of their buffers.

    def forward(self, z, c, truncation_psi=1, truncation_cutoff=None, **synthesis_kwargs):
        """Images [N, img_channels, img_resolution, img_resolution] of z [N, z_dim] and labels c [N, c_dim]."""
        ws = self.mapping(z, c, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)
        return self.synthesis(ws, **synthesis_kwargs)

    def __deepcopy__(self, memo):
        """Itself: files that are open in a runtime are not copied, and nothing of it changes."""
        return self


class _Mapping(torch.nn.Module):
    def __init__(self, function: Function, inputs: set[str], batch: int | None, num_ws: int):
        super().__init__()
        self.function, self.inputs, self.batch, self.num_ws = function, inputs, batch, num_ws
        self.w_avg_beta = 1 if 'psi' in inputs else None  # None says of the host's, too, that it has no average of w.

    def forward(self, z, c, truncation_psi=1, truncation_cutoff=None, **_kwargs):
        cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
        numbers = {name: np.array([value], np.float32) for name, value in [('psi', truncation_psi), ('cutoff', cutoff)]}
        rows = {name: value.cpu().float().numpy() for name, value in [('z', z), ('c', c)] if name in self.inputs}
        numbers = {name: value for name, value in numbers.items() if name in self.inputs}
        return in_batches(self.function, rows, numbers, self.batch).to(z.device)


class _Synthesis(torch.nn.Module):
    def __init__(self, function: Function, batch: int | None):
        super().__init__()
        self.function, self.batch = function, batch

    def forward(self, ws, **_kwargs):
        return in_batches(self.function, {'ws': ws.cpu().float().numpy()}, {}, self.batch).to(ws.device)


def in_batches(
    function: Function, rows: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray], batch: int | None
) -> torch.Tensor:
    """Results [N, …] of a network with a fixed batch, or with any, for N rows.

    Args:
        function: the network.
        rows: inputs with a batch, [N, …].
        others: inputs without one.
        batch: its size; the last one is filled up. None for any.
    """
    count = len(next(iter(rows.values())))
    results = []
    for start in range(0, count, batch or count):
        some = {name: value[start : start + (batch or count)] for name, value in rows.items()}
        missing = (batch or count) - len(next(iter(some.values())))
        filled = {name: np.concatenate([value, value[:1].repeat(missing, axis=0)]) for name, value in some.items()}
        results.append(function({**filled, **others})[: (batch or count) - missing])
    return torch.from_numpy(np.concatenate(results))


def read_record(directory: str) -> dict[str, Any]:
    """`export.json` of an export, after a look at its files.

    Raises:
        UserError: it cannot be read, or a file of a network is not the one on record.
    """
    path = os.path.join(directory, RECORD)
    with _parsed(path, 'export the network again') as about:
        names = [os.fspath(entry['file']) for entry in about['networks'].values()]
        digests = {name: entry['sha256'] for name, entry in about['files'].items()}
        _sizes = [about['generator'][name] for name in SIZES], about['networks']['mapping']['inputs']
        known = about['format'] in FORMATS and about['networks']['synthesis'] and about['batch'] and about['noise']
    if not known:
        raise UserError(f'{path} is of a format that is not known here: export the network again.')
    for name in names:
        if not name.strip('.') or os.path.basename(name) != name:
            raise UserError(f'{path} names {name}, which is no file of the export: export the network again.')
        require_on_record(Path(directory), name, digests)
    return about


def files_on_record(directory: str) -> set[str]:
    """The files of an export, as paths relative to its directory; none where there is no export.

    Raises:
        UserError: its record cannot be read.
    """
    if not is_export(directory):
        return set()
    with _parsed(os.path.join(directory, RECORD), 'name another directory to write') as about:
        paths = {name: os.path.join(directory, name) for name in about['files']}
    inside = {name for name, path in paths.items() if files.is_inside(path, directory) and not os.path.isdir(path)}
    return inside | {RECORD}


@contextlib.contextmanager
def _parsed(path: str, way_out: str) -> Iterator[dict[str, Any]]:
    """The contents of a record; what is missing in it, the block that looks for it finds out.

    Raises:
        UserError: it is none, with the way out.
    """
    with files.opened(path) as (file, _size):
        try:
            yield json.load(file)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f'{path} is not the record of an export: {way_out}.') from error


def require_on_record(directory: Path, name: str, digests: Mapping[str, str]) -> None:
    """Refuse a network of which a file has not the SHA-256 on record.

    Args:
        directory: of the export.
        name: the network's file or directory. Others may belong to it: files with weights, of the same stem.
        digests: SHA-256 by the path of every file on record, below `directory`.

    Raises:
        UserError: a file is missing, is another one, or is not on record.
    """
    inside = {file.relative_to(directory).as_posix() for file in (directory / name).rglob('*') if file.is_file()}
    stem = name.partition('.')[0]
    recorded = {file for file in digests if file.partition('/')[0].partition('.')[0] == stem}
    for file in sorted((inside or {name}) | recorded):
        if not (directory / file).is_file() or files.sha256(directory / file) != digests.get(file):
            raise UserError(f'{directory / file} is not what was exported: export the network again.')
