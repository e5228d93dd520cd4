"""Run directories: numbered as the host numbers them, started from options that are written down first, continued."""

import contextlib
import json
import os
from collections.abc import Iterator

import dnnlib

from stylegan2_compress import distributed, files, pickles
from stylegan2_compress.errors import UserError
from stylegan2_compress.runs import launch, states
from stylegan2_compress.runs.directory import OPTIONS, STUDENT, has_lost_states, next_run_dir, read_options, run_dirs

LATEST = 'latest'

# Options that may change when a run is continued: how long, what is shown and saved, and on which machine. With other
# processes the run goes on, but not bit for bit as it would have.
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
    """Run a training loop in a new run directory, or go on in one that is there; wait for the end.

    Args:
        outdir: directory of run directories.
        desc: name of a new one, after its number.
        args: keyword arguments of `options.run_loop`, without `rank` and `run_dir`.
        student: contents of a network pickle that the run starts from; written to `student.pkl` in the run directory.
        resume: None starts a new run; 'latest' continues the newest one in `outdir` that has the same options, and
            starts one if there is none, or if that was to be longer; a run directory continues that one.
        dry_run: print the options, and write and run nothing.

    Returns:
        The run directory.

    Raises:
        UserError: `resume` is not a run directory, or its options are others (see `FREE`).
        Stopped, DivergedError: see `training_loops.loop.train`.
    """
    distributed.join_torchrun(args.get('device'))
    if distributed.restarted_by_torchrun():
        resume = resume or LATEST

    with contextlib.ExitStack() as held:

        def prepare() -> str:
            run_dir = find(outdir, args, student, resume) or next_run_dir(outdir, desc)
            print_options(in_run_dir(args, run_dir, student), run_dir)
            if not dry_run:
                held.enter_context(claimed(run_dir))
                write(in_run_dir(args, run_dir, student), run_dir, student)
            return run_dir

        run_dir = distributed.first_decides(prepare)
        if dry_run:
            print('Dry run; exiting.')
        else:
            launch.run(in_run_dir(args, run_dir, student))
    return run_dir


def start_run(args: dict, run_dir: str, student: dict | None = None) -> None:
    """Create the run directory, write down what is about to run, and run it.

    Args:
        args: keyword arguments of `options.run_loop`, apart from `rank`.
        run_dir: must not exist yet.
        student: contents of the network pickle at `args.resume_pkl`, where the run is to write it first.
    """
    args = dnnlib.EasyDict(args, run_dir=run_dir)
    with claimed(run_dir):
        write(args, run_dir, student)
        launch.run(args)


@contextlib.contextmanager
def claimed(run_dir: str) -> Iterator[None]:
    """Have the directory, new or not, and keep other processes out of it."""
    os.makedirs(run_dir, exist_ok=True)
    with files.locked(run_dir):
        yield


def in_run_dir(args: dict, run_dir: str, student: dict | None) -> dict:
    """The arguments of a run there, which starts from its own copy of `student`."""
    own = dict(resume_pkl=os.path.join(run_dir, STUDENT)) if student is not None else {}
    return dnnlib.EasyDict(args, **own, run_dir=run_dir)


def write(args: dict, run_dir: str, student: dict | None) -> None:
    """Make the run directory what a run starts from. The options come last: a directory with options is complete."""
    new = not os.path.exists(os.path.join(run_dir, OPTIONS))
    if student is not None and new:
        pickles.save(args.resume_pkl, student)
    with files.atomic_write(os.path.join(run_dir, OPTIONS)) as file:
        file.write(json.dumps(args, indent=2).encode())
    if not new and not states.states_in(run_dir):
        states.cut_records(run_dir, {})  # It was stopped before there was a state, and starts from scratch.


def print_options(args: dict, run_dir: str) -> None:
    print('\nTraining options:')
    print(json.dumps(args, indent=2))
    print(f'\nOutput directory:   {run_dir}')
    print(f'Training data:      {args["training_set_kwargs"]["path"]}')
    print(f'Training duration:  {args["total_kimg"]} kimg')
    print(f'Number of processes: {args["num_gpus"]}\n')


# --- Which run to continue --------------------------------------------------------------------------------------------


def is_run(resume: str | None) -> bool:
    """Whether the host's `--resume`, otherwise a network pickle, means a run to continue."""
    return resume is not None and (resume == LATEST or os.path.isdir(resume))


def check_resume(resume: str | None) -> None:
    """Refuse what can be no run to continue, whatever its options."""
    if resume not in (None, LATEST) and read_options(resume) is None:
        raise UserError(
            f'--resume={resume} is no run directory: there is no {OPTIONS} in it, or none that can be read.'
        )


def find(outdir: str, args: dict, student: dict | None, resume: str | None) -> str | None:
    """The run directory that `resume` means, None for a new one; see `continue_or_start`."""
    if resume is None:
        return None
    if 'loop' not in args:
        raise UserError(f"--resume={resume} continues runs of our loops, and this one is the host's; give --loop.")
    if resume == LATEST:
        for run_dir in reversed(run_dirs(outdir)):
            old = read_options(run_dir)
            if old is None or old['total_kimg'] > args['total_kimg']:
                continue
            if differences(old, in_run_dir(args, old['run_dir'], student)):
                continue
            if not has_lost_states(run_dir, old):
                return run_dir
            print(f'{run_dir} has no training state (any more) to go on from.')
        if run_dirs(outdir):
            print(f'There is no run with these options in {outdir}, so this is a new one.')
        return None
    check_resume(resume)
    old = read_options(resume)
    changed = differences(old, in_run_dir(args, old['run_dir'], student))
    if changed:
        raise UserError(f'--resume={resume} has other options: {"; ".join(changed)}. Give those it was started with.')
    if old['total_kimg'] > args['total_kimg']:
        raise UserError(f'--kimg={args["total_kimg"]} is shorter than {resume}, whose length is {old["total_kimg"]}.')
    if has_lost_states(resume, old):
        raise UserError(
            f'--resume={resume} cannot go on: it has no training-state-*.pt (any more). Its snapshots can be used as '
            f'--student of a new run.'
        )
    return os.path.normpath(resume)


def differences(old: dict, new: dict) -> list[str]:
    """What two sets of loop arguments differ in, as 'name: old → new', but for what may change."""
    old, new = (dict(flat(json.loads(json.dumps(args)))) for args in (old, new))
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
