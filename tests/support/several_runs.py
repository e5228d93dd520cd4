"""Loops for the tests of processes: one that runs others, and some that exchange, fail, refuse or never end."""

import os
import signal
import time
from pathlib import Path

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
    """Rank 1 fails, rank 0 waits for it."""
    if rank == 1 and how == 'raise':
        raise ArithmeticError('the cause')
    if rank == 1 and how == 'refuse':
        raise UserError('--option=1 makes no sense: leave it out.')
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.any_process(False, torch.device(device))


def endless(rank, num_gpus, run_dir, device):
    """Steps until a signal comes, which reaches one process before the other."""
    with Interruption() as interruption:
        open(f'{run_dir}/ready-{rank}', 'w').close()
        while not distributed.any_process(interruption.signal is not None, torch.device(device)):
            time.sleep(0.01)
    raise Stopped('Stopped as asked.')


def exchanging(rank, num_gpus, run_dir, device):
    """Saves what each function of `distributed` returns for [0, 1] in rank 0 and [1, 4] in rank 1."""

    def own():
        return torch.tensor([rank, (rank + 1) ** 2], dtype=torch.float32)

    group = distributed.world()
    results = {'rank': (distributed.rank(), distributed.world_size(), distributed.is_rank_zero())}
    results['max'] = distributed.max_over_processes(own())
    results['sum'] = distributed.sum_over_processes(own(), group)
    results['average'] = own()
    distributed.average([results['average']])
    results['broadcast'] = own()
    distributed.broadcast_from_rank_zero([results['broadcast']])
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(own())
    distributed.broadcast_modules([None, module])
    distributed.check_consistency([None, module])
    results['module'] = module.weight.detach()
    results['object'] = distributed.broadcast_object(f'from {rank}')
    results['result'] = distributed.result_of_rank_zero(lambda: f'called in {rank}')
    results['gathered'] = distributed.gather_with_gradient(own()[None], group)
    results['mean'] = distributed.mean_of_all_processes(own())
    weight = torch.ones([2], requires_grad=True)
    total = distributed.sum_with_gradient((own() * weight).sum()[None], group)
    (total.square() / 2).sum().backward()
    distributed.average([weight.grad])
    results['gradient'] = weight.grad
    results['flags'] = [distributed.any_process(flag, torch.device(device)) for flag in (False, rank == 1)]
    torch.save(results, f'{run_dir}/{rank}.pt')


def refusing(rank, num_gpus, run_dir, device):
    """Rank 0 refuses what all are about to do; rank 1 records the status that it would exit with."""

    def refuse():
        raise UserError(f'Refused in {rank}.')

    status = Path(run_dir, 'status-1')
    try:
        distributed.result_of_rank_zero(refuse)
    except SystemExit as end:
        status.with_suffix('.tmp').write_text(str(end.code))
        status.with_suffix('.tmp').rename(status)
    finally:
        while not status.exists():  # Once rank 0 has failed, rank 1 is killed.
            time.sleep(0.1)
