"""Starting a run in a new directory, or continuing the one that `--resume` means."""

import contextlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dnnlib

from stylegan2_compress import distributed, pickles
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import datasets
from stylegan2_compress.runs import fingerprints, inputs, launch, states
from stylegan2_compress.runs.directory import OPTIONS, STATES, RunDirectory
from stylegan2_compress.runs.plan import Plan

LATEST = 'latest'

# Options that may change when a run is continued: its length, what it shows and saves, and the machine. With another
# number of processes the run continues, but not bit for bit as it would have.
FREE = {
    'run_dir', 'total_kimg', 'kimg_per_tick', 'image_snapshot_ticks', 'network_snapshot_ticks', 'state_kimg', 'metrics',
    'snapshot_only', 'metric_samples', 'track',
    'data_loader_kwargs', 'device', 'num_gpus', 'batch_gpu', 'cudnn_benchmark', 'allow_tf32', 'cuda_graphs',
}  # fmt: skip

# Those that follow from the machine: FP16 blocks are CUDA's (`--fp32` shows in `conv_clamp`, too, and may not change).
FROM_MACHINE = {'G_kwargs.synthesis_kwargs.num_fp16_res', 'D_kwargs.num_fp16_res', 'loss_kwargs.rounds'}

# Those that may follow from the length.
FROM_LENGTH = {'G_opt_kwargs.lr', 'ema_kimg', 'lr_decay_kimg', 'loss_kwargs.lr_decay_kimg'}

# Options of the host's `train.py` that may be others when a run is continued, and the one that names the run then.
OF_NO_CONSEQUENCE = {'--kimg', '--snap', '--metrics', '--gpus', '--workers', '--nobench', '--allow_tf32'}
RESUME = '--resume'

# What options were that earlier versions did not record, as JSON.
UNRECORDED = {'loss_kwargs.truncation_psi': '1.0'}


@dataclass(frozen=True)
class Wanted:
    """What is to run, to be compared with the runs that are there.

    Attributes:
        args: keyword arguments of `loops.run_loop`, without `rank` and `run_dir`.
        own_student: whether the run starts from a network file in its own directory.
        reads: digests of what it reads, see `fingerprints.of_run`, and how its student is made.
    """

    args: Mapping[str, Any]
    own_student: bool
    reads: Mapping[str, str]


def continue_or_start(plan: Plan, outdir: str, resume: str | None = None, dry_run: bool = False) -> str:
    """Run what is planned in a new run directory, or continue an existing run; wait for its end.

    Args:
        plan: what runs.
        outdir: directory of run directories.
        resume: None starts a new run, or continues the one that this torchrun has begun; 'latest' continues the newest
            one in `outdir` that has the same options and reads the same contents, if possible one with a training
            state, and starts one if there is none, or if that was to be longer; a run directory continues that one.
        dry_run: print the options, and write and run nothing.

    Returns:
        The run directory.

    Raises:
        UserError: `resume` is no run directory, its options differ (see `FREE`) or the contents of what it reads, or
            all its states are damaged. Nothing has been written.
        Stopped, DivergedError: see `training_loops.loop.train`.
    """
    distributed.join_torchrun(plan.args.get('device'))
    torchrun_id = distributed.torchrun_id()
    if distributed.restarted_by_torchrun() and (torchrun_id is None or 'loop' not in plan.args):
        resume = resume or LATEST  # Perhaps it is not the one that torchrun started, but there is no telling.

    own_student = plan.student is not None
    with contextlib.ExitStack() as held:

        def prepare() -> RunDirectory:
            reads = fingerprints.of_run(plan.args, plan.resources.networks, own_student)
            wanted = Wanted(plan.args, own_student, {**reads, **plan.student_from})
            existing = run_to_continue(outdir, wanted, resume)
            if existing is not None:
                states.require_one(existing)
            start = plan.student
            if plan.choose is not None and existing is None and not dry_run:
                start = {**(start or {}), **plan.choose()}
            run = existing or (RunDirectory.next if dry_run else RunDirectory.create)(outdir, plan.name)
            if not dry_run:
                held.enter_context(run.claimed())
            args = in_run_directory(plan.args, run, own_student)
            if dry_run:
                print(f'\nTraining options:\n{json.dumps(args, indent=2)}')
            given = {f'{inputs.CHOSEN}{name}': value for name, value in plan.chosen.items()}
            print(summary(args, run, inputs.teacher(args, given)))
            for note in plan.notes:
                print(note)
            if existing is None and resume is not None:
                print_why_none(outdir, wanted)
            if not dry_run:
                if torchrun_id is not None:
                    given[inputs.TORCHRUN] = torchrun_id
                write_start(run, args, start, {**wanted.reads, **given})
            return run

        run = distributed.result_of_rank_zero(prepare)
        if dry_run:
            print('Dry run; exiting.')
        else:
            launch.run(in_run_directory(plan.args, run, own_student))
            print(whats_next(plan.args, run))
    return os.fspath(run)


def in_run_directory(args: Mapping[str, Any], run: RunDirectory, own_student: bool) -> dict:
    """The arguments of the loop in a run directory, where it may start from a network file of its own."""
    start = {'resume_pkl': run.student_path} if own_student else {}
    return dnnlib.EasyDict(args, **start, run_dir=os.fspath(run))


def write_start(run: RunDirectory, args: dict, student: dict | None, reads: Mapping[str, str]) -> None:
    """Write what the run starts from. The options are written last: a directory with options is complete.

    Args:
        run: in whose directory.
        args: of the loop.
        student: contents of the network pickle at `args.resume_pkl`, if the run has its own.
        reads: digests of what the run reads, see `fingerprints.of_run`, and more for the same file.
    """
    is_new = not run.options_path.exists()
    if student is not None and is_new:
        pickles.save(args['resume_pkl'], student)
    if reads:
        run.write_inputs({**reads, inputs.DIRECTORY: os.getcwd()})
    run.write_options(args)
    if not is_new and not run.states():
        run.cut_records({})  # The run was stopped before its first state, and starts from scratch.


def summary(args: Mapping, run: RunDirectory, teacher: str | None) -> str:
    """What is about to run, in the lines that matter; `training_options.json` has all."""
    loss, data = args.get('loss_kwargs', {}), args['training_set_kwargs']
    images = f'images of {data["path"]}' if datasets.is_teachers(data) else data['path']
    at_a_time, processes = args.get('batch_gpu', args.get('batch_size')), args['num_gpus']
    rate = args.get('G_opt_kwargs', {}).get('lr')
    if args.get('lr_decay_kimg'):
        rate = '{}, from {:g} to {:g} kimg falling to 0'.format(rate, *args['lr_decay_kimg'])
    lines = {
        'Output directory': os.fspath(run),
        'Training data': images + (', mirrored' if data.get('xflip') else ''),
        'Loss': loss.get('class_name'),
        'Teacher': teacher,
        'Starts from': args.get('resume_pkl'),
        'Duration': f'{args["total_kimg"]} kimg',
        'Batch': f'{args.get("batch_size")}, {at_a_time} at a time',
        'Processes': processes,
        'Learning rate': rate,
        'R1 weight': loss.get('r1_gamma'),
        'Seed': args.get('random_seed'),
        'Device': distributed.named_device(args.get('device')),
        'All options': run.options_path,
    }
    return '\n' + ''.join(f'{name + ":":<18} {value}\n' for name, value in lines.items() if value is not None)


def whats_next(args: Mapping, run: RunDirectory) -> str:
    """Where the results of a run are, and the commands that show them."""
    lines = ['', f'The run is in {os.fspath(run)}.']
    snapshots = run.snapshots()
    if snapshots:
        teacher = inputs.teacher(args, run.read_inputs())
        networks = ' '.join(shlex.quote(str(each)) for each in [teacher, snapshots[-1]] if each is not None)
        lines += [f'Its last snapshot:   {snapshots[-1]}']
        if not datasets.is_teachers(args['training_set_kwargs']):
            data = shlex.quote(args['training_set_kwargs']['path'])
            lines += [f'To measure it:       stylegan2-compress evaluate {networks} --data {data}']
    lines += [f'To see how it went:  stylegan2-compress report {shlex.quote(os.fspath(run))}']
    return '\n'.join(lines)


# --- Which run to continue --------------------------------------------------------------------------------------------


def is_run(resume: str | None) -> bool:
    """Whether the host's `--resume`, otherwise a network pickle, means a run to continue."""
    return resume is not None and (resume == LATEST or os.path.isdir(resume))


def started_from(resume: str, outdir: str, chosen: Mapping[str, str]) -> str | None:
    """The network pickle that the run to be continued began with, if it did so by the host's `--resume`.

    Args:
        resume: a run directory, or 'latest' for the newest run of the same options.
        outdir: directory of run directories.
        chosen: the options that are given now, but `--resume`.
    """
    runs = reversed(RunDirectory.numbered(outdir)) if resume == LATEST else [RunDirectory(resume)]
    for run in runs:
        recorded = inputs.chosen(run.read_inputs())
        start = recorded.pop(RESUME, None)
        others = (
            {name: text for name, text in each.items() if name not in OF_NO_CONSEQUENCE} for each in (recorded, chosen)
        )
        if resume != LATEST or len({json.dumps(each, sort_keys=True) for each in others}) == 1:
            return start
    return None


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


def run_to_continue(outdir: str, wanted: Wanted, resume: str | None) -> RunDirectory | None:
    """The run that `resume` means, None for a new one; see `continue_or_start`."""
    args = wanted.args
    if resume is None:
        return torchruns_run(outdir, wanted) if 'loop' in args else None
    if 'loop' not in args:
        raise UserError(f"--resume={resume} continues runs of our loops, but this one runs the host's; give --loop.")
    if resume == LATEST:
        return latest_run(outdir, wanted)
    run, old = RunDirectory(resume), options_to_continue(resume)
    changed = differences(run, wanted)
    if changed:
        length = ''
        if old['total_kimg'] != args['total_kimg'] and FROM_LENGTH & {each.partition(':')[0] for each in changed}:
            length = f', --kimg={old["total_kimg"]} among them, because learning rates and averages may follow from it'
        raise UserError(
            f'--resume={resume} has other options: {"; ".join(changed)}. Give those it was started with{length}.'
        )
    if old['total_kimg'] > args['total_kimg']:
        raise UserError(f'--kimg={args["total_kimg"]} is shorter than {resume}, whose length is {old["total_kimg"]}.')
    if run.has_lost_states():
        raise UserError(
            f'--resume={resume} cannot be continued: it has no {STATES}. Its snapshots can be the --student of a new '
            'run.'
        )
    return RunDirectory(os.path.normpath(resume))


def latest_run(outdir: str, wanted: Wanted) -> RunDirectory | None:
    """The newest run in `outdir` that is the same, and no longer than the options say; None if there is none.

    One that has a training state comes before newer ones that have none: they may have been started by mistake.
    """
    newest = None
    for run in same_runs(outdir, wanted):
        if newest is None and run.states():
            return run
        if newest is not None and states.has_intact(run):
            print(
                f'Continuing {run}, and not the newer {newest}, which has no training state; '
                f'--resume={newest} would start that one again.'
            )
            return run
        newest = newest or run
    return newest


def torchruns_run(outdir: str, wanted: Wanted) -> RunDirectory | None:
    """The run that this torchrun began before one of its processes failed; None if it is only beginning, or without it.

    Some users give all their runs one `--rdzv-id`. So a run that is finished counts only where torchrun says that it
    has started it before, which it does not always do.
    """
    torchrun_id = distributed.torchrun_id()
    if torchrun_id is None:
        return None
    for run in same_runs(outdir, wanted):
        if run.read_inputs().get(inputs.TORCHRUN) == torchrun_id:
            state = None if distributed.restarted_by_torchrun() else states.load_latest_state(run)
            if state is not None and state['finished']:
                return None
            print(f'Continuing {run}, which was started with the same --rdzv-id.')
            return run
    return None


def same_runs(outdir: str, wanted: Wanted) -> Iterator[RunDirectory]:
    """The runs in `outdir` that these options can continue or start again, newest first."""
    for run in reversed(RunDirectory.numbered(outdir)):
        old = recorded_options(run)
        if old is None or old['total_kimg'] > wanted.args['total_kimg'] or differences(run, wanted):
            continue
        if run.has_lost_states():
            print(f'{run} has no training state and cannot be continued.')
        else:
            yield run


def print_why_none(outdir: str, wanted: Wanted) -> None:
    """Print that `latest` starts a new run, and why it does not continue the newest one there is."""
    for run in reversed(RunDirectory.numbered(outdir)):
        old = recorded_options(run)
        if old is not None:
            longer = (
                [f'its length is {old["total_kimg"]} kimg'] if old['total_kimg'] > wanted.args['total_kimg'] else []
            )
            changed = '; '.join(differences(run, wanted) + longer)
            print(f'Starting a new run, and not continuing {run} ({changed or "see above"}).\n')
            return


def differences(run: RunDirectory, wanted: Wanted) -> list[str]:
    """How the arguments of a run differ from those it was started with: 'name: old → new' each.

    What is `FREE` or `FROM_MACHINE` does not count. What it reads is compared by content, as far as that is on
    record, and by place in runs that have no record of it.
    """
    old = options_to_continue(os.fspath(run))
    new = in_run_directory(wanted.args, RunDirectory(old['run_dir']), wanted.own_student)
    old, new = (dict(flat(json.loads(json.dumps(each)))) for each in (old, new))
    recorded = run.read_inputs()
    changed = []
    for name in sorted(old.keys() | new.keys()):
        before, after = (each.get(name, UNRECORDED.get(name)) for each in (old, new))
        if name.partition('.')[0] in FREE or name in FROM_MACHINE:
            continue
        if name in inputs.NAMES and before is not None and after is not None:
            changed += _other_input(
                name, json.loads(before), json.loads(after), recorded.get(name), wanted.reads.get(name)
            )
        elif before != after:
            changed.append(f'{name}: {before or "none"} → {after or "none"}')
    for name in inputs.STUDENT:
        before, now = recorded.get(name), wanted.reads.get(name)
        if before and now and before != now:
            if name == inputs.TEACHER:  # Digests.
                before, now = f'{before[:8]}…', f'{now[:8]}…'
            changed.append(f'{name}: {before} → {now}')
    return changed


def _other_input(name: str, before: str | None, after: str | None, old: str | None, new: str | None) -> list[str]:
    """The difference between two files that a run reads, if there is one; `old` and `new` are digests."""
    if old is None or new is None:
        is_same = before == after or (
            before is not None and after is not None and fingerprints.same_path(before, after)
        )
        return [] if is_same else [f'{name}: {json.dumps(before)} → {json.dumps(after)}']
    return [] if old == new else [f'{name}: the contents of {before} ({old[:8]}…) → those of {after} ({new[:8]}…)']


def flat(args: dict, prefix: str = '') -> Iterator[tuple[str, str]]:
    """Names and values (as JSON) of nested arguments: ('loss_kwargs.r1_gamma', '10')."""
    for name, value in args.items():
        if isinstance(value, dict):
            yield from flat(value, f'{prefix}{name}.')
        else:
            yield prefix + name, json.dumps(value)
