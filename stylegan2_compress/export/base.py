"""The interface of formats, and what all of them share."""

import contextlib
import importlib
import importlib.util
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import torch

from stylegan2_compress import files
from stylegan2_compress.errors import UserError
from stylegan2_compress.export import graph
from stylegan2_compress.export.options import FORMATS, ExportOptions
from stylegan2_compress.export.quietness import quiet
from stylegan2_compress.export.running import Child, Networks
from stylegan2_compress.export.signatures import Signature

RUNTIMES = Path(__file__).with_name('runtimes')


class Exporter(ABC):
    """A format.

    Attributes:
        form: what its runtime is fastest with.
        batch: the default of `--batch`; None is dynamic.
        suffix: of the two files.
        runtime_name: of the runtime.
        distribution: that has the runtime, as it is installed.
        loader: the module in `runtimes` that opens the files.
        runs_here: whether this machine can have the runtime.
    """

    form: ClassVar[graph.Form] = graph.PLAIN
    batch: ClassVar[int | None] = None
    suffix: ClassVar[str]
    runtime_name: ClassVar[str]
    distribution: ClassVar[str]
    loader: ClassVar[str]
    runs_here: ClassVar[bool] = True

    @abstractmethod
    def write(self, path: Path, module: torch.nn.Module, signature: Signature) -> None:
        """Write one of the two networks.

        Args:
            path: file to write.
            module: a `graph.Mapping` or a `graph.Synthesis`.
            signature: of its inputs and its output.
        """

    def runtime(self) -> str:
        """Name and version of the runtime."""
        return f'{self.runtime_name} {metadata.version(self.distribution)}'

    def check(self, generators: Mapping[str, Any]) -> None:  # noqa: B027  (most formats have nothing to refuse)
        """Refuse what can be refused before anything is written.

        Args:
            generators: those to export, by file.

        Raises:
            UserError: they cannot be exported, or not together.
        """

    def write_all(
        self, paths: Mapping[str, Path], modules: Mapping[str, torch.nn.Module], signatures: Mapping[str, Signature]
    ) -> None:
        """Write the networks of a generator, all by name."""
        for name, path in paths.items():
            self.write(path, modules[name], signatures[name])

    def open(self, paths: Mapping[str, Path], threads: int = 0) -> Networks:
        """The networks of a generator in the runtime.

        Args:
            paths: their files by name.
            threads: of the runtime; 0 for its own choice.

        Raises:
            UserError: a file cannot be opened.
        """
        return Child(self.runtime(), RUNTIMES / f'{self.loader}.py', paths, threads)

    @contextlib.contextmanager
    def destination(self, out: str, options: ExportOptions, earlier: Collection[str]) -> Iterator[Path]:
        """A directory to write to, of which `out` is made when the block ends without an exception.

        Args:
            out: directory to write.
            options: of the command.
            earlier: the files there of the export that is replaced, as paths relative to it.
        """
        with files.collected(out, earlier) as directory:
            yield directory

    def finish(self, directory: Path, about: dict[str, Any], options: ExportOptions) -> None:
        """Write what lies beside the networks.

        Args:
            directory: where.
            about: the record.
            options: of the command.
        """
        (directory / 'run.py').write_text(self.run_script(), encoding='utf-8')

    def run_script(self) -> str:
        """The text of `run.py`, which makes an image with the runtime and NumPy."""
        template = Path(__file__).with_name('run.txt').read_text(encoding='utf-8')
        _docstring, _quotes, load = (RUNTIMES / f'{self.loader}.py').read_text(encoding='utf-8').partition('."""\n\n')
        texts = {'runtime': self.runtime_name, 'load': load}
        return re.sub(r'\{(runtime|load)\}', lambda match: texts[match[1]], template)


def exporter(name: str, needed_by: str | None = None) -> Exporter:
    """The exporter of a format.

    Args:
        name: the format.
        needed_by: what the packages of the format are for, for the error; the option `--format` by default.

    Raises:
        UserError: a package that it needs is not installed.
    """
    entry = FORMATS[name]
    missing = [package for package in entry.packages if importlib.util.find_spec(package) is None]
    if missing:
        names = ' '.join(entry.packages).replace('_', '-')
        raise UserError(f'{needed_by or f"--format={name}"} needs the package {missing[0]}: pip install {names}.')
    module, _colon, cls = entry.exporter.partition(':')
    with quiet():
        return getattr(importlib.import_module(f'stylegan2_compress.export.{module}'), cls)()
