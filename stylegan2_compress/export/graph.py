"""A generator as two modules of plain torch, `Mapping` and `Synthesis`, from which every export is made.

They compute what the host's generator computes in FP32, in a form that runtimes execute fast. A styled convolution is
x·s → convolution with constant weights → ·d: the host multiplies styles s and demodulation d into the weights, and no
runtime is fast where weights are not constant. Upsampling is a transposed convolution and two one-dimensional filters
for each channel, or one convolution whose kernels have the filters in them (`Polyphase`). Nothing is computed from
shapes, so that a graph with a dynamic batch has no more nodes than one with a fixed batch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from stylegan2_compress.errors import UserError
from stylegan2_compress.tickets import baking

EPSILON = 1e-8  # What the host adds under square roots, of second moments and of demodulation.

# Activations by the host's names: the function, and the gain that the host multiplies its result by.
ACTIVATIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], float]] = {
    'linear': (lambda x: x, 1),
    'relu': (functional.relu, math.sqrt(2)),
    'lrelu': (lambda x: functional.leaky_relu(x, 0.2), math.sqrt(2)),
    'tanh': (torch.tanh, 1),
    'sigmoid': (torch.sigmoid, 1),
    'elu': (functional.elu, 1),
    'selu': (functional.selu, 1),
    'softplus': (functional.softplus, 1),
    'swish': (functional.silu, math.sqrt(2)),
}


@dataclass(frozen=True)
class Form:
    """What a runtime is fastest with. The images are the same."""

    multiple: int = 1  # The channels of every feature map are padded to a multiple of it.
    rgb_as_product: bool = False  # toRGB is a product of matrices for each image, not a convolution of x·s.
    styles_as_maps: bool = False  # Styles and demodulation are computed by convolutions of 1×1 pixels.
    polyphase: bool = False  # Upsampling is one convolution and a pixel shuffle.

    def width(self, channels: int) -> int:
        """Channels of a feature map with padding."""
        return -(-channels // self.multiple) * self.multiple


PLAIN = Form()


class Module(torch.nn.Module):
    """A module of constants: buffers, which never train, weights perhaps as FP16, which are used as FP32."""

    # Buffers that subclasses keep.
    weight: torch.Tensor
    bias: torch.Tensor
    squares: torch.Tensor
    epsilon: torch.Tensor
    noise: torch.Tensor | None
    const: torch.Tensor
    first: torch.Tensor
    ones: torch.Tensor
    w_avg: torch.Tensor

    def keep(self, name: str, value: torch.Tensor | None) -> None:
        self.register_buffer(name, None if value is None else value.detach().float().clone().contiguous())

    def round_weights(self) -> 'Module':
        """Store everything but vectors (biases, the average of w) as FP16, and what FP16 does not hold."""
        for module in self.modules():
            for name, value in module.named_buffers(recurse=False):
                if value.ndim > 1 and is_held(value, 2**-24 if name == 'noise' else 0):  # Added to features of about 1.
                    setattr(module, name, value.half())
        return self


class Linear(Module):
    """One of the host's `FullyConnectedLayer`s, its gains multiplied in.

    Args:
        layer: the host's.
        gain: of the result.
        rows: number of outputs; those that `layer` does not have are 0.
    """

    def __init__(self, layer: Any, gain: float = 1, rows: int | None = None):
        super().__init__()
        self.activation = layer.activation
        rows = rows or len(layer.weight)
        self.keep('weight', padded(layer.weight * (layer.weight_gain * gain), rows))
        bias = torch.zeros([len(layer.weight)]) if layer.bias is None else layer.bias
        self.keep('bias', padded(bias * (layer.bias_gain * gain), rows))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, in] to [N, rows], or [N, in, 1, 1] to [N, rows, 1, 1]."""
        function, gain = ACTIVATIONS[self.activation]
        return function(product(x, single(self.weight), self.bias)) * gain


class Mapping(Module):
    """The mapping network.

    Args:
        mapping: the host's.

    Attributes:
        inputs: the names of the arguments of `forward` that this network has a use for.
    """

    def __init__(self, mapping: Any):
        super().__init__()
        self.num_ws = mapping.num_ws
        self.embed = Linear(mapping.embed) if mapping.c_dim else None
        self.layers = torch.nn.ModuleList(Linear(getattr(mapping, f'fc{i}')) for i in range(mapping.num_layers))
        self.keep('first', torch.arange(self.num_ws))
        self.keep('ones', torch.ones([self.num_ws]))
        self.has_average = mapping.w_avg_beta is not None
        if self.has_average:
            self.keep('w_avg', mapping.w_avg)
        wanted = {'z': mapping.z_dim, 'c': mapping.c_dim, 'psi': self.has_average, 'cutoff': self.has_average}
        self.inputs = tuple(name for name, used in wanted.items() if used)

    def forward(
        self,
        z: torch.Tensor | None = None,
        c: torch.Tensor | None = None,
        psi: torch.Tensor | None = None,
        cutoff: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """ws [N, num_ws, w_dim] of z [N, z_dim] and labels c [N, c_dim].

        Args:
            z, c: those of the two that `inputs` has.
            psi: truncation ψ, a number [1]; without it there is no truncation.
            cutoff: how many of the ws are truncated, a number [1] of float32; without it all are.
        """
        parts = []
        if z is not None:
            parts.append(normalized(z))
        if c is not None and self.embed is not None:
            parts.append(normalized(self.embed(c)))
        x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        for layer in self.layers:
            x = layer(x)
        if psi is None:
            return x[:, None, :] * self.ones[None, :, None]
        share = psi * self.ones
        if cutoff is not None:
            share = torch.where(self.first < cutoff, share, self.ones)
        return self.w_avg + (x - self.w_avg)[:, None, :] * share[None, :, None]


class StyledConvolution(Module):
    """One of the host's `SynthesisLayer`s.

    Args:
        layer: the host's.
        noise: whether its constant noise is added.
        form: see `Form`.
    """

    def __init__(self, layer: Any, noise: bool, form: Form):
        super().__init__()
        self.padding, self.clamp = layer.padding, layer.conv_clamp
        self.activation, self.styles_as_maps = layer.activation, form.styles_as_maps
        outputs, inputs = map(form.width, layer.weight.shape[:2])
        self.affine = Linear(layer.affine, rows=inputs)
        weight = padded(layer.weight, outputs, inputs)
        self.keep('squares', weight.square().sum(dim=[2, 3]))
        # A channel without weights is not scaled up by 1/√ε.
        self.keep('epsilon', torch.where(torch.arange(outputs) < len(layer.weight), EPSILON, 1.0))
        self.keep('bias', padded(layer.bias, outputs))
        self.upsampling = None
        if layer.up > 1:
            self.upsampling = upsampling(weight, square(layer.resample_filter), layer.padding, layer.up, form)
        else:
            self.keep('weight', weight)
        self.keep('noise', layer.noise_const * layer.noise_strength if noise and layer.use_noise else None)

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """Features [N, in, H, W] of the last layer, or [1, …], and w [N, w_dim] to [N, out, H·up, W·up]."""
        styles = self.affine(as_map(w) if self.styles_as_maps else w)
        scales = product(styles.square(), single(self.squares), self.epsilon).rsqrt()
        x = x * as_map(styles)
        if self.upsampling is not None:
            x = self.upsampling(x)
        else:
            x = functional.conv2d(x, single(self.weight), padding=self.padding)
        x = x * as_map(scales)
        if self.noise is not None:
            x = x + single(self.noise)
        function, gain = ACTIVATIONS[self.activation]
        return clamped(function(x + self.bias[:, None, None]) * gain, self.clamp)


class ToRGB(Module):
    """One of the host's `ToRGBLayer`s, whose kernels are 1×1.

    Args:
        layer: the host's.
        resolution: of the layer.
        form: see `Form`.
    """

    def __init__(self, layer: Any, resolution: int, form: 'Form'):
        super().__init__()
        self.clamp, self.resolution = layer.conv_clamp, resolution
        self.as_product, self.styles_as_maps = form.rgb_as_product, form.styles_as_maps
        channels, inputs = layer.weight.shape[:2]
        inputs = form.width(inputs)
        self.affine = Linear(layer.affine, gain=layer.weight_gain, rows=inputs)
        self.keep('weight', padded(layer.weight, channels, inputs))
        self.keep('bias', layer.bias)

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """Features [N, in, H, W] and w [N, w_dim] to what is added to the image, [N, img_channels, H, W]."""
        styles = self.affine(as_map(w) if self.styles_as_maps else w)
        if self.as_product:
            weight = single(self.weight).flatten(start_dim=1) * styles.flatten(start_dim=1)[:, None, :]
            x = (weight @ x.flatten(start_dim=2)).unflatten(2, [self.resolution, self.resolution])
        else:
            x = functional.conv2d(x * as_map(styles), single(self.weight))
        return clamped(x + self.bias[:, None, None], self.clamp)


class Filter(Module):
    """A filter of each channel for itself: vertically, then horizontally; at once if it is no product of the two.

    Args:
        kernel: the filter, [n, n].
        channels: how many channels.
        padding: zeros before and after, in both directions; negative numbers crop.
    """

    def __init__(self, kernel: torch.Tensor, channels: int, padding: tuple[int, int]):
        super().__init__()
        factors = [factor.flip([0, 1]) for factor in separated(kernel)]  # A convolution, torch computes correlations.
        self.names = [f'factor{i}' for i in range(len(factors))]
        for name, factor in zip(self.names, factors, strict=True):
            self.keep(name, factor.expand(channels, 1, -1, -1))
        self.padding, self.channels = padding, channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, channels, H, W] to [N, channels, H', W'] by the padding."""
        before, after = self.padding
        even = before == after >= 0  # Then the convolutions pad by themselves.
        if not even:
            x = functional.pad(x, [before, after, before, after])
        for factor in (getattr(self, name) for name in self.names):
            padding = [before * (size > 1) if even else 0 for size in factor.shape[2:]]
            x = functional.conv2d(x, single(factor), padding=padding, groups=self.channels)
        return x


class TransposedConvolution(Module):
    """A transposed convolution, and a filter of what it puts out.

    Args:
        weight: [out, in, k, k].
        kernel: the filter, [n, n].
        padding: of the convolution that the host computes with this weight where it does not upsample.
        up: how many times the side.
    """

    def __init__(self, weight: torch.Tensor, kernel: torch.Tensor, padding: int, up: int):
        super().__init__()
        self.up = up
        self.keep('weight', weight.transpose(0, 1))
        self.filter = Filter(kernel * up**2, len(weight), upsampling_padding(weight, kernel, padding, up))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, in, H, W] to [N, out, H·up, W·up]."""
        return self.filter(functional.conv_transpose2d(x, single(self.weight), stride=self.up))


class Upsampling(Module):
    """Twice the side for images, by a filter, as the host's `upsample2d`.

    Args:
        kernel: the filter, [n, n].
        channels: of the images.
    """

    def __init__(self, kernel: torch.Tensor, channels: int):
        super().__init__()
        self.keep('weight', (kernel * 4).expand(channels, 1, -1, -1))
        size = len(kernel)
        self.before = (size + 1) // 2 - (size - 1)
        self.after = (size - 2) // 2 + 1 - (size - 1)
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] to [N, C, 2H, 2W]."""
        even = self.before == self.after <= 0
        crop = -self.before if even else 0
        x = functional.conv_transpose2d(x, single(self.weight), stride=2, padding=crop, groups=self.channels)
        return x if even else functional.pad(x, [self.before, self.after] * 2)


class Polyphase(Module):
    """What doubles the side linearly, as one convolution, which puts out four pixels for each, and their shuffle.

    Args:
        upsampling: [N, in, H, W] to [N, out, 2H, 2W].
        inputs: number of channels.
        radius: how far away the pixels may be that a pixel becomes part of.
    """

    def __init__(self, upsampling: torch.nn.Module, inputs: int, radius: int):
        super().__init__()
        side = 2 * radius + 1
        impulses = torch.zeros([inputs, inputs, side, side])
        impulses[torch.arange(inputs), torch.arange(inputs), radius, radius] = 1
        responses = functional.pixel_unshuffle(upsampling(impulses), 2)
        self.keep('weight', responses.flip([2, 3]).transpose(0, 1))  # [4·out, in, side, side]
        self.padding = radius

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, in, H, W] to [N, out, 2H, 2W]."""
        return functional.pixel_shuffle(functional.conv2d(x, single(self.weight), padding=self.padding), 2)


class Block(Module):
    """One of the host's `SynthesisBlock`s: the layers of a resolution.

    Args:
        block: the host's.
        noise: whether constant noise is added.
        form: see `Form`.
    """

    def __init__(self, block: Any, noise: bool, form: Form):
        super().__init__()
        self.conv0 = self.upsampling = None
        if block.in_channels:
            self.conv0 = StyledConvolution(block.conv0, noise, form)
            self.upsampling = image_upsampling(square(block.resample_filter), block.img_channels, form)
        else:
            self.keep('const', padded(block.const, form.width(len(block.const)))[None])
        self.conv1 = StyledConvolution(block.conv1, noise, form)
        self.torgb = ToRGB(block.torgb, block.resolution, form)

    def forward(
        self, x: torch.Tensor | None, image: torch.Tensor | None, ws: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and image of the last block, None for the first, and the w of each layer, to those of this block."""
        features = single(self.const) if x is None or self.conv0 is None else self.conv0(x, ws[0])
        features = self.conv1(features, ws[-2])
        rgb = self.torgb(features, ws[-1])
        return features, rgb if image is None or self.upsampling is None else self.upsampling(image) + rgb


class Synthesis(Module):
    """The synthesis network.

    Args:
        synthesis: the host's, of architecture `skip`.
        noise: 'const' or 'none'.
        form: see `Form`.
    """

    def __init__(self, synthesis: Any, noise: str = 'const', form: Form = PLAIN):
        super().__init__()
        self.num_ws = synthesis.num_ws
        blocks = [getattr(synthesis, f'b{res}') for res in synthesis.block_resolutions]
        self.blocks = torch.nn.ModuleList(Block(block, noise == 'const', form) for block in blocks)
        self.counts = [block.num_conv for block in blocks]

    def forward(self, ws: torch.Tensor) -> torch.Tensor:
        """Images [N, img_channels, img_resolution, img_resolution], in [-1, 1] but for overshoot, of ws."""
        each = [ws[:, i] for i in range(self.num_ws)]
        x = image = None
        for block, count in zip(self.blocks, self.counts, strict=True):
            x, image = block(x, image, each[: count + 1])  # The last w is for toRGB, and for the next block again.
            each = each[count:]
        assert image is not None
        return image


def from_generator(
    G: Any, noise: str = 'const', form: Form = PLAIN, file: str = 'The generator'
) -> tuple[Mapping, Synthesis]:
    """The two modules of a generator, on its device.

    Args:
        G: the host's, a pruned or a masked one; it is not changed.
        noise: 'const' or 'none'.
        form: see `Form`.
        file: its file, for errors.

    Raises:
        UserError: it is built in a way of which there is no graph.
    """
    check(G, file)
    with torch.no_grad(), next(G.parameters()).device:  # Constants are made there, too.
        G = baking.plain(G)
        return Mapping(G.mapping).eval(), Synthesis(G.synthesis, noise, form).eval()


def check(G: Any, file: str) -> None:
    """Refuse generators of which there is no graph.

    Args:
        G: the generator.
        file: its file, for the error.

    Raises:
        UserError: its architecture is not `skip`, or a filter is not square.
    """
    for block in (getattr(G.synthesis, f'b{res}') for res in G.synthesis.block_resolutions):
        if block.architecture != 'skip':
            raise UserError(
                f"{file} has the architecture {block.architecture}: only the host's default, skip, can be exported."
            )
        if len(set(block.resample_filter.shape)) != 1:
            raise UserError(f'{file} has a filter that is not square, for upsampling: no such network can be exported.')


def upsampling(weight: torch.Tensor, kernel: torch.Tensor, padding: int, up: int, form: Form) -> torch.nn.Module:
    """The upsampling of a `StyledConvolution`; see `TransposedConvolution` for the arguments."""
    transposed = TransposedConvolution(weight, kernel, padding, up)
    if not form.polyphase or up != 2:
        return transposed
    before, _after = upsampling_padding(weight, kernel, padding, up)
    radius = max((before + weight.shape[-1] - 1) // 2, (len(kernel) - before) // 2)
    return Polyphase(transposed, weight.shape[1], radius)


def image_upsampling(kernel: torch.Tensor, channels: int, form: Form) -> torch.nn.Module:
    """The upsampling of images; see `Upsampling` for the arguments."""
    plain = Upsampling(kernel, channels)
    if not form.polyphase:
        return plain
    return Polyphase(plain, channels, max((plain.before + len(kernel) - 1) // 2, (1 - plain.before) // 2))


def upsampling_padding(weight: torch.Tensor, kernel: torch.Tensor, padding: int, up: int) -> tuple[int, int]:
    """Zeros before and after what a transposed convolution puts out, in both directions, for the filter after it."""
    size = weight.shape[-1]
    before = padding + (len(kernel) + up - 1) // 2 - (size - 1)
    return before, padding + (len(kernel) - up) // 2 - (size - up)


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """x [N, in] times weights [out, in], plus bias [out], as [N, out]; with two dimensions of 1 more, as x has them."""
    if x.ndim == 2:
        return functional.linear(x, weight, bias)
    return functional.conv2d(x, weight[:, :, None, None], bias)


def single(weight: torch.Tensor) -> torch.Tensor:
    """A constant as FP32; without an operation if it is: ExecuTorch would copy it for every image."""
    return weight if weight.dtype == torch.float32 else weight.float()


def is_held(weight: torch.Tensor, negligible: float = 0) -> bool:
    """Whether FP16 is precise enough for each row of a constant [rows, …], whatever is large or small in the others.

    Above 65504 it is not, and of squares of small weights little is left: both would end in the square roots of
    demodulation, and images would be others without anything infinite in them.

    Args:
        weight: the constant.
        negligible: an error that does not matter.
    """
    rows = weight.flatten(start_dim=1)
    errors = (rows.half().float() - rows).abs().amax(dim=1)
    return bool((errors <= (rows.abs().amax(dim=1) * 2**-10).clamp(min=negligible)).all())


def as_map(x: torch.Tensor) -> torch.Tensor:
    """[N, C] as a map of one pixel, [N, C, 1, 1]."""
    return x if x.ndim == 4 else x[:, :, None, None]


def normalized(x: torch.Tensor) -> torch.Tensor:
    """Rows divided by the square root of their second moment."""
    return x * (x.square().mean(dim=1, keepdim=True) + EPSILON).rsqrt()


def clamped(x: torch.Tensor, most: float | None) -> torch.Tensor:
    """Values limited to ±most."""
    return x if most is None else x.clamp(-most, most)


def padded(tensor: torch.Tensor, *sizes: int) -> torch.Tensor:
    """Zeros appended in the first dimensions, to these sizes."""
    padding = [0, 0] * (tensor.ndim - len(sizes))
    for size, wanted in zip(reversed(tensor.shape[: len(sizes)]), reversed(sizes), strict=True):
        padding += [0, wanted - size]
    return functional.pad(tensor.detach().float(), padding)


def square(kernel: torch.Tensor) -> torch.Tensor:
    """A filter as the host stores it, [n, n], or [n] for its product with itself, as [n, n]."""
    return kernel if kernel.ndim == 2 else torch.outer(kernel, kernel)


def separated(kernel: torch.Tensor) -> list[torch.Tensor]:
    """A filter [n, n] as a column and a row whose product it is, or itself if there are none."""
    kernel = kernel.detach().double()
    column, row, total = kernel.sum(dim=1, keepdim=True), kernel.sum(dim=0, keepdim=True), kernel.sum()
    if total <= 0 or not torch.allclose(column @ row / total, kernel, rtol=1e-6, atol=1e-9):
        return [kernel]
    return [column / total.sqrt(), row / total.sqrt()]
