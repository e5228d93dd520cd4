"""The body that the training loops share: setup, steps, and what happens once per tick."""

import copy
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass

import dnnlib
import numpy as np
import torch
from metrics import metric_main
from torch_utils import misc
from torch_utils.ops import conv2d_gradfix, grid_sample_gradfix

from stylegan2_compress import distributed, pickles
from stylegan2_compress.errors import DivergedError, Stopped
from stylegan2_compress.runs import states
from stylegan2_compress.training_loops import data
from stylegan2_compress.training_loops.interruption import Interruption
from stylegan2_compress.training_loops.monitor import Collector, Monitor
from stylegan2_compress.training_loops.phases import MovingAverages, Phase, build_phases
from stylegan2_compress.training_loops.snapshots import ImageGrid, network_snapshot, snapshot_path


@dataclass
class Progress:
    """How far a run is."""

    cur_nimg: int = 0
    batch_idx: int = 0
    cur_tick: int = 0
    tick_start_nimg: int = 0
    state_nimg: int = 0  # Where the state was saved.

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


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
    kimg_per_tick=4,
    image_snapshot_ticks=50,
    network_snapshot_ticks=50,
    resume_pkl=None,
    cudnn_benchmark=True,
    allow_tf32=False,
    abort_fn=None,
    progress_fn=None,
    device=None,
    state_kimg=states.STATE_KIMG,
):
    """Train G, and D where `D_kwargs` describe one, and leave in `run_dir` what the host's loop leaves there.

    A run directory that has a training state is continued from there: what comes out, files and networks, is what an
    uninterrupted run leaves.

    The arguments are those of the host's `training.training_loop.training_loop`, which documents them. On top come
    `device` ('cpu', 'cuda', 'cuda:1'; by default CUDA where there is one) and `state_kimg`, after how many thousands of
    images the state is saved; it is also saved at the end, and on SIGINT and SIGTERM.

    Differences to the host: everything random is a function of the seed and the place of an image in the run; a step
    is the same however its batch is split into rounds and processes; latents are drawn only for the phases that run;
    pickles are read without executing anything in them.

    Raises:
        DivergedError: from the loss, after a snapshot has been saved.
        Stopped: by a signal, after the state has been saved.
        UserError: a state cannot be saved, or all are damaged.
    """
    device = distributed.local_device(device)
    torch.backends.cudnn.benchmark = cudnn_benchmark
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    torch.backends.cudnn.allow_tf32 = allow_tf32
    conv2d_gradfix.enabled = True
    grid_sample_gradfix.enabled = True
    precision = {'force_fp32': True} if device.type == 'cpu' else {}
    share = data.Share(batch_size, batch_gpu, num_gpus, rank)
    monitor = Monitor(run_dir, total_kimg, device, rank)
    progress = Progress()
    state = states.load_latest_state(run_dir)
    if rank == 0:
        states.delete_temporary_files(run_dir)
        if state is not None and not state['finished']:
            states.cut_records(run_dir, state['records'])

    print('Loading training set...')
    training_set = dnnlib.util.construct_class_by_name(**training_set_kwargs)
    print(f'\nNum images:  {len(training_set)}')
    print(f'Image shape: {training_set.image_shape}')
    print(f'Label shape: {training_set.label_shape}\n')

    print('Constructing networks...')
    data.seed_everything(random_seed, data.SETUP)
    shape = dict(
        c_dim=training_set.label_dim, img_resolution=training_set.resolution, img_channels=training_set.num_channels
    )
    G, D = (
        kwargs and dnnlib.util.construct_class_by_name(**kwargs, **shape).train().requires_grad_(False).to(device)
        for kwargs in (G_kwargs, D_kwargs)
    )
    G_ema = copy.deepcopy(G).eval()
    if resume_pkl is not None and state is None:
        print(f'Resuming from "{resume_pkl}"')
        resume_data = pickles.load(resume_pkl)
        for name, module in [('G', G), ('D', D), ('G_ema', G_ema)]:
            if module is not None:
                misc.copy_params_and_buffers(resume_data[name], module, require_all=False)
    if state is None:
        z, c = torch.zeros([batch_gpu, G.z_dim], device=device), torch.zeros([batch_gpu, G.c_dim], device=device)
        images = misc.print_module_summary(G_ema, [z, c])  # In G, the summary's latents would enter the average of W.
        if D is not None:
            misc.print_module_summary(D, [images, c])

    augment_pipe = ada_stats = None
    if augment_kwargs is not None and (augment_p > 0 or ada_target is not None):
        print('Setting up augmentation...')
        augment_pipe = dnnlib.util.construct_class_by_name(**augment_kwargs).train().requires_grad_(False).to(device)
        augment_pipe.p.copy_(torch.as_tensor(augment_p))
        if ada_target is not None:
            ada_stats = Collector(regex='Loss/signs/real')

    print('Setting up training phases...')
    loss = dnnlib.util.construct_class_by_name(
        device=device, G_mapping=G.mapping, G_synthesis=G.synthesis, D=D, augment_pipe=augment_pipe, **loss_kwargs
    )
    trained = [('G', G, G_opt_kwargs, G_reg_interval), ('D', D, D_opt_kwargs, D_reg_interval)]
    phases = build_phases([each for each in trained if each[1] is not None], device)
    averages = MovingAverages(moved_by_forward_passes(G, loss))
    networks = dict(G=G, D=D, G_ema=G_ema, augment_pipe=augment_pipe)
    optimizers = {phase.name[0] + '_opt': phase.opt for phase in phases}
    parts = dict(networks, **optimizers, loss=loss, monitor=monitor, ada_stats=ada_stats, progress=progress)
    if state is not None:
        load_parts(parts, state)
    distributed.broadcast(networks.values())

    if rank == 0:
        data.seed_everything(random_seed, data.GRID)
        grid = ImageGrid(training_set, G.z_dim, batch_gpu, device)
        if state is None:
            print('Exporting sample images...')
            grid.save_reals(f'{run_dir}/reals.png')
            grid.save_fakes(G_ema, f'{run_dir}/fakes_init.png', **precision)
    del state

    start = f', from {progress.cur_nimg / 1000:g} kimg on' if progress.cur_nimg else ''
    print(f'Training for {total_kimg} kimg{start}...\n')
    batches = data.real_batches(training_set, share, random_seed, progress.cur_nimg, device, **data_loader_kwargs)
    monitor.begin(progress.cur_nimg)
    if progress_fn is not None:
        progress_fn(progress.cur_nimg // 1000, total_kimg)
    done = progress.cur_nimg >= total_kimg * 1000
    with closing(batches), Interruption() as interruption:  # Workers left alone would keep a failed run from ending.
        while not done:
            real_rounds = next(batches)
            for phase_index, phase in enumerate(phases):
                if progress.batch_idx % phase.interval != 0:
                    continue
                rounds = data.rounds(
                    real_rounds, training_set, G.z_dim, share, random_seed, progress.cur_nimg, phase_index
                )
                try:
                    run_phase(phase, loss, averages, rounds)
                except DivergedError:
                    save_snapshot(networks, training_set_kwargs, run_dir, progress.cur_nimg, rank)
                    raise

            update_average(G_ema, G, progress.cur_nimg, batch_size, ema_kimg, ema_rampup)
            progress.cur_nimg += batch_size
            progress.batch_idx += 1
            monitor.advance(batch_size)
            if ada_stats is not None and progress.batch_idx % ada_interval == 0:
                ada_stats.update()
                direction = np.sign(ada_stats['Loss/signs/real'] - ada_target)
                step = direction * (batch_size * ada_interval) / (ada_kimg * 1000)
                augment_pipe.p.copy_((augment_pipe.p + step).clamp(min=0))

            done = progress.cur_nimg >= total_kimg * 1000
            tick_end = progress.tick_start_nimg + kimg_per_tick * 1000
            if done or progress.cur_tick == 0 or progress.cur_nimg >= tick_end:
                # Once per tick: say where we are, save, evaluate.
                augment = float(augment_pipe.p) if augment_pipe is not None else 0.0
                monitor.print_tick(progress.cur_tick, progress.cur_nimg, augment)
                if not done and abort_fn is not None and abort_fn():
                    done = True
                    print('\nAborting...')
                images_due, networks_due = (
                    ticks is not None and (done or progress.cur_tick % ticks == 0)
                    for ticks in (image_snapshot_ticks, network_snapshot_ticks)
                )
                if images_due and rank == 0:
                    fakes_png = snapshot_path(run_dir, 'fakes', progress.cur_nimg, '.png')
                    grid.save_fakes(G_ema, fakes_png, **precision)
                    monitor.report_image('Images/fakes', fakes_png, progress.cur_nimg)
                if networks_due:
                    distributed.check_consistency(networks.values())
                    snapshot_pkl, snapshot = save_snapshot(
                        networks, training_set_kwargs, run_dir, progress.cur_nimg, rank
                    )
                    for metric in metrics:
                        result = metric_main.calc_metric(
                            metric=metric,
                            G=snapshot['G_ema'],
                            G_kwargs=precision,
                            dataset_kwargs=training_set_kwargs,
                            num_gpus=num_gpus,
                            rank=rank,
                            device=device,
                        )
                        monitor.report_metric(result, snapshot_pkl, progress.cur_nimg)
                    del snapshot
                monitor.end_tick(phases, progress.cur_nimg)
                if progress_fn is not None:
                    progress_fn(progress.cur_nimg // 1000, total_kimg)
                progress.cur_tick += 1
                progress.tick_start_nimg = progress.cur_nimg

            stopping = distributed.any_process(interruption.signal is not None, device)
            if done or stopping or progress.cur_nimg >= progress.state_nimg + state_kimg * 1000:
                progress.state_nimg = progress.cur_nimg
                state = state_of(parts)
                if rank == 0:
                    states.save_state(run_dir, progress.cur_nimg, state, finished=done)
                del state
            if stopping and not done:
                monitor.close()
                raise Stopped(
                    f'Stopped at {progress.cur_nimg / 1000:g} kimg, with everything saved; the same command with '
                    f'--resume={run_dir} goes on from there.'
                )

    monitor.close()
    print('\nExiting...')


def run_phase(phase: Phase, loss, averages: MovingAverages, rounds: Iterable[dict]) -> None:
    """Accumulate the gradients of all rounds, of all processes, and step."""
    phase.begin()
    averages.begin()
    for each in rounds:
        with averages.round():
            loss.accumulate_gradients(phase=phase.name, gain=phase.interval, **each)
    averages.finish(used=phase.has_gradients())
    phase.finish(averages.rounds)


def update_average(G_ema, G, cur_nimg: int, batch_size: int, ema_kimg: float, ema_rampup: float | None) -> None:
    """Move G_ema towards G, as the host does: parameters with a half-life of `ema_kimg`, buffers at once."""
    ema_nimg = ema_kimg * 1000 if ema_rampup is None else min(ema_kimg * 1000, cur_nimg * ema_rampup)
    ema_beta = 0.5 ** (batch_size / max(ema_nimg, 1e-8))
    torch._foreach_lerp_(list(G_ema.parameters()), list(G.parameters()), 1 - ema_beta)
    for average, buffer in zip(G_ema.buffers(), G.buffers(), strict=True):
        average.copy_(buffer)


def save_snapshot(networks: dict, training_set_kwargs: dict, run_dir: str, cur_nimg: int, rank: int):
    """Path and contents of a network pickle, which the first process writes."""
    path = snapshot_path(run_dir, 'network-snapshot-', cur_nimg, '.pkl')
    contents = network_snapshot(networks, training_set_kwargs)
    if rank == 0:
        pickles.save(path, contents)
    return path, contents


def moved_by_forward_passes(G: torch.nn.Module, loss) -> list[torch.Tensor]:
    """The average of W, and that of path lengths where the loss regularises them as the host's does."""
    averages = [buffer for name, buffer in G.named_buffers() if name.endswith('w_avg')]
    return averages + [getattr(loss, name) for name in ('pl_mean',) if hasattr(loss, name)]


def state_of(parts: dict) -> dict:
    """The state of each part that is there, by name."""
    return {name: stateful(part).state_dict() for name, part in parts.items() if part is not None}


def load_parts(parts: dict, state: dict) -> None:
    """Give the parts what `state_of` returned."""
    for name, part in parts.items():
        if part is not None:
            stateful(part).load_state_dict(state[name])


def stateful(part):
    return part if hasattr(part, 'state_dict') else TensorAttributes(part)


class TensorAttributes:
    """The tensors among an object's attributes as its state: that of losses written for the host's loop."""

    def __init__(self, owner):
        self.tensors = {name: value for name, value in vars(owner).items() if isinstance(value, torch.Tensor)}

    def state_dict(self) -> dict:
        return self.tensors

    def load_state_dict(self, state: dict) -> None:
        for name, value in state.items():
            self.tensors[name].copy_(value)
