"""How long an export takes for a batch, without keeping it."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stylegan2_compress.export import checking, graph
from stylegan2_compress.export.base import Exporter, Function
from stylegan2_compress.export.signatures import signatures_of


def functions_of(
    chosen: Exporter, G: Any, file: str, batch: int | None, noise: str = 'const', threads: int = 0
) -> dict[str, Function]:
    """`mapping` and `synthesis` of a generator in a runtime, whose files are gone again.

    Args:
        chosen: the format.
        G: the generator.
        file: its file, for errors.
        batch: images at a time, None for any.
        noise: 'const' or 'none'.
        threads: of the runtime; torch's by default.
    """
    mapping, synthesis = graph.from_generator(G, noise, chosen.form, file)
    modules: dict[str, torch.nn.Module] = {'mapping': mapping, 'synthesis': synthesis}
    functions = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, signature in signatures_of(G, mapping, batch).items():
            path = Path(directory, name + chosen.suffix)
            chosen.write(path, modules[name], signature)
            functions[name] = chosen.load(str(path), threads or torch.get_num_threads())
    return functions


def seconds_of(chosen: Exporter, G: Any, file: str, batch: int, seconds: float = 1) -> float:
    """The median time of a batch, from z to images, of at least three runs and for `seconds`."""
    fixed = batch if chosen.batch is not None else None
    functions = functions_of(chosen, G, file, fixed)
    mapping, _synthesis = graph.from_generator(G, 'none', file=file)
    inputs = checking.inputs_of(G, batch, 1.0, G.num_ws)
    inputs = {name: inputs[name] for name in mapping.inputs}
    times: list[float] = []
    while len(times) < 4 or sum(times) < seconds:  # The first one warms up.
        start = time.perf_counter()
        functions['synthesis']({'ws': functions['mapping'](inputs)})
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))
