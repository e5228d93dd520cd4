"""The host's published training configurations, as arguments of a training loop.

The host's `train.py` makes such arguments from its options. `stylegan2-compress distill` works without a `train.py`, so
the same mapping is written down here. A test compares the two, option by option, if a real checkout is available.
"""

import math
from dataclasses import dataclass

import dnnlib
from training.networks import Discriminator, Generator

from stylegan2_compress.arguments import LAST_SEED, require_choice, require_number, require_whole_number
from stylegan2_compress.errors import UserError
from stylegan2_compress.host.datasets import open_training_set


@dataclass(frozen=True)
class Configuration:
    """One `--cfg` of the host."""

    reference_gpus: int  # Number of GPUs that share the published batch.
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


def configuration_name(G: Generator, D: Discriminator | None) -> str:
    """The `--cfg` with which the host's authors trained networks of this shape; 'auto' if there is none.

    At 1024 pixels, 'paper1024' (MetFaces) has the shapes of 'stylegan2' (FFHQ), which is taken.
    """
    synthesis = G.init_kwargs.get('synthesis_kwargs', {})
    if D is not None and D.init_kwargs.get('architecture', 'resnet') == 'orig':
        return 'cifar'  # At any resolution; no other has such a D. Its generators have never seen mixed styles.
    if G.init_kwargs.get('mapping_kwargs', {}).get('num_layers', 8) != 8:
        return 'auto'
    epilogue = {} if D is None else D.init_kwargs.get('epilogue_kwargs', {})
    if G.img_resolution == 512 and epilogue.get('mbstd_group_size') == CONFIGURATIONS['paper512'].mbstd:
        return 'paper512'
    shape = G.img_resolution, synthesis.get('channel_base', 32768), synthesis.get('channel_max', 512)
    return {
        (256, 16384, 512): 'paper256',
        (512, 32768, 512): 'stylegan2',
        (1024, 32768, 512): 'stylegan2',
    }.get(shape, 'auto')


def check_seed(seed: int) -> None:
    """Check that a seed is one for NumPy's `RandomState`, which the host draws from.

    Raises:
        UserError: it is not.
    """
    require_whole_number('--seed', seed, least=0, most=LAST_SEED)


def loop_arguments(
    data: str | tuple[str, dnnlib.EasyDict],
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
    nhwc: bool = False,
    allow_tf32: bool = False,
    nobench: bool = False,
    workers: int = 3,
) -> tuple[str, dnnlib.EasyDict]:
    """Arguments of the host's training loop from the options of the host's `train.py`, which have the same names.

    One option is ours: `batch_gpu`, the number of images that a GPU processes at a time. By default it is a GPU's share
    in the published configuration, or of `batch` if that is given. And `data` may be, instead of a path, the name and
    the constructor arguments of a dataset, for which `cond`, `subset` and `mirror` do nothing.

    Returns:
        The name of the run and the loop's keyword arguments without `run_dir` and `rank`.

    Raises:
        UserError: the dataset cannot be used, or an option has a value that the host refuses, too.
    """
    require_choice('--cfg', cfg, ['auto', *CONFIGURATIONS])
    check_seed(seed)
    for option, number, least in [
        ('--kimg', kimg, 1),
        ('--batch', batch, 1),
        ('--batch-gpu', batch_gpu, 1),
        ('--snap', snap, 1),
        ('--workers', workers, 0),
        ('--freezed', freezed, 0),
    ]:
        if number is not None:
            require_whole_number(option, number, least)
    if gamma is not None:
        require_number('--gamma', gamma, least=0)

    dataset_name, training_set_kwargs = (
        dataset_arguments(data, cond, subset, mirror, seed) if isinstance(data, str) else data
    )
    config = CONFIGURATIONS[cfg] if cfg != 'auto' else auto_configuration(training_set_kwargs.resolution, gpus)
    name = [dataset_name, cfg if cfg != 'auto' else f'auto{gpus}']
    name += [f'gamma{gamma:g}'] if gamma is not None else []
    name += [f'{option}{value}' for option, value in (('kimg', kimg), ('batch', batch)) if value is not None]

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
        batch_size=batch or config.batch,
        batch_gpu=images_at_a_time(config, gpus, batch, batch_gpu),
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

    augmentation_name, augmentation = augmentation_arguments(aug, p, target, augpipe)
    name += augmentation_name
    args.update(augmentation)
    if freezed is not None:
        name += [f'freezed{freezed}']
        args.D_kwargs.block_kwargs.freeze_layers = freezed
    if nhwc:
        args.G_kwargs.synthesis_kwargs.fp16_channels_last = args.D_kwargs.block_kwargs.fp16_channels_last = True
    if allow_tf32:
        args.allow_tf32 = True
    if nobench:
        args.cudnn_benchmark = False
    return '-'.join(name), args


def dataset_arguments(
    data: str, cond: bool, subset: int | None, mirror: bool, seed: int
) -> tuple[str, dnnlib.EasyDict]:
    """The dataset's share of the run's name, and the constructor arguments of the dataset.

    Raises:
        UserError: the dataset cannot be used, has no labels for `cond`, or is smaller than `subset`.
    """
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
    return '-'.join(name), training_set_kwargs


def images_at_a_time(config: Configuration, gpus: int, batch: int | None, batch_gpu: int | None) -> int:
    """How many images a GPU processes at a time: `batch_gpu`, or by default as `loop_arguments` says.

    Raises:
        UserError: the batch cannot be divided like that.
    """
    if batch is not None and batch % gpus:
        raise UserError(f'--batch={batch} must be divisible by --gpus={gpus}.')
    if batch is None and config.batch % gpus:
        raise UserError(
            f'The configuration has a batch of {config.batch} images, which is not divisible by --gpus={gpus}: give '
            '--batch.'
        )
    share = (batch or config.batch) // gpus
    if batch_gpu is None:  # On more GPUs than the host's authors had, a share is less than they had at a time.
        return share if batch else math.gcd(share, config.batch // config.reference_gpus)
    if share % batch_gpu:
        raise UserError(f'--batch-gpu={batch_gpu} must divide {share}, the share of each GPU.')
    return batch_gpu


def augmentation_arguments(
    aug: str, p: float | None, target: float | None, augpipe: str
) -> tuple[list[str], dnnlib.EasyDict]:
    """The augmentation's share of the run's name, and its arguments of the training loop.

    Raises:
        UserError: a value is not allowed, or not with this `aug`.
    """
    require_choice('--aug', aug, AUG)
    require_choice('--augpipe', augpipe, AUGPIPES)
    if p is None and aug == 'fixed':
        raise UserError('--aug=fixed needs --p, the probability of an augmentation, such as --p=0.2.')
    if p is not None and aug != 'fixed':
        raise UserError(f'--p={p:g} goes with --aug=fixed only, not with --aug={aug}.')
    if target is not None and aug != 'ada':
        raise UserError(f'--target={target:g} goes with --aug=ada only, not with --aug={aug}.')
    name, args = [aug] if aug != 'ada' else [], dnnlib.EasyDict()
    if aug == 'ada':
        args.ada_target = 0.6 if target is None else target
    for option, argument, value in [('p', 'augment_p', p), ('target', 'ada_target', target)]:
        if value is not None:
            require_number(f'--{option}', value, least=0, most=1)
            args[argument] = value
            name += [f'{option}{value:g}']
    if aug != 'noaug':
        args.augment_kwargs = dnnlib.EasyDict(class_name='training.augment.AugmentPipe', **AUGPIPES[augpipe])
    return name, args
