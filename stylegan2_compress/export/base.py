"""The interface of formats, and what all of them share."""

import contextlib
import importlib
import importlib.util
import inspect
import re
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from stylegan2_compress import files
from stylegan2_compress.errors import UserError
from stylegan2_compress.export import graph
from stylegan2_compress.export.options import FORMATS, ExportOptions
from stylegan2_compress.export.signatures import Signature

# A network in a runtime: from inputs by name to the output.
Function = Callable[[Mapping[str, np.ndarray]], np.ndarray]


class Exporter(ABC):
    """A format.

    Attributes:
        form: what its runtime is fastest with.
        batch: the default of `--batch`; None is dynamic.
        suffix: of the two files.
        imports: lines of Python that import what `load` uses.
    """

    form: ClassVar[graph.Form] = graph.PLAIN
    batch: ClassVar[int | None] = None
    suffix: ClassVar[str]
    imports: ClassVar[str]

    @abstractmethod
    def write(self, path: Path, module: torch.nn.Module, signature: Signature) -> None:
        """Write one of the two networks.

        Args:
            path: file to write.
            module: a `graph.Mapping` or a `graph.Synthesis`.
            signature: of its inputs and its output.
        """

    @staticmethod
    @abstractmethod
    def load(path: str, threads: int = 0) -> Function:
        """Open a file in the runtime; its source text is part of `run.py`."""

    @abstractmethod
    def runtime(self) -> str:
        """Name and version of the runtime."""

    def check(self, generators: Mapping[str, Any]) -> None:  # noqa: B027  (most formats have nothing to refuse)
        """Refuse what can be refused before anything is written.

        Args:
            generators: those to export, by file.

        Raises:
            UserError: they cannot be exported, or not together.
        """

    def write_and_load(
        self,
        paths: Mapping[str, Path],
        modules: Mapping[str, torch.nn.Module],
        signatures: Mapping[str, Signature],
        threads: int,
    ) -> dict[str, Function]:
        """Write the networks of a generator, all by name, and open the files in the runtime."""
        for name, path in paths.items():
            self.write(path, modules[name], signatures[name])
        return {name: self.load(str(path), threads) for name, path in paths.items()}

    @contextlib.contextmanager
    def destination(self, out: str, options: ExportOptions) -> Iterator[Path]:
        """A directory to write to, of which `out` is made when the block ends without an exception."""
        with files.atomic_directory(out) as directory:
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
        load = textwrap.dedent(inspect.getsource(self.load)).removeprefix('@staticmethod\n').replace(' -> Function', '')
        texts = {'runtime': self.runtime().rpartition(' ')[0], 'imports': self.imports, 'load': load}
        return re.sub(r'\{(runtime|imports|load)\}', lambda match: texts[match[1]], template)


def exporter(name: str) -> Exporter:
    """The exporter of a format.

    Raises:
        UserError: a package that it needs is not installed.
    """
    entry = FORMATS[name]
    missing = [package for package in entry.packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f'--format={name} needs the package {missing[0]}: pip install {" ".join(entry.packages)}.')
    module, _colon, cls = entry.exporter.partition(':')
    return getattr(importlib.import_module(f'stylegan2_compress.export.{module}'), cls)()
