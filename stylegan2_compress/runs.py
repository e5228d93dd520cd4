"""Run directories: numbered as the host numbers them, started from options that are written down first."""

import json
import os
import re

import dnnlib

from stylegan2_compress import options, pickles


def next_run_dir(outdir: str, desc: str) -> str:
    """`OUTDIR/00000-desc`, with the first number no directory there has yet."""
    taken = [-1]
    if os.path.isdir(outdir):
        taken += [int(match.group()) for name in os.listdir(outdir) if (match := re.match(r'\d+', name))]
    return os.path.join(outdir, f'{max(taken) + 1:05d}-{desc}')


def print_options(args: dict, run_dir: str) -> None:
    print('\nTraining options:')
    print(json.dumps(args, indent=2))
    print(f'\nOutput directory:   {run_dir}')
    print(f'Training data:      {args["training_set_kwargs"]["path"]}')
    print(f'Training duration:  {args["total_kimg"]} kimg\n')


def start(args: dict, run_dir: str, student: dict | None = None) -> None:
    """Create the run directory, write down what is about to run, and run it.

    Args:
        args: keyword arguments of `options.run_loop`, apart from `rank`.
        run_dir: must not exist yet.
        student: contents of the network pickle at `args.resume_pkl`, where the run is to write it first.
    """
    os.makedirs(run_dir)
    args = dnnlib.EasyDict(args, run_dir=run_dir)
    with open(os.path.join(run_dir, 'training_options.json'), 'w') as file:
        json.dump(args, file, indent=2)
    if student is not None:
        pickles.save(args.resume_pkl, student)
    with dnnlib.util.Logger(file_name=os.path.join(run_dir, 'log.txt'), file_mode='a', should_flush=True):
        options.run_loop(rank=0, **args)
