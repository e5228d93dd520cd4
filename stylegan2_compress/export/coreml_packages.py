"""Core ML: two packages for Apple's systems."""

import platform
from pathlib import Path

import coremltools  # pyright: ignore[reportMissingImports]
import torch

from stylegan2_compress.export.base import Exporter
from stylegan2_compress.export.quietness import quiet
from stylegan2_compress.export.signatures import Signature


class CoreMLExporter(Exporter):
    """`mapping.mlpackage` and `synthesis.mlpackage`, which are directories."""

    batch = 1
    suffix = '.mlpackage'
    runtime_name, distribution, loader = 'Core ML', 'coremltools', 'coreml_runtime'
    runs_here = platform.system() == 'Darwin'

    def runtime(self) -> str:
        return f'Core ML of coremltools {coremltools.__version__}'

    def write(self, path: Path, module: torch.nn.Module, signature: Signature) -> None:
        with quiet():
            program = torch.export.export(module, (), kwargs=signature.examples()).run_decompositions({})
            model = coremltools.convert(
                program,
                outputs=[coremltools.TensorType(signature.output)],
                minimum_deployment_target=coremltools.target.iOS16,
                compute_precision=coremltools.precision.FLOAT32,
            )
            model.save(str(path))
