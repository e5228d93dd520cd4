"""The host's own scripts with our repairs, on the device that there is. No file of the checkout is changed."""

import contextlib
import functools
import inspect
import runpy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import legacy
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from training import networks

from stylegan2_compress.errors import UserError
from stylegan2_compress.host import checkout, devices

SCRIPTS = (
    'generate.py',
    'style_mixing.py',
    'projector.py',
    'calc_metrics.py',
    'dataset_tool.py',
    'train.py',
    'legacy.py',
)
WRITE_RGB = ('generate.py', 'style_mixing.py', 'projector.py')  # They take every generator for one of three channels.
PACKAGES = {  # What pip installs.
    'cv2': 'opencv-python',
    'imageio': 'imageio imageio-ffmpeg',
    'imageio_ffmpeg': 'imageio-ffmpeg',
}


def run(script: str, arguments: Sequence[str], host_dir: str | None = None, device: str | None = None) -> None:
    """Run a script of the host as `python SCRIPT ARGUMENTS` would in its checkout; the current directory stays.

    Where the script asks for CUDA, it gets the device. On all but CUDA, networks compute in FP32.

    Args:
        script: one of `SCRIPTS`.
        arguments: of the script.
        host_dir: the checkout, see `host.activate`.
        device: 'cpu', 'cuda', 'cuda:1'; by default CUDA if available.

    Raises:
        UserError: there is no such script, or a package that it imports is missing.
        SystemExit: from the script, with its exit status.
    """
    active = checkout.activate(host_dir)
    if script not in SCRIPTS:
        raise UserError(f'{script} is no script of the host; there are {", ".join(SCRIPTS)}.')
    chosen = devices.choose(device)
    path = active.path / script
    if not path.is_file():
        raise UserError(
            f'{active.path} has no {script}: name a git clone with --host, or fetch one with `stylegan2-compress host '
            '--source git --dest DIR`.'
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, 'argv', [str(path), *arguments]))
        if script in WRITE_RGB:
            stack.enter_context(grey_as_rgb())
        if chosen.type != 'cuda':
            stack.enter_context(in_fp32())
            stack.enter_context(without_cuda())
        if chosen != torch.device('cuda'):
            stack.enter_context(Instead(chosen))
        stack.enter_context(missing_packages_named(script))
        stack.enter_context(repaired_processes(script, str(active.path), chosen))
        runpy.run_path(str(path), run_name='__main__')


# --- Devices ----------------------------------------------------------------------------------------------------------


class Instead(TorchFunctionMode):
    """Functions of torch that are given a CUDA device get another one."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.Tensor.pin_memory and self.device.type == 'cpu':
            return args[0]  # There is nothing to copy it to.
        changed_args, changed_kwargs = tree_map_only(torch.device, self._instead, (args, kwargs or {}))
        return func(*changed_args, **changed_kwargs)

    def _instead(self, device: torch.device) -> torch.device:
        return self.device if device.type == 'cuda' else device


class Stopwatch:
    """What the host's training loop uses of torch.cuda.Event, by the clock."""

    def __init__(self, enable_timing: bool = False):
        self.seconds = 0.0

    def record(self, stream: object = None) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: 'Stopwatch') -> float:
        """Milliseconds to another one."""
        return 1000 * (end.seconds - self.seconds)


@contextlib.contextmanager
def without_cuda() -> Iterator[None]:
    """Let the host's training loop measure time and memory where there is no CUDA to ask."""
    instead: dict[str, Any] = dict(
        Event=Stopwatch,
        current_stream=lambda device=None: None,
        max_memory_allocated=lambda device=None: 0,
        reset_peak_memory_stats=lambda device=None: None,
    )
    with mock.patch.multiple(torch.cuda, **instead):
        yield


# --- Networks ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def loaded_networks_changed(change: Callable[[Any], None]) -> Iterator[None]:
    """Change networks whenever the host's code reads a pickle of them."""
    load = legacy.load_network_pkl

    @functools.wraps(load)
    def load_network_pkl(*args, **kwargs):
        data = load(*args, **kwargs)
        for value in data.values():
            if isinstance(value, torch.nn.Module):
                change(value)
        return data

    with mock.patch.object(legacy, 'load_network_pkl', load_network_pkl):
        yield


@contextlib.contextmanager
def in_fp32() -> Iterator[None]:
    """Let all blocks compute in FP32, whatever they were built for.

    The classes are changed and not the networks, so pickles that the script writes are as ever. Pickles may have code
    of their own, and with it classes of their own.
    """
    with contextlib.ExitStack() as stack:
        changed: set[type] = set()

        def change(cls: Any) -> None:
            if cls not in changed and 'force_fp32' in inspect.signature(cls.forward).parameters:
                changed.add(cls)
                stack.enter_context(mock.patch.object(cls, 'forward', _always_fp32(cls.forward)))

        def change_classes(network: torch.nn.Module) -> None:
            for part in network.modules():
                change(type(part))

        for cls in (networks.SynthesisBlock, networks.DiscriminatorBlock, networks.DiscriminatorEpilogue):
            change(cls)
        stack.enter_context(loaded_networks_changed(change_classes))
        yield


def _always_fp32(forward: Callable) -> Callable:
    @functools.wraps(forward)
    def forward_in_fp32(*args, **kwargs):
        return forward(*args, **{**kwargs, **devices.precision(torch.device('cpu'))})

    return forward_in_fp32


@contextlib.contextmanager
def grey_as_rgb() -> Iterator[None]:
    """Let generators of one channel make images of three equal ones, which is what the scripts can write."""

    def change(network: Any) -> None:
        if getattr(network, 'img_channels', None) == 1 and hasattr(network, 'synthesis'):
            network.img_channels = 3
            network.synthesis.register_forward_hook(lambda _synthesis, _inputs, image: image.expand(-1, 3, -1, -1))

    with loaded_networks_changed(change):
        yield


# --- Processes and packages -------------------------------------------------------------------------------------------


class Repaired:
    """A function of a script that another process runs, after it has repaired the host."""

    def __init__(self, function: Callable, host_dir: str):
        self.function, self.host_dir = function, host_dir

    def __call__(self, *args):
        checkout.activate(self.host_dir)
        return self.function(*args)


@contextlib.contextmanager
def repaired_processes(script: str, host_dir: str, device: torch.device) -> Iterator[None]:
    """Repair the host in the processes, too, that a script starts for several GPUs.

    Raises:
        UserError: there are no GPUs.
    """
    spawn = torch.multiprocessing.spawn  # pyright: ignore[reportPrivateImportUsage]  # Documented as it is.

    def spawn_repaired(fn, *args, **kwargs):
        if device.type != 'cuda':
            raise UserError(f'{script} starts several processes on CUDA only: leave --gpus out.')
        return spawn(Repaired(fn, host_dir), *args, **kwargs)

    with mock.patch.object(torch.multiprocessing, 'spawn', spawn_repaired):
        yield


@contextlib.contextmanager
def missing_packages_named(script: str) -> Iterator[None]:
    """Say how to install a package that a script imports.

    Raises:
        UserError: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None:
            raise
        raise UserError(
            f'{script} needs the package {error.name}: pip install {PACKAGES.get(error.name, error.name)}.'
        ) from error
