"""A training loop with the contract of the host's, on a CPU or one CUDA device."""

import copy

import dnnlib
import numpy as np
import torch
from metrics import metric_main
from torch_utils import misc, training_stats
from torch_utils.ops import conv2d_gradfix, grid_sample_gradfix

from stylegan2_compress import pickles
from stylegan2_compress.training_loops.monitor import Monitor
from stylegan2_compress.training_loops.phases import build_phases
from stylegan2_compress.training_loops.snapshots import ImageGrid, network_snapshot, snapshot_path


def training_loop(
    run_dir='.',
    training_set_kwargs={},
    data_loader_kwargs={},
    G_kwargs={},
    D_kwargs={},
    G_opt_kwargs={},
    D_opt_kwargs={},
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
):
    """Train G and D and leave in `run_dir` what the host's loop leaves there.

    The arguments are those of the host's `training.training_loop.training_loop`, which documents them; here
    `device` comes on top ('cpu', 'cuda', 'cuda:1'; CUDA where there is one by default). Differences to the host: the
    randomness of a step comes from (random_seed, rank, images seen) alone, latents are drawn only for the phases that
    run, and pickles are read without executing anything in them.

    Raises:
        ValueError: if more than one process is asked for; this loop runs in one.
    """
    if num_gpus != 1 or rank != 0:
        raise ValueError('stylegan2_compress.training_loops.distillation runs in one process; for several GPUs use '
                         "the host's loop, --loop=training.training_loop.training_loop.")  # fmt: skip
    device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    torch.backends.cudnn.benchmark = cudnn_benchmark
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    torch.backends.cudnn.allow_tf32 = allow_tf32
    conv2d_gradfix.enabled = True
    grid_sample_gradfix.enabled = True
    precision = {'force_fp32': True} if device.type == 'cpu' else {}
    monitor = Monitor(run_dir, total_kimg, device)

    print('Loading training set...')
    seed_step(random_seed, rank, cur_nimg=0)
    training_set = dnnlib.util.construct_class_by_name(**training_set_kwargs)
    images_and_labels = iter(
        torch.utils.data.DataLoader(
            dataset=training_set,
            sampler=misc.InfiniteSampler(training_set, rank=rank, num_replicas=num_gpus, seed=random_seed),
            batch_size=batch_size // num_gpus,
            **data_loader_kwargs,
        )
    )
    print(f'\nNum images:  {len(training_set)}')
    print(f'Image shape: {training_set.image_shape}')
    print(f'Label shape: {training_set.label_shape}\n')

    print('Constructing networks...')
    shape = dict(
        c_dim=training_set.label_dim, img_resolution=training_set.resolution, img_channels=training_set.num_channels
    )
    G, D = (
        dnnlib.util.construct_class_by_name(**kwargs, **shape).train().requires_grad_(False).to(device)
        for kwargs in (G_kwargs, D_kwargs)
    )
    G_ema = copy.deepcopy(G).eval()
    if resume_pkl is not None:
        print(f'Resuming from "{resume_pkl}"')
        resume_data = pickles.load(resume_pkl)
        for name, module in [('G', G), ('D', D), ('G_ema', G_ema)]:
            misc.copy_params_and_buffers(resume_data[name], module, require_all=False)
    z, c = torch.zeros([batch_gpu, G.z_dim], device=device), torch.zeros([batch_gpu, G.c_dim], device=device)
    images = misc.print_module_summary(G_ema, [z, c])  # In G, the summary's latents would enter the average of W.
    misc.print_module_summary(D, [images, c])

    augment_pipe = ada_stats = None
    if augment_kwargs is not None and (augment_p > 0 or ada_target is not None):
        print('Setting up augmentation...')
        augment_pipe = dnnlib.util.construct_class_by_name(**augment_kwargs).train().requires_grad_(False).to(device)
        augment_pipe.p.copy_(torch.as_tensor(augment_p))
        if ada_target is not None:
            ada_stats = training_stats.Collector(regex='Loss/signs/real')

    print('Setting up training phases...')
    loss = dnnlib.util.construct_class_by_name(
        device=device, G_mapping=G.mapping, G_synthesis=G.synthesis, D=D, augment_pipe=augment_pipe, **loss_kwargs
    )
    phases = build_phases([('G', G, G_opt_kwargs, G_reg_interval), ('D', D, D_opt_kwargs, D_reg_interval)], device)
    G_parameters, G_ema_parameters = list(G.parameters()), list(G_ema.parameters())

    print('Exporting sample images...')
    grid = ImageGrid(training_set, G.z_dim, batch_gpu, device)
    grid.save_reals(f'{run_dir}/reals.png')
    grid.save_fakes(G_ema, f'{run_dir}/fakes_init.png', **precision)

    print(f'Training for {total_kimg} kimg...\n')
    cur_nimg = cur_tick = tick_start_nimg = batch_idx = 0
    monitor.begin()
    if progress_fn is not None:
        progress_fn(0, total_kimg)
    done = False
    while not done:
        real_img, real_c = next(images_and_labels)
        real_img = (real_img.to(device).to(torch.float32) / 127.5 - 1).split(batch_gpu)
        real_c = real_c.to(device).split(batch_gpu)
        labels = seed_step(random_seed, rank, cur_nimg)

        for phase in phases:
            if batch_idx % phase.interval != 0:
                continue
            gen_z = torch.randn([batch_size // num_gpus, G.z_dim], device=device).split(batch_gpu)
            gen_c = [training_set.get_label(i) for i in labels.integers(len(training_set), size=batch_size // num_gpus)]
            gen_c = torch.from_numpy(np.stack(gen_c)).to(device).split(batch_gpu)
            phase.begin()
            for round_idx, (img, img_c, z, c) in enumerate(zip(real_img, real_c, gen_z, gen_c, strict=True)):
                loss.accumulate_gradients(
                    phase=phase.name,
                    real_img=img,
                    real_c=img_c,
                    gen_z=z,
                    gen_c=c,
                    sync=round_idx == len(real_img) - 1,
                    gain=phase.interval,
                )
            phase.finish()

        ema_nimg = ema_kimg * 1000 if ema_rampup is None else min(ema_kimg * 1000, cur_nimg * ema_rampup)
        ema_beta = 0.5 ** (batch_size / max(ema_nimg, 1e-8))
        torch._foreach_lerp_(G_ema_parameters, G_parameters, 1 - ema_beta)
        for average, buffer in zip(G_ema.buffers(), G.buffers(), strict=True):
            average.copy_(buffer)

        cur_nimg += batch_size
        batch_idx += 1
        monitor.advance(batch_size)

        if ada_stats is not None and batch_idx % ada_interval == 0:
            ada_stats.update()
            direction = np.sign(ada_stats['Loss/signs/real'] - ada_target)
            step = direction * (batch_size * ada_interval) / (ada_kimg * 1000)
            augment_pipe.p.copy_((augment_pipe.p + step).clamp(min=0))

        done = cur_nimg >= total_kimg * 1000
        if not done and cur_tick != 0 and cur_nimg < tick_start_nimg + kimg_per_tick * 1000:
            continue

        # Once per tick: say where we are, save, evaluate.
        monitor.print_tick(cur_tick, cur_nimg, float(augment_pipe.p) if augment_pipe is not None else 0.0)
        if not done and abort_fn is not None and abort_fn():
            done = True
            print('\nAborting...')
        if image_snapshot_ticks is not None and (done or cur_tick % image_snapshot_ticks == 0):
            grid.save_fakes(G_ema, snapshot_path(run_dir, 'fakes', cur_nimg, '.png'), **precision)
        if network_snapshot_ticks is not None and (done or cur_tick % network_snapshot_ticks == 0):
            networks = dict(G=G, D=D, G_ema=G_ema, augment_pipe=augment_pipe)
            snapshot = network_snapshot(networks, training_set_kwargs)
            snapshot_pkl = snapshot_path(run_dir, 'network-snapshot-', cur_nimg, '.pkl')
            pickles.save(snapshot_pkl, snapshot)
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
                metric_main.report_metric(result, run_dir=run_dir, snapshot_pkl=snapshot_pkl)
            del snapshot
        monitor.end_tick(phases, cur_nimg)
        if progress_fn is not None:
            progress_fn(cur_nimg // 1000, total_kimg)
        cur_tick += 1
        tick_start_nimg = cur_nimg

    monitor.close()
    print('\nExiting...')


def seed_step(random_seed: int, rank: int, cur_nimg: int) -> np.random.Generator:
    """Make this step's randomness a function of (seed, rank, images seen) alone.

    Seeds torch on every device and returns a NumPy generator for the labels, so that a step needs nothing of the
    steps before it.
    """
    torch_seed, numpy_seed = np.random.SeedSequence([random_seed, rank, cur_nimg]).generate_state(2, np.uint64)
    torch.manual_seed(int(torch_seed))
    return np.random.default_rng(numpy_seed)
