"""A network that a term trains beside generator and discriminator, in no snapshot: for training alone."""

import contextlib
from collections.abc import Iterator

import torch
from torch_utils import misc

from stylegan2_compress import distributed
from stylegan2_compress.losses.terms import Term


class TrainedBeside:
    """A network and its optimizer, which steps when the generator does. All processes keep the same weights.

    Args:
        network: of which every process gets rank 0's weights; put on the device before.
        lr, betas: of Adam.
    """

    def __init__(self, network: torch.nn.Module, lr: float, betas: tuple[float, float] = (0.9, 0.999)):
        distributed.broadcast_from_rank_zero(misc.params_and_buffers(network))
        self.network = network.requires_grad_(True)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=lr, betas=betas)
        self.rounds = 0

    def begin(self) -> None:
        """Begin a step: forget the gradients of one that was left out."""
        self.optimizer.zero_grad(set_to_none=True)
        self.rounds = 0

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Let what is computed while the context is open have no gradient for the parameters."""
        self.network.requires_grad_(False)
        try:
            yield
        finally:
            self.network.requires_grad_(True)

    def accumulate(self, loss: torch.Tensor) -> None:
        """Add the gradients of one round's loss, which is the network's alone."""
        loss.backward(inputs=list(self.network.parameters()))
        self.rounds += 1

    def expect(self) -> None:
        """Count a round whose gradients come with those of another loss."""
        self.rounds += 1

    def commit(self) -> None:
        """The step has been taken: step, too, with the mean over all rounds of all processes."""
        if self.rounds:
            distributed.average_gradients(self.network.parameters(), self.rounds)
            self.optimizer.step()
            self.begin()

    def state_dict(self) -> dict:
        return {'network': self.network.state_dict(), 'optimizer': self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.network.load_state_dict(state['network'])
        self.optimizer.load_state_dict(state['optimizer'])


class TermWithNetwork(Term):
    """A term with a network that trains in its steps, and is kept in training states.

    Args:
        trained: the network.
    """

    def __init__(self, trained: TrainedBeside):
        self.trained = trained

    def before_step(self, nimg: int) -> None:
        self.trained.begin()

    def after_step(self) -> None:
        self.trained.commit()

    def state_dict(self) -> dict:
        return self.trained.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.trained.load_state_dict(state)
