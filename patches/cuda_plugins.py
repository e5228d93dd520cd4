"""A CUDA plugin that cannot be built is tried once and reported in one sentence."""

import os
import shlex
import shutil
import warnings
from collections.abc import Callable
from types import ModuleType

import torch
from torch.utils import cpp_extension
from torch_utils.ops import bias_act, upfirdn2d

WHAT = 'upfirdn2d and bias_act: one attempt to build the CUDA kernels, one sentence if it fails'
WHY = (
    'Each failure is a warning with a whole stack trace, and upfirdn2d forgets that it failed, so that it starts the '
    'compiler again at every call.'
)
VERSIONS = 'all of them, where there is a CUDA device'


def needed() -> bool:
    """Whether there is a CUDA device: without one the host never builds anything."""
    return torch.cuda.is_available()


def apply() -> None:
    """Let both operations remember how their first attempt ended; one that succeeds stays as it was."""
    for op in (upfirdn2d, bias_act):
        op._init = _attempt_once(op)


def _attempt_once(op: ModuleType) -> Callable[[], bool]:
    build = op._init
    outcomes: list[bool] = []

    def _init() -> bool:
        if not outcomes:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter('always')
                outcomes.append(build())
            if not outcomes[0] and caught:  # It says nothing where it had failed before the repair.
                name = op.__name__.rpartition('.')[2]
                warnings.warn(_sentence(name, str(caught[-1].message)), stacklevel=2)
        return outcomes[0]

    return _init


def _sentence(name: str, details: str) -> str:
    lines = details.strip().splitlines()
    return (
        f'The CUDA kernels of {name} could not be built ({_missing_tools() or lines[-1].strip()}), so slower ones are '
        f'used; with torch_utils.custom_ops.verbosity = "full" the compiler says more.'
    )


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
