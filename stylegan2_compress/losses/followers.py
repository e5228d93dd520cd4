"""Vectors that follow noisy differences: what moment matching pushes features with.

The push of a difference that has gone should go, too, and a push that is nothing but the noise of a batch drowns the
others: the scores of a mask take steps of one size, whatever the gradient's. Rows follow on their own, so that one
without a target stays where it is.
"""

from collections.abc import Callable, Sequence

import torch

BETAS, EPS = (0.5, 0.999), 1e-8


class AdamAverage:
    """An Adam step on the mean squared error to each target (SLT, section 3).

    With the paper's rate, a short search never gets near its targets: it adds up their signs.

    Args:
        shape: [rows, dim].
        lr: how far it moves in one step, at the most.
        device: where it lives.
    """

    def __init__(self, shape: Sequence[int], lr: float, device: torch.device):
        self.lr = lr
        self.value, self.first, self.second = (torch.zeros(shape, device=device) for _ in range(3))
        self.steps = torch.zeros([shape[0], 1], device=device)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {'value': self.value, 'first': self.first, 'second': self.second, 'steps': self.steps}

    @torch.no_grad()
    def update(self, target: torch.Tensor, rows: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Follow a target [rows, dim] in the rows for which the booleans `rows` [rows] say so. Returns the value."""
        rows = rows[:, None]
        gradient = 2 * (self.value - target) / target.numel()
        self.steps += rows
        for moment, new, beta in [(self.first, gradient, BETAS[0]), (self.second, gradient.square(), BETAS[1])]:
            moment.copy_(torch.where(rows, new.lerp(moment, beta), moment))
        first = self.first / (1 - BETAS[0] ** self.steps.clamp_min(1))
        second = self.second / (1 - BETAS[1] ** self.steps.clamp_min(1))
        self.value -= torch.where(rows, self.lr * first / (second.sqrt() + EPS), 0)
        return self.value


class SignificantAverage:
    """The average of the latest targets over their root mean square, in [-1, 1], less what noise makes of it.

    Targets without a mean would have an average with a standard deviation of √((1 − β) / (1 + β)) in these units, for
    averages with the decay β after long. That much is taken off; what is smaller is 0. And so is what the latest target
    contradicts: averages are late, so that what all entries have in common (brightness, say) would go past its goal.

    Args:
        shape: [rows, dim].
        half_life: of the averages, in images of all labels together.
        device: where it lives.
    """

    def __init__(self, shape: Sequence[int], half_life: float, device: torch.device):
        self.half_life = half_life
        self.mean, self.square = (torch.zeros(shape, device=device) for _ in range(2))
        self.weight = torch.zeros([shape[0], 1], device=device)  # What the averages of ones would be.

    def tensors(self) -> dict[str, torch.Tensor]:
        return {'mean': self.mean, 'square': self.square, 'weight': self.weight}

    @torch.no_grad()
    def update(self, target: torch.Tensor, rows: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Follow a target [rows, dim] in the rows for which the booleans `rows` [rows] say so. Returns the value.

        Args:
            images: how many images the targets are of, a scalar.
        """
        rows = rows[:, None]
        beta = 0.5 ** (images / self.half_life)
        for average, new in [(self.mean, target), (self.square, target.square()), (self.weight, 1.0)]:
            average.copy_(torch.where(rows, beta * average + (1 - beta) * new, average))
        weight = self.weight.clamp_min(torch.finfo(torch.float32).tiny)
        ratio = self.mean / (self.square * weight).sqrt().clamp_min(1e-12)
        noise = ((1 - beta) / (1 + beta)).sqrt()
        agrees = rows & (ratio * target > 0)
        return torch.where(agrees, ratio.sign() * (ratio.abs() - noise).clamp_min(0), 0)


# By name, from (shape, learning rate of `adam`, half-life of `significant` in images, device).
FOLLOWERS: dict[str, Callable] = {
    'significant': lambda shape, lr, half_life, device: SignificantAverage(shape, half_life, device),
    'adam': lambda shape, lr, half_life, device: AdamAverage(shape, lr, device),
}
