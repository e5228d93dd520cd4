"""What `train.py` gains, and how it becomes the arguments of a training loop.

There are two ways in, the patched `train.py` and `stylegan2-compress distill`. Both end in `compress`, which turns the
arguments of an ordinary run into those of a compression run. What runs is what `training_options.json` says.
"""

import inspect
import json

from stylegan2_compress.arguments import require_choice
from stylegan2_compress.errors import UserError
from stylegan2_compress.host.devices import prepare_for_cpu
from stylegan2_compress.host.networks import check_against_data, check_batch, constructor_arguments, require_generator
from stylegan2_compress.pickles.networks import Networks
from stylegan2_compress.registry import import_named
from stylegan2_compress.runs.launch import HOST_LOOP, OUR_LOOP

HOST_LOSS = 'training.loss.StyleGAN2Loss'


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
    if not is_loop(import_named('--loop', loop, [HOST_LOOP, OUR_LOOP])):
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


def is_loop(candidate) -> bool:
    """Whether this is a function that takes what a training loop is given."""
    if not inspect.isfunction(candidate):
        return False
    parameters = inspect.signature(candidate).parameters.values()
    return any(each.name == 'run_dir' or each.kind == each.VAR_KEYWORD for each in parameters)


def use_loss(args: dict, loss: str, loss_args: tuple[str, ...], teacher: str | None, networks: Networks) -> None:
    """Put the loss class and its arguments in, and let the class look at them before anything runs.

    A loss class may have three class methods for that: `check_arguments(networks=…, **loss_kwargs)` refuses arguments,
    `adapt(args, networks)` changes the networks of the run, and `warn(args)` tells the user about it.
    """
    loss_class = import_named('--loss', loss, [HOST_LOSS, *our_losses()])
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


def parse_metrics(text: str) -> list[str]:
    """The host's metrics named in a comma-separated list; none for 'none'."""
    from metrics import metric_main

    names = [] if text.lower() in ('', 'none') else [name.strip() for name in text.split(',')]
    for name in names:
        require_choice('--metrics', name, metric_main.list_valid_metrics())
    return names


def our_losses() -> list[str]:
    import stylegan2_compress

    return [f'stylegan2_compress.{name}' for name in stylegan2_compress.__all__ if name.endswith('Loss')]
