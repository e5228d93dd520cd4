"""Weights of distances by the strength of their gradients, beside that of the adversarial loss."""

from collections.abc import Sequence

import torch

from stylegan2_compress import distributed
from stylegan2_compress.distributions.sources import Source
from stylegan2_compress.losses.space import Space

INTERVAL = 8  # Steps between measurements of gradients, each of which takes a backward pass.
GRADIENT_RATE = 0.1  # Of the averages of gradients' norms, per measurement.
DISTANCE_RATE = 0.05  # Of the averages of distances, per step.
FLOOR_BATCHES = 8  # Of the reference's images, whose mean distance from it is the floor.
FLOOR_CHUNK = 2**20  # Where they are in the reference's images: far from those that it is made of.


class Balance:
    """λ_k = ρ ‖∂L_adv/∂x‖ / ‖∂L_k/∂x‖ for images x of the student, and 0 while L_k is at its floor.

    Norms and distances are moving averages. The floor of a distance is what it is between the reference and as many of
    the reference's own images: below, there is nothing to learn.

    Args:
        rho: ρ.
        count: number of distances.
        device: where the averages are kept.
    """

    def __init__(self, rho: float, count: int, device: torch.device | str):
        self.rho = rho
        self.adversarial = torch.full([], torch.nan, device=device)
        self.own, self.distances = (torch.full([count], torch.nan, device=device) for _ in range(2))

    def tensors(self) -> dict[str, torch.Tensor]:
        return {'adversarial': self.adversarial, 'own': self.own, 'distances': self.distances}

    def follow(self, images: torch.Tensor, adversarial: torch.Tensor, values: Sequence[torch.Tensor]) -> None:
        """Measure the gradients of the adversarial loss and of the distances at images [N, C, H, W]."""
        norms = torch.stack([_norm(loss, images) for loss in (adversarial, *values)])
        _move(self.adversarial, norms[0], GRADIENT_RATE)
        _move(self.own, norms[1:], GRADIENT_RATE)

    def weights(self, values: Sequence[torch.Tensor], floors: torch.Tensor) -> torch.Tensor:
        """λ [count], after the averages of the distances have followed their values."""
        _move(self.distances, torch.stack([value.detach() for value in values]), DISTANCE_RATE)
        ratio = self.adversarial / self.own.clamp_min(torch.finfo(torch.float32).tiny)
        # There is none yet if the first gradients were not finite.
        return torch.where((self.distances > floors) & ratio.isfinite(), self.rho * ratio, 0)


def _norm(loss: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """‖∂loss/∂x‖ over the images of all processes."""
    (gradient,) = torch.autograd.grad(loss, images, retain_graph=True)
    return distributed.sum_over_processes(gradient.float().square().sum(), distributed.world()).sqrt()


def _move(average: torch.Tensor, value: torch.Tensor, rate: float) -> None:
    """Let an average follow; what is not a number yet becomes the value. A value that is not finite is left out."""
    value = value.to(average)
    moved = torch.where(average.isnan(), value, average.lerp(value, rate))
    average.copy_(torch.where(value.isfinite(), moved, average))


class Floors:
    """The distances between a reference and as many of its own images as the student's are that are compared with it.

    They are measured when they are first asked for. The images are others than those that the reference is made of,
    unless it is all of a data set.

    Args:
        source: of the images.
        spaces: whose distances they are.
        memory: how many images count together; 0 for those of the round alone.
    """

    def __init__(self, source: Source, spaces: Sequence[Space], memory: int):
        self.source = source
        self.spaces = spaces
        self.memory = memory
        self.measured: dict[int, torch.Tensor] = {}

    def __call__(self, images: int) -> torch.Tensor:
        """Floors [embeddings] for rounds of so many images in each process."""
        if images not in self.measured:
            self.measured[images] = self._measure(images)
        return self.measured[images]

    @torch.no_grad()
    def _measure(self, images: int) -> torch.Tensor:
        together = images * distributed.world_size()
        past = max(self.memory - together, 0)
        count = past + FLOOR_BATCHES * together
        chunks = range(FLOOR_CHUNK, FLOOR_CHUNK - (-count // self.source.chunk))
        drawn = (self.source.draw(chunk)[0] for chunk in chunks)
        parts = [[space.network(images) for space in self.spaces] for images in drawn]
        floors = []
        for space, of_one in zip(self.spaces, zip(*parts, strict=True), strict=True):
            earlier, batches = torch.cat(of_one)[:count].tensor_split([past])
            own = [batch[distributed.rank() * images :][:images] for batch in batches.split(together)]
            floors.append(torch.stack([space.distance(batch, earlier) for batch in own]).mean())
        return torch.stack(floors)
