"""What a generator costs: parameters and multiply-accumulates, counted; time and memory, measured."""

import platform
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class LayerCost:
    """One module that has parameters of its own."""

    name: str  # As in `G.named_modules()`.
    shape: tuple[int, ...]  # Of its weight; of the constant for the module that holds that.
    parameters: int
    macs: int


def layer_costs(G: torch.nn.Module) -> list[LayerCost]:
    """Parameters and multiply-accumulates per image of every layer of a host or pruned generator.

    The accounting of Content-Aware GAN Compression (CVPR 2021), which the pruning papers share: one multiply-accumulate
    per weight and pixel, convolutions that upsample at the resolution of their *input*, toRGB, mapping network and
    style affines included; blur, bias, noise, modulation and demodulation left out.
    """
    costs = []
    for name, module in G.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        macs = 0
        if 'weight' in own:
            pixels = 1
            if own['weight'].ndim == 4:
                block = G.get_submodule(name.rpartition('.')[0])
                pixels = (block.resolution // getattr(module, 'up', 1)) ** 2
            macs = own['weight'].numel() * pixels
        main = own.get('weight', next(iter(own.values())))
        costs.append(LayerCost(name, tuple(main.shape), sum(p.numel() for p in own.values()), macs))
    return costs


def parameters(G: torch.nn.Module) -> int:
    """Number of trainable values of a network; buffers, such as fixed noise, do not count."""
    return sum(p.numel() for p in G.parameters())


def macs(G: torch.nn.Module) -> int:
    """Multiply-accumulates per image, see `layer_costs`."""
    return sum(cost.macs for cost in layer_costs(G))


@dataclass(frozen=True)
class Measurement:
    """Time and memory of `G(z, c)` at one batch size."""

    batch: int
    seconds: float  # Median over the runs.
    runs: int
    images_per_second: float
    peak_bytes: int  # Most memory that tensors, the weights among them, held at once.


@torch.no_grad()
def measure(G: torch.nn.Module, batch: int, seconds: float = 1) -> Measurement:
    """Generate `batch` images over and over: at least three times and for `seconds`, after a run to warm up.

    `G` runs as it is: in eval mode, please, and on the device in question. On a CPU everything is computed in fp32:
    not every torch runs the host's fp16 blocks there, and they would not be faster.
    """
    device = next(G.parameters()).device
    z = torch.randn([batch, G.z_dim], device=device)
    c = torch.zeros([batch, G.c_dim], device=device)

    def run() -> None:
        G(z, c, noise_mode='const', force_fp32=device.type != 'cuda')
        if device.type == 'cuda':
            torch.cuda.synchronize(device)

    peak_bytes = _peak_bytes(G, run, device)  # Warms up as well.
    durations = []
    while len(durations) < 3 or sum(durations) < seconds:
        start = time.perf_counter()
        run()
        durations.append(time.perf_counter() - start)
    median = statistics.median(durations)
    return Measurement(batch, median, len(durations), batch / median, peak_bytes)


def _peak_bytes(G: torch.nn.Module, run: Callable[[], None], device: torch.device) -> int:
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)
    with _LiveTensors([*G.parameters(), *G.buffers()]) as tensors:
        run()
    return tensors.peak_bytes


class _LiveTensors(TorchDispatchMode):
    """Adds up the storage of all tensors alive, as CUDA's allocator does by itself.

    The process's size would not do: it includes Python, the libraries, and heap that earlier runs left behind. What an
    operator allocates inside itself is not seen.
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
    """What measurements on `device` are made on, in words."""
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
    layers: list[LayerCost]  # Empty where nobody asked.
    measurements: list[Measurement]  # Likewise.


def profile(G: torch.nn.Module, file: str, file_bytes: int, layers: bool, batches: Sequence[int]) -> Profile:
    """Count, with all `layers` or only the sums, and measure at the batch sizes given; `G` as `measure` wants it."""
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
    """The parts of `reference`'s counts that `profile` saves, and by what factor it is faster at each batch size."""
    result = {
        'parameters': 1 - profile.parameters / reference.parameters,
        'macs': 1 - profile.macs / reference.macs,
    }
    for ours, theirs in zip(profile.measurements, reference.measurements, strict=True):
        result[f'speedup_at_batch_{ours.batch}'] = theirs.seconds / ours.seconds
    return result


def table(profiles: list[Profile]) -> str:
    """The profiles as text: one column each, compared with the first."""
    columns = [_cells(profile, profiles[0]) for profile in profiles]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    rows = [[label, *(column.get(label, '') for column in columns)] for label in labels]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return '\n'.join(
        '  '.join([row[0].ljust(widths[0]), *(map(str.rjust, row[1:], widths[1:]))]).rstrip() for row in rows
    )


def _cells(profile: Profile, first: Profile) -> dict[str, str]:
    """A column of the table by row label; what is counted and what is measured is marked apart."""
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
        cells[f'measured  images/s at batch {m.batch}'] = f'{m.images_per_second:.1f}'
        cells[f'measured  peak tensor memory at batch {m.batch}'] = _megabytes(m.peak_bytes)
    return cells


def _megabytes(nbytes: int) -> str:
    return f'{nbytes / 1e6:.1f} MB'
