"""Setting up a run: networks, loss, phases and monitor, new or from the state in the run directory."""

import copy
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import dnnlib
import torch
from torch_utils import misc
from torch_utils.ops import conv2d_gradfix, grid_sample_gradfix
from training.networks import Generator

from stylegan2_compress import distributed, pickles
from stylegan2_compress.distributions.teacher_dataset import TeacherDataset
from stylegan2_compress.host import devices, kernels
from stylegan2_compress.losses.loss_classes import has_discriminator
from stylegan2_compress.runs import resources, states
from stylegan2_compress.runs.directory import RunDirectory
from stylegan2_compress.training_loops import data
from stylegan2_compress.training_loops.image_grid import ImageGrid
from stylegan2_compress.training_loops.metrics import OwnMetrics
from stylegan2_compress.training_loops.monitor import Collector, Monitor
from stylegan2_compress.training_loops.phases import MovingAverages, Phase, build_phases
from stylegan2_compress.training_loops.recording import RecordedRounds, Rounds
from stylegan2_compress.training_loops.run import Run
from stylegan2_compress.training_loops.snapshots import with_three_networks

if TYPE_CHECKING:
    from training.augment import AugmentPipe


def set_up(options: SimpleNamespace) -> Run:
    """A run that is ready for its next step.

    Args:
        options: the arguments of `loop.train`.

    Raises:
        UserError: see `load_state`.
    """
    device = distributed.local_device(options.device)
    set_backends(options)
    if options.rank == 0:
        kernels.announce(device)
    share = data.Share(options.batch_size, options.batch_gpu, options.num_gpus, options.rank)
    directory = RunDirectory(options.run_dir)
    monitor = Monitor(directory, options.total_kimg, device, options.rank, options.track, options.cuda_graphs)
    state = load_state(directory, device)
    if options.rank == 0:
        directory.delete_temporary_files()
        if state is not None and not state['finished']:
            directory.cut_records(state['records'])

    training_set = load_training_set(options.training_set_kwargs)
    loaded = resources.take()
    if isinstance(training_set, TeacherDataset):
        training_set.open(device, loaded.networks)  # The loss may want the same teacher.
    G, D, G_ema = build_networks(options, training_set, device)
    trains_D = has_discriminator(dnnlib.util.get_obj_by_name(options.loss_kwargs['class_name']))
    if state is None:
        if options.resume_pkl is not None:
            copy_weights(options.resume_pkl, G, D, G_ema)
        print_summaries(G, D if trains_D else None, G_ema, options.batch_gpu, device)
    augment_pipe, ada_stats = build_augmentation(options, device)
    with resources.handed_over(loaded):
        loss, phases = build_training(options, G, D, augment_pipe, device)
    run = Run(
        options=options,
        directory=directory,
        device=device,
        share=share,
        monitor=monitor,
        training_set=training_set,
        G=G,
        D=D,
        G_ema=G_ema,
        augment_pipe=augment_pipe,
        ada_stats=ada_stats,
        loss=loss,
        own_metrics=OwnMetrics(options.training_set_kwargs, options.metric_samples, device),
        phases=phases,
        rounds=RecordedRounds(loss, device) if options.cuda_graphs else Rounds(loss),
        averages=MovingAverages(moved_by_forward_passes(G, loss)),
    )
    if state is not None:
        run.load_state_dict(state)
    run.done = run.is_complete
    distributed.broadcast_modules(run.networks.values())
    if options.rank == 0:
        data.seed_everything(options.random_seed, data.GRID)
        run.grid = ImageGrid(training_set, G.z_dim, options.batch_gpu, device)
        if state is None:
            print('Exporting sample images...')
            run.grid.save_reals(directory.reals_path)
            run.grid.save_fakes(G_ema, directory.fakes_init_path, **devices.precision(device))
    where = training_set, share, options.random_seed, run.progress.cur_nimg
    if not trains_D:
        run.batches = data.blank_batches(training_set, share, device)
    elif isinstance(training_set, TeacherDataset):
        run.batches = data.teacher_batches(*where)
    else:
        run.batches = data.real_batches(*where, device, **options.data_loader_kwargs)
    return run


def load_state(directory: RunDirectory, device: torch.device) -> dict[str, Any] | None:
    """The state from which all processes continue, which rank 0 chooses; None if there is none.

    Over a network file system, processes may see other files for a while.

    Raises:
        UserError: all states in the directory are damaged, or this process cannot read the one that was chosen.
    """
    own_choice = states.latest_state(directory) if distributed.is_rank_zero() else None
    chosen = distributed.broadcast_object(own_choice, device)
    if chosen is None:
        return None
    return states.read_verified(chosen[0]) if own_choice is not None else states.read_state(*chosen)


def set_backends(options: SimpleNamespace) -> None:
    """Set the switches of cuDNN and of the host's operations, which are global."""
    devices.set_backends(options.cudnn_benchmark, options.allow_tf32)
    conv2d_gradfix.enabled = True
    grid_sample_gradfix.enabled = True


def load_training_set(training_set_kwargs: dict):
    """The host's dataset."""
    print('Loading training set...')
    training_set = dnnlib.util.construct_class_by_name(**training_set_kwargs)
    drawn = isinstance(training_set, TeacherDataset)
    print(f'\nNum images:  {"without end, the teacher makes them" if drawn else len(training_set)}')
    print(f'Image shape: {training_set.image_shape}')
    print(f'Label shape: {training_set.label_shape}\n')
    return training_set


def build_networks(options: SimpleNamespace, training_set, device: torch.device):
    """G, D (None without `D_kwargs`) and G_ema for the images of a data set, with random weights."""
    print('Constructing networks...')
    data.seed_everything(options.random_seed, data.SETUP)
    shape = dict(
        c_dim=training_set.label_dim, img_resolution=training_set.resolution, img_channels=training_set.num_channels
    )
    G, D = (
        kwargs and dnnlib.util.construct_class_by_name(**kwargs, **shape).train().requires_grad_(False).to(device)
        for kwargs in (options.G_kwargs, options.D_kwargs)
    )
    return G, D, copy.deepcopy(G).eval()


def copy_weights(resume_pkl: str, G: Generator, D: torch.nn.Module | None, G_ema: Generator) -> None:
    """Copy what a network pickle has for these networks, by name."""
    print(f'Resuming from "{resume_pkl}"')
    resume_data = with_three_networks(pickles.load(resume_pkl))
    for name, module in [('G', G), ('D', D), ('G_ema', G_ema)]:
        if module is not None:
            misc.copy_params_and_buffers(resume_data[name], module, require_all=False)


def print_summaries(
    G: Generator, D: torch.nn.Module | None, G_ema: Generator, batch: int, device: torch.device
) -> None:
    """Print layers and shapes."""
    z, c = torch.zeros([batch, G.z_dim], device=device), torch.zeros([batch, G.c_dim], device=device)
    images = misc.print_module_summary(G_ema, [z, c])  # In G, the summary's latents would enter the average of W.
    if D is not None:
        misc.print_module_summary(D, [images, c])


def build_augmentation(options: SimpleNamespace, device: torch.device) -> tuple['AugmentPipe | None', Collector | None]:
    """The augmentation pipeline, and the statistics that ADA adapts its strength to; None where not in use."""
    if options.augment_kwargs is None or not (options.augment_p > 0 or options.ada_target is not None):
        return None, None
    print('Setting up augmentation...')
    pipe = dnnlib.util.construct_class_by_name(**options.augment_kwargs).train().requires_grad_(False).to(device)
    pipe.p.copy_(torch.as_tensor(options.augment_p))
    return pipe, None if options.ada_target is None else Collector(regex='Loss/signs/real')


def build_training(
    options: SimpleNamespace,
    G: Generator,
    D: torch.nn.Module | None,
    augment_pipe: 'AugmentPipe | None',
    device: torch.device,
) -> tuple[Any, list[Phase]]:
    """The loss, and the phases of G and, if there is one, D."""
    print('Setting up training phases...')
    loss = dnnlib.util.construct_class_by_name(
        device=device,
        G_mapping=G.mapping,
        G_synthesis=G.synthesis,
        D=D,
        augment_pipe=augment_pipe,
        **options.loss_kwargs,
    )
    trained = [
        ('G', G, options.G_opt_kwargs, options.G_reg_interval),
        ('D', D, options.D_opt_kwargs, options.D_reg_interval),
    ]
    return loss, build_phases([each for each in trained if each[1] is not None], device)


def moved_by_forward_passes(G: Generator, loss) -> list[torch.Tensor]:
    """The average of W, and that of path lengths where the loss regularises them as the host's does."""
    averages = [buffer for name, buffer in G.named_buffers() if name.endswith('w_avg')]
    return averages + ([loss.pl_mean] if hasattr(loss, 'pl_mean') else [])
