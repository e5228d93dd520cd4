"""OpenVINO: two models, of an XML and a binary file each."""

import tempfile
from pathlib import Path

import openvino  # pyright: ignore[reportMissingImports]  # Of an extra, which the tests do not install.
import torch

from stylegan2_compress.export.base import Exporter, Function, Signature
from stylegan2_compress.export.graph import Form
from stylegan2_compress.export.onnx_graphs import OnnxExporter


class OpenVINOExporter(Exporter):
    """`mapping.xml` and `synthesis.xml`, each with a `.bin`, by way of ONNX."""

    form = Form(styles_as_maps=True)  # 3 to 9 % faster: its products of small matrices are slow.
    batch = 1  # A dynamic one takes 1.6 times as long.
    suffix = '.xml'
    imports = 'import openvino'

    def write(self, path: Path, module: torch.nn.Module, signature: Signature) -> None:
        with tempfile.TemporaryDirectory() as directory:
            graph = Path(directory, 'graph.onnx')
            OnnxExporter().write(graph, module, signature)
            model = openvino.convert_model(graph)
            openvino.save_model(model, path, compress_to_fp16=False)  # What is FP16 already stays so.

    @staticmethod
    def load(path: str, threads: int = 0) -> Function:
        options = {'INFERENCE_PRECISION_HINT': 'f32', 'PERFORMANCE_HINT': 'LATENCY'}
        if threads:
            options['INFERENCE_NUM_THREADS'] = str(threads)
        request = openvino.Core().compile_model(path, 'CPU', options).create_infer_request()
        return lambda inputs: request.infer(inputs)[0].copy()

    def runtime(self) -> str:
        return f'OpenVINO {openvino.__version__.partition("-")[0]}'
