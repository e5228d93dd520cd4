"""The processes of a run: how they join, and what they exchange. The only file that uses `torch.distributed`.

A process that is alone exchanges nothing: every function works there too, and returns what it was given.

Gradients. Functions that take a `group` treat the batches of all its processes as one batch; the group None is this
process alone, `world()` all of them. Every process then computes the *same* value, the loss of the whole batch, and
gradients flow through the reduction under this convention:

    each process calls `backward` on its copy of that value, and gradients of parameters are averaged over the
    processes, as DistributedDataParallel does; the average is the gradient that one process with the whole batch gets.

For R processes this means that the gradient which reaches the local features is R times dL/dx: averaging divides the
sum over processes by R, but each process contributes the dL/dx of its own images only. The factor is exact because the
copies are equal, and so the backward pass needs no communication.
"""

import gc
import itertools
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import click
import torch
import torch.distributed
from torch.distributed import PrefixStore, ProcessGroup, Store, TCPStore, rendezvous  # pyright: ignore[reportPrivateImportUsage]  # Documented as public.
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch_utils import custom_ops, misc, training_stats

from stylegan2_compress import errors

Group = ProcessGroup
Result = TypeVar('Result')

LOCALHOST = '127.0.0.1'
# Rank 0 downloads and writes while the others wait, but one that hangs is not to hold all GPUs for days. That one of
# them is gone is seen by what started them.
PATIENCE = timedelta(hours=3)
SECONDS_BETWEEN_LOOKS = 0.2
_meetings = itertools.count()  # As many in every process.
_NO_ID = 'none'  # What torchrun calls a run of several machines that was given no name.
# In errors of gloo and of NCCL.
_CONNECTIONS = (
    r'(?i)connection (was )?(closed|reset|refused)|closed by peer|broken pipe|gloo|remote process exited|was aborted'
)


# --- Who takes part ---------------------------------------------------------------------------------------------------


def world() -> Group | None:
    """All processes, or None if this one is alone."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.group.WORLD if together and torch.distributed.get_world_size() > 1 else None


def rank() -> int:
    """The number of this process, from 0 to `world_size() - 1`."""
    return 0 if world() is None else torch.distributed.get_rank()


def world_size() -> int:
    """How many processes there are."""
    return 1 if world() is None else torch.distributed.get_world_size()


def size_of(group: Group | None) -> int:
    """How many processes a group has; the group None is this process alone."""
    return 1 if group is None else torch.distributed.get_world_size(group)


def is_rank_zero() -> bool:
    """Whether this is the process that prints and writes files."""
    return rank() == 0


def named_device(name: str | None) -> torch.device:
    """The device of a name; None is CUDA where there is any, else the CPU."""
    return torch.device(name or ('cuda' if torch.cuda.is_available() else 'cpu'))


def local_device(name: str | None) -> torch.device:
    """The device that this process trains on: of several processes with CUDA, each has the GPU of its local rank."""
    device = named_device(name)
    if device.type == 'cuda' and world() is not None:
        return torch.device('cuda', _local_rank(rank()))
    return device


def _local_rank(own_rank: int) -> int:
    """The number of this process's GPU; what starts processes need not say it."""
    return int(os.environ.get('LOCAL_RANK', own_rank % max(torch.cuda.device_count(), 1)))


def unwrapped(module: torch.nn.Module | None) -> Any:
    """The module inside DistributedDataParallel, or the module itself if it is not wrapped."""
    return module.module if isinstance(module, torch.nn.parallel.DistributedDataParallel) else module


# --- Joining ----------------------------------------------------------------------------------------------------------


def torchrun_processes() -> int | None:
    """How many processes `torchrun` started, of which this is one; None if it did not start this one."""
    return int(os.environ['WORLD_SIZE']) if {'RANK', 'WORLD_SIZE', 'MASTER_ADDR'} <= os.environ.keys() else None


def number_of_processes(gpus: int | None, device: str | None = None) -> int:
    """How many processes train: as many as `--gpus` says or torchrun started, 1 where neither says.

    Args:
        gpus: what `--gpus` says.
        device: where they train; None is CUDA where available.

    Raises:
        UserError: They say different numbers, or there are fewer than one, or more than this machine is for.
    """
    started = torchrun_processes()
    if gpus is not None and gpus < 1:
        raise errors.UserError(f'--gpus={gpus} must be at least 1.')
    if gpus is not None and started not in (None, gpus):
        raise errors.UserError(f'--gpus={gpus} but torchrun started {started} processes: leave --gpus out.')
    chosen = named_device(device)
    if (gpus or started or 1) > 1 and (chosen.type == 'mps' or (chosen.type == 'cuda' and chosen.index is not None)):
        way_out = ', or name the device cuda' if chosen.type == 'cuda' else ''
        raise errors.UserError(f'--device={device} is one GPU: leave out --gpus and torchrun{way_out}.')
    if started is None and gpus is not None:
        what, most = 'GPUs', torch.cuda.device_count()
        if chosen.type != 'cuda':
            what, most = 'cores', max(os.cpu_count() or 1, 2)  # Two, to try it, anywhere.
        if gpus > most:
            raise errors.UserError(f'--gpus={gpus} is more processes than this machine has {what} ({most}).')
    return gpus or started or 1


def machines() -> int:
    """On how many machines torchrun has started processes; 1 without it."""
    return int(os.environ.get('GROUP_WORLD_SIZE', 1)) if torchrun_processes() is not None else 1


def restarted_by_torchrun() -> bool:
    """Whether torchrun has started the same command before, and a process of it failed.

    Of several machines, this is known on those where it failed; the others start their processes again uncounted.
    """
    return torchrun_processes() is not None and int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0


def torchrun_id() -> str | None:
    """What all that one torchrun starts has in common: its `--rdzv-id`; None without it, or without torchrun."""
    given = os.environ.get('TORCHELASTIC_RUN_ID', _NO_ID)
    return given if torchrun_processes() is not None and given != _NO_ID else None


def join_torchrun(device: str | None) -> None:
    """Join the other processes, if torchrun started this one. Only rank 0 prints from then on."""
    if torchrun_processes() is None or torch.distributed.is_initialized():
        return
    store, own_rank, size = next(rendezvous('env://'))
    if os.environ.get('GROUP_WORLD_SIZE') == '1':
        # On one machine, torchrun keeps its store when it starts processes again, and some versions of torch would find
        # the addresses of the previous processes in it.
        attempt = os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)
        store = PrefixStore(f'attempt {attempt}', store)
    join(device, own_rank, size, store)
    if own_rank != 0:
        sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 (for as long as the process lives)


def join(device: str | None, own_rank: int, size: int, store: Store) -> None:
    """Form the process group: NCCL where training runs on CUDA, gloo elsewhere.

    Args:
        device: that the run was asked for, such as 'cpu' or 'cuda'; None is CUDA where available.
        own_rank: of this process.
        size: of the group.
        store: through which the processes find each other.
    """
    on_cuda = named_device(device).type == 'cuda'
    sync_device = torch.device('cpu')
    if on_cuda:
        sync_device = torch.device('cuda', _local_rank(own_rank))
        torch.cuda.set_device(sync_device)
    elif 'OMP_NUM_THREADS' not in os.environ:
        torch.set_num_threads(max((os.cpu_count() or 1) // size, 1))
    backend = 'nccl' if on_cuda else 'gloo'
    store.set_timeout(PATIENCE)  # Else NCCL waits five minutes in the first collective, for which rank 0 may be late.
    torch.distributed.init_process_group(backend, timeout=PATIENCE, rank=own_rank, world_size=size, store=store)
    training_stats.init_multiprocessing(rank=own_rank, sync_device=sync_device if size > 1 else None)
    if own_rank != 0:
        custom_ops.verbosity = 'none'


def is_of_connections(error: BaseException) -> bool:
    """Whether an error is that another process could not be reached any more."""
    # NCCL's are all of one kind, `DistBackendError`, whatever the cause.
    of_connections = torch.distributed.DistNetworkError, torch.distributed.DistStoreError
    return isinstance(error, of_connections) or bool(re.search(_CONNECTIONS, str(error)))


def tell_torchrun(error: BaseException) -> None:
    """Let torchrun, if it started this process, name the error in its own summary."""
    if torchrun_processes() is not None:
        get_error_handler().record_exception(error)


def leave() -> None:
    """End the process group.

    What else holds it, as a DistributedDataParallel does, is to be gone: whoever lets go of a group last waits, with
    Python's lock, for the end of gloo's threads, which may be waiting for that lock.
    """
    gc.collect()
    torch.distributed.destroy_process_group()


def open_store() -> tuple[Store, int]:
    """A store on this machine through which processes find each other, and the port that they reach it on."""
    store = TCPStore(LOCALHOST, 0, is_master=True, wait_for_workers=False)
    return store, store.port


def connect_to_store(port: int) -> Store:
    """The store that another process of this machine opened."""
    return TCPStore(LOCALHOST, port, is_master=False)


# --- Without gradient -------------------------------------------------------------------------------------------------


def average(tensors: Sequence[torch.Tensor]) -> None:
    """Replace tensors by their means over the processes, in one exchange."""
    if world() is None or not tensors:
        return
    flat = sum_over_processes(torch.cat([tensor.flatten() for tensor in tensors]), world())
    flat /= world_size()
    for tensor, averaged in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(averaged.view_as(tensor))


def average_gradients(parameters: Iterable[torch.nn.Parameter], rounds: int) -> None:
    """Replace the sums over this process's rounds in `grad` by averages over all rounds of all processes.

    What is not finite becomes 0 or ±1e5, as in the host. A parameter without gradient keeps none: a loss that leaves
    gradients out does so in all processes alike.
    """
    pairs = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
    if not pairs:
        return
    # In one tensor: three operations for all of them, where a device waits for Python.
    flat = torch.cat([gradient.flatten() for _parameter, gradient in pairs])
    average([flat])
    if rounds > 1:
        flat /= rounds
    misc.nan_to_num(flat, nan=0, posinf=1e5, neginf=-1e5, out=flat)
    sizes = [gradient.numel() for _parameter, gradient in pairs]
    for (parameter, _gradient), mean in zip(pairs, flat.split(sizes), strict=True):
        gradient = mean.view_as(parameter)
        # Fused optimizers read parameter and gradient in the order of memory, which --nhwc changes.
        is_in_order = gradient.stride() == parameter.stride()
        parameter.grad = gradient if is_in_order else torch.empty_like(parameter).copy_(gradient)


def sum_over_processes(tensor: torch.Tensor, group: Group | None) -> torch.Tensor:
    """Replace a tensor by its sum over the processes of a group; returns the tensor."""
    if group is not None:
        torch.distributed.all_reduce(tensor, group=group)
    return tensor


def max_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Replace a tensor by its elementwise maximum over the processes; returns the tensor."""
    if world() is not None:
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return tensor


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set in any process; `device` is where the processes exchange tensors."""
    if world() is None:
        return flag
    return bool(sum_over_processes(torch.tensor(float(flag), device=device), world()) > 0)


def wait_for_rank_zero() -> None:
    """Wait until rank 0 has come here, too. All processes call it alike.

    Unlike in a collective, signals are handled meanwhile, there is no limit of time, and no GPU is kept busy.
    """
    key = f'rank 0 has come {next(_meetings)}'
    if world() is None:
        return
    store = _get_default_store()
    if is_rank_zero():
        store.set(key, '')
    while not store.check([key]):
        time.sleep(SECONDS_BETWEEN_LOOKS)


def broadcast_from_rank_zero(tensors: Iterable[torch.Tensor]) -> None:
    """Replace the values of tensors, in every process, by those of rank 0."""
    if world() is None:
        return
    for tensor in tensors:
        torch.distributed.broadcast(tensor.detach(), src=0)


def broadcast_modules(modules: Iterable[torch.nn.Module | None]) -> None:
    """Give every process the parameters and buffers of rank 0."""
    for module in filter(None, modules):
        broadcast_from_rank_zero(misc.params_and_buffers(module))


def check_consistency(modules: Iterable[torch.nn.Module | None]) -> None:
    """Make sure that every process still has the parameters and buffers of rank 0, bit for bit.

    Raises:
        AssertionError: with the name of a parameter or buffer that differs.
    """
    if world() is None:
        return
    for module in filter(None, modules):
        misc.check_ddp_consistency(module)


def broadcast_object(value: Any, device: torch.device | None = None) -> Any:
    """The value of rank 0, which is pickled; those of the other processes are ignored.

    Args:
        value: anything that can be pickled.
        device: with NCCL, the device through which its bytes are sent; None is the current one.
    """
    if world() is None:
        return value
    values = [value]
    on_cuda = device is not None and device.type == 'cuda'
    torch.distributed.broadcast_object_list(values, src=0, device=device if on_cuda else None)
    return values[0]


def result_of_rank_zero(function: Callable[[], Result]) -> Result:
    """What `function` returns on rank 0; the other processes do not call it.

    Raises:
        click.ClickException: on rank 0, from `function`; the other processes exit with its status.
    """
    if world() is None:
        return function()
    result = exit_code = None
    if is_rank_zero():
        try:
            result = function()
        except click.ClickException as error:
            broadcast_object((None, error.exit_code))
            raise
    result, exit_code = broadcast_object((result, exit_code))
    if exit_code is not None:
        sys.exit(exit_code)
    return result


# --- With gradient ----------------------------------------------------------------------------------------------------


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.processes = torch.distributed.get_world_size(group)
        return sum_over_processes(x.clone(), group)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad * ctx.processes, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.processes = torch.distributed.get_world_size(group)
        ctx.rank = torch.distributed.get_rank(group)
        parts = [torch.empty_like(x) for _ in range(ctx.processes)]
        torch.distributed.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad.chunk(ctx.processes)[ctx.rank] * ctx.processes, None


def sum_with_gradient(x: torch.Tensor, group: Group | None) -> torch.Tensor:
    """The sum of `x`, of any shape, over the processes of a group. The module's docstring explains its gradient."""
    return x if group is None else _Sum.apply(x, group)


def gather_with_gradient(x: torch.Tensor, group: Group | None) -> torch.Tensor:
    """The rows [n, ...] of all processes of a group, by rank: [processes * n, ...]; n must be the same everywhere.

    The module's docstring explains its gradient.
    """
    return x if group is None else _Gather.apply(x, group)
