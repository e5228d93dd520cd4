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
) -> tuple[tuple[str, ...], dict[str, Function]]:
    """The inputs of `mapping`, and `mapping` and `synthesis` of a generator in a runtime, whose files are gone again.

    Args:
        chosen: the format.
        G: the generator.
        file: its file, for errors.
        batch: images at a time, None for any.
        noise: 'const' or 'none'.
        threads: of the runtime; torch's by default.
    """
    mapping, synthesis = graph.from_generator(G, noise, chosen.form, file)
    modules, signatures = dict(mapping=mapping, synthesis=synthesis), signatures_of(G, mapping, batch)
    with tempfile.TemporaryDirectory() as directory:
        paths = {name: Path(directory, name + chosen.suffix) for name in signatures}
        return mapping.inputs, chosen.write_and_load(paths, modules, signatures, threads or torch.get_num_threads())


def seconds_of(chosen: Exporter, G: Any, file: str, batch: int, seconds: float = 1) -> float:
    """The median time of a batch, from z to images, of at least three runs and for `seconds`."""
    fixed = batch if chosen.batch is not None else None
    names, functions = functions_of(chosen, G, file, fixed)
    all_inputs = checking.inputs_of(G, batch, 1.0, G.num_ws)
    inputs = {name: all_inputs[name] for name in names}
    times: list[float] = []
    while len(times) < 4 or sum(times) < seconds:  # The first one warms up.
        start = time.perf_counter()
        functions['synthesis']({'ws': functions['mapping'](inputs)})
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))
