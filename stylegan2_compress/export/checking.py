"""Exports in their runtimes beside the generator they are of: differences and times."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stylegan2_compress.export import graph
from stylegan2_compress.export.running import Networks

LIMIT = 1e-3  # Of a pixel's difference, of values in [-1, 1]; FP32 in another order is off by 1e-6 to 1e-4.
SECONDS = 1  # How long is timed, at least.


@dataclass(frozen=True)
class Check:
    """How far the files' results are from those of the generator, and what an image takes."""

    images: int  # That were compared.
    largest_difference: float  # Of a pixel, or of a number of ws, to the network with its weights as stored.
    largest_difference_to_host: float  # Likewise, to the host's. The same, where weights are FP32.
    batch: int
    threads: int
    seconds_per_image: float  # The least of several runs, z to image.
    host_seconds_per_image: float  # Likewise, by turns with the other.


def inputs_of(G: Any, count: int, psi: float, cutoff: int, label: int = 0) -> dict[str, np.ndarray]:
    """Inputs of a mapping network by name: latents of seed 0, labels in turn from the given one on."""
    labels = np.eye(G.c_dim, dtype=np.float32)[(label + np.arange(count)) % G.c_dim] if G.c_dim else None
    values = {
        'z': np.random.RandomState(0).randn(count, G.z_dim),
        'c': np.zeros([count, 0]) if labels is None else labels,
        'psi': [psi],
        'cutoff': [cutoff],
    }
    return {name: np.asarray(value, np.float32) for name, value in values.items()}


@torch.inference_mode()
def check(
    runtime: Networks,
    G: Any,
    modules: tuple[graph.Mapping, graph.Synthesis],
    noise: str,
    exact: bool,
    batch: int,
) -> Check:
    """Compare and time: images of one batch for each truncation, and the ws of every label.

    Args:
        runtime: `mapping` and `synthesis` in it.
        G: the generator, not masked, in eval mode on the CPU.
        modules: those of torch that the files were made of.
        noise: 'const' or 'none'.
        exact: whether the files have the generator's weights, so that the host computes what they should.
        batch: images at a time.
    """
    mapping, synthesis = modules

    def in_runtime(inputs: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
        ws = runtime('mapping', {name: inputs[name] for name in mapping.inputs})
        yield ws
        yield runtime('synthesis', {'ws': ws})

    def in_host(inputs: Mapping[str, np.ndarray]) -> Iterator[torch.Tensor]:
        truncation = {}
        if 'psi' in mapping.inputs:
            truncation = dict(truncation_psi=inputs['psi'].item(), truncation_cutoff=int(inputs['cutoff'].item()))
        ws = G.mapping(torch.from_numpy(inputs['z']), torch.from_numpy(inputs['c']), **truncation)
        yield ws
        yield G.synthesis(ws, noise_mode=noise, force_fp32=True)

    def in_torch(inputs: Mapping[str, np.ndarray]) -> Iterator[torch.Tensor]:
        ws = mapping(**{name: torch.from_numpy(inputs[name]) for name in mapping.inputs})
        yield ws
        yield synthesis(ws)

    difference = difference_to_host = 0.0
    truncations = [(1.0, G.num_ws), (0.5, G.num_ws // 2)] if 'psi' in mapping.inputs else [(1.0, G.num_ws)]
    for (psi, cutoff), label in itertools.product(truncations, range(0, max(G.c_dim, 1), batch)):
        inputs = inputs_of(G, batch, psi, cutoff, label)
        stages = 2 if label == 0 else 1  # Labels have an effect on ws alone.
        results = list(itertools.islice(in_runtime(inputs), stages))
        to_host = largest(results, itertools.islice(in_host(inputs), stages))
        difference_to_host = max(difference_to_host, to_host)
        in_exact = to_host if exact else largest(results, itertools.islice(in_torch(inputs), stages))
        difference = max(difference, in_exact)
    inputs = inputs_of(G, batch, 1.0, G.num_ws)
    used = {name: inputs[name] for name in mapping.inputs}
    times = least_seconds([lambda: runtime.seconds(used), lambda: seconds_of(lambda: list(in_host(inputs)))], SECONDS)
    return Check(
        images=batch * len(truncations),
        largest_difference=difference,
        largest_difference_to_host=difference_to_host,
        batch=batch,
        threads=torch.get_num_threads(),
        seconds_per_image=times[0] / batch,
        host_seconds_per_image=times[1] / batch,
    )


def largest(results: Iterable[np.ndarray], expected: Iterable[torch.Tensor]) -> float:
    """The largest difference; infinite where a value is not finite or the shapes are not the same."""
    largest_yet = 0.0
    for mine, theirs in zip(results, expected, strict=True):
        difference = np.abs(mine - theirs.numpy()).max() if mine.shape == tuple(theirs.shape) else np.inf
        largest_yet = max(largest_yet, float(difference) if np.isfinite(difference) else np.inf)
    return largest_yet


def seconds_of(function: Callable[[], object]) -> float:
    """The time that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def least_seconds(measurements: list[Callable[[], float]], seconds: float) -> list[float]:
    """The least of what each returns: called by turns, at least three times, and for `seconds`."""
    times: list[list[float]] = [[] for _ in measurements]
    end = time.perf_counter() + seconds
    while len(times[-1]) < 3 or time.perf_counter() < end:
        for measure, measured in zip(measurements, times, strict=True):
            measured.append(measure())
    return [min(measured) for measured in times]
