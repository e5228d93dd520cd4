# pyright: reportMissingImports=false, reportArgumentType=false
"""OpenVINO."""

import sys

sys.modules['openvino_telemetry'] = None  # Without this, an import tells Intel of itself.
import openvino


def load(path, threads=0):
    """A network as a function, from inputs by name to the output."""
    options = {'INFERENCE_PRECISION_HINT': 'f32', 'PERFORMANCE_HINT': 'LATENCY'}
    if threads:
        options['INFERENCE_NUM_THREADS'] = str(threads)
    request = openvino.Core().compile_model(path, 'CPU', options).create_infer_request()
    return lambda inputs: request.infer(inputs)[0].copy()
