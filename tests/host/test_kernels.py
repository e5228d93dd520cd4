"""Which of the host's CUDA kernels are in use: what is said, where, and what to install. No GPU is needed here."""

import re
import shutil
import threading
import warnings
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from commands import run
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton
from torch_utils import custom_ops
from torch_utils.ops import bias_act, upfirdn2d

from stylegan2_compress import host, patches
from stylegan2_compress.host import kernels
from stylegan2_compress.patches import cuda_plugins
from stylegan2_compress.runs import loops
from stylegan2_compress.training_loops import setup

HOST = host.activate().path

TOOLS_MISSING = {'nvcc': ('CUDA_HOME', None), 'ninja': ('is_ninja_available', lambda: False)}

NVCC = 'nvcc, from the CUDA toolkit'

# As torch reports it: what the compiler says stands between its command and a stack trace.
BUILD_FAILED = """Failed to build CUDA kernels for upfirdn2d. Falling back to slow reference implementation. Details:

Traceback (most recent call last):
  File "cpp_extension.py", line 2906, in _run_ninja_build
    subprocess.run(
subprocess.CalledProcessError: Command '['ninja', '-v']' returned non-zero exit status 1.
RuntimeError: Error building extension 'upfirdn2d_plugin': [1/3] c++ -Werror -c upfirdn2d.cpp -o upfirdn2d.o
FAILED: [code=1] upfirdn2d.o
{line}
compilation terminated.
ninja: build stopped: subcommand failed.
"""


@pytest.fixture
def build(monkeypatch):
    """`build(error, ...)`: what an attempt to build each operation raises, if not None; all tools are there.

    It returns the list of the plugins that were tried. The repairs are undone after the test.
    """
    monkeypatch.setattr(shutil, 'which', lambda name, path=None: f'/usr/bin/{name}')
    monkeypatch.setattr(cpp_extension, 'CUDA_HOME', '/usr/local/cuda')
    monkeypatch.setattr(cpp_extension, 'is_ninja_available', lambda: True)
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    monkeypatch.setattr(cuda_plugins, 'failures', {})
    tried = []

    def build(**errors):
        def get_plugin(module_name, sources, **build_kwargs):
            tried.append(module_name)
            error = errors.get(module_name.removesuffix('_plugin'))
            if error is not None:
                raise error
            return object()

        monkeypatch.setattr(custom_ops, 'get_plugin', get_plugin)
        for op in (upfirdn2d, bias_act):
            monkeypatch.setattr(op, '_init', op._init)
            monkeypatch.setattr(op, '_inited', False)
            monkeypatch.setattr(op, '_plugin', None)
        cuda_plugins.apply()
        return tried

    return build


def both(message):
    return dict(upfirdn2d=RuntimeError(message), bias_act=RuntimeError(message))


def load_quietly():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return kernels.load(torch.device('cuda'))


def test_compiled_kernels_are_named_and_ask_for_nothing(build):
    build()
    in_use = load_quietly()
    assert str(in_use) == 'Host kernels: upfirdn2d and bias_act compiled'
    assert in_use.ways_out() == []


@pytest.mark.parametrize(
    ('tools', 'reason', 'advice'),
    [
        (['nvcc'], f'missing: {NVCC}', ['cuda-toolkit-13-0']),
        (['ninja'], 'missing: ninja', ['pip install ninja']),
        (['nvcc', 'ninja'], f'missing: {NVCC}; ninja', ['cuda-toolkit-13-0', 'pip install ninja']),
    ],
)
def test_missing_tools_are_named_and_what_to_install(build, tools, reason, advice, monkeypatch, tmp_path):
    tried = build(**both('No such file or directory: nvcc'))
    monkeypatch.setattr(kernels.sysconfig, 'get_path', lambda name: str(tmp_path))
    monkeypatch.setattr(shutil, 'which', lambda name, path=None: None if path == str(tmp_path) else name)
    for tool in tools:
        monkeypatch.setattr(cpp_extension, *TOOLS_MISSING[tool])
    in_use = load_quietly()
    assert str(in_use) == (
        f'Host kernels: reference operations, because the build failed ({reason}): training takes several times as long'
    )
    assert len(in_use.ways_out()) == len(advice)
    assert all(part in way_out for part, way_out in zip(advice, in_use.ways_out(), strict=True))
    assert load_quietly() == in_use
    assert tried == ['upfirdn2d_plugin', 'bias_act_plugin']


def test_ninja_of_a_virtual_environment_that_is_not_active(build, monkeypatch, tmp_path):
    build(**both('Ninja is required'))
    monkeypatch.setattr(cpp_extension, *TOOLS_MISSING['ninja'])
    monkeypatch.setattr(kernels.sysconfig, 'get_path', lambda name: str(tmp_path))
    assert load_quietly().ways_out() == [
        f'put {tmp_path} on PATH (activate the virtual environment): ninja is installed there'
    ]


@pytest.mark.parametrize(
    ('line', 'reason', 'advice'),
    [
        (
            '/torch/include/ATen/cuda/CUDAContextLight.h:10:10: fatal error: cusparse.h: No such file or directory',
            'fatal error: cusparse.h: No such file or directory',
            'install the CUDA toolkit 13.0, all of it',
        ),
        (
            '/usr/bin/ld: cannot find -lcudart: No such file or directory\ncollect2: error: ld returned 1 exit status',
            'cannot find -lcudart: No such file or directory',
            'install the CUDA toolkit 13.0, all of it',
        ),
        (
            '/torch/include/pybind11/detail/common.h:210:10: fatal error: Python.h: No such file or directory',
            'fatal error: Python.h: No such file or directory',
            'python3-dev',
        ),
        (
            "nvcc fatal   : Unsupported gpu architecture 'compute_50'",
            "nvcc fatal   : Unsupported gpu architecture 'compute_50'",
            'unset TORCH_CUDA_ARCH_LIST',
        ),
        (
            '/crt/host_config.h:137:2: error: #error -- unsupported GNU version! gcc versions later than 15 are not',
            'error: #error -- unsupported GNU version! gcc versions later than 15 are not',
            'older g++',
        ),
        ('Segmentation fault', 'ninja: build stopped: subcommand failed.', 'verbosity = "full"'),
    ],
)
def test_a_build_that_fails_with_all_tools_there_gives_the_compilers_first_error(build, line, reason, advice):
    build(**both(BUILD_FAILED.format(line=line)))
    in_use = load_quietly()
    assert f'because the build failed ({reason}): training' in str(in_use)
    assert str(in_use).count('\n') == 0
    assert len(in_use.ways_out()) == 1
    assert advice in in_use.ways_out()[0]


def test_one_operation_of_two(build):
    build(bias_act=RuntimeError('bias_act_plugin.so: undefined symbol'))
    assert str(load_quietly()) == (
        'Host kernels: upfirdn2d compiled, bias_act a reference operation, because the build failed '
        '(RuntimeError: bias_act_plugin.so: undefined symbol): training takes longer'
    )


def test_two_reasons(build):
    build(upfirdn2d=RuntimeError('one'), bias_act=RuntimeError('another'))
    assert 'reference operations, because the build failed (RuntimeError: one; RuntimeError: another)' in str(
        load_quietly()
    )


# --- Where it is said -----------------------------------------------------------------------------------------------


def test_nothing_is_built_or_said_for_a_cpu(build, capsys):
    tried = build()
    kernels.announce(torch.device('cpu'))
    assert tried == []
    assert capsys.readouterr().out == ''


def test_a_run_on_cuda_begins_with_the_sentence(build, capsys):
    build()
    kernels.announce(torch.device('cuda', 1))
    assert capsys.readouterr().out == 'Host kernels: upfirdn2d and bias_act compiled\n'


@pytest.mark.parametrize(('rank', 'lines'), [(0, 1), (1, 0)])
def test_the_hosts_loop_is_announced_by_its_first_process(build, rank, lines, monkeypatch, capsys):
    build()
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr('training.training_loop.training_loop', lambda rank, **args: print('Loading training set...'))
    loops.run_loop(rank=rank)
    printed = capsys.readouterr().out.splitlines()
    assert printed == ['Host kernels: upfirdn2d and bias_act compiled'] * lines + ['Loading training set...']


@pytest.mark.parametrize(('device', 'rank', 'lines'), [('cuda', 0, 1), ('cuda', 1, 0), ('cpu', 0, 0)])
def test_our_loop_announces_in_its_first_process(build, device, rank, lines, monkeypatch, capsys, tmp_path):
    class Enough(Exception):
        pass

    def enough(*_args):
        raise Enough

    build()
    monkeypatch.setattr(setup.distributed, 'local_device', torch.device)
    monkeypatch.setattr(setup, 'Monitor', lambda *args: nullcontext())
    monkeypatch.setattr(setup, 'load_training_set', enough)
    options = dict(cudnn_benchmark=True, allow_tf32=False, batch_size=4, batch_gpu=4, num_gpus=1, total_kimg=1)
    options |= dict(
        device=device, rank=rank, run_dir=str(tmp_path), training_set_kwargs={}, track=None, cuda_graphs=False
    )
    with pytest.raises(Enough):
        setup.set_up(setup.SimpleNamespace(**options))
    assert capsys.readouterr().out.count('Host kernels: ') == lines


@pytest.mark.parametrize('on_cuda', [True, False])
def test_host_command_says_which_kernels_are_in_use_and_the_way_out(build, on_cuda, monkeypatch):
    tried = build(**both('No nvcc'))
    monkeypatch.setattr(cpp_extension, 'CUDA_HOME', None)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: on_cuda)
    monkeypatch.setattr(patches, 'apply_needed', list)
    report = run('host', '--host', HOST)
    assert ('Host kernels: reference operations' in report) == on_cuda
    assert ('\n  install the CUDA toolkit 13.0' in report) == on_cuda
    assert bool(tried) == on_cuda


@pytest.mark.skipif(not hasattr(cpp_extension, 'FileBaton'), reason='the system lets go of the lock of this torch')
def test_who_waits_for_a_process_that_was_killed_is_told(build, tmp_path, capsys):
    build()
    said = []

    def get_plugin(module_name, sources, **build_kwargs):
        lock = tmp_path / f'{module_name}-lock'
        lock.touch()
        baton = cpp_extension.FileBaton(str(lock))
        assert not baton.try_acquire()
        threading.Timer(0.3, lock.unlink).start()
        baton.wait()
        said.append(capsys.readouterr().out)
        return object()

    with mock.patch.object(custom_ops, 'get_plugin', get_plugin):
        kernels.load(torch.device('cuda'))
    names = [re.search(r'Waiting for .*/(\w+)-lock, because', text)[1] for text in said]
    assert names == ['upfirdn2d_plugin', 'bias_act_plugin']
    assert cpp_extension.FileBaton is FileBaton


def test_a_torch_that_has_no_such_lock_compiles(build, monkeypatch):
    """As from 2.14 on."""
    monkeypatch.delattr(cpp_extension, 'FileBaton', raising=False)
    tried = build()
    assert str(load_quietly()) == 'Host kernels: upfirdn2d and bias_act compiled'
    assert tried == ['upfirdn2d_plugin', 'bias_act_plugin']
