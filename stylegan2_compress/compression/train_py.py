"""The host's `train.py` with our options."""

import os
import types

import click

from stylegan2_compress.compression.plan import HOST_LOSS, compress
from stylegan2_compress.errors import UserError
from stylegan2_compress.pickles.networks import Networks
from stylegan2_compress.runs.directory import check_outdir
from stylegan2_compress.runs.launch import HOST_LOOP, OUR_LOOP, run_loop

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
        from stylegan2_compress import distributed
        from stylegan2_compress.evaluation import host_metrics
        from stylegan2_compress.host import configurations, datasets
        from stylegan2_compress.runs.resume import continue_or_start, is_run

        ours.update((name, params.pop(name)) for name in ours)
        check_outdir(outdir)
        datasets.open_training_set(params['data'])  # The host finds out later, or not in a sentence.
        configurations.check_seed(params['seed'] or 0)
        resume = params['resume'] if is_run(params['resume']) else None
        if resume is not None:
            params['resume'] = None
        if distributed.torchrun_processes() is not None:
            params['gpus'] = distributed.number_of_processes(params['gpus'])
        try:
            desc, args = module.setup_training_loop_kwargs(**params)
        except module.UserError as error:
            raise UserError(str(error)) from error
        for metric in [] if dry_run else args.metrics:
            host_metrics.require_detector(metric)  # What is missing now would end the run at its first snapshot.
        if 'loop' in args or resume is not None:
            continue_or_start(outdir, desc, args, resume=resume, dry_run=dry_run)
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
