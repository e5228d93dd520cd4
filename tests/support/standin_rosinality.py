"""Stands in for rosinality's stylegan2-pytorch: state dicts with its names and shapes, and what they compute.

Written from the equations of StyleGAN2 over the raw tensors, sample by sample, so that it shares nothing with the host.
"""

import itertools
import math

import torch
import torch.nn.functional as F

FILTER = torch.tensor([1.0, 3, 3, 1])
FILTER = FILTER.outer(FILTER) / 64


def generator(resolution: int, w_dim: int, num_layers: int, widths: list[int], seed: int = 0) -> dict:
    """A random state dict; `widths` are of the constant and of every convolution behind it."""
    rnd = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0, mean=0.0):
        return torch.randn(shape, generator=rnd) * scale + mean

    state = {}
    for i in range(1, num_layers + 1):
        state |= {f'style.{i}.weight': normal(w_dim, w_dim, scale=100), f'style.{i}.bias': normal(w_dim, scale=10)}

    def modulated(name, n_in, n_out, kernel):
        state[f'{name}.conv.weight'] = normal(1, n_out, n_in, kernel, kernel)
        state[f'{name}.conv.modulation.weight'] = normal(n_in, w_dim)
        state[f'{name}.conv.modulation.bias'] = normal(n_in, scale=0.3, mean=1)

    state['input.input'] = normal(1, widths[0], 4, 4)
    names = ['conv1', *(f'convs.{i}' for i in range(len(widths) - 2))]
    for i, name in enumerate(names):
        modulated(name, widths[i], widths[i + 1], 3)
        state[f'{name}.noise.weight'] = normal(1, scale=0.3)
        state[f'{name}.activate.bias'] = normal(widths[i + 1], scale=0.3)
        if i % 2:
            state[f'{name}.conv.blur.kernel'] = FILTER * 4
        size = 4 << (i + 1) // 2
        state[f'noises.noise_{i}'] = normal(1, 1, size, size)
    for i in range(int(math.log2(resolution)) - 1):
        name = f'to_rgbs.{i - 1}' if i else 'to_rgb1'
        modulated(name, widths[2 * i + 1], 3, 1)
        state[f'{name}.bias'] = normal(1, 3, 1, 1, scale=0.3)
        if i:
            state[f'{name}.upsample.kernel'] = FILTER * 4
    return state


def discriminator(resolution: int, widths: list[int], seed: int = 1) -> dict:
    """A random state dict; `widths` are from the highest resolution down to 4."""
    rnd = torch.Generator().manual_seed(seed)

    def layer(name, *shape, bias):
        state[f'{name}.weight'] = torch.randn(shape, generator=rnd)
        if bias is not None:
            state[bias] = torch.randn(shape[0], generator=rnd) * 0.3

    state = {}
    layer('convs.0.0', widths[0], 3, 1, 1, bias='convs.0.1.bias')
    for k, (n_in, n_out) in enumerate(itertools.pairwise(widths), 1):
        layer(f'convs.{k}.conv1.0', n_in, n_in, 3, 3, bias=f'convs.{k}.conv1.1.bias')
        layer(f'convs.{k}.conv2.1', n_out, n_in, 3, 3, bias=f'convs.{k}.conv2.2.bias')
        layer(f'convs.{k}.skip.1', n_out, n_in, 1, 1, bias=None)
        state |= {f'convs.{k}.conv2.0.kernel': FILTER, f'convs.{k}.skip.0.kernel': FILTER}
    layer('final_conv.0', widths[-1], widths[-1] + 1, 3, 3, bias='final_conv.1.bias')
    layer('final_linear.0', widths[-1], widths[-1] * 16, bias='final_linear.0.bias')
    layer('final_linear.1', 1, widths[-1], bias='final_linear.1.bias')
    return state


def images(state: dict, z: torch.Tensor, mean: torch.Tensor, psi: float) -> torch.Tensor:
    """Images with the fixed noises, of z of shape [N, w_dim]."""
    return torch.cat([_image(state, w) for w in mean + psi * (mapped(state, z) - mean)])


def mapped(state: dict, z: torch.Tensor) -> torch.Tensor:
    """w of z."""
    w = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
    i = 1
    while f'style.{i}.weight' in state:
        weight = state[f'style.{i}.weight'] * 0.01 / math.sqrt(w.shape[1])
        w = _activated(F.linear(w, weight), state[f'style.{i}.bias'] * 0.01)
        i += 1
    return w


def logits(state: dict, x: torch.Tensor) -> torch.Tensor:
    """The discriminator's, of at most four images, which are one group of the minibatch standard deviation."""
    x = _activated(_conv(x, state['convs.0.0.weight']), state['convs.0.1.bias'])
    k = 1
    while f'convs.{k}.conv1.0.weight' in state:
        name = f'convs.{k}'
        y = _activated(_conv(x, state[f'{name}.conv1.0.weight'], padding=1), state[f'{name}.conv1.1.bias'])
        y = _conv(_filtered(y, 1, 2, 2), state[f'{name}.conv2.1.weight'], stride=2)
        skip = _conv(_filtered(x, 1, 1, 1), state[f'{name}.skip.1.weight'], stride=2)
        x = (_activated(y, state[f'{name}.conv2.2.bias']) + skip) / math.sqrt(2)
        k += 1
    deviation = (x.var(0, unbiased=False) + 1e-8).sqrt().mean()
    x = torch.cat([x, deviation.expand(len(x), 1, 4, 4)], dim=1)
    x = _activated(_conv(x, state['final_conv.0.weight'], padding=1), state['final_conv.1.bias']).flatten(1)
    for i in (0, 1):
        x = F.linear(x, state[f'final_linear.{i}.weight'] / math.sqrt(x.shape[1]))
        bias = state[f'final_linear.{i}.bias']
        x = x + bias if i else _activated(x, bias)
    return x


def _image(state: dict, w: torch.Tensor) -> torch.Tensor:
    x, image, i = state['input.input'], torch.zeros(1), 0
    while True:
        name = f'convs.{i - 1}' if i else 'conv1'
        if f'{name}.conv.weight' not in state:
            return image
        x = _modulated(state, name, x, w, up=i % 2 == 1, demodulate=True)
        x = x + state[f'noises.noise_{i}'] * state[f'{name}.noise.weight']
        x = _activated(x, state[f'{name}.activate.bias'])
        if i % 2 == 0:
            rgb = f'to_rgbs.{i // 2 - 1}' if i else 'to_rgb1'
            if i:
                spread = torch.zeros(1, 3, *x.shape[2:])
                spread[:, :, ::2, ::2] = image
                image = _filtered(spread, 4, 2, 1)
            image = image + _modulated(state, rgb, x, w, up=False, demodulate=False) + state[f'{rgb}.bias']
        i += 1


def _modulated(state: dict, name: str, x: torch.Tensor, w: torch.Tensor, up: bool, demodulate: bool) -> torch.Tensor:
    weight = state[f'{name}.conv.modulation.weight'] / math.sqrt(len(w))
    style = weight @ w + state[f'{name}.conv.modulation.bias']
    kernel = state[f'{name}.conv.weight'][0] / math.sqrt(state[f'{name}.conv.weight'][0][0].numel())
    kernel = kernel * style[None, :, None, None]
    if demodulate:
        kernel = kernel * (kernel.square().sum([1, 2, 3], keepdim=True) + 1e-8).rsqrt()
    if up:
        return _filtered(F.conv_transpose2d(x, kernel.transpose(0, 1), stride=2), 4, 1, 1)
    return F.conv2d(x, kernel, padding=kernel.shape[2] // 2)


def _conv(x: torch.Tensor, weight: torch.Tensor, **kwargs) -> torch.Tensor:
    return F.conv2d(x, weight / math.sqrt(weight[0].numel()), **kwargs)


def _filtered(x: torch.Tensor, gain: float, before: int, after: int) -> torch.Tensor:
    n = x.shape[1]
    x = F.pad(x, [before, after, before, after])
    return F.conv2d(x, (FILTER * gain).expand(n, 1, 4, 4), groups=n)


def _activated(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(x + bias.view(1, -1, *[1] * (x.ndim - 2)), 0.2) * math.sqrt(2)
