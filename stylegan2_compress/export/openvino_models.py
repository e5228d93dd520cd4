"""OpenVINO: two models, of an XML and a binary file each."""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from stylegan2_compress.export.base import Exporter
from stylegan2_compress.export.graph import Form
from stylegan2_compress.export.onnx_graphs import OnnxExporter
from stylegan2_compress.export.signatures import Signature

# In a process of its own: see `running.Child`. Weights that are FP16 already stay so.
CONVERT = """
import sys
sys.modules['openvino_telemetry'] = None  # Without this, an import tells Intel of itself.
import openvino
openvino.save_model(openvino.convert_model(sys.argv[1]), sys.argv[2], compress_to_fp16=False)
"""


class OpenVINOExporter(Exporter):
    """`mapping.xml` and `synthesis.xml`, each with a `.bin`, by way of ONNX."""

    form = Form(styles_as_maps=True)  # 3 to 9 % faster: its products of small matrices are slow.
    batch = 1  # A dynamic one takes 1.6 times as long.
    suffix = '.xml'
    runtime_name, distribution, loader = 'OpenVINO', 'openvino', 'openvino_runtime'

    def write(self, path: Path, module: torch.nn.Module, signature: Signature) -> None:
        with tempfile.TemporaryDirectory() as directory:
            graph = Path(directory, 'graph.onnx')
            OnnxExporter().write(graph, module, signature)
            command = [sys.executable, '-c', CONVERT, str(graph), str(path.resolve())]
            subprocess.run(command, cwd=directory, check=True, capture_output=True)
