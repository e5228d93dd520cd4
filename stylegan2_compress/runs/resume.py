"""Starting a run in a new directory, or continuing the one that `--resume` means."""

import contextlib
import json
import os
from collections.abc import Iterator

import dnnlib

from stylegan2_compress import distributed, pickles
from stylegan2_compress.errors import UserError
from stylegan2_compress.runs import launch
from stylegan2_compress.runs.directory import OPTIONS, STATES, RunDirectory

LATEST = 'latest'

# Options that may change when a run is continued: its length, what it shows and saves, and the machine. With another
# number of processes the run continues, but not bit for bit as it would have.
FREE = {
    'run_dir', 'total_kimg', 'kimg_per_tick', 'image_snapshot_ticks', 'network_snapshot_ticks', 'state_kimg', 'metrics',
    'data_loader_kwargs', 'device', 'num_gpus', 'batch_gpu', 'cudnn_benchmark', 'allow_tf32',
}  # fmt: skip


def continue_or_start(
    outdir: str,
    desc: str,
    args: dict,
    *,
    student: dict | None = None,
    resume: str | None = None,
    dry_run: bool = False,
) -> str:
    """Run a training loop in a new run directory, or continue an existing run; wait for its end.

    Args:
        outdir: directory of run directories.
        desc: what follows the number in the name of a new run directory.
        args: keyword arguments of `loops.run_loop`, without `rank` and `run_dir`.
        student: contents of a network pickle that the run starts from; written to its own directory.
        resume: None starts a new run; 'latest' continues the newest one in `outdir` that has the same options, and
            starts one if there is none, or if that was to be longer; a run directory continues that one.
        dry_run: print the options, and write and run nothing.

    Returns:
        The run directory.

    Raises:
        UserError: `resume` is no run directory, or its options differ (see `FREE`).
        Stopped, DivergedError: see `training_loops.loop.train`.
    """
    distributed.join_torchrun(args.get('device'))
    if distributed.restarted_by_torchrun():
        resume = resume or LATEST

    with contextlib.ExitStack() as held:

        def prepare() -> RunDirectory:
            run = run_to_continue(outdir, args, student, resume) or RunDirectory.next(outdir, desc)
            print_options(in_run_directory(args, run, student), run)
            if not dry_run:
                held.enter_context(run.claimed())
                write_start(run, in_run_directory(args, run, student), student)
            return run

        run = distributed.result_of_rank_zero(prepare)
        if dry_run:
            print('Dry run; exiting.')
        else:
            launch.run(in_run_directory(args, run, student))
    return os.fspath(run)


def start_run(args: dict, run_dir: str | os.PathLike, student: dict | None = None) -> None:
    """Create a run directory, record its options, and run the loop there; wait for its end.

    Args:
        args: keyword arguments of `loops.run_loop`, without `rank` and `run_dir`.
        run_dir: where; what is left of a run there is continued.
        student: contents of the network pickle at `args.resume_pkl`, which is written first.

    Raises:
        UserError, Stopped, DivergedError: see `continue_or_start`.
    """
    run = RunDirectory(run_dir)
    args = in_run_directory(args, run, None)
    with run.claimed():
        write_start(run, args, student)
        launch.run(args)


def in_run_directory(args: dict, run: RunDirectory, student: dict | None) -> dict:
    """The arguments of the loop in a run directory, where it starts from its own copy of `student`."""
    own_student = {} if student is None else {'resume_pkl': run.student_path}
    return dnnlib.EasyDict(args, **own_student, run_dir=os.fspath(run))


def write_start(run: RunDirectory, args: dict, student: dict | None) -> None:
    """Write what the run starts from. The options are written last: a directory with options is complete."""
    is_new = not run.options_path.exists()
    if student is not None and is_new:
        pickles.save(args['resume_pkl'], student)
    run.write_options(args)
    if not is_new and not run.states():
        run.cut_records({})  # The run was stopped before its first state, and starts from scratch.


def print_options(args: dict, run_dir: str | os.PathLike) -> None:
    """Print what is about to run, as the host does."""
    print('\nTraining options:')
    print(json.dumps(args, indent=2))
    print(f'\nOutput directory:   {os.fspath(run_dir)}')
    print(f'Training data:      {args["training_set_kwargs"]["path"]}')
    print(f'Training duration:  {args["total_kimg"]} kimg')
    print(f'Number of processes: {args["num_gpus"]}\n')


# --- Which run to continue --------------------------------------------------------------------------------------------


def is_run(resume: str | None) -> bool:
    """Whether the host's `--resume`, otherwise a network pickle, means a run to continue."""
    return resume is not None and (resume == LATEST or os.path.isdir(resume))


def check_resume(resume: str | None) -> None:
    """Refuse what cannot be continued, whatever the options.

    Raises:
        UserError: `resume` is a path, but not of a run directory.
    """
    if resume is not None and resume != LATEST:
        options_to_continue(resume)


def options_to_continue(resume: str) -> dict:
    """The options of a run that is to be continued.

    Raises:
        UserError: the path is not that of a run directory.
    """
    args = recorded_options(RunDirectory(resume))
    if args is None:
        raise UserError(f'--resume={resume} is no run directory: {OPTIONS} is missing there or cannot be parsed.')
    return args


def recorded_options(run: RunDirectory) -> dict | None:
    """The options that a run was started with, or None if they are missing, or are not those of a training loop."""
    args = run.read_options() or {}
    complete = isinstance(args.get('total_kimg'), (int, float)) and isinstance(args.get('run_dir'), str)
    return args if complete else None


def run_to_continue(outdir: str, args: dict, student: dict | None, resume: str | None) -> RunDirectory | None:
    """The run that `resume` means, None for a new one; see `continue_or_start`."""
    if resume is None:
        return None
    if 'loop' not in args:
        raise UserError(f"--resume={resume} continues runs of our loops, but this one runs the host's; give --loop.")
    if resume == LATEST:
        return latest_run(outdir, args, student)
    run, old = RunDirectory(resume), options_to_continue(resume)
    changed = differences(old, args, student)
    if changed:
        raise UserError(f'--resume={resume} has other options: {"; ".join(changed)}. Give those it was started with.')
    if old['total_kimg'] > args['total_kimg']:
        raise UserError(f'--kimg={args["total_kimg"]} is shorter than {resume}, whose length is {old["total_kimg"]}.')
    if run.has_lost_states(old):
        raise UserError(
            f'--resume={resume} cannot be continued: it has no {STATES}. Its snapshots can be the --student of a new '
            'run.'
        )
    return RunDirectory(os.path.normpath(resume))


def latest_run(outdir: str, args: dict, student: dict | None) -> RunDirectory | None:
    """The newest run in `outdir` with these options, no longer than they say; None, and a message, if there is none."""
    runs = RunDirectory.numbered(outdir)
    for run in reversed(runs):
        old = recorded_options(run)
        if old is None or old['total_kimg'] > args['total_kimg'] or differences(old, args, student):
            continue
        if not run.has_lost_states(old):
            return run
        print(f'{run} has lost its training states and cannot be continued.')
    if runs:
        print(f'No run in {outdir} has these options: starting a new one.')
    return None


def differences(old: dict, args: dict, student: dict | None) -> list[str]:
    """How the arguments of a run differ from those it was started with, but for `FREE`: 'name: old → new' each."""
    new = in_run_directory(args, RunDirectory(old['run_dir']), student)
    old, new = (dict(flat(json.loads(json.dumps(each)))) for each in (old, new))
    return [
        f'{name}: {old.get(name, "none")} → {new.get(name, "none")}'
        for name in sorted(old.keys() | new.keys())
        if name.partition('.')[0] not in FREE and old.get(name) != new.get(name)
    ]


def flat(args: dict, prefix: str = '') -> Iterator[tuple[str, str]]:
    """Names and values (as JSON) of nested arguments: ('loss_kwargs.r1_gamma', '10')."""
    for name, value in args.items():
        if isinstance(value, dict):
            yield from flat(value, f'{prefix}{name}.')
        else:
            yield prefix + name, json.dumps(value)
