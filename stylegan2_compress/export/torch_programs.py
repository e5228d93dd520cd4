"""torch: two programs of `torch.export`, which need torch and nothing else."""

from collections.abc import Mapping
from pathlib import Path

import torch

from stylegan2_compress.export.base import Exporter
from stylegan2_compress.export.running import Here, Networks
from stylegan2_compress.export.runtimes import torch_runtime
from stylegan2_compress.export.signatures import Signature


class TorchExporter(Exporter):
    """`mapping.pt2` and `synthesis.pt2`."""

    suffix = '.pt2'
    runtime_name, distribution, loader = 'torch', 'torch', 'torch_runtime'

    def write(self, path: Path, module: torch.nn.Module, signature: Signature) -> None:
        batch = torch.export.Dim('batch', min=1, max=1 << 16)
        program = torch.export.export(
            module,
            (),
            kwargs=signature.examples(),
            dynamic_shapes={
                name: {axis: batch for axis, size in enumerate(shape) if size is None}
                for name, shape in signature.inputs.items()
            },
        )
        for node in program.graph.nodes:
            node.meta.pop('stack_trace', None)  # Where on this machine the source is.
        torch.export.save(program, path)

    def open(self, paths: Mapping[str, Path], threads: int = 0) -> Networks:
        return Here({name: torch_runtime.load(path, threads) for name, path in paths.items()})  # torch is here.
