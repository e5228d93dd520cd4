"""ONNX: two graphs, for ONNX Runtime and everything else that reads them."""

from pathlib import Path

import torch

from stylegan2_compress.export.base import Exporter
from stylegan2_compress.export.graph import Form
from stylegan2_compress.export.quietness import quiet
from stylegan2_compress.export.signatures import Signature

OPSET = 20


class OnnxExporter(Exporter):
    """`mapping.onnx` and `synthesis.onnx`."""

    form = Form(rgb_as_product=True)  # 8 % faster on a CPU.
    suffix = '.onnx'
    runtime_name, distribution, loader = 'ONNX Runtime', 'onnxruntime', 'onnx_runtime'

    def write(self, path: Path, module: torch.nn.Module, signature: Signature) -> None:
        with quiet():
            program = torch.onnx.export(
                module,
                (),
                kwargs=signature.examples(),
                dynamo=True,
                opset_version=OPSET,
                output_names=[signature.output],
                dynamic_shapes={
                    name: {axis: 'batch' for axis, size in enumerate(shape) if size is None}
                    for name, shape in signature.inputs.items()
                },
                verbose=False,
            )
        assert program is not None
        for node in program.model.graph:
            node.metadata_props.clear()  # Where on this machine the source is, a quarter of a small file.
        program.save(path, external_data=False)
