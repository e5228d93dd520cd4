"""Loops for the tests of processes: one that runs others one after the other, one that fails, one that never ends."""

import os
import signal
import time

import torch

from stylegan2_compress import distributed
from stylegan2_compress.errors import Stopped, UserError
from stylegan2_compress.registry import import_named
from stylegan2_compress.training_loops import snapshots
from stylegan2_compress.training_loops.interruption import Interruption


def training_loop(rank, num_gpus, run_dir, device, cases):
    """Run `cases`: a loop's arguments, its name as `loop`, whether path lengths get the `same_noise_for_all` images."""
    snapshots.grid_size = lambda _shape: (2, 2)
    for case in cases:
        case = dict(case)
        loop = import_named('', case.pop('loop'), [])
        randn_like = torch.randn_like
        if case.pop('same_noise_for_all', False):  # Of path lengths: rounds of other sizes draw other noise.
            torch.randn_like = lambda x: torch.linspace(-1, 1, x[0].numel()).sin().view(1, *x.shape[1:]).expand_as(x)
        try:
            loop(rank=rank, num_gpus=num_gpus, **dict(case, device=device))
        finally:
            torch.randn_like = randn_like


def failing(rank, num_gpus, run_dir, device, how):
    """The second process fails, the first one waits for it."""
    if rank == 1 and how == 'raise':
        raise ArithmeticError('the cause')
    if rank == 1 and how == 'refuse':
        raise UserError('--option=1 makes no sense: leave it out.')
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.barrier()


def endless(rank, num_gpus, run_dir, device):
    """Steps until a signal comes, which reaches one process before the other."""
    with Interruption() as interruption:
        open(f'{run_dir}/ready-{rank}', 'w').close()
        while not distributed.any_process(interruption.signal is not None, torch.device(device)):
            time.sleep(0.01)
    raise Stopped('Stopped as asked.')
