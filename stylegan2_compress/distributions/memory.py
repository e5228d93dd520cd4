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
        self._pending: list[torch.Tensor] = []

    def before(self, features: torch.Tensor) -> torch.Tensor:
        """The latest rows [M, dim] that count beside this batch [N, dim] of every process."""
        own = len(features) * distributed.world_size()
        return self.rows[max(len(self.rows) + own - self.size, 0) :]

    def begin(self) -> None:
        """Begin a step: forget the features of one that was left out."""
        self._pending.clear()

    def note(self, features: torch.Tensor) -> None:
        """Take note of the features [N, dim] of a round."""
        self._pending.append(distributed.gather_with_gradient(features.detach(), distributed.world()))

    def commit(self) -> None:
        """The step has been taken: its features are the latest."""
        self.rows = torch.cat([self.rows, *self._pending])[-self.size :]
        self._pending.clear()

    def state_dict(self) -> dict:
        return {'rows': self.rows}

    def load_state_dict(self, state: dict) -> None:
        self.rows = state['rows'].to(self.rows.device)
