"""The options of runs, each declared once. Nothing here imports torch or the host."""

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, replace
from typing import Any

from stylegan2_compress import arguments, files
from stylegan2_compress.arguments import LAST_SEED, again, argument, device_argument
from stylegan2_compress.errors import UserError
from stylegan2_compress.runs.directory import name_network_files
from stylegan2_compress.runs.loops import HOST_LOOP, OUR_LOOP
from stylegan2_compress.runs.trackers import TRACKERS, require_tracker

HOST_LOSS = 'training.loss.StyleGAN2Loss'
DEFAULT_RATIO = 0.7
ONLY = ('G_ema',)
WEIGHT_INIT, TRAINED_INIT = 'signed-constant', 'kaiming-normal'
# Options of pruning that are for criteria, and the criteria that do not look at all of them.
JUDGING = ('samples', 'batch', 'seed')
JUDGED_BY = {'l1': (), 'l1-styled': ('seed',), 'random': ('seed',)}
ABOUT_THE_COMMAND = ('outdir', 'resume', 'dry_run')  # Options that do not change what a run is.


class Options:
    """What the dataclasses of options share."""

    def given(self, *names: str) -> dict[str, Any]:
        """The options of these names that are not None."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class MethodOptions:
    """What the patched `train.py` takes beside its own options, and `distill` as well."""

    loss: str | None = argument(
        'Loss class, any importable name: stylegan2_compress.DiMELoss, …',
        None,
        default_text=HOST_LOSS,
        metavar='CLASS',
    )
    loss_args: tuple[str, ...] | Mapping[str, Any] = argument(
        'Argument of the loss class; may be repeated.', (), metavar='KEY=VALUE'
    )
    teacher: str | None = argument('Network pickle (path or URL) to learn from.', None, metavar='PKL|RUN_DIR')
    student: str | None = argument(
        'Network pickle to train: shapes and weights come from it, whatever --cfg says about shapes.',
        None,
        metavar='PKL|RUN_DIR',
    )
    loop: str | None = argument(
        'Training loop.', None, default_text=f'{HOST_LOOP} with CUDA, {OUR_LOOP} without', metavar='MODULE.FUNCTION'
    )

    def __post_init__(self):
        name_network_files(self, 'teacher', 'student')


@dataclass(frozen=True)
class TrainingOptions(Options):
    """What every run of ours takes.

    Raises:
        UserError: what can be known without reading files: a value is not allowed, nothing can be written to `outdir`,
            or what is written would be data.
    """

    data: str = argument("Training images: directory or zip in the host's format.", metavar='PATH')
    outdir: str = argument('Where the run directory is created.', metavar='DIR')
    cfg: str | None = argument('Base configuration of the host.', None, default_text='auto', metavar='NAME')
    kimg: int | None = argument(
        'Length of the run in thousands of images.', None, least=1, default_text="the configuration's"
    )
    batch: int | None = argument('Batch size.', None, least=1, default_text="the configuration's")
    lr: float | None = argument('Learning rate.', None, least=0, most=10)
    lr_decay: float | None = argument(
        'Share of the run, its last, in which learning rates fall to 0 in a straight line.',
        None,
        least=0,
        most=1,
        default_text='0',
        metavar='SHARE',
    )
    ema_kimg: float | None = argument(
        'Half-life of the average that G_ema is, in thousands of images.', None, least=0, metavar='N'
    )
    mirror: bool | None = argument('Add flipped images.', None, default_text='false')
    cond: bool | None = argument("Use the data set's labels.", None, default_text='if the teacher does')
    subset: int | None = argument('Train with only N images.', None, default_text='all')
    snap: int | None = argument('Ticks between snapshots.', None, least=1, default_text='50', metavar='TICKS')
    kimg_per_tick: float | None = argument(
        'Thousands of images between progress lines.', None, above=0, default_text='4', metavar='N'
    )
    seed: int | None = argument('Random seed.', None, least=0, most=LAST_SEED, default_text='0')
    workers: int | None = argument('DataLoader worker processes.', None, least=0, default_text='3')
    gpus: int | None = argument('Processes, each with a GPU or a share of the CPU.', None, least=1, default_text='1')
    state_kimg: float | None = argument(
        'Thousands of images between states to continue from.', None, least=0, default_text='40', metavar='N'
    )
    resume: str | None = argument(
        'Continue a run: that one, or the newest with the same options.', None, metavar='latest|RUN_DIR'
    )
    track: str | None = argument(
        'Report to a tracker, too; off line and without an account, nothing is sent.',
        None,
        choices=TRACKERS,
        metavar='wandb|trackio',
    )
    device: str | None = device_argument('Where to train:')
    cuda_graphs: bool | None = argument(
        'Record steps as CUDA graphs: small networks train several times as fast. One GPU, no augmentation.',
        None,
        default_text='false',
    )
    dry_run: bool = argument('Print the options and exit.', False, flag=True, short='-n')

    def __post_init__(self):
        arguments.check(self)
        require_tracker(self.track)
        files.require_writable_directory('--outdir', self.outdir)
        require_outside_data(self.data, self.outdir, self.resume)

    def lr_decay_kimg(self, total_kimg: float) -> dict[str, list[float]]:
        """The argument of our loops for `lr_decay`, in a run of that length; nothing if rates stay as they are."""
        return {'lr_decay_kimg': [total_kimg * (1 - self.lr_decay), total_kimg]} if self.lr_decay else {}


def require_outside_data(data: str | None, outdir: str, resume: str | None) -> None:
    """Check that a run is not written into its data, where its images would be some of them.

    Args:
        data: directory or zip. The host reads a directory with all that are in it.
        outdir: where the run directory is created.
        resume: the run that is continued, if that is named.

    Raises:
        UserError: it is.
    """
    if data is None or not os.path.isdir(data):
        return
    places = [('--outdir', outdir, 'name a directory elsewhere')]
    if resume is not None and os.path.isdir(resume):
        places.append(('--resume', resume, 'move it elsewhere'))
    for option, place, way_out in places:
        if files.is_inside(place, data):
            raise UserError(f'{option}={place} is inside --data={data}, and its images would become data: {way_out}.')


# Options that decide the host's arguments, in `configurations.loop_arguments` by the same names.
_HOST_TRAINING = ('cfg', 'snap', 'seed', 'cond', 'subset', 'mirror', 'kimg', 'batch', 'workers')


@dataclass(frozen=True)
class DistillOptions(TrainingOptions, MethodOptions):
    """The options of `distill`. What is not given is read off the teacher, or is the configuration's that it fits."""

    teacher: str = again(
        MethodOptions, 'teacher', default=MISSING, help='Network pickle to learn from.', metavar='PKL|RUN_DIR|URL'
    )
    student: str | None = again(
        MethodOptions,
        'student',
        help='Network pickle to start from.',
        default_text='the teacher, pruned',
        metavar='PKL|RUN_DIR|URL',
    )
    data: str | None = again(
        TrainingOptions, 'data', default=None, default_text="the teacher's own images are the real ones"
    )
    truncation: float = argument("Without --data: of the teacher's images.", 1.0, metavar='PSI')
    labels: str | None = argument(
        'Without --data, for a teacher with labels: classes to draw, such as 0,3,3, or those of a dataset.json.',
        None,
        default_text='all, equally often',
        metavar='CLASSES',
    )
    ratio: float | None = argument(
        'Without --student: share of channels to cut.', None, default_text=f'{DEFAULT_RATIO}', metavar='P'
    )
    criterion: str | None = argument(
        'Without --student: how channels are chosen, see `prune`.', None, default_text='l1', metavar='NAME'
    )
    loss: str = again(MethodOptions, 'loss', default='stylegan2_compress.DiMELoss', default_text='', help='Loss class.')
    loop: str | None = again(MethodOptions, 'loop', default_text='ours')
    cfg: str | None = again(TrainingOptions, 'cfg', default_text='the one the teacher fits, or auto')
    batch_gpu: int | None = argument(
        'How much of the batch a GPU works on at a time; DiME compares that many images.',
        None,
        least=1,
        default_text="the configuration's",
    )
    gamma: float | None = argument('Weight of the R1 penalty.', None, least=0, default_text="the configuration's")
    lr: float | None = again(TrainingOptions, 'lr', help='Learning rate of generator and discriminator.')
    pl_weight: float | None = argument(
        'Weight of path length regularisation; 0 switches it off.', None, least=0, default_text="the loss's"
    )
    aug: str | None = argument('Augmentation.', None, default_text='noaug, as in the paper', metavar='noaug|ada|fixed')
    p: float | None = argument('Augmentation probability for --aug=fixed.', None, least=0, most=1)
    target: float | None = argument('ADA target for --aug=ada.', None, least=0, most=1, default_text='0.6')
    augpipe: str | None = argument('Augmentation pipeline.', None, default_text='bgc', metavar='NAME')
    freezed: int | None = argument('Freeze the first N layers of the discriminator.', None, least=0)
    fp32: bool | None = argument(
        'No mixed precision of what trains, and of the teacher beside it, whatever the pickles were trained with.',
        None,
        default_text='false; on a CPU always true',
    )
    nhwc: bool | None = argument('FP16 blocks have the memory format NHWC (channels last).', None, default_text='false')
    allow_tf32: bool | None = argument('Let CUDA round FP32 products to TF32.', None, default_text='false')
    nobench: bool | None = argument("Without cuDNN's search for its fastest algorithms.", None, default_text='false')
    metrics: str = argument(
        'Metrics of snapshots, as in `evaluate`, or none; the best by the first is kept as best.pkl.',
        'none',
        metavar='NAME,…',
    )
    metric_samples: int | None = argument(
        "Images of metrics that are not the host's.", None, least=10, default_text='as named, 50k', metavar='N'
    )
    only: str | None = argument(
        'Leave G and D out of snapshots: a third of the size or less, but not to be trained on with a discriminator.',
        None,
        choices=ONLY,
        metavar='G_ema',
    )

    def __post_init__(self):
        super().__post_init__()
        MethodOptions.__post_init__(self)
        for option in ('ratio', 'criterion'):
            value = getattr(self, option)
            if self.student is not None and value is not None:
                raise UserError(
                    f'--student={self.student} and --{option}={value} exclude each other: a student is pruned already.'
                )
        for option in ('mirror', 'cond', 'subset'):
            value = getattr(self, option)
            if self.data is None and value is not None:
                raise UserError(f"--{option}={value} is about --data: leave it out to train with the teacher's images.")
        if self.data is None and self.metrics.lower() not in ('', 'none'):
            raise UserError(
                f'--metrics={self.metrics} compares with --data: give both, or evaluate the run afterwards.'
            )
        for option, value, default in [('truncation', self.truncation, 1), ('labels', self.labels, None)]:
            if self.data is not None and value != default:
                raise UserError(
                    f"--{option}={value} is about the teacher's images, which are the real ones without --data only: "
                    'leave one of the two out.'
                )

    def host_options(self) -> dict[str, Any]:
        """Those that `configurations.loop_arguments` takes, as far as they are given; `gpus` and `metrics` are not."""
        own = (
            'batch_gpu',
            'gamma',
            'aug',
            'p',
            'target',
            'augpipe',
            'freezed',
            'fp32',
            'nhwc',
            'allow_tf32',
            'nobench',
        )
        return self.given(*_HOST_TRAINING, *own)


@dataclass(frozen=True)
class Preset:
    """What `find-ticket` takes for options that are not given."""

    masked: tuple[str, ...]
    density: str  # With rules that go layer by layer.
    embedding: str
    score_init: str | None  # None: what the rule wants.
    lr: float | None  # None: from the length of the run, see `TicketOptions.learning_rate`.
    lr_decay: float
    betas: tuple[float, float]
    ema_share: float | None  # `ema_kimg` as a share of the run; None: the configuration's.
    loss_args: Mapping[str, Any]


PRESETS = {
    'steady': Preset(
        masked=('*weight',),
        density='erk-odds',
        embedding='efficientnet_lite0@size=image',
        score_init=None,
        lr=None,
        lr_decay=1,
        betas=(0.5, 0.95),
        ema_share=0.02,
        loss_args={'normalize': True, 'moments_penalty': 1, 'side_power': 1},
    ),
    'paper': Preset(
        masked=('*weight', '*bias'),
        density='uniform',
        embedding='vgg19_bn',
        score_init='uniform',
        lr=5e-5,
        lr_decay=0,
        betas=(0.5, 0.999),
        ema_share=None,
        loss_args={'moving_average_lr': 1e-5, 'normalize': False, 'moments_penalty': 0, 'side_power': 0},
    ),
}
# What a search compares images by: v, or an estimator of `losses.estimators`, which imports torch.
LAYER_MOMENTS = 'layer-moments'
DISTANCES = (LAYER_MOMENTS, 'moments', 'squared-moments', 'linear', 'rbf', 'cubic')
SCORE_TRAVEL, MOST_LR = 2.4, 2e-3
WEIGHTS_LR = 2.5e-3  # The host's, of a generator's weights.


@dataclass(frozen=True)
class TicketOptions(TrainingOptions):
    """The options of `find-ticket`."""

    preset: str = argument(
        'Where options that are not given come from: ours, or the paper and its public code.',
        'steady',
        choices=PRESETS,
        metavar='steady|paper',
    )
    teacher: str | None = argument(
        'Mask the weights of its G_ema.', None, default_text='random weights', metavar='PKL|RUN_DIR|URL'
    )
    reference: str = argument('Whose moments to match.', 'data', choices=('data', 'teacher'), metavar='data|teacher')
    keep: float = argument('Share of weights to keep.', 0.1, above=0, most=1, metavar='K')
    rule: str = argument(
        'edge-popup, signed-edge-popup, global-edge-popup, gem-miner, imp, or an importable name.', 'edge-popup'
    )
    density: str | None = argument(
        'Whether each layer keeps the same share (paper) or small layers keep more of theirs, with rules that go layer '
        'by layer.',
        None,
        default_text='erk-odds',
        metavar='uniform|erk|erk-odds',
    )
    distance: str = argument(
        'What is made small: differences of moments in all layers of the embedding (paper), or a distance of '
        "DiME's between its features.",
        LAYER_MOMENTS,
        choices=DISTANCES,
        metavar='NAME',
    )
    masked: tuple[str, ...] = argument(
        'Weights to mask; may be repeated.', (), default_text='*weight', metavar='PATTERN'
    )
    unmasked: tuple[str, ...] = argument('Exceptions, such as "mapping.*"; may be repeated.', (), metavar='PATTERN')
    train_unmasked: bool = argument(
        'Train what is not masked (biases, constants, noise strengths) and a factor of each masked weight.',
        False,
        flag=True,
    )
    weight_init: str | None = argument(
        'signed-constant or kaiming-normal.',
        None,
        default_text=f'{WEIGHT_INIT}; {TRAINED_INIT} for imp',
        metavar='NAME',
    )
    score_init: str | None = argument(
        'kaiming-uniform, uniform, unit.', None, default_text='what the rule wants', metavar='NAME'
    )
    embedding: str | None = argument(
        'Network in whose layers moments are matched.',
        None,
        default_text='efficientnet_lite0@size=image',
        metavar='SPEC',
    )
    loss_args: tuple[str, ...] | Mapping[str, Any] = again(
        MethodOptions, 'loss_args', help='Argument of the loss; may be repeated.'
    )
    lr: float | None = again(
        TrainingOptions,
        'lr',
        help='Learning rate of scores.',
        above=0,
        default_text=f'from the length of the run, at most {MOST_LR:g}; {WEIGHTS_LR:g} for imp',
    )
    lr_decay: float | None = again(TrainingOptions, 'lr_decay', default_text='1; 0 for imp')
    snap: int | None = again(TrainingOptions, 'snap', default_text='ten in a run, at most 50')
    batch: int = again(TrainingOptions, 'batch', default=64, default_text='')
    ema_kimg: float | None = again(
        TrainingOptions,
        'ema_kimg',
        help='Half-life of the averaged scores in thousands of images.',
        default_text='0.02 of the run',
    )
    z_dim: int | None = argument('Width of z, of random weights.', None, least=1, most=2**14)
    w_dim: int | None = argument('Width of w, of random weights.', None, least=1, most=2**14)
    channel_base: int | None = argument('Channels times resolution, of random weights.', None, least=1, most=2**20)
    channel_max: int | None = argument('Most channels of a layer, of random weights.', None, least=1, most=2**14)
    mapping_layers: int | None = argument('Layers of the mapping network, of random weights.', None, least=1, most=100)
    eval_embedding: str | None = argument(
        'In whose features snapshots are compared.', None, default_text='the same', metavar='SPEC'
    )
    eval_samples: int = argument('Images for that.', 2000, least=2, most=10**6)

    def __post_init__(self):
        super().__post_init__()
        name_network_files(self, 'teacher')
        if self.reference == 'teacher' and self.teacher is None:
            raise UserError('--reference=teacher needs --teacher=PKL.')
        if self.weight_init is not None and self.teacher is not None:
            raise UserError(
                f"--weight-init={self.weight_init} and --teacher exclude each other: the weights are the teacher's."
            )
        for name, value in self.shape().items():
            if self.teacher is not None:
                raise UserError(
                    f"--{name.replace('_', '-')}={value} and --teacher exclude each other: the shape is the teacher's."
                )

    def settled(self, trains_weights: bool) -> 'TicketOptions':
        """The same options, with those of the preset that are known before the length of the run.

        Args:
            trains_weights: whether the rule trains weights instead of scores, and rewinds them until late in the run.
        """
        preset = PRESETS[self.preset]
        if trains_weights:
            # Biases start alike: by size, all of them would be left out together.
            preset = replace(preset, lr=WEIGHTS_LR, lr_decay=0, masked=PRESETS['steady'].masked)
        names = ('masked', 'embedding', 'lr', 'lr_decay')
        return replace(self, **{name: getattr(preset, name) for name in names if getattr(self, name) in (None, ())})

    @property
    def compared_in(self) -> str:
        """The embedding in whose features snapshots are compared."""
        return self.eval_embedding or self.embedding or PRESETS[self.preset].embedding

    def learning_rate(self, total_kimg: float, images_of_a_step: int) -> float:
        """Adam's learning rate of scores: the given one, or one with which they go as far in a run of any length.

        At a constant rate, a score goes up to SCORE_TRAVEL; in short runs less, because larger steps than MOST_LR are
        mostly noise.

        Args:
            total_kimg: length of the run in thousands of images.
            images_of_a_step: how many images there are from one step of the scores to the next.
        """
        if self.lr is not None:
            return self.lr
        return min(SCORE_TRAVEL * images_of_a_step / (1000 * total_kimg), MOST_LR)

    def averaging(self, total_kimg: float) -> dict[str, float]:
        """The argument of our loops for `ema_kimg`; nothing for the configuration's."""
        share = PRESETS[self.preset].ema_share
        if self.ema_kimg is not None or share is None:
            return self.given('ema_kimg')
        return {'ema_kimg': share * total_kimg}

    def shape(self) -> dict[str, int]:
        """The sizes of a random generator that are given."""
        return self.given('z_dim', 'w_dim', 'channel_base', 'channel_max', 'mapping_layers')

    def host_options(self) -> dict[str, Any]:
        """Those that `configurations.loop_arguments` takes, as far as they are given; `gpus` is not."""
        return self.given(*_HOST_TRAINING)


@dataclass(frozen=True)
class PruneOptions(Options):
    """The options of `prune`."""

    teacher: str = argument('Network pickle whose G_ema is pruned.', metavar='PKL|RUN_DIR|URL')
    ratio: float | None = argument('Part, in [0, 1), of the channels of every layer to leave out.', None, metavar='P')
    widths: str | None = argument(
        'Instead: channels to keep by resolution; the others stay whole.', None, metavar='RES:N,…'
    )
    multiple_of: int = argument(
        'Round widths up to a multiple of N, as far as there are channels.', 1, least=1, default_text='1', metavar='N'
    )
    criterion: str = argument(
        'How channels are chosen: l1, l1-styled, random, content-aware, diversity, or an importable name.',
        'l1',
        metavar='NAME',
    )
    init: str = argument('Then change the weights: none, svs, or an importable name.', 'none', metavar='NAME')
    samples: int | None = argument('Images to judge by.', None, least=1, most=10**7, default_text='400')
    batch: int | None = argument('Images at a time.', None, least=1, default_text='8')
    seed: int | None = argument('Seed of the criterion.', None, least=0, most=LAST_SEED, default_text='0')
    mask: str | None = argument(
        'TorchScript: images [N,C,H,W] in [-1,1] to content masks [N,1,H,W].', None, metavar='FILE.pt'
    )
    device: str | None = device_argument('Where channels are judged:')
    only: str | None = argument(
        'Leave G and D out: a third of the size or less, but not to be trained on with a discriminator.',
        None,
        choices=ONLY,
        metavar='G_ema',
    )
    out: str = argument('File to write.', metavar='PKL')

    def __post_init__(self):
        arguments.check(self)
        name_network_files(self, 'teacher')
        if (self.ratio is None) == (self.widths is None):
            raise UserError('Say either --ratio or --widths, one of the two.')
        if self.mask is not None and self.criterion != 'content-aware':
            raise UserError(f'--mask has no meaning for the criterion {self.criterion}, only for content-aware.')
        for name in self.given(*JUDGING):
            if name not in JUDGED_BY.get(self.criterion, JUDGING):
                raise UserError(f'--{name} has no meaning for the criterion {self.criterion}: leave it out.')


@dataclass(frozen=True)
class StatsOptions:
    """The options of `stats`."""

    teacher: str | None = argument('Network pickle whose images are embedded.', None, metavar='PKL|RUN_DIR|URL')
    data: str | None = argument(
        'Instead the images of a data set; with --teacher only its labels.', None, metavar='PATH'
    )
    embeddings: tuple[str, ...] = argument(
        'Embedding network; may be repeated.', (), default_text='dino_resnet50 and clip_rn50', metavar='SPEC'
    )
    samples: int | None = argument(
        'How many images.', None, least=2, most=10**9, default_text='10000 of a teacher, all of a data set'
    )
    bank: int = argument(
        'Keep the features of the first N images, for the estimators linear, rbf and cubic.', 0, least=0, most=10**7
    )
    truncation: float = argument("Of the teacher's images.", 1.0, metavar='PSI')
    mirror: bool = argument('Add flipped images.', False, default_text='false')
    seed: int = argument('Random seed.', 0, least=0, most=LAST_SEED)
    device: str | None = device_argument()
    out: str = argument('File to write.', metavar='NPZ')

    def __post_init__(self):
        arguments.check(self)
        name_network_files(self, 'teacher')
        if self.teacher is None and self.data is None:
            raise UserError('Say whose images to look at: --teacher or --data.')
        if self.teacher is None and self.truncation != 1:
            raise UserError(f'--truncation={self.truncation:g} goes with --teacher, whose images it changes.')
        if self.mirror and (self.data is None or self.teacher is not None):
            raise UserError('--mirror=true goes with --data and without --teacher: it doubles the images of the data.')
