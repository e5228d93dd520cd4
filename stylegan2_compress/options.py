"""What `train.py` gains, and how it becomes the arguments of a training loop.

There are two ways in, the patched `train.py` and `stylegan2-compress distill`. Both end in `compress`, which turns the
arguments of an ordinary run into those of a compression run. What runs is what `training_options.json` says.
"""

import importlib
import inspect
import json
import os
import types

import click

from stylegan2_compress import checks
from stylegan2_compress.errors import UserError

HOST_LOSS = 'training.loss.StyleGAN2Loss'
HOST_LOOP = 'training.training_loop.training_loop'
OUR_LOOP = 'stylegan2_compress.training_loops.distillation.training_loop'

# --- The options --------------------------------------------------------------------------------------------------

TRAIN_OPTIONS = [
    click.Option(
        ['--loss'],
        metavar='CLASS',
        help=f'Loss class, any importable name: stylegan2_compress.DiMELoss, … [default: {HOST_LOSS}]',
    ),
    click.Option(
        ['--loss-arg', 'loss_args'],
        metavar='KEY=VALUE',
        multiple=True,
        help='Argument of the loss class, the value as JSON or plain text; may be repeated',
    ),
    click.Option(['--teacher'], metavar='PKL', help='Network pickle (path or URL) to learn from'),
    click.Option(
        ['--student'],
        metavar='PKL',
        help='Network pickle to train: shapes and weights come from it, whatever --cfg says about shapes',
    ),
    click.Option(
        ['--loop'],
        metavar='MODULE.FUNCTION',
        help=f'Training loop [default: {HOST_LOOP} with CUDA, {OUR_LOOP} without]',
    ),
]

TRAIN_EXAMPLES = """

    \b
    Compression (stylegan2-compress):
      # Distil a pruned FFHQ generator with DiME.
      stylegan2-compress prune --teacher=ffhq256.pkl --ratio=0.8 --out=student.pkl
      python train.py --outdir=runs --data=ffhq256.zip --cfg=paper256 --mirror=1 --aug=noaug \\
          --teacher=ffhq256.pkl --student=student.pkl --loss=stylegan2_compress.DiMELoss

    \b
      # The same with another embedding, and on a CPU.
      python train.py --outdir=runs --data=mnist.zip --aug=noaug --metrics=none --batch=16 --kimg=1 \\
          --teacher=teacher.pkl --student=student.pkl --loss=stylegan2_compress.DiMELoss \\
          --loss-arg embeddings=efficientnet_lite0
"""


def extend_train(module: types.ModuleType) -> None:
    """Give the host's `train.py`, imported as `module`, our options. `patches/train.patch` calls this.

    The command keeps everything it had. Three names of the module are replaced: `main`'s callback takes our options
    out before the host's code sees them, and starts the run itself if that is one of our loops', which can be
    continued; `setup_training_loop_kwargs` hands its result through `compress`; and `training_loop` runs the loop that
    the arguments name.
    """
    from stylegan2_compress import host

    host.activate(os.path.dirname(os.path.abspath(module.__file__)))
    host_callback = module.main.callback
    host_setup = module.setup_training_loop_kwargs
    ours = {option.name: None for option in TRAIN_OPTIONS}

    def callback(outdir, dry_run, **params):
        from stylegan2_compress import launch, recipes, runs
        from stylegan2_compress.evaluation import host_metrics

        ours.update((name, params.pop(name)) for name in ours)
        check_outdir(outdir)
        recipes.open_training_set(params['data'])  # The host finds out later, or not in a sentence.
        recipes.check_seed(params['seed'] or 0)
        resume = params['resume'] if runs.is_run(params['resume']) else None
        if resume is not None:
            params['resume'] = None
        if launch.torchrun_processes() is not None:
            params['gpus'] = launch.number_of_processes(params['gpus'])
        try:
            desc, args = module.setup_training_loop_kwargs(**params)
        except module.UserError as error:
            raise UserError(str(error)) from error
        for metric in [] if dry_run else args.metrics:
            host_metrics.require_detector(metric)  # What is missing now would end the run at its first snapshot.
        if 'loop' in args or resume is not None:
            runs.continue_or_start(outdir, desc, args, resume=resume, dry_run=dry_run)
        else:
            module.setup_training_loop_kwargs = lambda **_params: (desc, args)  # It has been done.
            host_callback(outdir=outdir, dry_run=dry_run, **params)

    def setup_training_loop_kwargs(**config):
        if ours['student'] is not None and config.get('resume') is not None:
            both = f'--student={ours["student"]} and --resume={config["resume"]}'
            raise UserError(f'{both} both name the weights to start from; give one.')
        networks = Networks()
        source = ours['student'] or ours['teacher']
        if source is not None and config.get('cond') is None:
            config['cond'] = networks[source]['G_ema'].c_dim > 0  # The shapes come from the pickle.
        desc, args = host_setup(**config)
        return compress(desc, args, networks=networks, **ours)

    module.main.callback = callback
    module.main.params.extend(TRAIN_OPTIONS)
    module.main.help += TRAIN_EXAMPLES
    module.setup_training_loop_kwargs = setup_training_loop_kwargs
    module.training_loop = types.SimpleNamespace(training_loop=run_loop)


# --- From options to arguments ------------------------------------------------------------------------------------


class Networks(dict):
    """Contents of network pickles by path or URL, each read when it is first asked for."""

    def __missing__(self, file: str) -> dict:
        from stylegan2_compress import pickles

        self[file] = pickles.load(file)
        return self[file]


def compress(
    desc: str,
    args: dict,
    *,
    loss: str | None = None,
    loss_args: tuple[str, ...] = (),
    teacher: str | None = None,
    student: str | dict | None = None,
    loop: str | None = None,
    device: str | None = None,
    networks: Networks | None = None,
) -> tuple[str, dict]:
    """Turn the arguments of an ordinary run into those of a compression run.

    Args:
        desc, args: name and loop arguments of the ordinary run, as the host's `setup_training_loop_kwargs` gives them.
        loss, loss_args, teacher, student, loop: the options of the same names. `student` may also be the contents of
            a network pickle that is yet to be written; then `args.resume_pkl` names it.
        device: where our loop runs, by default CUDA where there is one.
        networks: what has been read of pickles already.

    Returns:
        The same two, changed. Without any option, on a machine with CUDA, they come back as they were.

    Raises:
        UserError: for anything that could not train. Nothing has been written by then.
    """
    import torch

    on_cpu = torch.device(device).type == 'cpu' if device else not torch.cuda.is_available()
    loop = loop or (OUR_LOOP if on_cpu else HOST_LOOP)
    if not is_loop(import_named(loop, '--loop', 'a training loop', f'{HOST_LOOP} and {OUR_LOOP}')):
        raise UserError(f'--loop={loop} is not a training loop; there are {HOST_LOOP} and {OUR_LOOP}.')
    if on_cpu and loop == HOST_LOOP:
        raise UserError(f'--loop={HOST_LOOP} runs on CUDA only; leave the option out to train on this machine.')

    networks = Networks() if networks is None else networks
    if student is not None:
        use_networks(args, student, networks)
        args.ema_rampup = None  # As the host does when it resumes: the average starts from good weights.
    check_batch(args)
    use_loss(args, HOST_LOSS if loss is None else loss, loss_args, teacher, networks)
    if loss is not None:
        desc += f'-{loss.rpartition(".")[2]}'
    if on_cpu:
        prepare_for_cpu(args)
    if loop != HOST_LOOP:
        args.loop = loop
        if device is not None:
            args.device = device
    return desc, args


def use_networks(args: dict, student: str | dict, networks: Networks) -> None:
    """Take the shapes of G and D from a network pickle, and its weights as the start."""
    if isinstance(student, str):
        data = networks[student]
        args.resume_pkl = student
    else:
        data = student
    name = args.get('resume_pkl') or 'the teacher'
    require_generator(name, data)
    for network in ('G', 'D'):
        if data[network] is None:
            raise UserError(f'{name} has no {network} to train; `stylegan2-compress prune` writes pickles that have.')
    if isinstance(student, str):  # Else it is the teacher's, which is compared with the data itself.
        check_against_data('--student', name, data['G_ema'], args.training_set_kwargs)
    freeze = args.D_kwargs.get('block_kwargs', {}).get('freeze_layers')
    args.G_kwargs = constructor_arguments(data['G'])
    args.D_kwargs = constructor_arguments(data['D'])
    if freeze is not None:
        args.D_kwargs.setdefault('block_kwargs', {})['freeze_layers'] = freeze


def constructor_arguments(network) -> dict:
    """Class name and arguments that build a network like this one, but for what the training set decides."""
    import dnnlib

    network_class = type(network).__mro__[1]  # Below it stands the host's decorator, which has the same name.
    kwargs = dnnlib.EasyDict(class_name=f'{network_class.__module__}.{network_class.__qualname__}')
    kwargs.update(network.init_kwargs)
    for name in ('c_dim', 'img_resolution', 'img_channels'):
        kwargs.pop(name, None)
    return kwargs


def is_loop(candidate) -> bool:
    """Whether this is a function that takes what a training loop is given."""
    if not inspect.isfunction(candidate):
        return False
    parameters = inspect.signature(candidate).parameters.values()
    return any(each.name == 'run_dir' or each.kind == each.VAR_KEYWORD for each in parameters)


def check_batch(args: dict) -> None:
    """Refuse a batch that the discriminator's minibatch standard deviation cannot cut into groups."""
    D_kwargs = args.D_kwargs.get('student_kwargs', args.D_kwargs)  # Of a discriminator that NICKEL trained.
    epilogue = D_kwargs.get('epilogue_kwargs', {})
    group = epilogue.get('mbstd_group_size', 4)
    if epilogue.get('mbstd_num_channels', 1) and group is not None and args.batch_gpu % min(group, args.batch_gpu):
        raise UserError(
            f'--batch={args.batch_size} means {args.batch_gpu} images on a GPU at a time, and D compares '
            f'them in groups of {group}: choose --batch or --batch-gpu so that it is a multiple of {group}, or less.'
        )


def use_loss(args: dict, loss: str, loss_args: tuple[str, ...], teacher: str | None, networks: Networks) -> None:
    """Put the loss class and its arguments in, and let the class look at them before anything runs.

    A loss class may have three class methods for that: `check_arguments(networks=…, **loss_kwargs)` refuses arguments,
    `adapt(args, networks)` changes the networks of the run, and `warn(args)` tells the user about it.
    """
    loss_class = import_named(loss, '--loss', 'a loss class', ', '.join([HOST_LOSS, *our_losses()]))
    if not (isinstance(loss_class, type) and hasattr(loss_class, 'accumulate_gradients')):
        raise UserError(f'--loss={loss} is not a loss class; there are {", ".join([HOST_LOSS, *our_losses()])}.')
    accepted = accepted_arguments(loss_class)
    kwargs = {name: value for name, value in args.loss_kwargs.items() if name in accepted}
    for name, value in map(parse_loss_arg, loss_args):
        if name not in accepted:
            raise UserError(f'--loss-arg {name}=… is not an argument of {loss}, which takes {", ".join(accepted)}.')
        kwargs[name] = value
    if teacher is not None:
        require_generator(teacher, networks[teacher])
        check_against_data('--teacher', teacher, networks[teacher]['G_ema'], args.training_set_kwargs)
        if 'teacher' in accepted:
            kwargs.setdefault('teacher', teacher)
    if 'training_set_kwargs' in accepted:
        kwargs['training_set_kwargs'] = dict(args.training_set_kwargs)
    missing = [name for name, default in accepted.items() if default is inspect.Parameter.empty and name not in kwargs]
    if missing:
        options = ', '.join('--teacher' if name == 'teacher' else f'--loss-arg {name}=…' for name in missing)
        raise UserError(f'--loss={loss} needs {options}.')
    if hasattr(loss_class, 'check_arguments'):
        loss_class.check_arguments(networks=networks, **kwargs)
    args.loss_kwargs = type(args.loss_kwargs)(class_name=loss, **kwargs)
    if 'teacher_kwargs' in args.D_kwargs:  # NICKEL trained the student.
        from stylegan2_compress.losses.nickel import NICKELLoss

        if not issubclass(loss_class, NICKELLoss):
            args.D_kwargs = alone(args.D_kwargs)
    if hasattr(loss_class, 'adapt'):
        loss_class.adapt(args, networks)
    if hasattr(loss_class, 'warn'):
        loss_class.warn(args)


def alone(D_kwargs: dict) -> dict:
    """Arguments of a `DualDiscriminator` of which only the student's is left, frozen layers and all."""
    left = type(D_kwargs)(D_kwargs, teacher_kwargs=None)
    left.pop('matched_channels', None)
    block_kwargs = {**left.student_kwargs.get('block_kwargs', {}), **left.pop('block_kwargs', {})}
    left.student_kwargs = {**left.student_kwargs, 'block_kwargs': block_kwargs}
    return left


def accepted_arguments(loss_class: type) -> dict:
    """The keyword arguments a loss class takes beyond the host's contract, with their defaults."""
    found = {}
    for parent in loss_class.__mro__:
        parameters = inspect.signature(parent.__init__).parameters.values() if '__init__' in vars(parent) else []
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, parameter.default)
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters) and parameters:
            break
    for given_by_the_loop in ('self', 'device', 'G_mapping', 'G_synthesis', 'D', 'augment_pipe', 'terms'):
        found.pop(given_by_the_loop, None)
    return found


def parse_loss_arg(text: str) -> tuple[str, object]:
    name, equals, value = text.partition('=')
    if not equals or not name.isidentifier():
        raise UserError(f'--loss-arg {text} must have the form KEY=VALUE.')
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def require_generator(file: str, data: dict) -> None:
    """Refuse the contents of a network file without a StyleGAN2 generator as G_ema."""
    if not hasattr(getattr(data['G_ema'], 'synthesis', None), 'block_resolutions'):
        raise UserError(f'{file} has no StyleGAN2 generator as G_ema: `stylegan2-compress inspect` shows what it has.')


def check_against_data(option: str, name: str, G, training_set_kwargs: dict) -> None:
    """Refuse a generator that makes other images than the training set holds."""
    import dnnlib

    training_set = dnnlib.util.construct_class_by_name(**training_set_kwargs)
    for what, mine, theirs, way_out in [
        ('images of resolution', G.img_resolution, training_set.resolution, 'dataset_tool.py resizes'),
        ('channels', G.img_channels, training_set.num_channels, 'convert the images'),
        ('label dimensions', G.c_dim, training_set.label_dim, '--cond=1 turns labels on, --cond=0 off'),
    ]:
        if mine != theirs:
            data = training_set_kwargs['path']
            raise UserError(f'{option}={name} has {what} {mine}, but --data={data} has {theirs} ({way_out}).')


def prepare_for_cpu(args: dict) -> None:
    """FP16 blocks and pinned memory are for GPUs."""
    for kwargs in (args.G_kwargs.get('synthesis_kwargs', {}), args.D_kwargs):
        if kwargs.get('num_fp16_res'):
            kwargs['num_fp16_res'] = 0
    args.data_loader_kwargs.pin_memory = False
    args.data_loader_kwargs.num_workers = min(args.data_loader_kwargs.num_workers, os.cpu_count() or 1)


def parse_metrics(text: str) -> list[str]:
    """The host's metrics named in a comma-separated list; none for 'none'."""
    from metrics import metric_main

    names = [] if text.lower() in ('', 'none') else [name.strip() for name in text.split(',')]
    for name in names:
        checks.choice('--metrics', name, metric_main.list_valid_metrics())
    return names


def import_named(name: str, option: str, kind: str, existing: str):
    """The object of an importable dotted name, or a sentence that says which exist."""
    module_name, _dot, attribute = name.rpartition('.')
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f'{option}={name} cannot be imported as {kind} ({error}); there are {existing}.') from error


def our_losses() -> list[str]:
    import stylegan2_compress

    return [f'stylegan2_compress.{name}' for name in stylegan2_compress.__all__ if name.endswith('Loss')]


def check_outdir(outdir: str) -> None:
    """Refuse a directory that results could not be written to."""
    existing = os.path.abspath(outdir)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f'--outdir={outdir} cannot be written to, because of {existing}; choose another directory.')


def run_loop(rank: int, loop: str = HOST_LOOP, **args) -> None:
    """Run the training loop that the arguments name; without a name, the host's."""
    import_named(loop, '--loop', 'a training loop', f'{HOST_LOOP} and {OUR_LOOP}')(rank=rank, **args)
