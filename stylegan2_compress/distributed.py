"""What the processes of a run say to each other while it trains. A process that is alone says nothing."""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import click
import torch
import torch.distributed
from torch_utils import custom_ops, misc, training_stats

from stylegan2_compress import errors

Group = torch.distributed.ProcessGroup
Result = TypeVar('Result')


def local_device(name: str | None) -> torch.device:
    """The device that this process trains on: of several processes with CUDA, each has the GPU of its local rank."""
    device = torch.device(name or ('cuda' if torch.cuda.is_available() else 'cpu'))
    if device.type == 'cuda' and world() is not None:
        return torch.device('cuda', int(os.environ.get('LOCAL_RANK', torch.distributed.get_rank())))
    return device


def average(tensors: Sequence[torch.Tensor]) -> None:
    """Replace tensors by their means over the processes, in one exchange."""
    if world() is None or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for tensor, averaged in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(averaged.view_as(tensor))


def average_gradients(parameters: Iterable[torch.nn.Parameter], rounds: int) -> None:
    """Replace the sums over one's own rounds in `grad` by averages over all rounds of all processes.

    What is not finite becomes 0 or ±1e5, as in the host. A parameter without gradient keeps none: a loss that leaves
    gradients out does so in all processes alike.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    average(grads)
    for grad in grads:
        grad /= rounds
        misc.nan_to_num(grad, nan=0, posinf=1e5, neginf=-1e5, out=grad)


def broadcast(modules: Iterable[torch.nn.Module | None]) -> None:
    """Give every process the first one's parameters and buffers."""
    if world() is None:
        return
    for module in filter(None, modules):
        for tensor in misc.params_and_buffers(module):
            torch.distributed.broadcast(tensor.detach(), src=0)


def check_consistency(modules: Iterable[torch.nn.Module | None]) -> None:
    """Make sure that every process still has what the first one has, bit for bit.

    Raises:
        AssertionError: with the name of a parameter or buffer that differs.
    """
    if world() is None:
        return
    for module in filter(None, modules):
        misc.check_ddp_consistency(module)


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set in any process."""
    if world() is None:
        return flag
    raised = torch.tensor(float(flag), device=device)
    torch.distributed.all_reduce(raised)
    return bool(raised > 0)


def torchrun_processes() -> int | None:
    """How many processes `torchrun` started, of which this is one; None if it did not start this one."""
    return int(os.environ['WORLD_SIZE']) if {'RANK', 'WORLD_SIZE', 'MASTER_ADDR'} <= os.environ.keys() else None


def number_of_processes(gpus: int | None) -> int:
    """How many processes train: as many as `--gpus` says or torchrun started, 1 where neither says.

    Raises:
        UserError: They say different numbers, or there are fewer than one.
    """
    started = torchrun_processes()
    if gpus is not None and gpus < 1:
        raise errors.UserError(f'--gpus={gpus} must be at least 1.')
    if gpus is not None and started not in (None, gpus):
        raise errors.UserError(f'--gpus={gpus} but torchrun started {started} processes: leave --gpus out.')
    return gpus or started or 1


def restarted_by_torchrun() -> bool:
    """Whether torchrun has started the same command before, and a process of it failed."""
    return torchrun_processes() is not None and int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0


def join_torchrun(device: str | None) -> None:
    """Meet the other processes, if torchrun started this one. The first keeps its voice, the others fall silent."""
    if torchrun_processes() is None or torch.distributed.is_initialized():
        return
    store, rank, size = next(torch.distributed.rendezvous('env://'))
    if os.environ.get('GROUP_WORLD_SIZE') == '1':
        # On one machine, torchrun keeps its store when it starts processes again, and some versions of torch would find
        # the addresses of the processes before in it.
        attempt = os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)
        store = torch.distributed.PrefixStore(f'attempt {attempt}', store)
    join(device, rank, size, store)
    if torch.distributed.get_rank() != 0:
        sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 (for as long as the process lives)


def join(device: str | None, rank: int, size: int, store: torch.distributed.Store | None = None) -> None:
    """Form the process group: NCCL where training runs on CUDA, gloo elsewhere."""
    on_cuda = torch.device(device).type == 'cuda' if device else torch.cuda.is_available()
    sync_device = torch.device('cpu')
    if on_cuda:
        sync_device = torch.device('cuda', int(os.environ['LOCAL_RANK']))
        torch.cuda.set_device(sync_device)
    elif 'OMP_NUM_THREADS' not in os.environ:
        torch.set_num_threads(max((os.cpu_count() or 1) // size, 1))
    torch.distributed.init_process_group('nccl' if on_cuda else 'gloo', rank=rank, world_size=size, store=store)
    training_stats.init_multiprocessing(rank=rank, sync_device=sync_device if size > 1 else None)
    if rank != 0:
        custom_ops.verbosity = 'none'


def first_decides(decide: Callable[[], Result]) -> Result:
    """What `decide` returns in the first process; the others do not call it. Where it fails, all end."""
    if not torch.distributed.is_initialized():
        return decide()
    answer = [None, None]  # A result, or an exit status.
    if torch.distributed.get_rank() == 0:
        try:
            answer[0] = decide()
        except click.ClickException as error:
            torch.distributed.broadcast_object_list([None, error.exit_code])
            raise
    torch.distributed.broadcast_object_list(answer)
    if answer[1] is not None:
        sys.exit(answer[1])
    return answer[0]


def world() -> Group | None:
    """All processes, or None if this one is alone."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.group.WORLD if together and torch.distributed.get_world_size() > 1 else None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.processes = torch.distributed.get_world_size(group)
        total = x.clone()
        torch.distributed.all_reduce(total, group=group)
        return total

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


def sum_of_processes(x: torch.Tensor, group: Group | None) -> torch.Tensor:
    return x if group is None else _Sum.apply(x, group)


def gather(x: torch.Tensor, group: Group | None) -> torch.Tensor:
    return x if group is None else _Gather.apply(x, group)
