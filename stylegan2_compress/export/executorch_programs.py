"""ExecuTorch: two programs for phones and other small machines, with XNNPACK."""

from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import (  # pyright: ignore[reportMissingImports]
    XnnpackPartitioner,
)
from executorch.exir import to_edge_transform_and_lower  # pyright: ignore[reportMissingImports]

from stylegan2_compress.export.base import Exporter
from stylegan2_compress.export.graph import Form
from stylegan2_compress.export.quietness import quiet
from stylegan2_compress.export.signatures import Signature


class ExecuTorchExporter(Exporter):
    """`mapping.pte` and `synthesis.pte`. Inputs have no names there: they come in the order of the record."""

    form = Form(polyphase=True)  # A few times faster in XNNPACK.
    batch = 1
    suffix = '.pte'
    runtime_name, distribution, loader = 'ExecuTorch', 'executorch', 'executorch_runtime'

    def write(self, path: Path, module: torch.nn.Module, signature: Signature) -> None:
        with quiet():
            program = torch.export.export(module, (), kwargs=signature.examples())
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            path.write_bytes(lowered.to_executorch().buffer)
