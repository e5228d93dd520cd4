"""From options to a plan. `distill`, `find-ticket` and the patched `train.py` end here.

What runs is what `training_options.json` says.
"""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch

import stylegan2_compress
from stylegan2_compress import arguments, distributed
from stylegan2_compress.compression.options import HOST_LOSS, MethodOptions
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation import host_metrics, metrics
from stylegan2_compress.evaluation.base import Setting
from stylegan2_compress.host import datasets
from stylegan2_compress.host.devices import prepare_without_cuda
from stylegan2_compress.host.networks import (
    check_against_data,
    check_batch,
    check_path_lengths,
    check_size_of_images,
    constructor_arguments,
    generator_of,
    has_shapes,
    is_placeholder,
    require_average_of_w,
    require_finite,
    require_generator,
)
from stylegan2_compress.host.precision import Precision
from stylegan2_compress.losses import discriminators, loss_classes
from stylegan2_compress.losses.method_loss import MethodLoss
from stylegan2_compress.registry import import_named
from stylegan2_compress.runs import resources
from stylegan2_compress.runs.loops import HOST_LOOP, OUR_LOOP
from stylegan2_compress.runs.plan import Plan
from stylegan2_compress.runs.resume import continue_or_start
from stylegan2_compress.training_loops.metrics import is_hosts
from stylegan2_compress.training_loops.snapshots import with_three_networks

LOOPS = (HOST_LOOP, OUR_LOOP)


def compress(plan: Plan, options: MethodOptions, student: Mapping | None = None) -> Plan:
    """Make a compression run of an ordinary one.

    Args:
        plan: name and loop arguments of the ordinary run, as the host's `setup_training_loop_kwargs` gives them; it is
            changed. `args.device` says where our loop runs, by default CUDA where there is one.
        options: what it becomes. Without any option, on a machine with CUDA, nothing changes.
        student: contents of the network pickle to train, if it is yet to be written; instead of `options.student`.

    Raises:
        UserError: for anything that could not train. Nothing has been written by then.
    """
    args = plan.args
    without_cuda = distributed.named_device(args.get('device')).type != 'cuda'
    default_loop = OUR_LOOP if without_cuda else HOST_LOOP
    loop = default_loop if options.loop is None else options.loop
    if not is_loop(import_named('--loop', loop, LOOPS)):
        raise UserError(f'--loop={loop} is not a training loop; there are {" and ".join(LOOPS)}.')
    if without_cuda and loop == HOST_LOOP:
        raise UserError(f'--loop={HOST_LOOP} runs on CUDA only; leave the option out to train on this machine.')
    if loop == HOST_LOOP:
        require_first_gpu(args)

    trains_D = has_discriminator(HOST_LOSS if options.loss is None else options.loss)
    if student is not None:
        plan.student = dict(student) if trains_D else with_three_networks(student)
        use_networks(plan, options.teacher or 'the student', plan.student, trains_D)
    elif options.student is not None:
        args.resume_pkl = options.student
        start = plan.resources.networks[options.student]
        require_generator(options.student, start)
        if not trains_D and loop != HOST_LOOP:  # The host's copies the weights of all three.
            start = with_three_networks(start)
        use_networks(plan, options.student, start, trains_D)
    elif args.get('resume_pkl') is not None and loop != HOST_LOOP:
        check_start(plan)
    use_loss(plan, HOST_LOSS if options.loss is None else options.loss, options.loss_args, options.teacher)
    check_batch(args, uses_D=trains_D or loop == HOST_LOOP)
    check_size_of_images(args)
    if args.loss_kwargs.class_name == HOST_LOSS:
        check_path_lengths(args)
    if options.loss is not None:
        plan.name += f'-{options.loss.rpartition(".")[2]}'
    if without_cuda:
        prepare_without_cuda(args)
    if loop == HOST_LOOP:
        args.pop('device', None)  # It knows no such argument.
    else:
        args.loop = loop
    return plan


def run(plan: Plan, outdir: str, resume: str | None = None, dry_run: bool = False) -> str:
    """Run what is planned in a new run directory, or go on in one that is there; wait for the end.

    Args:
        plan: what runs. Its resources are the loss's from here on.
        outdir: directory of run directories.
        resume, dry_run: see `continue_or_start`.

    Returns:
        The run directory.
    """
    with handed_over(plan):
        return continue_or_start(plan, outdir, resume, dry_run)


@contextlib.contextmanager
def handed_over(plan: Plan) -> Iterator[None]:
    """Let the loss of the run take what planning has loaded, if it is constructed in this process."""
    loss_class = import_named('--loss', plan.args.loss_kwargs['class_name'], all_losses())
    if plan.args.num_gpus > 1 or not issubclass(loss_class, MethodLoss):
        plan.resources.release()
    with resources.handed_over(plan.resources):
        yield


def require_first_gpu(args: Mapping[str, Any]) -> None:
    """Refuse other GPUs than the first ones of one machine, which are all that the host's loop knows.

    Raises:
        UserError: the run is for others.
    """
    if distributed.named_device(args.get('device')).index:
        raise UserError(
            f"--device={args['device']} is not for the host's loop, which takes the first GPU: leave --loop out, or "
            'set CUDA_VISIBLE_DEVICES.'
        )
    if distributed.machines() > 1:
        raise UserError(f"The host's loop is for one machine: with torchrun on several, add --loop={OUR_LOOP}.")


def is_loop(candidate) -> bool:
    """Whether this is a function that takes what a training loop is given."""
    if not inspect.isfunction(candidate):
        return False
    parameters = inspect.signature(candidate).parameters.values()
    return any(each.name == 'run_dir' or each.kind == each.VAR_KEYWORD for each in parameters)


def use_networks(plan: Plan, name: str, data: Mapping, trains_D: bool) -> None:
    """Take the shapes of G and D from a network pickle, and its weights as the start.

    Precision and frozen layers stay the run's.

    Args:
        plan: whose `args` get `G_kwargs` and `D_kwargs`.
        name: of the network file, for errors.
        data: its contents, with a StyleGAN2 generator as G_ema.
        trains_D: whether the run needs a D that has learned something.

    Raises:
        UserError: they cannot be trained, or not with this data.
    """
    args = plan.args
    precision = Precision.of_generator(args.G_kwargs)
    without_D = 'or a loss without one, such as --loss=stylegan2_compress.RegressionLoss'
    for network in ('G', 'D'):
        if data[network] is None:
            way_out = f', {without_D}' if network == 'D' else ''
            raise UserError(f'{name} has no {network} to train: name a file that has one{way_out}.')
        require_finite(name, data[network], network)
    if trains_D and is_placeholder(data['D']):
        raise UserError(
            f'{name} has a placeholder for D, because it is for making images: name one with a trained D, {without_D}.'
        )
    if plan.student is None:  # Else it is the teacher's, which is compared with the data itself.
        check_against_data('--student', name, data['G_ema'], args.training_set_kwargs)
    freeze = args.D_kwargs.get('block_kwargs', {}).get('freeze_layers')
    args.G_kwargs = constructor_arguments(data['G'])
    args.D_kwargs = constructor_arguments(data['D'])
    for kwargs in (args.D_kwargs, *(args.D_kwargs.get(name) or {} for name in ('student_kwargs', 'teacher_kwargs'))):
        kwargs.get('block_kwargs', {}).pop('freeze_layers', None)  # What the run freezes counts, not what another did.
    if freeze is not None:
        args.D_kwargs.setdefault('block_kwargs', {})['freeze_layers'] = freeze
    precision.put_into_generator(args.G_kwargs)
    precision.put_into_discriminator(args.D_kwargs)
    # As the host does when it resumes: the average starts from good weights, and D knows the data.
    args.ema_rampup = None
    if 'ada_target' in args:
        args.ada_kimg = 100


def check_start(plan: Plan) -> None:
    """Check that the networks of the host's `--resume` have the shapes that the configuration says.

    Raises:
        UserError: the file cannot be read, or they have others.
    """
    args = plan.args
    data = plan.resources.networks[args.resume_pkl]
    require_generator(args.resume_pkl, data)
    for name, kwargs in [('G', args.G_kwargs), ('D', args.D_kwargs), ('G_ema', args.G_kwargs)]:
        if data[name] is None:
            raise UserError(f'--resume={args.resume_pkl} has no {name} to start from.')
        require_finite(args.resume_pkl, data[name], name)
        if not has_shapes(data[name], kwargs, args.training_set_kwargs):
            raise UserError(
                f'--resume={args.resume_pkl} has a {name} of other shapes than --cfg and --data say: with '
                f'--student={args.resume_pkl} the shapes come from the file.'
            )


def use_loss(plan: Plan, loss: str, loss_args: tuple[str, ...] | Mapping[str, Any], teacher: str | None = None) -> None:
    """Put the loss class and its arguments in, and let its methods look at the run before anything is written.

    A class that is no `MethodLoss` is taken by its signature.

    Args:
        plan: whose `args` get `loss_kwargs`.
        loss: importable name of the class.
        loss_args: `KEY=VALUE` texts, or values by name.
        teacher: network pickle, for losses that take one.

    Raises:
        UserError: there is no such class or argument, or a method refuses the run.
    """
    args = plan.args
    loss_class = import_named('--loss', loss, all_losses())
    if not (isinstance(loss_class, type) and hasattr(loss_class, 'accumulate_gradients')):
        raise UserError(f'--loss={loss} is not a loss class; there are {", ".join(all_losses())}.')
    accepted = loss_classes.accepted(loss_class)
    kwargs = {name: value for name, value in args.loss_kwargs.items() if name in accepted}
    kwargs.update(values_of(loss, loss_class, loss_args))
    if teacher is not None:
        G = generator_of(teacher, plan.resources.networks[teacher])
        check_against_data('--teacher', teacher, G, args.training_set_kwargs)
        if 'teacher' in accepted:
            kwargs.setdefault('teacher', teacher)
    if 'training_set_kwargs' in accepted:
        kwargs['training_set_kwargs'] = dict(args.training_set_kwargs)
    if 'truncation_psi' in accepted and datasets.is_teachers(args.training_set_kwargs):
        kwargs.setdefault('truncation_psi', args.training_set_kwargs['truncation'])  # One teacher, the same images.
    loss_classes.require(loss, accepted, kwargs)
    methods = loss_classes.methods_of(loss_class, kwargs)
    loss_classes.require_lasting(loss_class, methods)
    if kwargs.get('teacher') is not None:
        G = generator_of(kwargs['teacher'], plan.resources.networks[kwargs['teacher']])
        require_average_of_w('--loss-arg truncation_psi', kwargs['teacher'], G, kwargs.get('truncation_psi', 1))
    args.loss_kwargs = type(args.loss_kwargs)(class_name=loss, **kwargs)
    plan.notes += [warning for each in methods for warning in each.check(plan)]
    if 'student_kwargs' in args.D_kwargs and not any(each.judge for each in methods):
        args.D_kwargs = discriminators.without_teacher(args.D_kwargs)  # NICKEL trained the student before.
    for each in methods:
        each.adapt(plan)


def has_discriminator(loss: str) -> bool:
    """Whether the loss of this name trains a discriminator.

    Raises:
        UserError: there is none of this name.
    """
    return loss_classes.has_discriminator(import_named('--loss', loss, all_losses()))


def require_nothing_for_a_discriminator(loss: str, given: Mapping[str, Any]) -> None:
    """Refuse what would change nothing, for a loss without a discriminator.

    Args:
        loss: its name.
        given: options of the run by name, None where they were not given.

    Raises:
        UserError: an option is about the discriminator, or the images that it sees.
    """
    for name in ('gamma', 'aug', 'p', 'target', 'augpipe', 'freezed'):
        value = given.get(name)
        if value is not None and (name, value) != ('aug', 'noaug'):
            raise UserError(
                f'--{name}={value} is about the discriminator, and --loss={loss} trains without one: leave it out.'
            )


def record(plan: Plan) -> None:
    """Have the steps of a run recorded as CUDA graphs.

    Raises:
        UserError: they cannot be.
    """
    args = plan.args
    loss_class = import_named('--loss', args.loss_kwargs['class_name'], all_losses())
    if not issubclass(loss_class, MethodLoss):
        raise UserError(f'--cuda-graphs=1 is not for --loss={args.loss_kwargs["class_name"]}: leave one of them out.')
    if args.num_gpus > 1:
        raise UserError(f'--cuda-graphs=1 is for one GPU, not for {args.num_gpus}: leave it out.')
    if plan.device.type != 'cuda':
        raise UserError(f'--cuda-graphs=1 is for NVIDIA GPUs, and this run is on {plan.device}: leave it out.')
    args.cuda_graphs = True


def values_of(loss: str, loss_class: type, loss_args: tuple[str, ...] | Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a loss class by name, from texts `KEY=VALUE` or from values.

    Raises:
        UserError: the class takes no such argument, or one is given twice.
    """
    offered = loss_classes.offered(loss_class)
    is_parsed = isinstance(loss_args, Mapping)
    pairs = loss_args.items() if is_parsed else [arguments.split_text('--loss-arg', text) for text in loss_args]
    given = {}
    for name, value in pairs:
        if name in given:
            raise UserError(f'--loss-arg {name}=… is given twice: leave one out.')
        given[name] = value
    for name in given:
        if name not in offered:
            raise UserError(f'--loss-arg {name}=… is not an argument of {loss}, which takes {", ".join(offered)}.')
    return given if is_parsed else {name: loss_classes.parse(loss_class, name, text) for name, text in given.items()}


def all_losses() -> list[str]:
    """The loss classes there are: the host's and ours."""
    ours = [f'stylegan2_compress.{name}' for name in stylegan2_compress.__all__ if name.endswith('Loss')]
    return [HOST_LOSS, *ours]


def parse_metrics(text: str) -> list[str]:
    """The metrics of snapshots that are named in a comma-separated list; none for 'none'.

    Raises:
        UserError: one does not exist, or needs a second network.
    """
    if text.lower() in ('', 'none'):
        return []
    names = metrics.names(text)
    for name, metric in zip(names, metrics.parse(text, None), strict=True):
        if not metric.of_teacher:
            raise UserError(f'--metrics={name} compares two networks: measure it with `evaluate`.')
    return names


def require_metrics(names: list[str], plan: Plan) -> None:
    """Refuse metrics for which something is missing, which would end the run at its first snapshot."""
    for name in filter(is_hosts, names):
        host_metrics.require_detector(name)
    own = [name for name in names if not is_hosts(name)]
    if not own:
        return
    if 'loop' not in plan.args:
        raise UserError(f"--metrics={own[0]} is for our loops: leave --loop out, or name the host's metrics.")
    data = plan.args.training_set_kwargs.path
    if len(datasets.open_training_set(data)[0]) < 2:
        raise UserError(f'--metrics={own[0]} is of several images, but --data={data} has one: leave it out.')
    for name in own:
        (metric,) = metrics.parse(name, plan.args.get('metric_samples'))
        nobody: Any = torch.nn.Module()  # Nothing is measured yet.
        metric.prepare(Setting(dict(plan.args.training_set_kwargs), torch.device('cpu'), nobody))
