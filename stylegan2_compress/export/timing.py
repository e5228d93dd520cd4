"""How long an export takes for a batch, without keeping it."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stylegan2_compress.export import checking, graph
from stylegan2_compress.export.base import Exporter
from stylegan2_compress.export.running import Networks
from stylegan2_compress.export.signatures import signatures_of


@contextlib.contextmanager
def opened(
    chosen: Exporter, G: Any, file: str, batch: int | None, noise: str = 'const', threads: int = 0
) -> Iterator[tuple[tuple[str, ...], Networks]]:
    """The inputs of `mapping`, and `mapping` and `synthesis` of a generator in a runtime.

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
        chosen.write_all(paths, modules, signatures)
        with chosen.open(paths, threads or torch.get_num_threads()) as networks:
            yield mapping.inputs, networks


def seconds_of(chosen: Exporter, G: Any, file: str, batch: int, seconds: float = 1) -> float:
    """The median time of a batch, from z to images, of at least three runs and for `seconds`."""
    fixed = batch if chosen.batch is not None else None
    with opened(chosen, G, file, fixed) as (names, networks):
        all_inputs = checking.inputs_of(G, batch, 1.0, G.num_ws)
        inputs = {name: all_inputs[name] for name in names}
        times: list[float] = []
        while len(times) < 4 or sum(times) < seconds:  # The first one warms up.
            times.append(networks.seconds(inputs))
    return float(np.median(times[1:]))
