"""`export`: from a network file to a directory of files that run without the host, compared with it."""

import dataclasses
import json
import os
import platform
from pathlib import Path
from typing import Any

import psutil
import torch

from stylegan2_compress import files, pickles
from stylegan2_compress.errors import UserError
from stylegan2_compress.export import checking, exported, graph
from stylegan2_compress.export.base import Exporter, exporter
from stylegan2_compress.export.options import ExportOptions
from stylegan2_compress.export.record import RECORD
from stylegan2_compress.export.signatures import signatures_of
from stylegan2_compress.host import profiling
from stylegan2_compress.host.networks import require_finite, require_generator
from stylegan2_compress.pruning.graph import widths
from stylegan2_compress.runs.directory import network_file
from stylegan2_compress.tickets import baking
from stylegan2_compress.version import __version__

LICENCE = (
    'stylegan2-ada-pytorch, with which the network was made, is under the NVIDIA Source Code License for StyleGAN2 '
    'with Adaptive Discriminator Augmentation (ADA): it and derivative works may be used for research or evaluation '
    'only. These files contain none of its code. Networks that others trained may have terms of their own.'
)
# A network that `G(z)` runs with takes this many times its largest feature map, and weights in two copies.
FEATURE_MAPS = 5


def export(file: str, options: ExportOptions, force: bool = False, trust: bool = False) -> str:
    """Write the export of a generator (G_ema).

    In the place of an export that exists, the files on its record are replaced, and others stay.

    Args:
        file: its network file, URL, or run directory, whose last snapshot counts.
        options: the format, and what is written where.
        force: replace an export that exists.
        trust: run unknown code that the file contains.

    Returns:
        What was written, how far it is from the network, and times beside the host's.

    Raises:
        UserError: the network cannot be exported, or what was written is not the network. Then nothing is there that
            was not there before.
    """
    chosen = exporter(options.format)
    file = network_file(file)
    out = options.out_for(file)
    if options.single_file:
        files.check_output(os.fspath(out), force, ('.html',), inputs=[file, options.teacher])
    else:
        files.check_output_directory(out, force, RECORD, inputs=[file, options.teacher])
    earlier = exported.files_on_record(out)
    generators = {'': file} if options.teacher is None else {'': file, 'teacher': options.teacher}
    opened = {name: open_generator(path, trust) for name, path in generators.items()}
    batch = chosen.batch if options.batch is None else None if options.batch == 'dynamic' else int(options.batch)
    for name, G in opened.items():
        require_memory(G, batch or 1, generators[name])
    chosen.check({generators[name]: G for name, G in opened.items()})

    with chosen.destination(out, options, earlier) as directory:
        about = {
            'format': options.format,
            'weights': options.weights,
            'noise': options.noise,
            'batch': batch or 'dynamic',
            **write_generator(directory, opened[''], file, chosen, options, batch),
        }
        if options.teacher is not None:
            prefix = 'teacher-'
            about['teacher'] = write_generator(
                directory, opened['teacher'], options.teacher, chosen, options, batch, prefix
            )
        about['licence'] = LICENCE
        about['made_by'] = {'stylegan2-compress': __version__, 'torch': torch.__version__, 'runtime': chosen.runtime()}
        chosen.finish(directory, about, options)
        about['files'] = {
            path.relative_to(directory).as_posix(): {'bytes': path.stat().st_size, 'sha256': files.sha256(path)}
            for path in sorted(directory.rglob('*'))
            if path.is_file()
        }
        (directory / RECORD).write_text(json.dumps(about, indent=2) + '\n', encoding='utf-8')
    return text(out, about)


def open_generator(file: str, trust: bool) -> Any:
    """G_ema of a network file, without masks, ready to run on the CPU.

    Raises:
        UserError: the file has none, none that can be exported, or one with weights that are not finite.
    """
    data = pickles.load(file, trust=trust)
    require_generator(file, data)
    G = baking.plain(data['G_ema']).eval().requires_grad_(False)
    require_finite(file, G)
    graph.check(G, file)
    return G


def require_memory(G: Any, batch: int, file: str) -> None:
    """Refuse a batch that memory does not hold.

    Raises:
        UserError: it does not.
    """
    values = max(width * int(name[1 : name.index('.')]) ** 2 for name, width in widths(G).items())
    needed = 4 * (FEATURE_MAPS * batch * values + 2 * profiling.parameters(G))
    available = psutil.virtual_memory().available
    if needed > available:
        raise UserError(
            f'--batch={batch} of {file} takes about {needed / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free: give '
            'a smaller batch.'
        )


def write_generator(
    directory: Path,
    G: Any,
    file: str,
    chosen: Exporter,
    options: ExportOptions,
    batch: int | None,
    prefix: str = '',
) -> dict[str, Any]:
    """Write the two networks of a generator, and run them.

    Args:
        directory: where.
        G: the generator, as `open_generator` returns it.
        file: its network file.
        chosen: the format.
        options: of the command.
        batch: images at a time, None for any.
        prefix: of the names of the files.

    Returns:
        The entries of the record that are about this generator; `check` is None where the runtime cannot be here.

    Raises:
        UserError: the files do not compute what the generator does.
    """
    mapping, synthesis = graph.from_generator(G, options.noise, chosen.form, file)
    if options.weights == 'fp16':
        mapping.round_weights()
        synthesis.round_weights()
    signatures = signatures_of(G, mapping, batch)
    names = {name: f'{prefix}{name}{chosen.suffix}' for name in signatures}
    paths, modules = {name: directory / names[name] for name in names}, dict(mapping=mapping, synthesis=synthesis)
    chosen.write_all(paths, modules, signatures)
    check = None
    if chosen.runs_here:
        exact = options.weights == 'fp32'
        with chosen.open(paths, torch.get_num_threads()) as runtime:
            check = checking.check(runtime, G, (mapping, synthesis), options.noise, exact, batch or 1)
    if check is not None and not check.largest_difference <= checking.LIMIT:
        raise UserError(
            f'{file} as --format={options.format} is not the network: in {chosen.runtime()}, numbers differ by up to '
            f'{check.largest_difference:.2g}, more than {checking.LIMIT:g}, and nothing was written.'
        )
    return {
        'generator': {
            'file': files.public_name(file),
            'sha256': files.sha256(pickles.local_file(file)),
            **{name: getattr(G, name) for name in ('z_dim', 'c_dim', 'w_dim', 'num_ws')},
            **{name: getattr(G, name) for name in ('img_resolution', 'img_channels')},
            'parameters': profiling.parameters(G),
            'macs': profiling.macs(G),
        },
        'networks': {
            name: {
                'file': names[name],
                'inputs': {key: named(shape) for key, shape in signature.inputs.items()},
                'outputs': {signature.output: named(signature.output_shape)},
            }
            for name, signature in signatures.items()
        },
        'check': check and {'runtime': chosen.runtime(), 'machine': platform.machine(), **dataclasses.asdict(check)},
    }


def named(shape: list[int | None]) -> list[int | str]:
    """A shape with a name for the dynamic batch, as the record has it."""
    return ['batch' if size is None else size for size in shape]


def text(out: str, about: dict[str, Any]) -> str:
    """What the command prints."""
    files_of_it = {name: entry['bytes'] for name, entry in about['files'].items()}
    sizes = {os.path.basename(out): os.path.getsize(out)} if os.path.isfile(out) else files_of_it
    listed = ', '.join(f'{name} ({size / 1e6:.3g} MB)' for name, size in sizes.items())
    lines = [f'{out}: {listed}', *summary(about)]
    if 'teacher' in about:
        lines += [f'teacher: {line}' for line in summary({**about, **about['teacher']})]
    return '\n'.join(lines)


def summary(about: dict[str, Any]) -> list[str]:
    """What the check of a generator found."""
    check = about['check']
    if check is None:
        return [f'converted, not run: this machine cannot have {about["made_by"]["runtime"]}']
    seconds, host_seconds, threads = check['seconds_per_image'], check['host_seconds_per_image'], check['threads']
    differences = f'{check["runtime"]}: largest difference from the network {check["largest_difference"]:.1e}'
    if about['weights'] == 'fp16':
        differences += f', because of FP16 weights from the host {check["largest_difference_to_host"]:.1e}'
    return [
        f'{differences} ({check["images"]} images)',
        f'{seconds * 1e3:.2f} ms per image, the host {host_seconds * 1e3:.2f} ms: '
        f'{host_seconds / seconds:.1f} times as fast (batch {check["batch"]}, {threads} thread{"s" * (threads != 1)})',
    ]
