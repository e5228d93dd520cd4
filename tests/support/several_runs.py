"""Loops for the tests of processes: one that runs others, and some that exchange, fail, refuse or never end."""

import contextlib
import json
import multiprocessing.util
import os
import signal
import time
from pathlib import Path
from unittest import mock

import torch
from metrics import frechet_inception_distance, metric_main

from stylegan2_compress import distributed
from stylegan2_compress.errors import Stopped, UserError
from stylegan2_compress.losses.adversarial import AdversarialLoss
from stylegan2_compress.registry import import_named
from stylegan2_compress.training_loops import image_grid
from stylegan2_compress.training_loops.interruption import Interruption
from stylegan2_compress.training_loops.metrics import OwnMetrics


def training_loop(rank, num_gpus, run_dir, device, cases):
    """Run `cases`: a loop's arguments, its name as `loop`, whether path lengths get the `same_noise_for_all` images."""
    with mock.patch.object(image_grid, 'grid_size', return_value=(2, 2)):  # One of the processes may be pytest's.
        for case in cases:
            case = dict(case)
            loop = import_named('', case.pop('loop'), [])
            same_noise = case.pop('same_noise_for_all', False)
            with mock.patch.object(torch, 'randn_like', noise_for_all) if same_noise else contextlib.nullcontext():
                loop(rank=rank, num_gpus=num_gpus, **dict(case, device=device))


def noise_for_all(x):
    """For path lengths: rounds of other sizes draw other noise."""
    return torch.linspace(-1, 1, x[0].numel()).sin().view(1, *x.shape[1:]).expand_as(x)


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


def slowly_measuring(rank, num_gpus, run_dir, device, args):
    """Our loop; the first time, rank 0 takes ten minutes to measure, and leaves a file when it begins."""
    measure, begun = OwnMetrics.measure, Path(run_dir, 'measuring')

    def slowly(self, name, G):
        if not begun.exists():
            begun.touch()
            time.sleep(600)
        return measure(self, name, G)

    OwnMetrics.measure = slowly
    training_loop(rank, num_gpus, run_dir, device, [args])


def tidying(rank, num_gpus, run_dir, device):
    """Returns at once, and takes a moment to end, as data loaders do; leaves a file at the very end."""

    def tidy_up():
        time.sleep(0.5)
        open(f'{run_dir}/tidied-{rank}', 'w').close()

    multiprocessing.util.Finalize(None, tidy_up, exitpriority=0)


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
    weight = torch.ones([2], requires_grad=True)
    total = distributed.sum_with_gradient((own() * weight).sum()[None], group)
    (total.square() / 2).sum().backward()
    distributed.average([weight.grad])
    results['gradient'] = weight.grad
    results['flags'] = [distributed.any_process(flag, torch.device(device)) for flag in (False, rank == 1)]
    results['met'] = []
    for come in (Path(run_dir, 'come'), Path(run_dir, 'come again')):
        if rank == 0:
            time.sleep(1)
            come.touch()
        distributed.wait_for_rank_zero()
        results['met'].append(come.exists())
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


COLLECTIVES = ('all_reduce', 'all_gather', 'broadcast', 'broadcast_object_list', 'barrier', 'gather', 'reduce')


def recorded(rank, num_gpus, run_dir, device, cases):
    """`training_loop`, and in `RUN_DIR/collectives-RANK.json` which collectives it called with tensors of which sizes.

    In a case with `spoiled`, the second time that rank 1 judges images it sees NaN. The metric `tiny` is the host's FID
    of few images.
    """
    called = []

    def recording(name, collective):
        def record(*args, **kwargs):
            data = [*args, *kwargs.values(), None][0]
            called.append([name, list(data.shape) if isinstance(data, torch.Tensor) else None])
            return collective(*args, **kwargs)

        return record

    for name in COLLECTIVES:
        setattr(torch.distributed, name, recording(name, getattr(torch.distributed, name)))
    metric_main._metric_dict['tiny'] = lambda opts: {
        'tiny': frechet_inception_distance.compute_fid(opts, max_real=12, num_gen=8)
    }
    judge, judged = AdversarialLoss.judge, [0]

    def spoiled_judge(self, *args):
        judged[0] += 1
        factor = float('nan') if rank == 1 and judged[0] == 2 else 1.0
        return {name: logits * factor for name, logits in judge(self, *args).items()}

    for case in cases:
        called.append(['case', case['run_dir']])
        judged[0] = 0
        AdversarialLoss.judge = spoiled_judge if case.get('spoiled') else judge
        case = {name: value for name, value in case.items() if name != 'spoiled'}
        training_loop(rank, num_gpus, run_dir, device, [case])
    Path(run_dir, f'collectives-{rank}.json').write_text(json.dumps(called))
