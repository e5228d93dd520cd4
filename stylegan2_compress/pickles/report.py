"""What a network file contains, determined without executing any of it and without reading the weights."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedIOBase
from typing import Any

import torch

from stylegan2_compress import files
from stylegan2_compress.host import profiling
from stylegan2_compress.host.networks import class_name
from stylegan2_compress.pickles import (
    dialects,
    host_pickle,
    safetensors_file,
    sources,
    state_dicts,
    tensorflow,
    training_sets,
)
from stylegan2_compress.pickles.contents import Allowance, Foreign, Network, Reader, Refused, Unsupported, plain
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
    macs: int | None  # Per image, see `profiling.macs`; None for other networks and those that cannot be rebuilt.
    modules: list[ModuleReport]
    written_by: str | None = None  # The repository whose code wrote it, if that is known not to be the host.


@dataclass
class Report:
    """What is inside a network file."""

    file: str
    format: str  # 'pickle', 'TensorFlow pickle', 'safetensors' or 'state dicts of stylegan2-pytorch'.
    bytes: int
    sha256: str
    networks: dict[str, NetworkReport] = field(default_factory=dict)
    training_set_kwargs: dict[str, Any] | None = None
    suspicious: list[str] = field(default_factory=list)  # What one should know before loading the file.

    def text(self) -> str:
        """The report as text for people."""
        lines = [f'{self.file}: {self.format}, {self.bytes:,} bytes', f'SHA-256 {self.sha256}']
        shown: dict[str, NetworkReport] = {}
        for key, network in self.networks.items():
            same = next((other for other, report in shown.items() if report == network), None)
            if same is not None:
                lines += ['', f'{key}: the same modules and shapes as {same}']
                continue
            shown[key] = network
            lines += ['', f'{key}: {network.class_name}, {network.parameters:,} parameters']
            if network.macs is not None:
                lines[-1] += f', {network.macs:,} MACs per image'
            if network.written_by is not None:
                lines[-1] += f', written by {network.written_by}'
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
        return '\n'.join(map(printable, lines))


def printable(line: str) -> str:
    """The line without control characters: names come from the file and must not move the cursor or end the line."""
    return ''.join(character if character.isprintable() else ascii(character)[1:-1] for character in line)


def inspect_safetensors(file: BufferedIOBase, size: int, path: str) -> Report:
    """Describe a safetensors file.

    Args:
        file: the file, open in binary mode.
        size: its length in bytes.
        path: its path, which the safetensors library opens again.

    Raises:
        Malformed, Refused: it contains no networks, or networks of other classes.
    """
    data = safetensors_file.read(path, with_data=False)
    return _with_modules(Report(path, 'safetensors', size, files.sha256_of_open(file)), data)


def inspect_state_dicts(file: BufferedIOBase, size: int, path: str) -> Report:
    """Describe a file of state dicts in the layout of stylegan2-pytorch.

    Args:
        file: the file, open in binary mode.
        size: its length in bytes.
        path: its path, for the report.

    Raises:
        Malformed, Refused: it contains no such state dicts.
    """
    digest = files.sha256_of_open(file)
    data = state_dicts.read(file, size, with_data=False)
    return _with_modules(Report(path, 'state dicts of stylegan2-pytorch', size, digest), data)


def inspect_pickle(file: BufferedIOBase, size: int, path: str) -> Report:
    """Describe a pickle, also one that `load` refuses.

    Args:
        file: the file, open in binary mode.
        size: its length in bytes.
        path: its path, for the report.

    Raises:
        Malformed: it is not a network pickle, and refers to nothing suspicious.
    """
    digest = files.sha256_of_open(file)
    foreign: dict[str, Foreign] = {}
    try:
        root = Reader(file, size, lambda name: foreign.setdefault(name, Foreign(name))).read()
        if host_pickle.is_tensorflow(root):
            converted = tensorflow.convert(*root, with_data=False)
            return _with_modules(Report(path, 'TensorFlow pickle', size, digest), converted)
        host_pickle.check_root(root, Network)
        end = file.tell()
        report = _with_records(Report(path, 'pickle', size, digest), root)
        if end < size:
            report.suspicious.append(f'{size - end:,} bytes follow the networks')
    except Malformed as error:
        if not foreign:
            raise
        report = Report(path, 'pickle', size, digest)
        report.suspicious.append(f'it cannot be loaded: {error}')
    report.suspicious[:0] = [f'it refers to {name!r}, which no network needs' for name in foreign]
    return report


def _with_modules(report: Report, data: Mapping[str, Any]) -> Report:
    """Add networks that were rebuilt without data, and what else the file contains."""
    _add_training_set(report, data.get('training_set_kwargs'))
    for key, module in data.items():
        if isinstance(module, torch.nn.Module):
            classes = {path: class_name(submodule) for path, submodule in module.named_modules()}
            sizes = {name: tuple(tensor.shape) for name, tensor in module.named_parameters()}
            report.networks[key] = _describe(classes, sizes, vars(module))
            report.networks[key].macs = _macs(module)
    return report


def _with_records(report: Report, root: dict[str, Any]) -> Report:
    """Add networks that are on record, of known and unknown classes, and what is odd about them."""
    allowance = Allowance()
    translator, rebuilder = dialects.Translator(), Rebuilder(allowance)
    texts: set[str] = set()
    for key, record in root.items():
        if not isinstance(record, Network):
            continue
        try:
            record = translator.translate(record)
            loadable = True
        except Unsupported as error:
            report.suspicious.append(f'{key} cannot be loaded: it {error}')
            loadable = False
        records = submodules(record)
        classes = {path: submodule.class_name for path, submodule in records.items()}
        sizes = {name: tensor.size for name, tensor in tensors(records, '_parameters').items()}
        report.networks[key] = _describe(classes, sizes, record.state)
        report.networks[key].written_by = record.written_by
        texts |= {submodule.module_src for submodule in records.values()}
        if not loadable:
            continue
        try:
            rebuilder.skeleton(record)
            report.networks[key].macs = _macs(construct(record, len(records)))
        except (Malformed, Refused) as error:
            report.suspicious.append(f'{key} cannot be loaded: {error}')
    _add_training_set(report, plain(root.get('training_set_kwargs'), allowance))
    report.suspicious += [
        f'{name} differs from what the constructor arguments make' for name in sorted(rebuilder.changed)
    ]
    report.suspicious += [f'its source code of {name} is not the local one' for name in sorted(rebuilder.differing)]
    unusual = {name for text in texts for name in sources.unusual_names(text)}
    report.suspicious += [f'its source code mentions {name!r}' for name in sorted(unusual)]
    return report


def _add_training_set(report: Report, kwargs: dict[str, Any] | None) -> None:
    report.training_set_kwargs = kwargs
    foreign = training_sets.foreign_class(kwargs)
    if foreign is not None:
        report.suspicious.append(f'it names {foreign!r} as the class of its data set')


def _describe(classes: Mapping[str, str], sizes: Mapping[str, tuple[int, ...]], attributes: Mapping) -> NetworkReport:
    """The report on a network, from the class of every module, the shape of every parameter, and its attributes."""
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
    """The dotted path itself and the paths of all modules that contain it, the root '' last."""
    while path:
        yield path
        path = path.rpartition('.')[0]
    yield ''


def _channels(sizes: Mapping[str, tuple[int, ...]]) -> dict[int, list[int]]:
    """Widths by resolution: of both feature maps of a generator's block, of the first one of a discriminator's."""
    channels: dict[int, list[int]] = {}
    for name, size in sizes.items():
        match = re.fullmatch(r'(?:synthesis\.b(\d+)\.(?:const|conv[01]\.weight)|b(\d+)\.conv0?\.weight)', name)
        if match and size:
            channels.setdefault(int(match[1] or match[2]), []).append(size[0])
    return dict(sorted(channels.items()))


def _macs(module: torch.nn.Module) -> int | None:
    return profiling.macs(module) if isinstance(getattr(module, 'synthesis', None), torch.nn.Module) else None
