"""ONNX Runtime."""

import onnxruntime


def load(path, threads=0):
    """A network as a function, from inputs by name to the output."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda inputs: session.run(None, inputs)[0]
