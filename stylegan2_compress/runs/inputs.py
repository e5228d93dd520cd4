"""What a run reads, identified by content: files may move, and a name may come to mean another file."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stylegan2_compress import files
from stylegan2_compress.host import datasets, downloads
from stylegan2_compress.pickles.networks import Networks

# Arguments of a loop that name what it reads.
DATA = ('training_set_kwargs.path', 'loss_kwargs.training_set_kwargs.path')
NETWORKS = ('loss_kwargs.teacher', 'resume_pkl')
FILES = ('loss_kwargs.statistics',)
NAMES = (*DATA, *NETWORKS, *FILES)

# What else `inputs.json` has: how the run's own student was made, the directory that relative paths start from, and
# under which id torchrun starts the run again.
RATIO, CRITERION, DIRECTORY, TORCHRUN = 'student.ratio', 'student.criterion', 'directory', 'torchrun'
CHOSEN = 'option.'  # Before the names of options that were given.


def fingerprints(args: Mapping, networks: Networks, own_student: bool = False) -> dict[str, str]:
    """Digests of the contents of a run's data, network files and statistics, by the arguments that name them.

    Args:
        args: arguments of a training loop.
        networks: network files that are open already.
        own_student: whether the run starts from a file in its own directory, which is made from the others.

    Raises:
        UserError: a file cannot be read.
    """
    found = {}
    by_data: dict[str, str] = {}
    for name, value in given(args, NAMES):
        if name in DATA and not datasets.is_teachers(_value(args, name.rpartition('.')[0])):
            if value not in by_data:
                by_data[value] = datasets.fingerprint(value)
            found[name] = by_data[value]
        elif name in FILES:
            found[name] = files.sha256(value)
        elif not (own_student and name == 'resume_pkl'):
            found[name] = networks.sha256(value)  # Also of a teacher whose images are the data.
    return found


def given(args: Mapping, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Those of the dotted names that have a text as their value, with it."""
    for name in names:
        value = _value(args, name)
        if isinstance(value, str):
            yield name, value


def _value(args: Mapping, name: str) -> Any:
    """The value of a dotted name, or None."""
    value: Any = args
    for key in name.split('.'):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def same_path(first: str, second: str) -> bool:
    """Whether two paths or URLs mean the same place: `teacher.pkl` and `./teacher.pkl`."""
    if any(map(downloads.is_remote, (first, second))):
        return first == second
    return os.path.realpath(first) == os.path.realpath(second)
