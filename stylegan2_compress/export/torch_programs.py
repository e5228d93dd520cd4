"""torch: two programs of `torch.export`, which need torch and nothing else."""

from pathlib import Path

import torch

from stylegan2_compress.export.base import Exporter, Function, Signature


class TorchExporter(Exporter):
    """`mapping.pt2` and `synthesis.pt2`."""

    suffix = '.pt2'
    imports = 'import torch'

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

    @staticmethod
    def load(path: str, threads: int = 0) -> Function:
        torch.set_num_threads(threads or torch.get_num_threads())
        module = torch.export.load(path).module()

        def run(inputs):
            with torch.inference_mode():
                return module(**{name: torch.from_numpy(value) for name, value in inputs.items()}).numpy()

        return run

    def runtime(self) -> str:
        return f'torch {torch.__version__}'
