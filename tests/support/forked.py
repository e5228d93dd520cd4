"""Processes that begin as copies of the test's, and so have torch imported: to import it takes seconds of each.

Tests whose point is how processes start begin them as users do.
"""

import gc
import io
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import traceback
from pathlib import Path

import pytest

OURS = 'stylegan2_compress', 'training_loops', 'patches'
THE_HOSTS = 'dnnlib', 'torch_utils', 'training', 'metrics', 'legacy', 'train'
SECONDS = 500  # After which a script is ended, before pytest gives up the test.
# What the copy collected of this process's garbage might wait for threads that only this one has (of a TCPStore).
os.register_at_fork(after_in_child=gc.freeze)


def processes_are_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What spawns processes forks them, and the host has no statistics of earlier tests for them to go on with."""
    from torch_utils import training_stats

    get_context = multiprocessing.get_context
    monkeypatch.setattr(multiprocessing, 'get_context', lambda name=None: get_context(name and 'fork'))
    for name, value in dict(_sync_called=False, _counters={}, _cumulative={}).items():
        monkeypatch.setattr(training_stats, name, value)


def run_script(directory: Path, name: str, *arguments: str, **variables: str) -> tuple[int, str]:
    """Run a script in a directory, with our modules and the host's imported anew and these variables alone.

    Returns:
        Its exit status, and what it printed.
    """
    with tempfile.TemporaryFile() as printed:
        child = os.fork()
        if child == 0:
            try:
                os._exit(_run(printed.fileno(), directory, name, arguments, variables))
            finally:
                os._exit(70)  # Whatever happens, pytest goes on in one process.
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        printed.seek(0)
        return status, printed.read().decode()


def _run(printed: int, directory: Path, name: str, arguments: tuple[str, ...], variables: dict[str, str]) -> int:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # Which is pytest's in the process that this one is a copy of.
    signal.alarm(SECONDS)
    for stream in (1, 2):
        os.dup2(printed, stream)
    sys.stdout = sys.stderr = io.TextIOWrapper(io.FileIO(1, 'w', closefd=False), write_through=True)
    os.chdir(directory)
    multiprocessing.process.ORIGINAL_DIR = os.getcwd()  # Where workers that are not forked look for the script.
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = [name, *arguments]
    sys.path.insert(0, str(Path(directory, name).parent))
    for module in list(sys.modules):
        if module.partition('.')[0] in (*OURS, *THE_HOSTS):
            del sys.modules[module]
    try:
        runpy.run_path(name, run_name='__main__')
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
