"""A CUDA plugin that cannot be built is tried once and reported in one sentence."""

import os
import re
import shlex
import shutil
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from unittest import mock

import torch
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton
from torch_utils.ops import bias_act, upfirdn2d

WHAT = 'upfirdn2d and bias_act: one attempt to build the CUDA kernels, one sentence if it fails'
WHY = (
    'Each failure is a warning with a whole stack trace, and upfirdn2d forgets that it failed, so that it tries and '
    'warns again at every call.'
)
VERSIONS = 'all of them, where there is a CUDA device'

# Why an operation has no kernels, by its name.
failures: dict[str, str] = {}

# How compilers and linkers begin to say what is wrong. Paths come before it, and after it what follows from it.
_FIRST_ERROR = re.compile(r'(?:fatal )?\berror(?: \w+)?: .*|nvcc fatal.*|cannot find -l.*|undefined reference to.*')


def needed() -> bool:
    """Whether there is a CUDA device: without one the host never builds anything."""
    return torch.cuda.is_available()


def apply() -> None:
    """Let both operations remember how their first attempt ended; one that succeeds stays as it was."""
    for op in (upfirdn2d, bias_act):
        op._init = _attempt_once(op)


def _attempt_once(op: ModuleType) -> Callable[[], bool]:
    build = op._init
    name = op.__name__.rpartition('.')[2]
    outcomes: list[bool] = []

    def _init() -> bool:
        if not outcomes:
            with warnings.catch_warnings(record=True) as caught, _waiting_is_told():
                warnings.simplefilter('always')
                outcomes.append(build())
            if not outcomes[0]:
                failures[name] = _reason(str(caught[-1].message)) if caught else 'an earlier attempt failed'
            if not outcomes[0] and caught:  # It says nothing where it had failed before the repair.
                warnings.warn(_sentence(name), stacklevel=2)
        return outcomes[0]

    return _init


def _waiting_is_told() -> AbstractContextManager:
    """Say so when torch waits for another process that compiles, as it did for ever for one that was killed.

    Since torch 2.14 the system lets go of what a killed process has locked, and nothing is to be told.
    """
    if not hasattr(cpp_extension, 'FileBaton'):
        return nullcontext()
    return mock.patch.object(cpp_extension, 'FileBaton', _LockThatTells)


class _LockThatTells(FileBaton):
    """Torch's lock of the directory that it compiles in: a file, which a killed process leaves behind."""

    def wait(self) -> None:
        print(
            f'\nWaiting for {self.lock_file_path}, because another process compiles the CUDA kernels. If none does, '
            'one was killed: delete that file.',
            flush=True,
        )
        super().wait()


def _sentence(name: str) -> str:
    return (
        f'The CUDA kernels of {name} could not be built ({failures[name]}), so slower ones are used; with '
        f'torch_utils.custom_ops.verbosity = "full" the compiler says more.'
    )


def _reason(details: str) -> str:
    error = _FIRST_ERROR.search(details)
    return _missing_tools() or (error[0] if error else details.strip().splitlines()[-1]).strip()


def _missing_tools() -> str:
    compiler = shlex.split(os.environ.get('CXX', ''))[:1] or ['cl' if os.name == 'nt' else 'c++']
    cuda = cpp_extension.CUDA_HOME
    tools = {
        'nvcc, from the CUDA toolkit': cuda and shutil.which('nvcc', path=os.path.join(cuda, 'bin')),
        'ninja': cpp_extension.is_ninja_available(),
        f'the C++ compiler {compiler[0]}': shutil.which(compiler[0]),
    }
    missing = [name for name, found in tools.items() if not found]
    return f'missing: {"; ".join(missing)}' if missing else ''
