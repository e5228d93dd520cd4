"""What planning a run reads and running it needs again: network files and embeddings, each loaded once."""

import contextlib
from collections.abc import Iterator

import torch

from stylegan2_compress import embeddings
from stylegan2_compress.embeddings import Embedding
from stylegan2_compress.pickles.networks import Networks


class Resources:
    """Network files and embeddings that are loaded when they are first asked for, and then shared.

    Attributes:
        networks: contents of network files by path or URL.
    """

    def __init__(self):
        self.networks = Networks()
        self._embeddings: dict[tuple[str, torch.device], Embedding] = {}

    def embedding(self, spec: str, device: torch.device | str) -> Embedding:
        """The embedding network that a spec names, on a device.

        Raises:
            UserError: it cannot be loaded, see `embeddings.load`.
        """
        device = torch.device(device)
        if device.type == 'cuda' and device.index is None:
            device = torch.device('cuda', torch.cuda.current_device())
        key = str(embeddings.parse(str(spec))), device
        if key not in self._embeddings:
            self._embeddings[key] = embeddings.load(spec, device)
        return self._embeddings[key]

    def release(self) -> None:
        """Forget everything; who uses a network holds it."""
        self.networks.release()
        self._embeddings.clear()


_handed_over: list[Resources] = []


@contextlib.contextmanager
def handed_over(resources: Resources) -> Iterator[None]:
    """Let the loss that is constructed in this process, while the context is open, take what planning has loaded.

    Training loops construct losses by name, from arguments that can be written down: this is the way round them.
    """
    _handed_over.append(resources)
    try:
        yield
    finally:
        _handed_over.clear()


def take() -> Resources:
    """The resources that were handed over, or new ones."""
    return _handed_over.pop() if _handed_over else Resources()
