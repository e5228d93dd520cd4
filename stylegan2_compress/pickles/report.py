"""What is inside a network file, found without executing any of it and without reading the weights."""

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from stylegan2_compress import files
from stylegan2_compress.host import profiling
from stylegan2_compress.pickles import host_pickle, safetensors_file, sources, tensorflow
from stylegan2_compress.pickles.contents import Allowance, Foreign, Network, Reader, Refused, plain
from stylegan2_compress.pickles.machine import Malformed
from stylegan2_compress.pickles.rebuild import Rebuilder, construct, submodules, tensors

_DIMENSIONS = ('img_resolution', 'img_channels', 'z_dim', 'c_dim', 'w_dim')


@dataclass
class ModuleReport:
    """One module of a network."""

    path: str  # Dotted; '' is the network itself.
    class_name: str
    shape: list[int] | None  # Of its weight, if it has one; of the constant for the module that holds that.
    parameters: int  # Number of values, those of its submodules included.


@dataclass
class NetworkReport:
    """One network of a file."""

    class_name: str
    dimensions: dict[str, int]  # img_resolution, img_channels, z_dim, c_dim, w_dim: those that it has.
    channels: dict[int, list[int]]  # Widths of the feature maps by resolution, inner layers first.
    parameters: int
    macs: int | None  # Per image, see `profiling.macs`; None for what is no generator or cannot be rebuilt.
    modules: list[ModuleReport]


@dataclass
class Report:
    """What is inside a network file."""

    file: str
    format: str  # 'pickle', 'TensorFlow pickle' or 'safetensors'.
    bytes: int
    sha256: str
    networks: dict[str, NetworkReport] = field(default_factory=dict)
    training_set_kwargs: dict[str, Any] | None = None
    suspicious: list[str] = field(default_factory=list)  # Whatever one should know before loading the file.

    def text(self) -> str:
        """All of it to be read by people."""
        lines = [f'{self.file}: {self.format}, {self.bytes:,} bytes', f'SHA-256 {self.sha256}']
        for key, network in self.networks.items():
            lines += ['', f'{key}: {network.class_name}, {network.parameters:,} parameters']
            if network.macs is not None:
                lines[-1] += f', {network.macs:,} MACs per image'
            if network.dimensions:
                lines.append('  ' + ', '.join(f'{name} {value}' for name, value in network.dimensions.items()))
            if network.channels:
                widths = (f'{res}: {"+".join(map(str, widths))}' for res, widths in network.channels.items())
                lines.append('  channels by resolution ' + ', '.join(widths))
            for module in network.modules:
                depth = module.path.count('.') + bool(module.path)
                name = '  ' * depth + (module.path.rpartition('.')[2] or key)
                shape = '×'.join(map(str, module.shape or []))
                lines.append(f'  {name:<20} {module.class_name:<24} {module.parameters:>12,}  {shape}'.rstrip())
        lines += ['', f'training_set_kwargs: {self.training_set_kwargs}', '']
        lines += [f'Suspicious: {item}.' for item in self.suspicious] or ['Nothing suspicious.']
        return '\n'.join(map(_printable, lines))


def _printable(line: str) -> str:
    """Names come from the file: none of them may move the cursor or end the line."""
    return ''.join(character if character.isprintable() else ascii(character)[1:-1] for character in line)


def of_safetensors(path: str) -> Report:
    """Look into a safetensors file.

    Raises:
        Malformed, Refused
    """
    data = safetensors_file.read(path, with_data=False)
    return _of_modules(_report(path, 'safetensors'), data)


def of_pickle(path: str) -> Report:
    """Look into a pickle, also into one that `load` refuses.

    Raises:
        Malformed: It is no network pickle, and names nothing that is worth a report.
    """
    foreign: dict[str, Foreign] = {}
    with files.opened(path) as (file, size):
        try:
            root = Reader(file, size, lambda name: foreign.setdefault(name, Foreign(name))).read()
            if host_pickle.is_tensorflow(root):
                converted = tensorflow.convert(*root, with_data=False)
                return _of_modules(_report(path, 'TensorFlow pickle'), converted)
            host_pickle.check_root(root, Network)
            end = file.tell()
            report = _of_records(_report(path, 'pickle'), root)
            if end < size:
                report.suspicious.append(f'{size - end:,} bytes come behind the networks')
        except Malformed as error:
            if not foreign:
                raise
            report = _report(path, 'pickle')
            report.suspicious.append(f'it cannot be loaded: {error}')
    report.suspicious[:0] = [f'it refers to {name!r}, which no network needs' for name in foreign]
    return report


def _report(path: str, kind: str) -> Report:
    return Report(path, kind, os.path.getsize(path), files.sha256(path))


def _of_modules(report: Report, data: Mapping[str, Any]) -> Report:
    report.training_set_kwargs = data.get('training_set_kwargs')
    for key, module in data.items():
        if isinstance(module, torch.nn.Module):
            classes = {path: type(m).__name__ for path, m in module.named_modules()}
            sizes = {name: tuple(tensor.shape) for name, tensor in module.named_parameters()}
            report.networks[key] = _describe(classes, sizes, vars(module))
            report.networks[key].macs = _macs(module)
    return report


def _of_records(report: Report, root: dict[str, Any]) -> Report:
    allowance = Allowance()
    rebuilder = Rebuilder(allowance)
    texts: set[str] = set()
    for key, record in root.items():
        if not isinstance(record, Network):
            continue
        records = submodules(record)
        classes = {path: submodule.class_name for path, submodule in records.items()}
        sizes = {name: tensor.size for name, tensor in tensors(records, '_parameters').items()}
        report.networks[key] = _describe(classes, sizes, record.state)
        texts |= {submodule.module_src for submodule in records.values()}
        try:
            rebuilder.skeleton(record)
            report.networks[key].macs = _macs(construct(record, len(records)))
        except (Malformed, Refused) as error:
            report.suspicious.append(f'{key} cannot be loaded: {error}')
    report.training_set_kwargs = plain(root.get('training_set_kwargs'), allowance)
    report.suspicious += [f'{name} is otherwise than its arguments make it' for name in sorted(rebuilder.changed)]
    report.suspicious += [f'its source code of {name} is not the local one' for name in sorted(rebuilder.differing)]
    unusual = {name for text in texts for name in sources.unusual_names(text)}
    report.suspicious += [f'its source code mentions {name!r}' for name in sorted(unusual)]
    return report


def _describe(classes: Mapping[str, str], sizes: Mapping[str, tuple[int, ...]], attributes: Mapping) -> NetworkReport:
    """A network from the class of every module, the shape of every parameter, and its own attributes."""
    counts = dict.fromkeys(classes, 0)
    shapes: dict[str, list[int]] = {}
    for name, size in sizes.items():
        path, _, member = name.rpartition('.')
        if member in ('weight', 'const'):
            shapes[path] = list(size)
        for ancestor in _ancestors(path):
            counts[ancestor] += math.prod(size)
    dimensions = {name: attributes[name] for name in _DIMENSIONS if isinstance(attributes.get(name), int)}
    modules = [ModuleReport(path, name, shapes.get(path), counts[path]) for path, name in classes.items()]
    return NetworkReport(classes[''], dimensions, _channels(sizes), counts[''], None, modules)


def _ancestors(path: str) -> Iterator[str]:
    """The path itself and everything above it."""
    while path:
        yield path
        path = path.rpartition('.')[0]
    yield ''


def _channels(sizes: Mapping[str, tuple[int, ...]]) -> dict[int, list[int]]:
    """Widths by resolution: in generators of both feature maps of a block, in discriminators of its first."""
    channels: dict[int, list[int]] = {}
    for name, size in sizes.items():
        match = re.fullmatch(r'(?:synthesis\.b(\d+)\.(?:const|conv[01]\.weight)|b(\d+)\.conv0?\.weight)', name)
        if match and size:
            channels.setdefault(int(match[1] or match[2]), []).append(size[0])
    return dict(sorted(channels.items()))


def _macs(module: torch.nn.Module) -> int | None:
    return profiling.macs(module) if isinstance(getattr(module, 'synthesis', None), torch.nn.Module) else None
