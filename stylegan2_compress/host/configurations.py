"""The host's published training configurations, as the arguments of a training loop.

`train.py` of the host turns its options into such arguments; `stylegan2-compress distill` has no `train.py` to ask,
so this is the same mapping once more. A test compares the two, option by option, wherever a real checkout is at hand.
"""

from dataclasses import dataclass

import dnnlib

from stylegan2_compress.arguments import require_choice, require_number
from stylegan2_compress.errors import UserError
from stylegan2_compress.host.datasets import open_training_set


@dataclass(frozen=True)
class Configuration:
    """One `--cfg` of the host."""

    reference_gpus: int  # The published batch was spread over so many.
    kimg: int
    batch: int
    mbstd: int  # Group size of the minibatch standard deviation layer.
    channel_base: int
    lr: float
    gamma: float  # Weight of the R1 penalty.
    ema_kimg: float
    ema_rampup: float | None
    mapping_layers: int


CONFIGURATIONS = {
    'stylegan2': Configuration(8, 25000, 32, 4, 32768, 0.002, 10, 10, None, 8),
    'paper256': Configuration(8, 25000, 64, 8, 16384, 0.0025, 1, 20, None, 8),
    'paper512': Configuration(8, 25000, 64, 8, 32768, 0.0025, 0.5, 20, None, 8),
    'paper1024': Configuration(8, 25000, 32, 4, 32768, 0.002, 2, 10, None, 8),
    'cifar': Configuration(2, 100000, 64, 32, 32768, 0.0025, 0.01, 500, 0.05, 2),
}

CHANNEL_MAX = 512
AUG = ('noaug', 'ada', 'fixed')

BLIT = dict(xflip=1, rotate90=1, xint=1)
GEOMETRY = dict(scale=1, rotate=1, aniso=1, xfrac=1)
COLOR = dict(brightness=1, contrast=1, lumaflip=1, hue=1, saturation=1)
FILTER, NOISE, CUTOUT = dict(imgfilter=1), dict(noise=1), dict(cutout=1)
AUGPIPES = {
    'blit': BLIT,
    'geom': GEOMETRY,
    'color': COLOR,
    'filter': FILTER,
    'noise': NOISE,
    'cutout': CUTOUT,
    'bg': BLIT | GEOMETRY,
    'bgc': BLIT | GEOMETRY | COLOR,
    'bgcf': BLIT | GEOMETRY | COLOR | FILTER,
    'bgcfn': BLIT | GEOMETRY | COLOR | FILTER | NOISE,
    'bgcfnc': BLIT | GEOMETRY | COLOR | FILTER | NOISE | CUTOUT,
}


def auto_configuration(resolution: int, gpus: int) -> Configuration:
    """The host's `--cfg=auto`: reasonable values from the resolution and the number of GPUs."""
    batch = max(min(gpus * min(4096 // resolution, 32), 64), gpus)
    return Configuration(
        reference_gpus=gpus,
        kimg=25000,
        batch=batch,
        mbstd=min(batch // gpus, 4),
        channel_base=32768 if resolution >= 512 else 16384,
        lr=0.002 if resolution >= 1024 else 0.0025,
        gamma=0.0002 * resolution**2 / batch,
        ema_kimg=batch * 10 / 32,
        ema_rampup=0.05,
        mapping_layers=2,
    )


def configuration_of(G) -> str:
    """The `--cfg` under which the host's authors trained generators like `G`, 'auto' where there is none."""
    synthesis = G.init_kwargs.get('synthesis_kwargs', {})
    if G.init_kwargs.get('mapping_kwargs', {}).get('num_layers', 8) != 8:
        return 'auto'
    shape = G.img_resolution, synthesis.get('channel_base', 32768), synthesis.get('channel_max', 512)
    return {
        (256, 16384, 512): 'paper256',
        (512, 32768, 512): 'stylegan2',
        (1024, 32768, 512): 'stylegan2',
    }.get(shape, 'auto')


def check_seed(seed: int) -> None:
    """Refuse what NumPy's older generator, which the host draws from, does not take."""
    if not 0 <= seed < 2**32:
        raise UserError(f'--seed={seed} must be a whole number from 0 on and below 2^32.')


def host_arguments(
    data: str,
    cfg: str = 'auto',
    gpus: int = 1,
    snap: int = 50,
    metrics: list[str] = [],
    seed: int = 0,
    cond: bool = False,
    subset: int | None = None,
    mirror: bool = False,
    gamma: float | None = None,
    kimg: int | None = None,
    batch: int | None = None,
    batch_gpu: int | None = None,
    aug: str = 'ada',
    p: float | None = None,
    target: float | None = None,
    augpipe: str = 'bgc',
    freezed: int | None = None,
    fp32: bool = False,
    workers: int = 3,
) -> tuple[str, dnnlib.EasyDict]:
    """Arguments of the host's training loop for the options of the host's `train.py`, by the same names.

    `batch_gpu` comes on top: how many images a GPU works on at a time, which is the configuration's share of a GPU by
    default, or all of `batch`.

    Returns:
        The name of the run and the loop's keyword arguments without `run_dir` and `rank`.

    Raises:
        UserError: for a dataset or an option that the host would refuse, too.
    """
    for option, value, choices in [
        ('--cfg', cfg, ['auto', *CONFIGURATIONS]),
        ('--aug', aug, AUG),
        ('--augpipe', augpipe, AUGPIPES),
    ]:
        require_choice(option, value, choices)
    training_set, training_set_kwargs = open_training_set(data)
    name = [training_set.name]
    if cond:
        if not training_set_kwargs.use_labels:
            raise UserError(f'The run needs labels (--cond, or of its teacher), but --data={data} has none.')
        name += ['cond']
    training_set_kwargs.use_labels = cond
    if subset is not None:
        if not 1 <= subset <= len(training_set):
            raise UserError(f'--subset={subset} must be between 1 and {len(training_set)}, the size of {data}.')
        name += [f'subset{subset}']
        if subset < len(training_set):
            training_set_kwargs.update(max_size=subset, random_seed=seed)
    if mirror:
        name += ['mirror']
        training_set_kwargs.xflip = True

    config = CONFIGURATIONS[cfg] if cfg != 'auto' else auto_configuration(training_set.resolution, gpus)
    name += [cfg if cfg != 'auto' else f'auto{gpus}']
    if gamma is not None:
        require_number('--gamma', gamma, least=0)
        name += [f'gamma{gamma:g}']
    if kimg is not None:
        if kimg < 1:
            raise UserError(f'--kimg={kimg} must be at least 1.')
        name += [f'kimg{kimg}']
    if batch is not None:
        if batch < 1 or batch % gpus:
            raise UserError(f'--batch={batch} must be at least 1 and divisible by --gpus={gpus}.')
        name += [f'batch{batch}']
    batch_size = batch or config.batch
    if batch_gpu is None:
        batch_gpu = (batch // gpus) if batch else config.batch // config.reference_gpus
    elif batch_gpu < 1 or batch_size % (batch_gpu * gpus):
        share = batch_size // gpus
        raise UserError(f'--batch-gpu={batch_gpu} must be at least 1 and divide {share}, the share of each GPU.')
    check_seed(seed)
    if snap < 1:
        raise UserError(f'--snap={snap} must be at least 1.')
    if workers < 0:
        raise UserError(f'--workers={workers} must not be negative.')

    fp16 = dict(num_fp16_res=0, conv_clamp=None) if fp32 else dict(num_fp16_res=4, conv_clamp=256)
    channels = dict(channel_base=config.channel_base, channel_max=CHANNEL_MAX)
    args = dnnlib.EasyDict(
        num_gpus=gpus,
        image_snapshot_ticks=snap,
        network_snapshot_ticks=snap,
        metrics=list(metrics),
        random_seed=seed,
        training_set_kwargs=training_set_kwargs,
        data_loader_kwargs=dnnlib.EasyDict(pin_memory=True, num_workers=workers, prefetch_factor=2),
        G_kwargs=dnnlib.EasyDict(
            class_name='training.networks.Generator',
            z_dim=512,
            w_dim=512,
            mapping_kwargs=dnnlib.EasyDict(num_layers=config.mapping_layers),
            synthesis_kwargs=dnnlib.EasyDict(channels | fp16),
        ),
        D_kwargs=dnnlib.EasyDict(
            class_name='training.networks.Discriminator',
            block_kwargs=dnnlib.EasyDict(),
            mapping_kwargs=dnnlib.EasyDict(),
            epilogue_kwargs=dnnlib.EasyDict(mbstd_group_size=config.mbstd),
            **channels,
            **fp16,
        ),
        loss_kwargs=dnnlib.EasyDict(
            class_name='training.loss.StyleGAN2Loss', r1_gamma=config.gamma if gamma is None else gamma
        ),
        total_kimg=kimg or config.kimg,
        batch_size=batch_size,
        batch_gpu=batch_gpu,
        ema_kimg=config.ema_kimg,
        ema_rampup=config.ema_rampup,
    )
    for opt_kwargs in ('G_opt_kwargs', 'D_opt_kwargs'):
        args[opt_kwargs] = dnnlib.EasyDict(class_name='torch.optim.Adam', lr=config.lr, betas=[0, 0.99], eps=1e-8)
    if workers == 0:
        del args.data_loader_kwargs['prefetch_factor']  # Only worker processes prefetch.
    if cfg == 'cifar':
        args.loss_kwargs.update(pl_weight=0, style_mixing_prob=0)
        args.D_kwargs.architecture = 'orig'

    name += augmentation_arguments(args, aug, p, target, augpipe)
    if freezed is not None:
        if freezed < 0:
            raise UserError(f'--freezed={freezed} must not be negative.')
        name += [f'freezed{freezed}']
        args.D_kwargs.block_kwargs.freeze_layers = freezed
    return '-'.join(name), args


def augmentation_arguments(
    args: dnnlib.EasyDict, aug: str, p: float | None, target: float | None, augpipe: str
) -> list[str]:
    """Add what `--aug` and its companions mean to the loop's arguments, and return their share of the run's name."""
    name = [aug] if aug != 'ada' else []
    if (p is not None) != (aug == 'fixed'):
        raise UserError(f'--p goes with --aug=fixed and only with it (got --aug={aug}, --p={p}).')
    if target is not None and aug != 'ada':
        raise UserError(f'--target={target:g} goes with --aug=ada only, not with --aug={aug}.')
    for option, value in [('--p', p), ('--target', target)]:
        if value is not None and not 0 <= value <= 1:
            raise UserError(f'{option}={value:g} must be between 0 and 1.')
    if aug == 'ada':
        args.ada_target = 0.6 if target is None else target
    if p is not None:
        args.augment_p = p
        name += [f'p{p:g}']
    if target is not None:
        name += [f'target{target:g}']
    if aug != 'noaug':
        args.augment_kwargs = dnnlib.EasyDict(class_name='training.augment.AugmentPipe', **AUGPIPES[augpipe])
    return name
