"""The host's `train.py` with our options."""

import os
import types
from typing import Any, Protocol

import dnnlib

from stylegan2_compress import distributed, host
from stylegan2_compress.arguments import click_options, given_options, value_as_text
from stylegan2_compress.compression import planning
from stylegan2_compress.compression.options import HOST_LOSS, MethodOptions, require_outside_data
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation import host_metrics
from stylegan2_compress.files import require_writable_directory
from stylegan2_compress.host import configurations, datasets
from stylegan2_compress.runs.loops import run_loop
from stylegan2_compress.runs.plan import Plan
from stylegan2_compress.runs.resume import is_run, started_from

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


class HostTrain(Protocol):
    """The host's `train.py` as a module: the names that are used or replaced here."""

    __file__: str
    main: Any  # A click command that has a callback and a help text.
    UserError: type[Exception]
    setup_training_loop_kwargs: Any
    training_loop: Any


def extend_train(module: HostTrain) -> None:
    """Give the host's `train.py`, imported as `module`, our options. The lines of `patches/train.patch` call this.

    The command keeps everything it had. Three names of the module are replaced: `main`'s callback takes our options
    out before the host's code sees them, plans the run, and starts it itself if that is one of our loops', which can be
    continued; `setup_training_loop_kwargs`, once that is done, returns what was planned; and `training_loop` runs the
    loop that the arguments name.
    """
    host.activate(os.path.dirname(os.path.abspath(module.__file__)))
    host_callback = module.main.callback
    host_setup = module.setup_training_loop_kwargs
    our_options = click_options(MethodOptions)
    plan = Plan('', dnnlib.EasyDict())

    def callback(outdir, dry_run, **params):
        options = MethodOptions(**{option.name: params.pop(option.name) for option in our_options})
        require_writable_directory('--outdir', outdir)
        datasets.open_training_set(params['data'])  # The host finds out later, or not in a sentence.
        configurations.check_seed(params['seed'] or 0)
        resume = params['resume'] if is_run(params['resume']) else None
        require_outside_data(params['data'], outdir, resume)
        if resume is not None:
            params['resume'] = None
            params['resume'] = started_from(resume, outdir, chosen(options, params))
        plan.chosen = chosen(options, params)
        if distributed.torchrun_processes() is not None:
            params['gpus'] = distributed.number_of_processes(params['gpus'])
        try:
            make_plan(options, params)
        except module.UserError as error:
            raise UserError(str(error)) from error
        for metric in [] if dry_run else plan.args.metrics:
            host_metrics.require_detector(metric)  # What is missing now would end the run at its first snapshot.
        by_torchrun = distributed.torchrun_processes() is not None  # The host would start as many in each process.
        if 'loop' in plan.args or resume is not None or by_torchrun:
            planning.run(plan, outdir, resume, dry_run)
        else:
            module.setup_training_loop_kwargs = lambda **_params: (plan.name, plan.args)  # It has been done.
            for note in plan.notes:
                print(note)
            with planning.handed_over(plan):
                host_callback(outdir=outdir, dry_run=dry_run, **params)

    def make_plan(options, params):
        if options.student is not None and params.get('resume') is not None:
            both = f'--student={options.student} and --resume={params["resume"]}'
            raise UserError(f'{both} both name the weights to start from; give one.')
        loss = HOST_LOSS if options.loss is None else options.loss
        if not planning.has_discriminator(loss):
            planning.require_nothing_for_a_discriminator(loss, params)
            params['aug'] = 'noaug'  # The host's default augments.
        source = options.student or options.teacher
        if source is not None and params.get('cond') is None:
            params['cond'] = plan.resources.networks[source]['G_ema'].c_dim > 0  # The shapes come from the pickle.
        plan.name, plan.args = host_setup(**params)
        planning.compress(plan, options)
        if options.teacher is not None and options.loss is None:
            raise UserError(
                f'--teacher={options.teacher} is for a loss that learns from it: add one, such as '
                '--loss=stylegan2_compress.DiMELoss.'
            )

    def chosen(options, params):
        hosts_own = {f'--{name}': value_as_text(value) for name, value in params.items() if value is not None}
        return given_options(options) | hosts_own

    module.main.callback = callback
    module.main.params.extend(our_options)
    module.main.help += TRAIN_EXAMPLES
    module.training_loop = types.SimpleNamespace(training_loop=run_loop)
