# pyright: reportMissingImports=false
"""LiteRT, with XNNPACK."""

from ai_edge_litert.interpreter import Interpreter


def load(path, threads=0):
    """A network as a function, from inputs by name to the output."""
    run = Interpreter(path, num_threads=threads or None).get_signature_runner()
    return lambda inputs: next(iter(run(**inputs).values()))
