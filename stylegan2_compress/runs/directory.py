"""Run directories: where they are, and what a run leaves in them."""

import contextlib
import json
import os
import re

from stylegan2_compress.runs import states

OPTIONS = 'training_options.json'
STUDENT = 'student.pkl'


def run_dirs(outdir: str) -> list[str]:
    """The numbered directories in `outdir`, oldest first."""
    names = [name for name in os.listdir(outdir) if re.match(r'\d+', name)] if os.path.isdir(outdir) else []
    return [os.path.join(outdir, name) for name in sorted(names, key=lambda name: int(re.match(r'\d+', name).group()))]


def next_run_dir(outdir: str, desc: str) -> str:
    """`OUTDIR/00000-desc`, with the first number no directory there has yet."""
    taken = [-1, *(int(re.match(r'\d+', os.path.basename(path)).group()) for path in run_dirs(outdir))]
    return os.path.join(outdir, f'{max(taken) + 1:05d}-{desc}')


def read_options(run_dir: str) -> dict | None:
    """What a run was started with, or None if it was not, or cannot be known."""
    try:
        with open(os.path.join(run_dir, OPTIONS)) as file:
            args = json.load(file)
    except (OSError, ValueError):
        return None
    is_ours = isinstance(args, dict) and isinstance(args.get('total_kimg'), (int, float)) and 'run_dir' in args
    return args if is_ours else None


def has_lost_states(run_dir: str, args: dict) -> bool:
    """Whether a run of these arguments got so far that it must have had a training state, but has none.

    To begin it again would overwrite what it made. (One that was ended before its first state has made little.)
    """
    due = min(args.get('state_kimg', states.STATE_KIMG), args['total_kimg'])
    return not states.states_in(run_dir) and kimg_on_record(run_dir) >= due


def kimg_on_record(run_dir: str) -> float:
    """How far the statistics of a run go, in thousands of images."""
    with contextlib.suppress(OSError), open(os.path.join(run_dir, 'stats.jsonl')) as file:
        for line in reversed(file.readlines()):
            with contextlib.suppress(ValueError, KeyError, TypeError):  # The last line may be cut off.
                return float(json.loads(line)['Progress/kimg']['mean'])
    return 0.0
