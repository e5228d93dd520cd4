"""`profile`: what generators cost, side by side."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from stylegan2_compress import pickles
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation.options import ProfileOptions
from stylegan2_compress.export import graph, timing
from stylegan2_compress.export.base import exporter
from stylegan2_compress.export.export import require_memory
from stylegan2_compress.host import devices, profiling
from stylegan2_compress.host.networks import require_generator
from stylegan2_compress.host.progress_bars import progress_bar
from stylegan2_compress.runs.directory import network_file
from stylegan2_compress.tickets import baking


def profile(files: Sequence[str], options: ProfileOptions, trust: bool = False) -> str:
    """Count, and measure, the G_ema of network files: a table, or JSON.

    Args:
        files: network files, URLs, or run directories, whose last snapshots count; the first is compared with.
        trust: run unknown code that the files contain.

    Raises:
        UserError: a file cannot be read, or memory does not hold the batch.
    """
    exporters = {name: exporter(name, f'--runtime={name}') for name in options.runtimes}
    torch_device = devices.choose('cpu' if exporters and options.device is None else options.device)
    if exporters and torch_device.type != 'cpu':
        raise UserError(
            f'--device={options.device} does not go with --runtime={options.runtimes[0]}, which is timed on the CPU, '
            "beside the host's code there: leave it out."
        )
    files = [network_file(file) for file in files]
    generators = []
    for file in files:
        data = pickles.load(file, trust=trust)
        require_generator(file, data)
        generators.append(baking.plain(data['G_ema']).eval())
        if exporters:
            graph.check(generators[-1], file)
        if options.batches and (exporters or torch_device.type == 'cpu'):  # Where too much ends the process.
            require_memory(generators[-1], options.batches[-1], file)
    profiles = []
    for file, G in progress_bar(zip(files, generators, strict=True), total=len(files), unit='file'):
        file_bytes = Path(pickles.local_file(file)).stat().st_size
        with devices.fitting_batch(options.batches[-1] if options.batches else 1, torch_device):
            profiles.append(profiling.profile(G.to(torch_device), file, file_bytes, options.layers, options.batches))
        G.cpu()
        for runtime, chosen in exporters.items():
            profiles[-1].exports[runtime] = {
                batch: timing.seconds_of(chosen, G, file, batch) for batch in options.batches
            }
    measured_on = None if options.no_measure else profiling.device_name(torch_device)
    if options.json:
        entries = [{**dataclasses.asdict(p), 'against_first': profiling.reductions(p, profiles[0])} for p in profiles]
        return json.dumps({'measured_on': measured_on, 'profiles': entries}, indent=2)
    return profiling.table(profiles) + ('' if options.no_measure else f'\nmeasured on {measured_on}')
