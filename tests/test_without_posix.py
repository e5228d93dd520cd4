"""The package where Python has no modules of POSIX's, as on Windows: everything is imported, and a run goes through."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stylegan2_compress import host

SCRIPT = """
import signal, sys

import psutil  # On Windows it has another part for that.

MISSING = 'fcntl', 'grp', 'pty', 'pwd', 'resource', 'syslog', 'termios', 'tty'
for name in MISSING:
    sys.modules[name] = None
del signal.SIGHUP

import importlib, pkgutil, pathlib

import stylegan2_compress
from stylegan2_compress import host

host.activate(sys.argv[1])
for module in pkgutil.walk_packages(stylegan2_compress.__path__, 'stylegan2_compress.'):
    if not module.name.endswith('__main__'):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # Packages of extras need not be there.
            if error.name in MISSING or error.name.startswith('stylegan2_compress'):
                raise

from stylegan2_compress.runs.directory import RunDirectory
from stylegan2_compress.training_loops import image_grid
from tiny_runs import loop_arguments, start

image_grid.grid_size = lambda _shape: (2, 2)
place = pathlib.Path(sys.argv[2])
arguments = loop_arguments(place / 'run', place / 'data.zip', total_kimg=0.032)
start(**arguments)
assert RunDirectory(arguments['run_dir']).states()
"""


@pytest.mark.slow
def test_everything_is_imported_and_a_run_goes_through(tmp_path, make_dataset_zip):
    make_dataset_zip(tmp_path, n=8)
    command = [sys.executable, '-W', 'ignore', '-c', SCRIPT, str(host.activate().path), str(tmp_path)]
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).with_name('support')))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'Exiting...' in done.stdout
