"""The energy of a pair of images: a network that says how well a teacher's image goes with a student's."""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, leaky_relu, normalize, relu

WIDTHS = 32, 64, 128  # Channels behind the first convolution, the first block, and all others.
SETTLING = 16  # Power iterations that new weights begin with.


class SpectralNorm(nn.Module):
    """A layer whose weight is divided by max(σ, least), σ being its largest singular value by power iteration.

    `torch.nn.utils.parametrizations.spectral_norm` iterates in every forward pass and knows no such bound.

    Args:
        layer: a convolution or linear layer, whose weights are drawn anew, and whose bias becomes 0.
        deviation: of the weights.
        least: with 1, weights of a smaller norm stay as they are.
    """

    u: Tensor
    v: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear, deviation: float = 1.0, least: float = 1e-12):
        super().__init__()
        self.layer = layer
        self.least = least
        nn.init.normal_(layer.weight, std=deviation)
        nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]  # All have one.
        rows = layer.weight.detach().flatten(1)
        self.register_buffer('u', normalize(torch.randn_like(rows[:, 0]), dim=0))
        self.register_buffer('v', normalize(torch.randn_like(rows[0]), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        sigma = self.u @ weight.flatten(1) @ self.v
        return torch.func.functional_call(self.layer, {'weight': weight / sigma.clamp_min(self.least)}, x)

    @torch.no_grad()
    def iterate(self) -> None:
        """One power iteration."""
        rows = self.layer.weight.flatten(1)
        self.v.copy_(normalize(rows.T @ self.u, dim=0))
        self.u.copy_(normalize(rows @ self.v, dim=0))


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, at half the resolution afterwards. At first, it is the shortcut."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first = SpectralNorm(nn.Conv2d(inputs, inputs, 3, padding=1))
        self.second = SpectralNorm(nn.Conv2d(inputs, outputs, 3, padding=1), deviation=1e-10, least=1)
        self.shortcut = nn.Identity() if inputs == outputs else SpectralNorm(nn.Conv2d(inputs, outputs, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return leaky_relu(avg_pool2d(self.shortcut(x) + self.second(leaky_relu(self.first(x))), 2))


class Energy(nn.Module):
    """E(t, s) of a teacher's image and a student's, at half their resolution.

    Args:
        img_resolution, img_channels: of the images.
    """

    def __init__(self, img_resolution: int, img_channels: int):
        super().__init__()
        first, second, others = WIDTHS
        self.from_images = SpectralNorm(nn.Conv2d(2 * img_channels, first, 3, padding=1))
        blocks = max(int(math.log2(img_resolution)) - 1, 1)  # To maps of one position.
        widths = [first, second, *[others] * blocks][: blocks + 1]
        self.blocks = nn.Sequential(*(ResidualBlock(*pair) for pair in itertools.pairwise(widths)))
        self.last = SpectralNorm(nn.Linear(widths[-1], 1))
        for _ in range(SETTLING):
            self.iterate()

    def forward(self, teacher_images: Tensor, student_images: Tensor) -> Tensor:
        """Energies [N] of pairs of images [N, C, H, W] in [-1, 1]."""
        halves = [avg_pool2d(images, 3, stride=2, padding=1) for images in (teacher_images, student_images)]
        x = self.blocks(leaky_relu(self.from_images(torch.cat(halves, dim=1))))
        return self.last(relu(x).mean(dim=(2, 3))).squeeze(1)

    def iterate(self) -> None:
        """Follow the largest singular values of all weights by one power iteration."""
        for norm in self._norms():
            norm.iterate()

    def moving(self) -> Iterator[Tensor]:
        """The buffers that `iterate` changes."""
        for norm in self._norms():
            yield from norm.buffers()

    def _norms(self) -> Iterator[SpectralNorm]:
        return (module for module in self.modules() if isinstance(module, SpectralNorm))


def langevin(energy: Energy, student_images: Tensor, steps: int, step_size: float, noise: float) -> Tensor:
    """Teacher's images that the energy holds for likely beside a student's: t ← t − step_size · ∂E/∂t + noise · n.

    Args:
        energy: whose parameters get no gradient.
        student_images: [N, C, H, W], where the chains start.
        steps: of Langevin dynamics.
        step_size: of each.
        noise: standard deviation of what each adds.

    Returns:
        [N, C, H, W] without gradient.
    """
    student_images = student_images.detach()
    images = student_images.clone()  # The slope is that of the teacher's image alone.
    for _ in range(steps):
        images = images.requires_grad_()
        (slope,) = torch.autograd.grad(energy(images, student_images).sum(), images)
        images = images.detach() - step_size * slope + noise * torch.randn_like(images)
    return images
