"""Training: steps, and what happens once per tick. The loops of this package share it."""

import math
import os
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from types import SimpleNamespace

import numpy as np
import torch
from metrics import metric_main

from stylegan2_compress import distributed, pickles
from stylegan2_compress.errors import DivergedError, Stopped
from stylegan2_compress.evaluation.data_statistics import of_the_data
from stylegan2_compress.evaluation.names import more_is_better
from stylegan2_compress.host import devices
from stylegan2_compress.losses.method_loss import MethodLoss
from stylegan2_compress.runs import learning_rates, states
from stylegan2_compress.runs.directory import KIMG_PER_TICK, STATE_KIMG
from stylegan2_compress.training_loops import data
from stylegan2_compress.training_loops.image_grid import ImageGrid
from stylegan2_compress.training_loops.interruption import Interrupted, Interruption
from stylegan2_compress.training_loops.metrics import is_hosts, share_hosts_cache
from stylegan2_compress.training_loops.monitor import Collector
from stylegan2_compress.training_loops.phases import MovingAverages, Phase
from stylegan2_compress.training_loops.recording import Rounds
from stylegan2_compress.training_loops.run import Run
from stylegan2_compress.training_loops.setup import set_up
from stylegan2_compress.training_loops.snapshots import generator_alone, network_snapshot, space_for


def train(
    run_dir='.',
    training_set_kwargs={},
    data_loader_kwargs={},
    G_kwargs={},
    D_kwargs=None,
    G_opt_kwargs={},
    D_opt_kwargs=None,
    augment_kwargs=None,
    loss_kwargs={},
    metrics=[],
    random_seed=0,
    num_gpus=1,
    rank=0,
    batch_size=4,
    batch_gpu=4,
    ema_kimg=10,
    ema_rampup=None,
    G_reg_interval=4,
    D_reg_interval=16,
    augment_p=0,
    ada_target=None,
    ada_interval=4,
    ada_kimg=500,
    total_kimg=25000,
    kimg_per_tick=KIMG_PER_TICK,
    image_snapshot_ticks=50,
    network_snapshot_ticks=50,
    resume_pkl=None,
    cudnn_benchmark=True,
    allow_tf32=False,
    abort_fn=None,
    progress_fn=None,
    device=None,
    state_kimg=STATE_KIMG,
    snapshot_only=None,
    metric_samples=None,
    lr_decay_kimg=None,
    track=None,
    cuda_graphs=False,
):
    """Train G, and D where `D_kwargs` describe one, and leave in `run_dir` what the host's loop leaves there.

    A run directory with a training state is continued from there: files and networks become what an uninterrupted run
    leaves.

    The arguments are those of the host's `training.training_loop.training_loop`, which documents them, and seven more:
    `device` ('cpu', 'cuda', 'cuda:1', 'mps'; by default CUDA where available); `state_kimg`, after how many thousands
    of images the state is saved (also at the end, before metrics, and on SIGINT, SIGTERM and SIGHUP); `snapshot_only`,
    which as 'G_ema' leaves out of the network pickles what makes no images; `metric_samples`, the number of images of
    metrics that are not the host's; `lr_decay_kimg`, (first, last): between these numbers of thousands of images,
    learning rates fall to 0 in a straight line; `track`, a tracker beside TensorBoard, see `runs.trackers`; and
    `cuda_graphs`, whether steps are recorded, see `recording`. Of `metrics`, the first decides which snapshot is
    `best.pkl`.

    Differences from the host: everything random is a function of the seed and the position of an image in the run; a
    step is the same however its rounds are shared out to processes; latents are drawn only for the phases that
    run; pickles are read without executing anything in them.

    Raises:
        DivergedError: from the loss, after a snapshot has been saved.
        Stopped: by a signal, after the state has been saved.
        UserError: a state cannot be saved, or all are damaged.
    """
    run = set_up(SimpleNamespace(**locals()))
    begin(run)
    # The workers of `batches` have to be ended: they would keep a failed run's process from ending.
    with run.monitor, current_device(run.device), closing(run.batches), Interruption() as interruption:
        measure_if_due(run, interruption)  # What a run that was stopped has left to do.
        while not run.done:
            step(run)
            if is_tick_due(run):
                tick(run)
            stopping = distributed.any_process(interruption.signal is not None, run.device)
            if run.done or stopping or is_state_due(run) or run.progress.unmeasured:
                save_state(run)
            if stopping and not run.is_finished:
                stop(run)
            measure_if_due(run, interruption)
    print('\nExiting...')


@contextmanager
def current_device(device: torch.device) -> Iterator[None]:
    """Make a CUDA device the current one, so that pinned memory and events belong to no other GPU's context."""
    if device.type != 'cuda':
        yield
        return
    with torch.cuda.device(device):
        yield


def begin(run: Run) -> None:
    """Print and report where training starts, and start the clocks."""
    cur_nimg, total_kimg = run.progress.cur_nimg, run.options.total_kimg
    start = f', from {cur_nimg / 1000:g} kimg on' if cur_nimg else ''
    if run.done:
        print('All of it is trained already.\n')
    else:
        print(f'Training for {total_kimg} kimg{start}...\n')
    run.monitor.begin(cur_nimg)
    if run.options.progress_fn is not None:
        run.options.progress_fn(cur_nimg // 1000, total_kimg)


def stop(run: Run) -> None:
    """End a run early, after its state has been saved.

    Raises:
        Stopped: always.
    """
    what = 'measures the last snapshot and continues' if run.progress.unmeasured else 'continues'
    raise Stopped(
        f'Stopped at {run.progress.cur_nimg / 1000:g} kimg, with everything saved; the same command with '
        f'--resume={shlex.quote(os.fspath(run.options.run_dir))} {what} from there.'
    )


# --- Steps ------------------------------------------------------------------------------------------------------------


def step(run: Run) -> None:
    """Train on the next batch: all phases that are due, then the averages of the weights and ADA.

    Raises:
        DivergedError: from the loss, after a snapshot has been saved.
    """
    options, progress = run.options, run.progress
    real_rounds = next(run.batches)
    lr_share = learning_rates.share(progress.cur_nimg, options.lr_decay_kimg)
    for phase_index, phase in enumerate(run.phases):
        if not is_due(run, phase):
            continue
        rounds = data.rounds(
            real_rounds,
            run.training_set,
            run.G.z_dim,
            run.share,
            options.random_seed,
            progress.cur_nimg,
            phase_index,
        )
        try:
            run_phase(phase, run.rounds, run.averages, rounds, lr_share)
        except DivergedError:
            save_snapshot(run)
            distributed.any_process(False, run.device)  # The error of another would end rank 0 while it writes.
            raise

    update_average(run.G_ema, run.G, progress.cur_nimg, options.batch_size, options.ema_kimg, options.ema_rampup)
    progress.cur_nimg += options.batch_size
    progress.batch_idx += 1
    run.monitor.advance(options.batch_size)
    if run.augment_pipe is not None and run.ada_stats is not None and progress.batch_idx % options.ada_interval == 0:
        adapt_augmentation(run.augment_pipe.p, run.ada_stats, options)
    run.done = run.is_complete


def is_due(run: Run, phase: Phase) -> bool:
    """Whether a phase runs in this step: in every `interval`-th, if the loss does anything in it."""
    has_work = not isinstance(run.loss, MethodLoss) or phase.name in run.loss.phases
    return has_work and run.progress.batch_idx % phase.interval == 0


def run_phase(
    phase: Phase, compute: Rounds, averages: MovingAverages, rounds: Iterable[dict], lr_share: float = 1
) -> None:
    """Accumulate the gradients of all rounds, of all processes, and step the optimizer."""
    phase.begin(lr_share)
    averages.begin()
    for each in rounds:
        with averages.round():
            compute(phase, **each)
    averages.finish(used=not compute.left_out(phase))
    phase.finish(averages.rounds)


def update_average(G_ema, G, cur_nimg: int, batch_size: int, ema_kimg: float, ema_rampup: float | None) -> None:
    """Move G_ema towards G, as the host does: parameters with a half-life of `ema_kimg`, buffers at once."""
    ema_nimg = ema_kimg * 1000 if ema_rampup is None else min(ema_kimg * 1000, cur_nimg * ema_rampup)
    ema_beta = 0.5 ** (batch_size / max(ema_nimg, 1e-8))
    weights, targets = list(G_ema.parameters()), list(G.parameters())
    torch._foreach_lerp_(weights, targets, 1 - ema_beta)  # pyright: ignore[reportPrivateImportUsage]  # There is no other.
    torch._foreach_copy_(list(G_ema.buffers()), list(G.buffers()))  # pyright: ignore[reportPrivateImportUsage]


def adapt_augmentation(p: torch.Tensor, ada_stats: Collector, options: SimpleNamespace) -> None:
    """Move the strength p of the augmentation towards the target of ADA (StyleGAN2-ADA, section 3)."""
    ada_stats.update()
    direction = np.sign(ada_stats['Loss/signs/real'] - options.ada_target)
    if np.isnan(direction):  # All steps since then were left out.
        return
    change = direction * (options.batch_size * options.ada_interval) / (options.ada_kimg * 1000)
    p.copy_((p + change).clamp(min=0))


# --- Ticks ------------------------------------------------------------------------------------------------------------


def is_tick_due(run: Run) -> bool:
    """Whether a tick ends here: after the first step, every `kimg_per_tick`, and at the end."""
    tick_end = run.progress.tick_start_nimg + run.options.kimg_per_tick * 1000
    return run.done or run.progress.cur_tick == 0 or run.progress.cur_nimg >= tick_end


def tick(run: Run) -> None:
    """Print and record how the run goes, save images and networks that are due; ask whether to abort."""
    options, progress = run.options, run.progress
    augment = float(run.augment_pipe.p) if run.augment_pipe is not None else 0.0
    run.monitor.print_tick(progress.cur_tick, progress.cur_nimg, augment)
    if not run.done and options.abort_fn is not None and options.abort_fn():
        run.done = True
        print('\nAborting...')
    are_saved = is_snapshot_due(run, options.network_snapshot_ticks)
    if are_saved:  # Before images, for which rank 0 alone brings masks up to date.
        distributed.check_consistency(run.networks.values())
    if is_snapshot_due(run, options.image_snapshot_ticks) and run.grid is not None:
        save_images(run, run.grid)
    if are_saved:
        save_snapshot(run)
        progress.unmeasured = bool(options.metrics)
    run.monitor.end_tick(run.phases, progress.cur_nimg)
    if are_saved and progress.cur_tick == 0:
        tell_space(run)
    if options.progress_fn is not None:
        options.progress_fn(progress.cur_nimg // 1000, options.total_kimg)
    progress.cur_tick += 1
    progress.tick_start_nimg = progress.cur_nimg


def is_snapshot_due(run: Run, ticks: int | None) -> bool:
    """Whether this tick is one of every so many, or the last; None is never."""
    return ticks is not None and (run.done or run.progress.cur_tick % ticks == 0)


def save_images(run: Run, grid: ImageGrid) -> None:
    """Write the image grid of G_ema."""
    path = run.directory.fakes_path(run.progress.cur_nimg)
    grid.save_fakes(run.G_ema, path, **devices.precision(run.device))
    run.monitor.report_image('Images/fakes', path, run.progress.cur_nimg)


# --- Metrics ----------------------------------------------------------------------------------------------------------


def measure_if_due(run: Run, interruption: Interruption) -> None:
    """Measure the snapshot that was just saved, unless that was done. A signal ends it at once.

    It takes long, so that the state has been saved before: a run that is stopped meanwhile, or killed, measures when it
    is continued.

    Raises:
        Stopped: by a signal.
    """
    if not run.progress.unmeasured:
        return
    start = time.time()
    try:
        with interruption.at_once():
            evaluate(run)
            distributed.any_process(False, run.device)  # All wait here for those that measure.
    except Interrupted:
        stop(run)
    except RuntimeError:  # Another process got the signal earlier, and left.
        if interruption.signal is None:
            raise
        stop(run)
    run.monitor.count_as_maintenance(time.time() - start)
    run.progress.unmeasured = False
    if run.done:
        save_state(run)


def evaluate(run: Run) -> None:
    """Measure the metrics of G_ema, and record them under the latest snapshot; all processes take part."""
    options, snapshot_pkl = run.options, run.directory.snapshot_path(run.progress.cur_nimg)
    can_cache = any(map(is_hosts, options.metrics)) and share_hosts_cache(run.device)
    for metric in options.metrics:
        if is_hosts(metric):  # Which draws what it needs: in each process its own, after an interruption as without.
            data.seed_everything(options.random_seed, data.METRICS, run.progress.cur_nimg, options.rank)
            with of_the_data():
                result = metric_main.calc_metric(
                    metric=metric,
                    G=run.G_ema,
                    G_kwargs=devices.precision(run.device),
                    dataset_kwargs=options.training_set_kwargs,
                    num_gpus=options.num_gpus,
                    rank=options.rank,
                    device=run.device,
                    cache=can_cache,
                )
        else:
            result = run.own_metrics.measure(metric, run.G_ema) if options.rank == 0 else None
            distributed.wait_for_rank_zero()
        if result is None:
            continue
        run.monitor.report_metric(result, snapshot_pkl, run.progress.cur_nimg)
        if options.rank == 0 and metric == options.metrics[0]:
            keep_if_best(run, result['results'])


def keep_if_best(run: Run, results: Mapping[str, float]) -> None:
    """Save the networks as the best ones if they are, by the first of the results."""
    name, value = next(iter(results.items()))
    value = float(value)  # A metric that was registered with the host may return NumPy's, which no state may have.
    best = run.progress.best
    if best is not None and best[0] == name and (value <= best[1] if more_is_better(name) else value >= best[1]):
        return
    if np.isfinite(value):
        run.progress.best = (name, value)
        pickles.save(run.directory.best_path, snapshot_contents(run))


# --- Saving -----------------------------------------------------------------------------------------------------------


def save_snapshot(run: Run) -> None:
    """Write a network pickle, on rank 0."""
    if run.options.rank == 0:
        pickles.save(run.directory.snapshot_path(run.progress.cur_nimg), snapshot_contents(run))


def tell_space(run: Run) -> None:
    """Print what all snapshots of a run will take, judged by the first: disks are full after days."""
    options = run.options
    ticks = (options.total_kimg - run.progress.cur_nimg / 1000) / options.kimg_per_tick
    to_come = math.ceil(round(ticks / options.network_snapshot_ticks, 6))
    if options.rank == 0 and not run.done:
        print(space_for(run.directory.snapshot_path(run.progress.cur_nimg), to_come))


def snapshot_contents(run: Run) -> dict:
    """The contents of a network pickle."""
    contents = network_snapshot(run.networks, run.options.training_set_kwargs)
    return contents if run.options.snapshot_only is None else generator_alone(contents)


def is_state_due(run: Run) -> bool:
    """Whether `state_kimg` have passed since the last state."""
    return run.progress.cur_nimg >= run.progress.state_nimg + run.options.state_kimg * 1000


def save_state(run: Run) -> None:
    """Save the state of a run, which is that of all processes; rank 0 writes it.

    Raises:
        UserError: it cannot be written.
    """
    run.progress.state_nimg = run.progress.cur_nimg
    state = run.state_dict()
    if run.options.rank == 0:
        states.save_state(run.directory, run.progress.cur_nimg, state, finished=run.is_finished)
