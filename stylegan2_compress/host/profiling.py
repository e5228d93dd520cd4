"""The costs of a generator: parameters and multiply-accumulates, counted; time and memory, measured."""

import platform
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training.networks import Generator

from stylegan2_compress.host.devices import precision
from stylegan2_compress.host.recorded import RecordedGenerator


@dataclass(frozen=True)
class LayerCost:
    """One module that has parameters of its own."""

    name: str  # As in `G.named_modules()`.
    shape: tuple[int, ...]  # Of its weight; of the constant for the module that holds that.
    parameters: int
    macs: int


def layer_costs(G: torch.nn.Module) -> list[LayerCost]:
    """Parameters and multiply-accumulates per image of every layer of a host or pruned generator.

    Counted as in Content-Aware GAN Compression (CVPR 2021) and the later pruning papers: one multiply-accumulate per
    weight and pixel, upsampling convolutions at the resolution of their *input*; toRGB, mapping network and style
    affines are included, blur, bias, noise, modulation and demodulation are not.
    """
    costs = []
    for name, module in G.named_modules():
        own = dict(module.named_parameters(recurse=False))
        weight = own.get('weight', dict(module.named_buffers(recurse=False)).get('weight'))  # A buffer where masked.
        if not own and weight is None:
            continue
        macs = 0
        if weight is not None:
            pixels = 1
            if weight.ndim == 4:
                block: Any = G.get_submodule(name.rpartition('.')[0])
                pixels = (block.resolution // getattr(module, 'up', 1)) ** 2
            macs = weight.numel() * pixels
        main = weight if weight is not None else next(iter(own.values()))
        costs.append(LayerCost(name, tuple(main.shape), sum(p.numel() for p in own.values()), macs))
    return costs


def parameters(G: torch.nn.Module) -> int:
    """Number of trainable values of a network, without buffers such as fixed noise."""
    return sum(p.numel() for p in G.parameters())


def macs(G: torch.nn.Module) -> int:
    """Multiply-accumulates per image, see `layer_costs`."""
    return sum(cost.macs for cost in layer_costs(G))


@dataclass(frozen=True)
class Measurement:
    """Time and memory of `G(z, c)` at one batch size."""

    batch: int
    seconds: float  # Of one run, the median.
    runs: int
    images_per_second: float
    peak_bytes: int  # Largest memory of all tensors, weights included, at any time.
    recorded_seconds: float | None = None  # On CUDA, of one run as a CUDA graph, see `recorded`.


@torch.no_grad()
def measure(G: Generator, batch: int, seconds: float = 1) -> Measurement:
    """Generate `batch` images repeatedly: at least three times and for `seconds`, after a warm-up run.

    Args:
        G: a generator in eval mode, on the device to measure on.
        batch: images at a time.
        seconds: how long to measure, at least.
    """
    device = next(G.parameters()).device
    z = torch.randn([batch, G.z_dim], device=device)
    c = torch.zeros([batch, G.c_dim], device=device)

    def run() -> None:
        G(z, c, noise_mode='const', **precision(device))
        if device.type == 'cuda':
            torch.cuda.synchronize(device)

    peak_bytes = _peak_bytes(G, run, device)  # Warms up as well.
    durations = _durations(run, seconds)
    median = statistics.median(durations)
    recorded = None
    if device.type == 'cuda':
        fast = RecordedGenerator(G, batch, noise_mode='const')

        def replay() -> None:
            fast(z, c)
            torch.cuda.synchronize(device)

        recorded = statistics.median(_durations(replay, seconds))
    return Measurement(batch, median, len(durations), batch / median, peak_bytes, recorded)


def _durations(run: Callable[[], None], seconds: float) -> list[float]:
    """How long runs take: of three or more, and of as many as take so long."""
    durations = []
    while len(durations) < 3 or sum(durations) < seconds:
        start = time.perf_counter()
        run()
        durations.append(time.perf_counter() - start)
    return durations


def _peak_bytes(G: torch.nn.Module, run: Callable[[], None], device: torch.device) -> int:
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)
    with _LiveTensors([*G.parameters(), *G.buffers()]) as tensors:
        run()
    return tensors.peak_bytes


class _LiveTensors(TorchDispatchMode):
    """Adds up the storage of all live tensors, as CUDA's allocator does by itself.

    The size of the process would include Python, the libraries, and heap from earlier runs. Memory that an operator
    allocates internally is not counted.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]):
        super().__init__()
        self.storages = weakref.WeakSet()
        self.bytes = self.peak_bytes = 0
        self._count(tensors)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self._count(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        return result

    def _count(self, tensors: Iterable[torch.Tensor]) -> None:
        for storage in (tensor.untyped_storage() for tensor in tensors):
            if storage not in self.storages:
                self.storages.add(storage)
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self._release, storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, self.bytes)

    def _release(self, nbytes: int) -> None:
        self.bytes -= nbytes


def device_name(device: torch.device) -> str:
    """The hardware and torch version of measurements on `device`."""
    if device.type == 'cuda':
        return f'{torch.cuda.get_device_name(device)}, torch {torch.__version__}'
    threads = torch.get_num_threads()
    return f'{platform.machine()} CPU, {threads} thread{"s" * (threads != 1)}, fp32, torch {torch.__version__}'


@dataclass(frozen=True)
class Profile:
    """One generator's costs, as `stylegan2-compress profile` shows them."""

    file: str
    file_bytes: int
    parameters: int
    macs: int
    layers: list[LayerCost]  # Empty if not asked for.
    measurements: list[Measurement]  # Likewise.
    exports: dict[str, dict[int, float]] = field(default_factory=dict)  # Seconds of a batch by runtime and batch size.


def profile(G: Generator, file: str, file_bytes: int, layers: bool, batches: Sequence[int]) -> Profile:
    """Count, and measure at the given batch sizes.

    Args:
        G: a generator as `measure` needs it.
        file: its network file, for the table.
        file_bytes: the size of that.
        layers: whether to list every layer.
        batches: batch sizes to measure at.
    """
    costs = layer_costs(G)
    return Profile(
        file=file,
        file_bytes=file_bytes,
        parameters=parameters(G),
        macs=sum(cost.macs for cost in costs),
        layers=costs if layers else [],
        measurements=[measure(G, batch) for batch in batches],
    )


def reductions(profile: Profile, reference: Profile) -> dict[str, float]:
    """The share of `reference`'s counts that `profile` saves, and the speed-up at each batch size."""
    result = {
        'parameters': 1 - profile.parameters / reference.parameters,
        'macs': 1 - profile.macs / reference.macs,
    }
    for ours, theirs in zip(profile.measurements, reference.measurements, strict=True):
        result[f'speedup_at_batch_{ours.batch}'] = theirs.seconds / ours.seconds
        if ours.recorded_seconds is not None and theirs.recorded_seconds is not None:
            speedup = theirs.recorded_seconds / ours.recorded_seconds
            result[f'recorded_speedup_at_batch_{ours.batch}'] = speedup
        for runtime, seconds in profile.exports.items():
            result[f'speedup_in_{runtime}_at_batch_{ours.batch}'] = theirs.seconds / seconds[ours.batch]
    return result


def table(profiles: list[Profile]) -> str:
    """The profiles as a text table: a column for each, compared with the first."""
    columns = [_cells(profile, profiles[0]) for profile in profiles]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    rows = [[label, *(column.get(label, '') for column in columns)] for label in labels]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return '\n'.join(
        '  '.join([row[0].ljust(widths[0]), *(map(str.rjust, row[1:], widths[1:]))]).rstrip() for row in rows
    )


def _cells(profile: Profile, first: Profile) -> dict[str, str]:
    """A column of the table by row label. Labels begin with 'counted' or 'measured'."""
    gains = reductions(profile, first)

    def compared(value: str, change: str) -> str:
        return value if profile is first else f'{value} ({change})'

    cells = {'': profile.file, 'measured  size on disk, all networks': _megabytes(profile.file_bytes)}
    cells['counted   parameters'] = compared(f'{profile.parameters:,}', f'{-gains["parameters"]:+.2%}')
    cells['counted   MACs per image'] = compared(f'{profile.macs:,}', f'{-gains["macs"]:+.2%}')
    for layer in profile.layers:
        cells[f'counted   {layer.name}: parameters, MACs'] = f'{layer.parameters:,}, {layer.macs:,}'
    for m in profile.measurements:
        cells[f'measured  latency at batch {m.batch}'] = compared(
            f'{m.seconds * 1000:.1f} ms', f'{gains[f"speedup_at_batch_{m.batch}"]:.2f}× the speed'
        )
        if m.recorded_seconds is not None:
            cells[f'measured  latency at batch {m.batch}, as a CUDA graph'] = compared(
                f'{m.recorded_seconds * 1000:.1f} ms', f'{gains[f"recorded_speedup_at_batch_{m.batch}"]:.2f}× the speed'
            )
        cells[f'measured  images/s at batch {m.batch}'] = f'{m.images_per_second:.1f}'
        cells[f'measured  peak tensor memory at batch {m.batch}'] = _megabytes(m.peak_bytes)
    for runtime, seconds in profile.exports.items():
        for batch, value in seconds.items():
            gain = gains[f'speedup_in_{runtime}_at_batch_{batch}']
            cells[f'measured  latency at batch {batch}, {runtime}'] = f'{value * 1000:.1f} ms ({gain:.2f}× the speed)'
    return cells


def _megabytes(nbytes: int) -> str:
    return f'{nbytes / 1e6:.1f} MB'
