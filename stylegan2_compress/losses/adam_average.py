"""The vectors that moment matching pushes features with: they add up the signs of differences."""

from collections.abc import Sequence

import torch

BETAS, EPS = (0.5, 0.999), 1e-8


class AdamAverage:
    """An Adam step on the mean squared error to each target (SLT, section 3).

    A short search never gets near its targets, so that the value is a sum of their signs. It is to move less and less:
    what was added up can only be taken back as slowly. Rows follow on their own: each has an error of its own, and one
    without a target stays where it is.

    Args:
        shape: [rows, dim].
        lr: how far it moves in one step, at the most.
        device: where it lives.
    """

    def __init__(self, shape: Sequence[int], lr: float, device: torch.device):
        self.whole_lr = lr
        self.lr = torch.tensor(lr, device=device)  # A tensor, so that recorded steps see it fall.
        self.value, self.first, self.second = (torch.zeros(shape, device=device) for _ in range(3))
        self.steps = torch.zeros([shape[0], 1], device=device)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {'value': self.value, 'first': self.first, 'second': self.second, 'steps': self.steps}

    def begin(self, lr_share: float) -> None:
        """Take this share of the learning rate from now on."""
        self.lr.fill_(self.whole_lr * lr_share)

    @torch.no_grad()
    def update(self, target: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Follow a target [rows, dim] in the rows for which the booleans `rows` [rows] say so. Returns the value."""
        rows = rows[:, None]
        gradient = 2 * (self.value - target) / target.shape[1]
        self.steps += rows
        for moment, new, beta in [(self.first, gradient, BETAS[0]), (self.second, gradient.square(), BETAS[1])]:
            moment.copy_(torch.where(rows, new.lerp(moment, beta), moment))
        first = self.first / (1 - BETAS[0] ** self.steps.clamp_min(1))
        second = self.second / (1 - BETAS[1] ** self.steps.clamp_min(1))
        self.value -= torch.where(rows, self.lr * first / (second.sqrt() + EPS), 0)
        return self.value
