"""A plugin that torch has compiled and loaded can be imported by its name."""

import re
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch.utils import cpp_extension
from torch_utils import custom_ops

WHAT = 'custom_ops: a plugin that was compiled is used'
WHY = (
    'The host lets torch load a plugin and then imports it by name, which expects it in `sys.modules`. Modules made '
    'with pybind11 3 are not put there by loading, so every successful build ends in ModuleNotFoundError, and the slow '
    'reference operations are used.'
)
VERSIONS = 'torch >= 2.9, which compiles with pybind11 3'

_host_function = custom_ops.get_plugin


def needed() -> bool:
    """Whether torch compiles with a pybind11 whose modules are not in `sys.modules`, and the host is not repaired.

    The version is in a header of torch. To try it would take a compiler, and half a minute.
    """
    return custom_ops.get_plugin is not _get_plugin and _pybind11_major() >= 3


def apply() -> None:
    """Register during the host's `get_plugin` what torch loads."""
    custom_ops.get_plugin = _get_plugin


def _get_plugin(module_name: str, sources: list[str], **build_kwargs) -> ModuleType:
    """Arguments and result as of the host's `get_plugin`.

    Only there `load` is another one: what others load is not our business.
    """
    load = cpp_extension.load

    def load_and_register(name: str, *args, **kwargs) -> ModuleType | str:
        module = load(name, *args, **kwargs)
        # By the name asked for: torch calls what it compiles again NAME_v1, NAME_v2, ...
        sys.modules[name] = module  # pyright: ignore[reportArgumentType]  # A path only of programs, which the host has none of.
        return module

    cpp_extension.load = load_and_register
    try:
        return _host_function(module_name, sources, **build_kwargs)
    finally:
        cpp_extension.load = load


def _pybind11_major() -> int:
    header = Path(torch.__file__).parent / 'include' / 'pybind11' / 'detail' / 'common.h'
    try:
        text = header.read_text(encoding='utf-8')
    except OSError:
        text = ''
    found = re.search(r'^#define PYBIND11_VERSION_MAJOR (\d+)$', text, flags=re.MULTILINE)
    return int(found[1]) if found else 3  # In doubt a recent one: registering twice does no harm.
