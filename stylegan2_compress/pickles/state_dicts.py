"""Networks as state dicts of PyTorch, in the layout of rosinality's stylegan2-pytorch: `.pt` and `.pth` files.

A dictionary with `g_ema` and, as far as a file has them, `g`, `d` and `latent_avg`, written by `torch.save`. Widths are
read from the tensors.
"""

import copy
from collections.abc import Mapping
from io import BufferedIOBase
from typing import Any, BinaryIO

import numpy as np
import torch
from torch_utils.ops import upfirdn2d

from stylegan2_compress.errors import UserError
from stylegan2_compress.host.networks import class_name
from stylegan2_compress.pickles import rosinality, torch_file
from stylegan2_compress.pickles.contents import Tensor
from stylegan2_compress.pickles.machine import Malformed
from stylegan2_compress.pickles.rebuild import one_line

_SAMPLES = 10_000  # For the mean of w, where the file has none.
_MAX_RESOLUTION = 1 << 13
_MAX_WIDTH = 1 << 16
_OF_THE_RUN = {  # Attributes that say how a network is trained or in which precision, not what it computes.
    *('training', 'conv_clamp', 'use_fp16', 'channels_last', 'w_avg_beta', '_init_args', '_init_kwargs'),
    *('_parameters', '_buffers', '_modules'),
}


# --- reading ------------------------------------------------------------------------------------------------------


def read(file: BufferedIOBase, size: int, with_data: bool = True) -> dict[str, Any]:
    """The networks of a file as the host's G, D and G_ema, or as our pruned generators.

    Without `g`, G is a copy of G_ema. Without `latent_avg`, the mean of w is that of 10,000 random z. Without fixed
    noises, some are drawn.

    Args:
        file: the file, open in binary mode.
        size: its length in bytes.
        with_data: without it, tensors have shapes only.

    Raises:
        Malformed: it has no such networks.
        Refused: it refers to something that a state dict does not need.
    """
    root = torch_file.read(file, size)
    if not isinstance(root, dict):
        raise Malformed(f'it holds a {type(root).__name__}, not a dictionary of state dicts')
    if 'input.input' in root or 'module.input.input' in root:  # The state dict of a generator alone.
        root = {'g_ema': root}
    if {'records', 'finished'} <= root.keys():  # As `runs.states` writes it; that is above this package.
        raise Malformed('it is the state of a run, for --resume: name a snapshot of the run')
    if 'g_ema' not in root:
        raise Malformed("it has no 'g_ema', the state dict of a generator as stylegan2-pytorch writes it")
    mean = root.get('latent_avg')
    if not isinstance(mean, (Tensor, type(None))):
        raise Malformed("its 'latent_avg' is not a tensor")
    G_ema = _StateDict('g_ema', root['g_ema'], with_data).generator(mean)
    if root.get('g') is None or root['g'] is root['g_ema']:
        G = copy.deepcopy(G_ema)
    else:
        G = _StateDict('g', root['g'], with_data).generator(mean)
    D = None if root.get('d') is None else _StateDict('d', root['d'], with_data).discriminator()
    return {'G': G, 'D': D, 'G_ema': G_ema}


class _StateDict:
    """A recorded state dict, of which nothing is trusted.

    Args:
        key: its name in the file, for errors.
        value: what the file has there.
        with_data: whether networks get their data.
    """

    def __init__(self, key: str, value: Any, with_data: bool):
        self._key, self._with_data = key, with_data
        if not isinstance(value, dict) or not all(
            isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
        ):
            raise Malformed(f'its {key!r} is not a state dict')
        # `DataParallel` puts a prefix before all names.
        self._tensors: dict[str, Tensor] = {name.removeprefix('module.'): value[name] for name in value}

    def generator(self, mean: Tensor | None) -> Any:
        """The generator, in eval mode and without gradients; `mean` is that of w."""
        w_dim = self._size('style.1.weight', 2)[0]
        num_layers = self._count('style.{}.weight')
        resolution = self._resolution(self._count('to_rgbs.{}.conv.weight', first=0))
        names = dict(rosinality.generator_names(resolution, num_layers))
        self._take_filters(rosinality.generator_filters(resolution), gain=4)
        img_channels = self._size('to_rgb1.conv.weight', 5)[1]
        G: Any = self._make(
            lambda: rosinality.generator(w_dim, resolution, img_channels, num_layers, self._widths(names))
        )
        noises = {name: theirs for name, theirs in names.items() if name.endswith('noise_const')}
        if not self._tensors.keys() & set(noises.values()):
            names = {name: theirs for name, theirs in names.items() if name not in noises}
            self._draw_noises(G)
        self._fill(G, names)
        if self._with_data:
            G.mapping.w_avg = self._mean_of(G, mean)
        return G

    def discriminator(self) -> Any:
        """The host's discriminator, in eval mode and without gradients."""
        resolution = self._resolution(self._count('convs.{}.conv1.0.weight'))
        names = dict(rosinality.discriminator_names(resolution))
        self._take_filters(rosinality.discriminator_filters(resolution), gain=1)
        widths = {resolution: self._size(names[f'b{resolution}.fromrgb.weight'], 4)[0]}
        for res in rosinality.resolutions(resolution)[1:]:
            widths[res // 2] = self._size(names[f'b{res}.conv1.weight'], 4)[0]
        img_channels = self._size('convs.0.0.weight', 4)[1]
        D = self._make(lambda: rosinality.discriminator(resolution, img_channels, widths))
        if D is None:
            raise Malformed(f"its {self._key!r} has widths that the host's discriminator cannot have")
        self._fill(D, names)
        return D

    def _size(self, name: str, ndim: int) -> tuple[int, ...]:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise Malformed(f'its {self._key!r} lacks {name!r}')
        if len(tensor.size) != ndim or not all(1 <= n <= _MAX_WIDTH for n in tensor.size):
            raise Malformed(f'its {self._key!r} has a {name!r} of shape {list(tensor.size)}')
        return tensor.size

    def _count(self, pattern: str, first: int = 1) -> int:
        """How many numbers from `first` on are in names like `pattern`."""
        count = 0
        while pattern.format(first + count) in self._tensors:
            count += 1
        if count > rosinality.MAX_LAYERS:
            raise Malformed(f'its {self._key!r} has more layers than any StyleGAN2')
        return count

    def _resolution(self, blocks: int) -> int:
        resolution = 4 << blocks
        if not 8 <= resolution <= _MAX_RESOLUTION:
            raise Malformed(f'its {self._key!r} is for images of {resolution} pixels, or no StyleGAN2')
        return resolution

    def _widths(self, names: Mapping[str, str]) -> dict[str, int]:
        """The width of every feature map by the name that `PrunedGenerator` has for it."""
        widths = {}
        for name, their_name in names.items():
            path = name.removeprefix('synthesis.')
            if path == 'b4.const':
                widths[path] = self._size(their_name, 4)[1]
            elif path.endswith(('conv0.weight', 'conv1.weight')):
                widths[path.removesuffix('.weight')] = self._size(their_name, 5)[1]
        return widths

    def _take_filters(self, names: list[str], gain: int) -> None:
        """Remove the filters, which are buffers there: the host computes its own, so they have to be the usual one."""
        usual = upfirdn2d.setup_filter(rosinality.FILTER) * gain
        for name in names:
            tensor = self._tensors.pop(name, None)  # Some files leave them out.
            if tensor is None:
                continue
            if tensor.size != (4, 4) or not torch.allclose(tensor.read().float(), usual, rtol=0, atol=1e-4):
                raise Malformed(f'its {self._key!r} has a filter other than [1, 3, 3, 1] as {name!r}')

    def _make(self, function: Any) -> Any:
        try:
            return function()
        except Malformed:
            raise
        except Exception as error:  # The sizes are a file's.
            raise Malformed(f'no network can be made of its {self._key!r} ({one_line(error)})') from error

    def _fill(self, module: torch.nn.Module, names: Mapping[str, str]) -> None:
        """Give a network without data the tensors of the state dict; `names` are the host's -> theirs."""
        for name in sorted(set(names.values()) - set(self._tensors)):
            raise Malformed(f'its {self._key!r} lacks {name!r}')
        for name in sorted(set(self._tensors) - set(names.values())):
            raise Malformed(f'its {self._key!r} has {name!r}, which stylegan2-pytorch does not have')
        places: dict[str, tuple[dict[str, Any], str]] = {
            f'{path}.{name}': (members, name)
            for path, submodule in module.named_modules()
            for members in (submodule._parameters, submodule._buffers)
            for name in members
        }
        for our_name, their_name in names.items():
            members, name = places[our_name]
            like, tensor = members[name], self._tensors[their_name]
            fits = rosinality.essential(tensor.size) == rosinality.essential(like.shape)
            if not fits or not tensor.dtype.is_floating_point:
                raise Malformed(f'its {self._key!r} has a {their_name!r} of {list(tensor.size)} {tensor.dtype}')
            if self._with_data:
                # Into memory of its own: the file's may be a part of a larger one.
                data = torch.empty(like.shape).copy_(tensor.read().reshape(like.shape))
                members[name] = torch.nn.Parameter(data) if isinstance(like, torch.nn.Parameter) else data
        module.eval().requires_grad_(False)

    def _draw_noises(self, G: torch.nn.Module) -> None:
        rnd = torch.Generator().manual_seed(0)
        for module in G.modules():
            noise = module._buffers.get('noise_const')
            if noise is not None and self._with_data:
                module._buffers['noise_const'] = torch.randn(noise.shape, generator=rnd)

    def _mean_of(self, G: Any, mean: Tensor | None) -> torch.Tensor:
        if mean is None:
            with torch.no_grad():
                z = torch.from_numpy(np.random.RandomState(0).randn(_SAMPLES, G.z_dim))
                G.mapping.w_avg = torch.zeros([G.w_dim])
                return G.mapping(z, None)[:, 0].mean(0)
        if rosinality.essential(mean.size) != rosinality.essential((G.w_dim,)):
            raise Malformed(f"its 'latent_avg' has shape {list(mean.size)}, but its w have {G.w_dim} values")
        return torch.empty([G.w_dim]).copy_(mean.read().reshape(G.w_dim))


# --- writing ------------------------------------------------------------------------------------------------------


def write(file: BinaryIO, data: Mapping[str, Any]) -> None:
    """Write G_ema, and G and D if there are any, as state dicts.

    Raises:
        UserError: as `contents`.
    """
    torch.save(contents(data), file)


def contents(data: Mapping[str, Any]) -> dict[str, Any]:
    """The state dicts of G_ema, and of G and D if there are any, by their names in a file.

    Clamping, which that code does not have, is left out: it matters only where an activation reaches the clamp.

    Raises:
        UserError: there is no G_ema, or a network is not one of those that the layout holds.
    """
    if data.get('G_ema') is None:
        raise UserError('There is no G_ema, without which a .pt file of stylegan2-pytorch makes no sense.')
    found: dict[str, Any] = {}
    for key, their_key in [('G', 'g'), ('D', 'd'), ('G_ema', 'g_ema')]:
        network = data.get(key)
        if network is not None:
            try:
                found[their_key] = _discriminator(network) if key == 'D' else _generator(network)
            except _Unlike as error:
                raise UserError(f'{key} cannot be stored as a state dict of stylegan2-pytorch: {error}.') from error
    found['latent_avg'] = data['G_ema'].mapping.w_avg.detach().cpu().clone()
    return found


class _Unlike(Exception):
    """A network has something that the layout does not have; the message says what."""


def _generator(G: Any) -> dict[str, torch.Tensor]:
    if class_name(G) not in ('Generator', 'PrunedGenerator'):
        raise _Unlike(f'it is a {class_name(G)}')
    _check_images(G)
    tensors = dict(G.named_parameters())
    widths = {'b4.const': tensors['synthesis.b4.const'].shape[0]}
    for res in G.synthesis.block_resolutions:
        for layer in ('conv0', 'conv1')[res == 4 :]:
            widths[f'b{res}.{layer}'] = tensors[f'synthesis.b{res}.{layer}.weight'].shape[0]
    resolution, num_layers = G.img_resolution, G.mapping.num_layers
    _compare(G, rosinality.generator(G.w_dim, resolution, G.img_channels, num_layers, widths))
    names = rosinality.generator_names(resolution, num_layers)
    return _state_dict(G, names, rosinality.generator_filters(resolution), gain=4)


def _discriminator(D: Any) -> dict[str, torch.Tensor]:
    if class_name(D) != 'Discriminator':
        raise _Unlike(f'it is a {class_name(D)}')
    _check_images(D)
    widths = {res: getattr(D, f'b{res}').conv0.weight.shape[0] for res in D.block_resolutions}
    widths[4] = D.b4.conv.weight.shape[0]
    made = rosinality.discriminator(D.img_resolution, D.img_channels, widths)
    assert made is not None  # Its own arguments say these widths.
    _compare(D, made)
    names = rosinality.discriminator_names(D.img_resolution)
    return _state_dict(D, names, rosinality.discriminator_filters(D.img_resolution), gain=1)


def _check_images(network: Any) -> None:
    if network.c_dim:
        raise _Unlike('it takes labels')
    if network.img_channels != 3:
        raise _Unlike(f'its images have {network.img_channels} channels, not 3')


def _compare(network: torch.nn.Module, made: torch.nn.Module) -> None:
    """Check that a network computes what the one made for the layout computes with the same tensors."""
    modules, others = dict(network.named_modules()), dict(made.named_modules())
    for path in sorted(modules.keys() ^ others.keys()):
        raise _Unlike(f'its {path} has no counterpart' if path in modules else f'it lacks {path}')
    for path, module in modules.items():
        ours, theirs = vars(module), vars(others[path])
        for name in sorted((ours.keys() & theirs.keys()) - _OF_THE_RUN):
            if repr(ours[name]) != repr(theirs[name]):
                raise _Unlike(f'its {path}.{name} is {ours[name]!r}, not {theirs[name]!r}'.replace(' .', ' '))
    tensors, others = _shapes(network), _shapes(made)
    for name in sorted(set(tensors.items()) ^ set(others.items())):
        raise _Unlike(f'its {name[0]} has shape {tensors.get(name[0])}, not {others.get(name[0])}')
    for name, buffer in network.named_buffers():
        if name.endswith('filter') and not torch.equal(buffer.cpu(), made.get_buffer(name)):
            raise _Unlike(f'its {name} is not that of [1, 3, 3, 1]')


def _shapes(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in [*network.named_parameters(), *network.named_buffers()]}


def _state_dict(network: torch.nn.Module, names: Any, filters: list[str], gain: int) -> dict[str, torch.Tensor]:
    tensors = dict([*network.named_parameters(), *network.named_buffers()])
    state = {
        their_name: rosinality.in_their_shape(name, tensors[name].detach().cpu().float()).contiguous().clone()
        for name, their_name in names
    }
    return state | {name: upfirdn2d.setup_filter(rosinality.FILTER) * gain for name in filters}
