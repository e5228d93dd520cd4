"""Progress bars: on a terminal, and nowhere else."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(iterable: Iterable | None = None, shown: bool = True, leave: bool = False, **about: Any) -> tqdm:
    """A bar of tqdm on standard error, if that is a terminal.

    The host's Logger stands in for `sys.stderr` while a run trains: it would take the bar for a line of the log.

    Args:
        iterable: what the bar counts, if it does not count by `update`.
        shown: whether there is one at all, as on one of several processes.
        leave: whether it stays when it is full.
        about: `total`, `desc`, `unit` and the like, see tqdm.
    """
    terminal = sys.__stderr__ if sys.__stderr__ is not None and sys.__stderr__.isatty() else None
    return tqdm(iterable, file=terminal, disable=terminal is None or not shown, leave=leave, **about)
