"""ITGC: the mutual information of the student's image and the teacher's, by an energy-based model of their pairs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from stylegan2_compress.arguments import argument
from stylegan2_compress.losses.adversarial import AdversarialLoss
from stylegan2_compress.losses.energy import Energy, langevin
from stylegan2_compress.losses.features import TeacherPass, require_same_latents
from stylegan2_compress.losses.images import ImageDistillation
from stylegan2_compress.losses.method import Context, PairedMethod
from stylegan2_compress.losses.terms import Batch, Summand, Term
from stylegan2_compress.losses.trained_beside import TermWithNetwork, TrainedBeside
from stylegan2_compress.runs.plan import Plan


class MutualInformation(TermWithNetwork):
    """λ mean[E(t, s) − E(t̃, s)]: minus a lower bound of the mutual information of t and s (ITGC, NeurIPS 2022).

    t is the teacher's image, s the student's for the same latents, and t̃ one that Langevin dynamics draws from
    q(t | s) ∝ exp(−E(t, s)), beginning at s. The energy learns in the same steps from the same images, without
    gradient for the student:

        mean[E(t, s) − E(t̃, s) + μ (E(t, s)² + E(t̃, s)²)]

    Main G phase only. The energy is no part of snapshots; training states hold it.

    Args:
        teacher: its images.
        energy: the network E, with its optimizer.
        weight: λ.
        penalty: μ.
        steps, step_size, noise: see `langevin`.
    """

    def __init__(
        self,
        teacher: TeacherPass,
        energy: TrainedBeside,
        weight: float,
        penalty: float,
        steps: int,
        step_size: float,
        noise: float,
    ):
        super().__init__(energy)
        self.teacher = teacher
        self.weight = weight
        self.penalty = penalty
        self.dynamics = steps, step_size, noise

    @property
    def energy(self) -> Energy:
        return self.trained.network  # pyright: ignore[reportReturnType]

    def before_step(self, nimg: int) -> None:
        super().before_step(nimg)
        self.energy.iterate()

    def generator(self, batch: Batch) -> list[Summand]:
        wanted = self.teacher(batch).images
        with self.trained.frozen():
            drawn = langevin(self.energy, batch.images, *self.dynamics)
            bound = (self.energy(wanted, batch.images) - self.energy(drawn, batch.images)).mean()
        learned = self._learn(wanted, drawn, batch.images.detach())
        return [Summand('ITGC/information', bound, self.weight), Summand('ITGC/energy', learned, None)]

    def _learn(self, wanted: torch.Tensor, drawn: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Add the gradients of the energy's own loss to its parameters; returns that loss."""
        data, model = self.energy(wanted, images), self.energy(drawn, images)
        loss = (data - model + self.penalty * (data.square() + model.square())).mean()
        self.trained.accumulate(loss)
        return loss.detach()

    def averages(self) -> Iterator[torch.Tensor]:
        return self.energy.moving()


@dataclass(frozen=True)
class ITGC(PairedMethod):
    """Mutual information with the teacher's images (ITGC, arXiv 2303.16050)."""

    information_weight: float = argument('Weight λ of the mutual information; 0 is off.', 0.05, least=0)
    energy_penalty: float = argument('Weight μ of the squared energies.', 0.05, least=0)
    energy_lr: float = argument('Learning rate of the energy.', 1e-4, above=0)
    langevin_steps: int = argument('Steps of Langevin dynamics for each image.', 10, least=1)
    langevin_step_size: float = argument('Size of each.', 50.0, above=0)
    langevin_noise: float = argument('Standard deviation of the noise that each adds.', 0.005, least=0)

    def check(self, plan: Plan) -> Iterable[str]:
        require_same_latents('ITGC', self.teacher, plan)
        return ()

    def terms(self, context: Context) -> Sequence[Term]:
        if self.information_weight == 0:
            return []
        teacher = self.teacher_pass(context)
        energy = Energy(teacher.G.img_resolution, teacher.G.img_channels).to(context.device)
        return [
            MutualInformation(
                teacher,
                TrainedBeside(energy, self.energy_lr, betas=(0.0, 0.999)),
                self.information_weight,
                self.energy_penalty,
                self.langevin_steps,
                self.langevin_step_size,
                self.langevin_noise,
            )
        ]


class ITGCLoss(AdversarialLoss):
    """The adversarial loss, the distance to the teacher's images, and mutual information with them (ITGC)."""

    methods = (ImageDistillation, ITGC)
