"""A second device for machines that have none, with real numbers on it: what a GPU would refuse or wait for shows.

Tensors of the device `OTHER` are wrappers that say so, around tensors of the CPU that compute. Inside `OtherDevice`,
operations on them are checked as CUDA checks its own: all tensors of an operation have to be on one device, except that
CPU scalars may join. What makes Python wait for the device, a copy to the CPU or a number read off a tensor, is
recorded with the place in our code that it comes from.
"""

import os
import sys
from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

import stylegan2_compress
from stylegan2_compress import patches, training_loops

OTHER = torch.device('meta')  # The one type that torch lets tensors say they are of without a backend for it.
OURS = tuple(
    os.path.dirname(os.path.abspath(package.__file__)) for package in (stylegan2_compress, patches, training_loops)
)
aten = torch.ops.aten


class MixedDevices(RuntimeError):
    """An operation has tensors of both devices."""


class NoFloat64(TypeError):
    """An operation makes a tensor of double precision on a device that has none."""


class OnOther(torch.Tensor):
    """A tensor of the other device. `inner`, of the CPU, has its numbers."""

    @staticmethod
    def __new__(cls, real):
        return torch.Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype, device=OTHER
        )

    def __init__(self, real):
        self.inner = real

    def __repr__(self):
        return f'OnOther({self.inner})'

    def tolist(self):
        return self.cpu().tolist()  # Which torch does itself for its own devices only.

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def on_other(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor of the CPU on the other device."""
    return OnOther(tensor.detach().clone())


class OtherDevice(TorchDispatchMode):
    """A context in which the other device exists.

    Args:
        float64: whether it has double precision, as CUDA has and MPS has not.

    Attributes:
        waits: how often Python waited for it, by the place in our code, such as 'losses/steps.py:_not_finite'.
        copies: likewise, how often numbers were copied to it.
    """

    def __init__(self, float64: bool = True):
        super().__init__()
        self.float64 = float64
        self.waits, self.copies = Counter(), Counter()
        self.construction = Construction()

    def __enter__(self):
        self.construction.__enter__()
        return super().__enter__()

    def __exit__(self, *exception):
        super().__exit__(*exception)
        self.construction.__exit__(*exception)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = run(func, args, kwargs or {}, self.waits, self.copies)
        if not self.float64 and any(is_double(each) for each in tree_flatten(out)[0]):
            raise NoFloat64(f'{func} makes a tensor of double precision on the device.')
        return out


class Construction(TorchFunctionMode):
    """Lets functions that make tensors of Python's numbers make them on the other device: operations see none."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and str(kwargs.get('device')) == str(OTHER):
            del kwargs['device']
            return func(*args, **kwargs).to(OTHER)
        if func is torch.Tensor.new_tensor and isinstance(args[0], OnOther):
            return torch.tensor(*args[1:], dtype=args[0].dtype, **kwargs).to(OTHER)
        return func(*args, **kwargs)


def run(func, args, kwargs, waits=None, copies_there=None):
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    others = [each for each in tensors if isinstance(each, OnOther)]
    wanted = kwargs.get('device')
    wanted = None if wanted is None else torch.device(wanted)
    copies = func in (aten._to_copy.default, aten.copy_.default)

    if others and not copies:
        for each in tensors:
            if not isinstance(each, OnOther) and each.dim() > 0:
                raise MixedDevices(
                    f'{func} has tensors of both devices: {[(t.device, tuple(t.shape)) for t in tensors]}'
                )
    leaves = func is aten._to_copy.default and wanted is not None and wanted != OTHER
    leaves = leaves or (func is aten.copy_.default and not isinstance(args[0], OnOther))
    if (
        others
        and waits is not None
        and (func is aten._local_scalar_dense.default or func is aten.nonzero.default or leaves)
    ):
        waits[place()] += 1

    arrives = func is aten._to_copy.default and wanted == OTHER and not others
    arrives = arrives or (func is aten.copy_.default and len(others) == 1 and isinstance(args[0], OnOther))
    if arrives and copies_there is not None:
        copies_there[place()] += 1

    def to_real(each):
        return each.inner if isinstance(each, OnOther) else each

    real_args, real_kwargs = tree_map(to_real, args), tree_map(to_real, dict(kwargs))
    if wanted == OTHER:
        real_kwargs['device'] = torch.device('cpu')
    if func is aten._pin_memory.default:
        return args[0]
    out = func(*real_args, **real_kwargs)
    stays = wanted == OTHER or (bool(others) and not leaves and wanted is None)
    if not stays:
        return out
    wrapped = tree_map(lambda each: OnOther(each) if isinstance(each, torch.Tensor) else each, out)
    if not others:
        return wrapped
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def is_double(each) -> bool:
    return isinstance(each, OnOther) and each.dtype in (torch.float64, torch.complex128)


def place() -> str:
    """The innermost function of ours that is running: file in the package and name."""
    frame = sys._getframe(1)
    while frame is not None:
        path = os.path.abspath(frame.f_code.co_filename)
        for root in OURS:
            if path.startswith(root + os.sep):
                return f'{os.path.relpath(path, os.path.dirname(root))}:{frame.f_code.co_name}'
        frame = frame.f_back
    return 'elsewhere'
