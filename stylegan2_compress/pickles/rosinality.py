"""The layout of rosinality's stylegan2-pytorch: the host's name and theirs of every tensor, and the networks it holds.

The repositories of content-aware GAN compression, StyleKD and DCP-GAN have the same one. Gains, filters and the order
of operations are the host's; names are not, and shapes have more dimensions of size 1.
"""

from collections.abc import Iterator, Mapping

import torch
from training import networks

from stylegan2_compress.networks.pruned import PrunedGenerator
from stylegan2_compress.pickles.rebuild import without_data

MAX_LAYERS = 64
FILTER = [1, 3, 3, 1]
_MAX_MODULES = 2_000


# --- names --------------------------------------------------------------------------------------------------------


def generator_names(resolution: int, num_layers: int) -> Iterator[tuple[str, str]]:
    """The host's name and theirs of every parameter and of every fixed noise of a generator."""
    for i in range(num_layers):
        yield from _both(f'mapping.fc{i}', f'style.{i + 1}', ('weight', 'weight'), ('bias', 'bias'))
    yield 'synthesis.b4.const', 'input.input'
    noises = iter(range(2 * MAX_LAYERS))
    for k, res in enumerate(resolutions(resolution)):
        layers = {'conv1': 'conv1'} if res == 4 else {'conv0': f'convs.{2 * k - 2}', 'conv1': f'convs.{2 * k - 1}'}
        for ours, theirs in layers.items():
            yield from _modulated(f'synthesis.b{res}.{ours}', theirs)
            yield f'synthesis.b{res}.{ours}.bias', f'{theirs}.activate.bias'
            yield f'synthesis.b{res}.{ours}.noise_strength', f'{theirs}.noise.weight'
            yield f'synthesis.b{res}.{ours}.noise_const', f'noises.noise_{next(noises)}'
        theirs = 'to_rgb1' if res == 4 else f'to_rgbs.{k - 1}'
        yield from _modulated(f'synthesis.b{res}.torgb', theirs)
        yield f'synthesis.b{res}.torgb.bias', f'{theirs}.bias'


def _modulated(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield f'{ours}.weight', f'{theirs}.conv.weight'
    yield from _both(f'{ours}.affine', f'{theirs}.conv.modulation', ('weight', 'weight'), ('bias', 'bias'))


def discriminator_names(resolution: int) -> Iterator[tuple[str, str]]:
    """The host's name and theirs of every parameter of a discriminator."""
    yield from _both(f'b{resolution}.fromrgb', 'convs.0', ('weight', '0.weight'), ('bias', '1.bias'))
    for k, res in enumerate(reversed(resolutions(resolution)[1:]), 1):
        yield from _both(f'b{res}.conv0', f'convs.{k}.conv1', ('weight', '0.weight'), ('bias', '1.bias'))
        yield from _both(f'b{res}.conv1', f'convs.{k}.conv2', ('weight', '1.weight'), ('bias', '2.bias'))
        yield f'b{res}.skip.weight', f'convs.{k}.skip.1.weight'
    yield from _both('b4.conv', 'final_conv', ('weight', '0.weight'), ('bias', '1.bias'))
    yield from _both('b4.fc', 'final_linear.0', ('weight', 'weight'), ('bias', 'bias'))
    yield from _both('b4.out', 'final_linear.1', ('weight', 'weight'), ('bias', 'bias'))


def _both(ours: str, theirs: str, *members: tuple[str, str]) -> Iterator[tuple[str, str]]:
    for our_member, their_member in members:
        yield f'{ours}.{our_member}', f'{theirs}.{their_member}'


def resolutions(resolution: int) -> list[int]:
    """4, 8, … to the resolution itself."""
    return [2**i for i in range(2, resolution.bit_length())]


def generator_filters(resolution: int) -> list[str]:
    """Their names of a generator's filters, which have a gain of 4."""
    blocks = range(len(resolutions(resolution)) - 1)
    return [name for k in blocks for name in (f'convs.{2 * k}.conv.blur.kernel', f'to_rgbs.{k}.upsample.kernel')]


def discriminator_filters(resolution: int) -> list[str]:
    """Their names of a discriminator's filters."""
    blocks = range(1, len(resolutions(resolution)))
    return [f'convs.{k}.{name}.0.kernel' for k in blocks for name in ('conv2', 'skip')]


def essential(shape: tuple[int, ...]) -> list[int]:
    """A shape without the dimensions of size 1: the same here and there."""
    return [n for n in shape if n != 1]


def in_their_shape(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A generator's or discriminator's tensor, by the host's name, in the shape that it has there."""
    if not name.startswith('synthesis.'):
        return tensor
    if name.endswith('noise_strength'):
        return tensor.reshape(1)
    if name.endswith('noise_const'):
        return tensor[None, None]
    if name.endswith('torgb.bias'):
        return tensor[None, :, None, None]
    is_first = name.endswith('.const') or (name.endswith('.weight') and not name.endswith('affine.weight'))
    return tensor[None] if is_first else tensor


# --- networks -----------------------------------------------------------------------------------------------------


def generator(
    w_dim: int, resolution: int, img_channels: int, num_layers: int, widths: Mapping[str, int]
) -> torch.nn.Module:
    """The generator that the layout holds, without data: the host's if its arguments can say the widths, else ours.

    Args:
        w_dim: dimensions of z and w.
        resolution: of the images.
        img_channels: of the images.
        num_layers: of the mapping network.
        widths: of every feature map, by the names of `PrunedGenerator`.
    """
    arguments = {
        'z_dim': w_dim, 'c_dim': 0, 'w_dim': w_dim, 'img_resolution': resolution, 'img_channels': img_channels,
        'mapping_kwargs': {'num_layers': num_layers},
    }  # fmt: skip
    by_resolution = {res: widths[f'b{res}.conv1'] for res in resolutions(resolution)}
    uniform = _channel_arguments(by_resolution)
    is_uniform = all(width == by_resolution[int(name.split('.')[0][1:])] for name, width in widths.items())
    with without_data(_MAX_MODULES):
        if uniform is not None and is_uniform:
            return networks.Generator(**arguments, synthesis_kwargs=uniform)
        return PrunedGenerator(**arguments, channels=dict(widths))


def discriminator(resolution: int, img_channels: int, widths: Mapping[int, int]) -> torch.nn.Module | None:
    """The host's discriminator of these widths by resolution, without data; None if its arguments cannot say them."""
    uniform = _channel_arguments(widths)
    if uniform is None:
        return None
    with without_data(_MAX_MODULES):
        return networks.Discriminator(c_dim=0, img_resolution=resolution, img_channels=img_channels, **uniform)


def _channel_arguments(widths: Mapping[int, int]) -> dict[str, int] | None:
    """`channel_base` and `channel_max` that give these widths by resolution, if there are any."""
    channel_max = max(widths.values())
    for res, width in widths.items():
        if all(min(res * width // r, channel_max) == n for r, n in widths.items()):
            return {'channel_base': res * width, 'channel_max': channel_max}
    return None
