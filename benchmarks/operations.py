"""What a piece of work consists of: kinds of operations by their time, arithmetic, kernels, and memory traffic."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

KINDS = ('convolutions', 'products', 'element-wise', 'copies', 'optimizer', 'Python')
PRODUCTS = ('aten::mm', 'aten::addmm', 'aten::bmm', 'aten::baddbmm')
COPIES = (
    'aten::copy_', 'aten::cat', 'aten::fill_', 'aten::zero_', 'aten::constant_pad_nd', 'aten::index',
    'aten::_index_put_impl_', 'aten::_foreach_copy_', 'aten::as_strided_scatter', 'aten::slice_scatter',
)  # fmt: skip
SIDE = 1024  # Of the matrices whose product is the measure of a machine.


@dataclass(frozen=True)
class Operations:
    """Of one piece of work.

    Attributes:
        seconds: by the kinds in `KINDS`, under the profiler, which slows small operations most. On CUDA, of kernels;
            'Python' is then the time in which the device waits.
        flop: floating point operations of convolutions and products, two for each multiply-accumulate.
        kernels: how many operations ran that are no views: launches, on CUDA.
        bytes: of all their tensors, read and written, as if there were no caches.
    """

    seconds: dict[str, float]
    flop: int
    kernels: int
    bytes: int

    def shares(self) -> dict[str, float]:
        """Of the time, by kind."""
        total = sum(self.seconds.values())
        return {kind: self.seconds.get(kind, 0) / total for kind in KINDS}


def operations(work: Callable[[], object], device: torch.device) -> Operations:
    """What `work()` does, which is called twice; it should have run before."""
    seconds = seconds_by_kind(work, device)
    with Tally() as tally:
        work()
    return Operations(seconds, tally.flop, tally.kernels, tally.bytes)


def seconds_by_kind(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    on_cuda = device.type == 'cuda'
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda
    with profile(activities=activities, acc_events=True) as profiler:
        start = time.perf_counter()
        work()
        if on_cuda:
            torch.cuda.synchronize(device)
        wall = time.perf_counter() - start
    seconds = Counter()
    for event in profiler.events() or ():
        own = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        if event.name.startswith(('aten::', 'mkldnn')):
            seconds[kind_of(event)] += own / 1e6
    seconds['Python'] = max(wall - sum(seconds.values()), 0)
    return dict(seconds)


def kind_of(event) -> str:
    """The kind of a profiler's event."""
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith('Optimizer.step'):
            return 'optimizer'
        parent = parent.cpu_parent
    if 'conv' in event.name:
        return 'convolutions'
    if event.name in PRODUCTS:
        return 'products'
    return 'copies' if event.name in COPIES else 'element-wise'


class Tally(TorchDispatchMode):
    """Counts arithmetic, operations that are no views, and the bytes of their tensors; backwards as well."""

    def __init__(self):
        super().__init__()
        self.flop = self.kernels = self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:  # FlopCounterMode's own hooks do not go through autograd.grad.
            self.flop += flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        if not func.is_view and func._schema.name not in ('aten::detach', 'aten::empty', 'aten::empty_like'):
            self.kernels += 1
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def clock(device: torch.device) -> Callable[[], float]:
    """What to measure seconds with: of one thread on a CPU its own time, which other programs hardly change."""
    return time.process_time if device.type == 'cpu' and torch.get_num_threads() == 1 else time.perf_counter


def product_rate(device: torch.device) -> float:
    """Floating point operations per second of a product of matrices, the best of ten."""
    seconds = clock(device)
    a, b = torch.randn([2, SIDE, SIDE], device=device)
    best = float('inf')
    for _ in range(10):
        start = seconds()
        torch.mm(a, b)
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        best = min(best, seconds() - start)
    return 2 * SIDE**3 / best
