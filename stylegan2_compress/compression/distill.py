"""`distill`: from a teacher pickle, and a data set if there is one, to a run, with defaults read off the teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import dnnlib
import torch
from training.networks import Discriminator, Generator

from stylegan2_compress import distributed, pruning
from stylegan2_compress.arguments import given_options
from stylegan2_compress.compression import planning
from stylegan2_compress.compression.options import ABOUT_THE_COMMAND, DEFAULT_RATIO, DistillOptions
from stylegan2_compress.distributions import teacher_dataset
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import configurations, devices
from stylegan2_compress.host.networks import generator_of, require_average_of_w, student_of
from stylegan2_compress.runs import inputs
from stylegan2_compress.runs.loops import HOST_LOOP, OUR_LOOP
from stylegan2_compress.runs.plan import Plan
from stylegan2_compress.runs.resume import check_resume
from stylegan2_compress.training_loops.metrics import is_hosts

FEW_IMAGES = 2000  # Of a data set, which discriminators come to know.
OF_OUR_LOOPS = ('state_kimg', 'only', 'metric_samples', 'lr_decay', 'track', 'cuda_graphs')


def distill(teacher: str, data: str | None = None, outdir: str = '', **options) -> str:
    """Train a small generator to do what the teacher does.

    Args:
        teacher, data, outdir, options: the fields of `DistillOptions`, of which `teacher` and `outdir` are required.
            `loss_args` may be a dictionary of values.

    Returns:
        The run directory.

    Raises:
        UserError: before anything is written, for anything that could not train.
    """
    chosen = DistillOptions(teacher=teacher, data=data, outdir=outdir, **options)
    return planning.run(plan_distillation(chosen), chosen.outdir, chosen.resume, chosen.dry_run)


def plan_distillation(options: DistillOptions) -> Plan:
    """What `distill` runs with these options.

    Raises:
        UserError: for anything that could not train.
    """
    check_resume(options.resume)
    if options.device is not None:
        devices.choose(options.device)  # Refuses one that is not available here.
    plan = Plan('', dnnlib.EasyDict(), chosen=given_options(options, without=ABOUT_THE_COMMAND))
    teacher = plan.resources.networks[options.teacher]
    G = generator_of(options.teacher, teacher)
    metrics = planning.parse_metrics(options.metrics)
    require_used_samples(options.metric_samples, metrics)
    plan.name, plan.args = host_arguments(options, G, teacher['D'], metrics)
    set_options(plan.args, options)
    student = prune(plan, options, teacher) if options.student is None else None
    planning.compress(plan, replace(options, loop=OUR_LOOP if options.loop is None else options.loop), student)
    if student is not None and 'teacher' not in plan.args.loss_kwargs:
        plan.student_from[inputs.TEACHER] = plan.resources.networks.sha256(options.teacher)
    set_options_of_our_loops(plan.args, options)
    if options.cuda_graphs:
        planning.record(plan)
    planning.require_metrics(metrics, plan)
    if options.pl_weight is not None and 'pl_weight' not in plan.args.loss_kwargs:
        raise UserError(f'--pl-weight={options.pl_weight:g} is not an argument of --loss={options.loss}.')
    if not planning.has_discriminator(plan.args.loss_kwargs['class_name']):
        planning.require_nothing_for_a_discriminator(options.loss, vars(options))
    elif options.data is not None:
        plan.notes += notes_on_few_images(options, plan.args.training_set_kwargs.max_size)
    return plan


def host_arguments(
    options: DistillOptions, G: Generator, D: Discriminator | None, metrics: list[str]
) -> tuple[str, dnnlib.EasyDict]:
    """Name and loop arguments of the host's run, with what is not given read off the teacher's G_ema and D.

    Raises:
        UserError: an option is not allowed, or does not fit the data.
    """
    if options.data is None and options.loop == HOST_LOOP:
        raise UserError(f'--loop={HOST_LOOP} reads its images from files: give --data, or leave --loop out.')
    of_the_teacher = dict(cfg=configurations.configuration_name(G, student_of(D)), cond=G.c_dim > 0, aug='noaug')
    given: dict[str, Any] = {**of_the_teacher, **options.host_options()}
    given['gpus'] = distributed.number_of_processes(options.gpus, options.device)
    data = own_images(options, G) if options.data is None else options.data
    return configurations.loop_arguments(data, metrics=metrics, **given)


def prune(plan: Plan, options: DistillOptions, teacher: Mapping) -> dict:
    """The student that the run starts from, cut out of the teacher; where that may take long, by `plan.choose`.

    Raises:
        UserError: the teacher cannot be pruned, or not so.
    """
    pruning.require_prunable(options.teacher, teacher['G_ema'])
    ratio = DEFAULT_RATIO if options.ratio is None else options.ratio
    widths = pruning.widths_for_ratio(teacher['G_ema'], ratio)
    criterion = options.criterion or 'l1'
    if criterion != 'l1':
        on_device = pruning.CriterionOptions(device=devices.choose(options.device))
        pruning.find_criterion(criterion, teacher['G_ema'], on_device)
        plan.choose = partial(choose_channels, teacher, widths, criterion, on_device)
    plan.student_from = {inputs.RATIO: f'{ratio:g}', inputs.CRITERION: criterion}
    plan.name += f'-ratio{ratio:g}'
    return pruning.make_student(teacher, widths)


def choose_channels(
    teacher: Mapping, widths: Mapping[str, int], criterion: str, on_device: pruning.CriterionOptions
) -> dict:
    """G and G_ema of a student whose channels are chosen by a criterion, which may take minutes on a GPU."""
    way_out = f'use `stylegan2-compress prune --criterion {criterion} --batch N`, and give --student'
    with devices.fitting(f'Judging channels takes more memory than {on_device.device} has: {way_out}.'):
        student = pruning.make_student(teacher, widths, criterion, on_device)
    if on_device.device.type == 'cuda':
        torch.cuda.empty_cache()  # Perhaps it is other processes that train there.
    return {name: student[name] for name in ('G', 'G_ema')}


def own_images(options: DistillOptions, G: Generator) -> tuple[str, dnnlib.EasyDict]:
    """Name and constructor arguments of a data set of the teacher's own images."""
    require_average_of_w('--truncation', options.teacher, G, options.truncation)
    kwargs = teacher_dataset.arguments(options.teacher, G, options.truncation, options.labels)
    return f'{Path(options.teacher).stem}-images', dnnlib.EasyDict(kwargs)


def notes_on_few_images(options: DistillOptions, count: int) -> list[str]:
    """What helps if the data set has few images."""
    if count >= FEW_IMAGES:
        return []
    ada = '' if options.aug == 'ada' else 'augment them with --aug=ada, '
    return [
        f'--data has {count} image{"s" * (count > 1)}, few enough for a discriminator to know by heart: {ada}match '
        'their moments without one (--loss=stylegan2_compress.RegressionLoss+MomentMatchingLoss, --loss-arg '
        "reference=data), or leave --data out, which trains with the teacher's own images instead."
    ]


def set_options(args: dnnlib.EasyDict, options: DistillOptions) -> None:
    """Put the options that the host's `train.py` lacks into a loop's arguments."""
    for opt_kwargs in (args.G_opt_kwargs, args.D_opt_kwargs):
        opt_kwargs.update(options.given('lr'))
    args.loss_kwargs.update(options.given('pl_weight'))
    args.update(options.given('ema_kimg', 'kimg_per_tick', 'state_kimg', 'device'))
    args.update(options.lr_decay_kimg(args.total_kimg))


def set_options_of_our_loops(args: dnnlib.EasyDict, options: DistillOptions) -> None:
    """Put in what the host's loop does not know.

    Raises:
        UserError: that is the one which runs.
    """
    for name, value in options.given(*OF_OUR_LOOPS).items():
        if 'loop' not in args:
            option = name.replace('_', '-')
            raise UserError(f"--{option}={value} is for our loops, not for the host's: leave one out.")
    args.update(options.given('metric_samples', 'track'))
    if options.only is not None:
        args.snapshot_only = options.only


def require_used_samples(metric_samples: int | None, metrics: Sequence[str]) -> None:
    """Refuse a number of images that no metric takes.

    Raises:
        UserError: it is given all the same.
    """
    if metric_samples is None:
        return
    if not metrics:
        raise UserError(f'--metric-samples={metric_samples} is about --metrics: name some, or leave it out.')
    if all(map(is_hosts, metrics)):
        raise UserError(
            f'--metric-samples={metric_samples} is about our metrics, such as fd:efficientnet_lite0, and those of the '
            'host take 50,000 images: leave it out.'
        )
