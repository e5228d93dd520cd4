"""Networks from records: the local class, the recorded constructor arguments, the recorded state.

The class is constructed without memory for its weights, compared with the record name by name and shape by shape, and
only then filled: constructor arguments from a file can neither allocate much memory nor compute for long.
"""

import contextlib
import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module as torch_module
from torch_utils import persistence
from training import networks as host_networks

from stylegan2_compress import networks as our_networks
from stylegan2_compress.host.networks import class_name, module_source
from stylegan2_compress.networks.masked import RULES
from stylegan2_compress.pickles import dialects, sources
from stylegan2_compress.pickles.contents import Allowance, Network, Refused, Tensor, UnknownClass, plain
from stylegan2_compress.pickles.machine import Malformed

HOOKS = {
    '_backward_hooks',
    '_backward_pre_hooks',
    '_forward_hooks',
    '_forward_hooks_with_kwargs',
    '_forward_hooks_always_called',
    '_forward_pre_hooks',
    '_forward_pre_hooks_with_kwargs',
    '_state_dict_hooks',
    '_state_dict_pre_hooks',
    '_load_state_dict_pre_hooks',
    '_load_state_dict_post_hooks',
}
_ARGUMENTS = {'_init_args', '_init_kwargs'}
MEMBERS = {'_parameters', '_buffers', '_modules', '_non_persistent_buffers_set'}
_MAX_DEPTH = 32
_MAX_MODULES = 2_000
_MAX_INT = 1 << 20
_FACTORIES = {torch.randn, torch.rand, torch.zeros, torch.ones, torch.full, torch.empty}
_SCALINGS = {torch.Tensor.div, torch.Tensor.mul}


class Mismatch(Malformed):
    """Constructor arguments and state do not describe the same network of the local class.

    Attributes:
        is_measurable: as of `UnknownClass`.
    """

    is_measurable = False


# --- reading records ----------------------------------------------------------------------------------------------


def submodules(network: Network) -> dict[str, Network]:
    """All modules of a record by their dotted path, the root under ''.

    Raises:
        Malformed: a member is not a module, or the tree is too deep or endless.
    """
    records = {}
    todo = [('', network)]
    while todo:
        path, record = todo.pop()
        records[path] = record
        if path.count('.') > _MAX_DEPTH or len(records) > _MAX_MODULES:
            raise Malformed('it has modules nested without end')
        for name, child in reversed(_members(record, '_modules').items()):
            if child is None:
                continue
            if not isinstance(child, Network) or not isinstance(name, str) or '.' in name:
                raise Malformed(f'it has a member among the modules of {record.class_name!r} that is not a module')
            todo.append((join(path, name), child))
    return records


def tensors(records: Mapping[str, Network], kind: str) -> dict[str, Tensor]:
    """The `'_parameters'` or `'_buffers'` of `submodules(network)` by their dotted names."""
    by_name = {}
    for path, record in records.items():
        for name, tensor in _members(record, kind).items():
            if tensor is None:
                continue
            if not isinstance(tensor, Tensor) or not isinstance(name, str):
                raise Malformed(f'it has a member among the tensors of {record.class_name!r} that is not a tensor')
            by_name[join(path, name)] = tensor
    return by_name


def attributes(record: Network, allowance: Allowance) -> dict[str, Any]:
    """The plain attributes of one module: its state without tensors, modules and hooks, of which it may have none."""
    for name in HOOKS & set(record.state):
        if record.state[name]:
            raise Malformed(f'it has a {record.class_name!r} with hooks, which are code')
    return {name: plain(value, allowance) for name, value in record.state.items() if name not in HOOKS | MEMBERS}


def _members(record: Network, kind: str) -> dict:
    members = record.state.get(kind)
    if not isinstance(members, dict):
        raise Malformed(f'it has a {record.class_name!r} that is not a module')
    return members


# --- building -----------------------------------------------------------------------------------------------------


class Rebuilder:
    """Turns records into modules. An object that the file shares stays shared.

    Args:
        allowance: of the plain data of all modules.

    Attributes:
        differing: names of the classes whose source code in the file differs from the local one.
        changed: dotted names of the attributes that differ from what the constructor arguments make.
    """

    def __init__(self, allowance: Allowance):
        self.differing: set[str] = set()
        self.changed: set[str] = set()
        self._modules: dict[Network, torch.nn.Module] = {}
        self._tensors: dict[Tensor, torch.Tensor] = {}
        self._allowance = allowance

    def module(self, network: Network) -> torch.nn.Module:
        """The module that a record describes, on the CPU.

        Raises:
            Refused: its class is neither the host's nor ours.
            Malformed: its constructor arguments or its state do not fit that class.
        """
        if network not in self._modules:
            self._modules[network] = self._rebuild(network, self._read)
        return self._modules[network]

    def skeleton(self, network: Network) -> torch.nn.Module:
        """The module without the tensors' data, after the same checks."""
        return self._rebuild(network, lambda tensor, like: like)

    def _rebuild(self, network: Network, read: Callable[[Tensor, torch.Tensor], torch.Tensor]) -> torch.nn.Module:
        records = submodules(network)
        module = construct(network, len(records))
        self._compare_classes(module, records)
        recorded = tensors(records, '_parameters') | tensors(records, '_buffers')
        sizes = {name: tensor.size for name, tensor in recorded.items()}
        fill(module, sizes, lambda name, like: read(recorded[name], like))
        for path, record in records.items():
            submodule, values = module.get_submodule(path), attributes(record, self._allowance)
            made = vars(submodule)
            if record.written_as:  # What the local class does not know is another class's.
                values = {name: value for name, value in values.items() if name in made}
            self.changed |= {
                join(path, name)
                for name, value in values.items()
                if name in made and not name.startswith('_') and name != 'training' and repr(value) != repr(made[name])
            }
            set_attributes(submodule, values)
        return module

    def _compare_classes(self, module: torch.nn.Module, records: dict[str, Network]) -> None:
        modules = dict(module.named_modules(remove_duplicate=False))
        _compare_names(set(records), set(modules))
        for path, record in records.items():
            local_name = class_name(modules[path])
            if local_name != record.class_name:
                raise Mismatch(f'its {path} is a {record.class_name!r}, but its arguments make a {local_name}')
            local_source = module_source(type(modules[path]))
            if sources.differ(record.class_name, record.module_src, local_source) and not dialects.is_known(record):
                self.differing.add(record.written_as or record.class_name)

    def _read(self, tensor: Tensor, like: torch.Tensor) -> torch.Tensor:
        if tensor not in self._tensors:
            data = tensor.read()
            if isinstance(like, torch.nn.Parameter):
                data = torch.nn.Parameter(data, requires_grad=False)
            self._tensors[tensor] = data.requires_grad_(tensor.requires_grad)
        return self._tensors[tensor]


def find_class(network: Network) -> type[torch.nn.Module]:
    """The record's class among the host's persistent classes and ours; of several, the one with the same source code.

    Raises:
        UnknownClass: no class has that name.
    """
    classes = _local_classes().get(network.class_name) or _augmentation_classes().get(network.class_name)
    if classes is None:
        name = network.class_name
        raise UnknownClass(f'holds a network of class {name!r}, which neither the host nor stylegan2_compress has')
    return next((cls for cls in classes if module_source(cls) == network.module_src), classes[0])


@functools.cache
def _local_classes() -> dict[str, list[type[torch.nn.Module]]]:
    """The host's persistent classes of networks and ours by name."""
    names = [entry.name for entry in pkgutil.iter_modules(our_networks.__path__)]
    ours = [importlib.import_module(f'{our_networks.__name__}.{name}') for name in names]
    return _persistent_classes(host_networks, *ours)


@functools.cache
def _augmentation_classes() -> dict[str, list[type[torch.nn.Module]]]:
    """The host's persistent classes of augmentations, imported for files that have one: it takes scipy.signal."""
    return _persistent_classes(importlib.import_module('training.augment'))


def _persistent_classes(*modules: ModuleType) -> dict[str, list[type[torch.nn.Module]]]:
    classes: dict[str, list[type[torch.nn.Module]]] = {}
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, type) and persistence.is_persistent(value):
                classes.setdefault(value.__name__, []).append(value)
    return classes


def construct(network: Network, num_modules: int) -> torch.nn.Module:
    """A network of the local class with the recorded arguments, whose tensors have shapes but, filters aside, no data.

    Args:
        network: record of which the class name, the source code and the constructor arguments are used.
        num_modules: how many modules it has; construction is stopped when it makes far more.

    Raises:
        Refused: There is no such class, or a mask rule would have to be imported.
        Malformed: The class does not take these arguments.
    """
    cls = find_class(network)
    args, kwargs = network.state.get('_init_args'), network.state.get('_init_kwargs')
    if not (isinstance(args, tuple) and isinstance(kwargs, dict) and all(isinstance(key, str) for key in kwargs)):
        raise Malformed(f'it has a {cls.__name__} without constructor arguments')
    args, kwargs = plain((args, kwargs))
    check_numbers([args, kwargs])
    for value in (*args, kwargs.get('rule')):
        check_rule(value)
    try:
        with without_data(5 * num_modules + 100), np.errstate(all='ignore'):
            return cls(*args, **kwargs)
    except Exception as error:  # A constructor that gets arbitrary arguments can raise anything.
        raise Mismatch(f'{cls.__name__} does not take its constructor arguments ({one_line(error)})') from error


@contextlib.contextmanager
def without_data(num_modules: int) -> Iterator[None]:
    """Construct networks without memory for their weights; more than `num_modules` submodules are a ValueError."""
    left = iter(range(num_modules))

    def count(*_args) -> None:
        if next(left, None) is None:
            raise ValueError(f'more than {num_modules} modules')

    hook = torch_module.register_module_module_registration_hook(count)
    try:
        with _WithoutData():
            yield
    finally:
        hook.remove()


class _WithoutData(torch.overrides.TorchFunctionMode):
    """Creates the tensors of the usual factories as meta tensors: shapes without memory. Filters still get data.

    Torch can do everything that a constructor does next with a meta tensor, but imports its compiler for most of it,
    which takes seconds. So the two operations that the host's constructors use are done here.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _FACTORIES:
            size = args[:1] if func is torch.full else args
            return torch.empty(*size, dtype=kwargs.get('dtype'), device='meta')
        if func in _SCALINGS and args[0].is_meta and isinstance(args[1], (int, float)):
            return args[0].detach()
        return func(*args, **kwargs)


def check_numbers(value: Any) -> None:
    """Check that no integer is so large that a constructor could use up memory outside of tensors.

    A `seed` may be of any size.

    Raises:
        Malformed: one is.
    """
    if isinstance(value, dict):
        value = [item for name, item in value.items() if name != 'seed']
    if isinstance(value, (list, tuple)):
        for item in value:
            check_numbers(item)
    elif isinstance(value, (int, np.integer)) and abs(int(value)) > _MAX_INT:
        raise Malformed('it has a constructor argument that is far too large')


def check_rule(rule: Any) -> None:
    """Refuse the name of a mask rule in a module that is not imported: a file must not decide which code runs.

    Raises:
        Refused: `masked.rule_of` would import something.
    """
    if not isinstance(rule, str) or rule in RULES:
        return
    module, _dot, attribute = rule.rpartition('.')
    if module and (module not in sys.modules or attribute not in vars(sys.modules[module])):
        raise Refused(
            f'names the mask rule {rule!r} of a module that is not imported: `import {module}` first, or if you trust '
            'it, make an ordinary network with `stylegan2-compress ticket bake --trust`'
        )


def fill(
    module: torch.nn.Module, sizes: Mapping[str, tuple[int, ...]], read: Callable[[str, torch.Tensor], torch.Tensor]
) -> None:
    """Give all parameters and buffers of a constructed network their data.

    Args:
        module: what `construct` made.
        sizes: shape of every tensor on record, by dotted name.
        read: `read(name, like)` returns the tensor of that name, a parameter if `like`, which it replaces, is one.
            Called only if all names and shapes are right.

    Raises:
        Malformed: names or shapes on record are not those of `module`.
    """
    places = {}
    for path, submodule in module.named_modules(remove_duplicate=False):
        for members in (submodule._parameters, submodule._buffers):
            places |= {join(path, name): (members, name) for name, tensor in members.items() if tensor is not None}
    _compare_names(set(sizes), set(places))
    for full_name, (members, name) in places.items():
        if tuple(sizes[full_name]) != tuple(members[name].shape):
            shapes = f'{list(sizes[full_name])}, but its arguments make {list(members[name].shape)}'
            raise Mismatch(f'its {full_name} has shape {shapes}')
    for full_name, (members, name) in places.items():
        members[name] = read(full_name, members[name])


def set_attributes(module: torch.nn.Module, values: Mapping[str, Any]) -> None:
    """Set recorded plain attributes. Constructor arguments stay those that the module was constructed with.

    Raises:
        Malformed, Refused: see `check_attributes`.
    """
    check_attributes(module, values)
    module.__dict__.update({name: value for name, value in values.items() if name not in _ARGUMENTS})


def check_attributes(module: torch.nn.Module, values: Mapping[str, Any]) -> None:
    """Refuse recorded attributes in the place of a member, of something that the class has, or of Python's own.

    The class's source code is such a thing, `_orig_module_src`: the host's persistence asks the instance for it, and
    would store a file's text as the code of the network.

    Raises:
        Malformed: There is such an attribute.
        Refused: A mask rule would have to be imported.
    """
    check_rule(values.get('rule'))
    members = MEMBERS | HOOKS | module._modules.keys() | module._parameters.keys() | module._buffers.keys()
    for name in values:
        of_class = getattr(type(module), name, None)
        is_usual = name in vars(module) and not callable(of_class)
        if name in members or name.startswith('__') or (hasattr(type(module), name) and not is_usual):
            raise Malformed(f'it has an attribute that hides {class_name(module)}.{name}')


def _compare_names(recorded: set[str], made: set[str]) -> None:
    for name in sorted(recorded - made):
        raise Mismatch(f'it has {name!r}, which its constructor arguments do not make')
    for name in sorted(made - recorded):
        raise Mismatch(f'it lacks {name!r}, which its constructor arguments make')


def join(path: str, name: str) -> str:
    """The dotted name of a member of the module at `path`."""
    return f'{path}.{name}' if path else name


def one_line(error: Exception) -> str:
    """An exception as one line of at most 200 characters."""
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
