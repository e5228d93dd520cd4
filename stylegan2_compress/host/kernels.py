"""Which of the host's CUDA kernels are in use, why the others are not, and what to install for them."""

import os
import re
import shutil
import sysconfig
import warnings
from dataclasses import dataclass

import torch
from torch_utils.ops import bias_act, upfirdn2d

from stylegan2_compress.host import devices
from stylegan2_compress.patches import cuda_plugins

OPERATIONS = {'upfirdn2d': upfirdn2d, 'bias_act': bias_act}


@dataclass(frozen=True)
class HostKernels:
    """The operations that run as compiled kernels, and for each of the others why it does not."""

    compiled: tuple[str, ...]
    failures: dict[str, str]

    def __str__(self) -> str:
        if not self.failures:
            return f'Host kernels: {" and ".join(self.compiled)} compiled'
        reasons = '; '.join(dict.fromkeys(self.failures.values()))
        if not self.compiled:
            in_use, slower = 'reference operations', 'several times as long'
        else:
            others = ' and '.join(self.failures)
            in_use, slower = f'{" and ".join(self.compiled)} compiled, {others} a reference operation', 'longer'
        return f'Host kernels: {in_use}, because the build failed ({reasons}): training takes {slower}'

    def ways_out(self) -> list[str]:
        """What to do so that all are compiled; empty if they are."""
        advice = [
            text
            for pattern, text in _ways_out().items()
            if any(re.search(pattern, reason) for reason in self.failures.values())
        ]
        if self.failures and not advice:
            advice.append('see all that the compiler says: torch_utils.custom_ops.verbosity = "full"')
        return advice


def load(device: torch.device | None = None) -> HostKernels | None:
    """Load the host's CUDA kernels. The first time on a machine they are compiled, which takes minutes.

    Args:
        device: what they are for; by default CUDA where available.

    Returns:
        Which are in use. None for a CPU: the host has no kernels for it, and nothing is done.
    """
    if (device or devices.choose()).type != 'cuda':
        return None
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # The warnings about a failed build say less than what is returned.
        compiled = tuple(name for name, operation in OPERATIONS.items() if operation._init())
    return HostKernels(compiled, {name: cuda_plugins.failures[name] for name in OPERATIONS if name not in compiled})


def announce(device: torch.device | None = None) -> None:
    """Print which kernels a run on this device uses, in one line; for a CPU nothing."""
    kernels = load(device)
    if kernels is not None:
        print(kernels)


def _ways_out() -> dict[str, str]:
    """Advice by the pattern of a reason."""
    cuda = torch.version.cuda or ''
    toolkit = (
        f'install the CUDA toolkit {cuda}, all of it and in the version of torch (apt package '
        f'cuda-toolkit-{cuda.replace(".", "-")} of NVIDIA, or https://developer.nvidia.com/cuda-toolkit-archive); set '
        f'CUDA_HOME if it is in an unusual place'
    )
    return {
        # Parts of the toolkit lack the compiler, headers such as cusparse.h, or the library to link with.
        r'nvcc, from|\bcu\w+\.h: No such file|-lcudart': toolkit,
        r'unsupported GNU version': 'name an older g++ with CC and CXX (CC=gcc-13 CXX=g++-13)',
        r'Unsupported gpu architecture': f'unset TORCH_CUDA_ARCH_LIST, or {toolkit}',
        r'missing:.*\bninja': _way_to_ninja(),
        r'the C\+\+ compiler|Could not find MSVC': (
            "start from the x64 Native Tools prompt of Visual Studio's build tools for C++"
            if os.name == 'nt'
            else 'install a C++ compiler (apt package g++)'
        ),
        r'Python\.h: No such file': 'install the headers of Python (apt package python3-dev)',
    }


def _way_to_ninja() -> str:
    scripts = sysconfig.get_path('scripts')
    if shutil.which('ninja', path=scripts):
        return f'put {scripts} on PATH (activate the virtual environment): ninja is installed there'
    return 'pip install ninja'
