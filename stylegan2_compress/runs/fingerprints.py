"""What a run reads, identified by content: files may move, and a name may come to mean another file."""

import os
from collections.abc import Mapping

from stylegan2_compress import files
from stylegan2_compress.host import datasets, downloads
from stylegan2_compress.pickles.networks import Networks
from stylegan2_compress.runs.inputs import DATA, FILES, NAMES, given, value_of


def of_run(args: Mapping, networks: Networks, own_student: bool = False) -> dict[str, str]:
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
        if name in DATA and not datasets.is_teachers(value_of(args, name.rpartition('.')[0])):
            if value not in by_data:
                by_data[value] = datasets.fingerprint(value)
            found[name] = by_data[value]
        elif name in FILES:
            found[name] = files.sha256(value)
        elif not (own_student and name == 'resume_pkl'):
            found[name] = networks.sha256(value)  # Also of a teacher whose images are the data.
    return found


def same_path(first: str, second: str) -> bool:
    """Whether two paths or URLs mean the same place: `teacher.pkl` and `./teacher.pkl`."""
    if any(map(downloads.is_remote, (first, second))):
        return first == second
    return os.path.realpath(first) == os.path.realpath(second)
