# pyright: reportMissingImports=false
"""Core ML, which only systems of Apple have."""

import coremltools


def load(path, threads=0):
    """A network as a function, from inputs by name to the output. Core ML chooses the number of threads."""
    model = coremltools.models.MLModel(path, compute_units=coremltools.ComputeUnit.CPU_ONLY)
    return lambda inputs: next(iter(model.predict(inputs).values()))
