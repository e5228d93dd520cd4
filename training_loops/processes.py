"""What the processes of a run say to each other while it trains. A process that is alone says nothing."""

import os
from collections.abc import Iterable, Sequence

import torch
import torch.distributed
from torch_utils import misc

from stylegan2_compress.statistics import world


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
