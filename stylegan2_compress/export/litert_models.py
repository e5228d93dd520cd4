"""LiteRT, which was TensorFlow Lite: two models for phones, with XNNPACK on CPUs."""

from pathlib import Path

import litert_torch  # pyright: ignore[reportMissingImports]
import torch

from stylegan2_compress.export.base import Exporter
from stylegan2_compress.export.graph import Form
from stylegan2_compress.export.quietness import quiet
from stylegan2_compress.export.signatures import Signature


class LiteRTExporter(Exporter):
    """`mapping.tflite` and `synthesis.tflite`."""

    form = Form(polyphase=True)  # A few times faster in XNNPACK.
    batch = 1
    suffix = '.tflite'
    runtime_name, distribution, loader = 'LiteRT', 'ai-edge-litert', 'litert_runtime'

    def write(self, path: Path, module: torch.nn.Module, signature: Signature) -> None:
        with quiet():
            litert_torch.convert(Named(module, signature.output), sample_kwargs=signature.examples()).export(path)


class Named(torch.nn.Module):
    """A module of which a model has the name of the output; without, it is `output_0`."""

    def __init__(self, module: torch.nn.Module, output: str):
        super().__init__()
        self.module, self.output = module, output

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {self.output: self.module(**inputs)}
