"""`profile`: what generators cost, side by side."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from stylegan2_compress import pickles
from stylegan2_compress.errors import UserError
from stylegan2_compress.export import graph, timing
from stylegan2_compress.export.base import exporter
from stylegan2_compress.export.export import require_memory
from stylegan2_compress.host import devices, profiling
from stylegan2_compress.host.networks import require_generator
from stylegan2_compress.runs.directory import network_file
from stylegan2_compress.tickets import baking

BATCH = 16


def profile(
    files: Sequence[str],
    batch: int | None = None,
    layers: bool = False,
    runtimes: Sequence[str] = (),
    no_measure: bool = False,
    as_json: bool = False,
    device: str | None = None,
    trust: bool = False,
) -> str:
    """Count, and measure at batch sizes 1 and `batch`, the G_ema of network files.

    Args:
        files: network files, URLs, or run directories, whose last snapshots count; the first is compared with.
        batch: images at a time; 16 by default.
        layers: show every layer.
        runtimes: formats of exports to time as well, on the CPU; compared with the first network in the host's code.
        no_measure: only count.
        as_json: JSON instead of a table.
        device: where to measure; CUDA where there is one by default.
        trust: run unknown code that the files contain.

    Raises:
        UserError: a file cannot be read, or memory does not hold the batch.
    """
    if no_measure and runtimes:
        raise UserError(f'--runtime={runtimes[0]} and --no-measure exclude each other: leave one out.')
    if no_measure and batch is not None:
        raise UserError(f'--batch={batch} and --no-measure exclude each other: leave one out.')
    batch = BATCH if batch is None else batch
    exporters = {name: exporter(name, f'--runtime={name}') for name in runtimes}
    torch_device = devices.choose(device)
    files = [network_file(file) for file in files]
    generators = []
    for file in files:
        data = pickles.load(file, trust=trust)
        require_generator(file, data)
        generators.append(baking.plain(data['G_ema']).eval())
        if exporters:
            graph.check(generators[-1], file)
        if not no_measure and (exporters or torch_device.type == 'cpu'):  # Where too much ends the process.
            require_memory(generators[-1], batch, file)
    profiles = []
    for file, G in tqdm(zip(files, generators, strict=True), total=len(files), unit='file', disable=None, leave=False):
        file_bytes = Path(pickles.local_file(file)).stat().st_size
        batches = [] if no_measure else sorted({1, batch})
        try:
            profiles.append(profiling.profile(G.to(torch_device), file, file_bytes, layers, batches))
        except RuntimeError as error:
            if 'memory' not in str(error):  # What the allocators of all devices say.
                raise
            raise UserError(
                f'--batch={batch} is more than memory holds on {torch_device}: give a smaller one.'
            ) from error
        G.cpu()
        for runtime, chosen in exporters.items():
            profiles[-1].exports[runtime] = {batch: timing.seconds_of(chosen, G, file, batch) for batch in batches}
    measured_on = None if no_measure else profiling.device_name(torch_device)
    if as_json:
        entries = [{**dataclasses.asdict(p), 'against_first': profiling.reductions(p, profiles[0])} for p in profiles]
        return json.dumps({'measured_on': measured_on, 'profiles': entries}, indent=2)
    return profiling.table(profiles) + ('' if no_measure else f'\nmeasured on {measured_on}')
