"""A memory of features: those of the latest images of a generator in training, shared by all processes."""

import torch

from stylegan2_compress import distributed


class FeatureMemory:
    """The features of a generator's latest images, from the steps before this one.

    Features of a step enter when the step has been taken: one that is left out leaves no trace. They are those of all
    processes, in the order in which one process with the whole batch would have them.

    Args:
        size: how many images' features count together, those of the present batch included.
        dim: width of the features.
        device: where they are kept.
    """

    def __init__(self, size: int, dim: int, device: torch.device | str = 'cpu'):
        self.size = size
        self.rows = torch.zeros([0, dim], device=device)
        self.pending: list[torch.Tensor] = []

    @property
    def is_full(self) -> bool:
        """Whether it has as many rows as it ever has; from then on they change in place."""
        return len(self.rows) == self.size

    def before(self, features: torch.Tensor) -> torch.Tensor:
        """The latest rows [M, dim] that count beside this batch [N, dim] of every process."""
        own = len(features) * distributed.world_size()
        return self.rows[max(len(self.rows) + own - self.size, 0) :]

    def begin(self) -> None:
        """Begin a step: forget the features of one that was left out."""
        self.pending.clear()

    def note(self, features: torch.Tensor) -> None:
        """Take note of the features [N, dim] of a round."""
        self.pending.append(distributed.gather_with_gradient(features.detach(), distributed.world()))

    def commit(self) -> None:
        """The step has been taken: its features are the latest."""
        rows = torch.cat([self.rows, *self.pending])[-self.size :]
        self.rows = self.rows.copy_(rows) if self.is_full else rows
        self.pending.clear()

    def state_dict(self) -> dict:
        return {'rows': self.rows}

    def load_state_dict(self, state: dict) -> None:
        self.rows = state['rows'].to(self.rows.device)
