"""The host finds a plugin that it has compiled, and does not without the repair."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension
from torch_utils import custom_ops

from stylegan2_compress import host, patches
from stylegan2_compress.patches import plugin_import

HOST = host.activate().path

missing = [
    tool
    for tool, there in (
        ('ninja', cpp_extension.is_ninja_available()),
        ('a C++ compiler', shutil.which(os.environ.get('CXX', 'c++').split()[0])),
    )
    if not there
]
needs_compiler = pytest.mark.skipif(bool(missing), reason=f'to compile a plugin takes {" and ".join(missing)}')

# Initialised in two phases, as the modules of pybind11 3 are, but compiled in a second. The CPython documentation:
# "Initializing extension modules".
TWO_PHASES = r"""
#include <Python.h>

static PyObject *answer(PyObject *, PyObject *) { return PyLong_FromLong(42); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, nullptr}, {nullptr, nullptr, 0, nullptr}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "probe_plugin", nullptr, 0, methods};

PyMODINIT_FUNC PyInit_probe_plugin() { return PyModuleDef_Init(&definition); }
"""

WITH_PYBIND11 = r"""
#include <pybind11/pybind11.h>

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("answer", [] { return 42; }); }
"""

UNREPAIRED = """
import sys
sys.path.insert(0, {host!r})
from torch_utils import custom_ops
plugin = custom_ops.get_plugin('probe_plugin', sources=[{source!r}])
print(plugin.answer())
"""

REPAIRED = """
import sys
from stylegan2_compress import host
host.activate({host!r})
from stylegan2_compress.patches import plugin_import
plugin_import.apply()  # Also with a torch that does not need it: the module below is none of pybind11.
from torch.utils import cpp_extension
from torch_utils import custom_ops
load = cpp_extension.load
plugin = custom_ops.get_plugin('probe_plugin', sources=[{source!r}])
assert custom_ops.get_plugin('probe_plugin', sources=[{source!r}]) is plugin is sys.modules['probe_plugin']
assert cpp_extension.load is load
print(plugin.answer())
"""


@needs_compiler
@pytest.mark.parametrize('variable', ['TORCH_EXTENSIONS_DIR', 'XDG_CACHE_HOME'])
def test_a_compiled_plugin_is_found_repaired_and_not_found_unrepaired(variable, tmp_path):
    """The host compiles in two ways: a copy of the sources with the first variable, in place without."""
    source = tmp_path / 'sources' / 'probe.cpp'
    source.parent.mkdir()
    source.write_text(TWO_PHASES)
    variables = {variable: str(tmp_path / 'built')}
    unrepaired = run_script(UNREPAIRED, source, **variables)
    assert 'Failed!' in unrepaired.stdout
    assert unrepaired.stderr.endswith("ModuleNotFoundError: No module named 'probe_plugin'\n")
    libraries = list((tmp_path / 'built').rglob('probe_plugin.so'))
    assert len(libraries) == 1, 'it failed although it was compiled'
    built = libraries[0].stat().st_mtime_ns

    repaired = run_script(REPAIRED, source, **variables)
    assert repaired.returncode == 0, repaired.stderr
    assert repaired.stdout.split('\n')[-2] == '42'
    assert libraries[0].stat().st_mtime_ns == built


@needs_compiler
@pytest.mark.slow
def test_the_repair_is_needed_where_modules_of_pybind11_are_not_registered(tmp_path):
    """What `needed` reads off a header, tried."""
    source = tmp_path / 'probe.cpp'
    source.write_text(WITH_PYBIND11)
    script = (
        'import sys\n'
        'from torch.utils import cpp_extension\n'
        'module = cpp_extension.load("probe_plugin", [{source!r}])\n'
        'print(module.answer(), "probe_plugin" in sys.modules)'
    )
    result = run_script(script, source, TORCH_EXTENSIONS_DIR=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ['42', str(plugin_import._pybind11_major() < 3)]


def run_script(script: str, source: Path, **variables: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != 'TORCH_EXTENSIONS_DIR'} | variables
    script = script.format(host=str(HOST), source=str(source))
    return subprocess.run([sys.executable, '-c', script], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(('major', 'needed'), [('2', False), ('3', True), ('4', True), (None, True)])
def test_repair_is_needed_from_pybind11_3_on(major, needed, tmp_path, monkeypatch):
    """In doubt it is, which does no harm."""
    header = tmp_path / 'include' / 'pybind11' / 'detail' / 'common.h'
    header.parent.mkdir(parents=True)
    if major is not None:
        header.write_text(f'#pragma once\n#define PYBIND11_VERSION_MAJOR {major}\n#define PYBIND11_VERSION_MINOR 0\n')
    monkeypatch.setattr(torch, '__file__', str(tmp_path / '__init__.py'))
    monkeypatch.setattr(custom_ops, 'get_plugin', plugin_import._host_function)
    assert plugin_import.needed() == needed
    plugin_import.apply()
    assert not plugin_import.needed()


def test_load_is_torchs_again_after_a_build_that_failed(monkeypatch):
    def load(name, sources, **kwargs):
        raise RuntimeError(f'Error building extension {name!r}')

    monkeypatch.setattr(cpp_extension, 'load', load)
    monkeypatch.setattr(custom_ops, 'verbosity', 'none')
    with pytest.raises(RuntimeError, match="Error building extension 'probe_plugin'"):
        plugin_import._get_plugin('probe_plugin', sources=['probe.cpp'])
    assert cpp_extension.load is load
    assert 'probe_plugin' not in sys.modules


def test_plugins_can_be_imported_before_builds_are_judged():
    assert patches.REPAIRS.index('plugin_import') < patches.REPAIRS.index('cuda_plugins')
