"""Terms: what a compression method adds to the losses of a training step."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from stylegan2_compress.embeddings import Embedding


def total(values: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of one or more tensors."""
    return sum(values)  # pyright: ignore[reportReturnType]  # Of none it would be 0.


@dataclass(frozen=True)
class StyleMixing:
    """Which second latent replaces the first, and from which layer on. The teacher must get the same one."""

    z: torch.Tensor  # [N, z_dim]
    cutoff: torch.Tensor | int  # In [1, num_ws]; num_ws means that nothing is mixed. A tensor, so that nobody waits.

    def mix(self, ws: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Styles [N, num_ws, w_dim]: the first latents' up to the cutoff, the second ones' from there on."""
        layers = torch.arange(ws.shape[1], device=ws.device)
        return torch.where((layers < self.cutoff)[:, None], ws, second)


@dataclass(frozen=True)
class Batch:
    """What one forward pass of the student in a main phase offers to the terms."""

    z: torch.Tensor  # [N, z_dim]
    c: torch.Tensor  # [N, c_dim]
    mixing: StyleMixing | None
    images: torch.Tensor  # [N, C, H, W] in [-1, 1], before augmentation; with gradient in G phases only.
    logits: torch.Tensor | None  # [N, 1] of the student's discriminator, where there is one.
    loss: torch.Tensor | None = None  # The adversarial loss of the generator, in G phases where there is one.
    ws: torch.Tensor | None = None  # [N, num_ws, w_dim], from which the images were made; in G phases.
    # Feature maps [N, channels, side, side] of the student's synthesis blocks that terms watch, by name; in G phases.
    maps: Mapping[str, torch.Tensor] = field(default_factory=dict)
    _layers: dict[Embedding, list[torch.Tensor]] = field(default_factory=dict)

    def layers(self, embedding: Embedding) -> list[torch.Tensor]:
        """An embedding's layers of the images, which all terms share."""
        if embedding not in self._layers:
            self._layers[embedding] = embedding.layers(self.images)
        return self._layers[embedding]

    def features(self, embedding: Embedding) -> torch.Tensor:
        """An embedding's features [N, dim] of the images."""
        if embedding.pools_layers:
            return embedding.pooled(self.layers(embedding))
        return embedding(self.images)


@dataclass(frozen=True)
class Summand:
    """What a term adds to a loss: weight * value. The value is reported to `training_stats` as `Loss/NAME`."""

    name: str  # Such as 'DiME/dino_resnet50'.
    value: torch.Tensor  # A scalar.
    weight: float | torch.Tensor | None = 1  # None: only reported.
    label: str = ''  # What messages call it, by default the name.


class Term:
    """Adds to a loss. A method's term is a subclass with one or both of the first two methods.

    What a term has to remember between steps is its `state_dict`.

    Attributes:
        watched: synthesis blocks of the student, such as 'b16', whose feature maps it wants in `Batch.maps`.
        looks_at_images: whether it needs the batch's images, or anything that comes from them.
    """

    watched: Collection[str] = ()
    looks_at_images: bool = True

    def generator(self, batch: Batch) -> Sequence[Summand]:
        """What the term adds in the main G phase. `batch.images` carries the student's gradient."""
        return ()

    def discriminator(self, batch: Batch) -> Sequence[Summand]:
        """What the term adds in the main D phase, beside the loss on the student's images."""
        return ()

    def takes_part_in(self, phase: str) -> bool:
        """Whether it adds anything in a phase of training, such as 'Dmain'."""
        own = {'G': type(self).generator is not Term.generator, 'D': type(self).discriminator is not Term.discriminator}
        return not phase.endswith('reg') and own[phase[0]]

    def before_step(self, nimg: int) -> None:
        """Called once before the forward passes of every main G phase, `nimg` images into the run."""

    def after_step(self) -> None:
        """Called after every main G phase whose gradients are used."""

    def averages(self) -> Iterable[torch.Tensor]:
        """Tensors that the term changes while it is computed; they are restored if the step is left out."""
        return ()

    def obstacle(self) -> str:
        """What keeps the term from being recorded as a CUDA graph at present, in words; '' is nothing.

        Nothing does if, from step to step, it looks at nothing that changes but the batch and tensors that are changed
        in place, and leaves nothing behind but such tensors and `notes`.
        """
        return f'{type(self).__name__} is not known to be fit for it'

    def notes(self) -> Iterable[list]:
        """Lists to which the term appends tensors while it is computed, for the end of the step."""
        return ()

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        if state:
            raise ValueError(f'{type(self).__name__} keeps no state, but was given {sorted(state)}.')
