"""The distillation of GCC: feature maps of the teacher's generator, and of both images in its discriminator."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from stylegan2_compress import distributed
from stylegan2_compress.arguments import argument
from stylegan2_compress.errors import UserError
from stylegan2_compress.host.precision import Precision
from stylegan2_compress.losses.adversarial import AdversarialLoss
from stylegan2_compress.losses.discriminators import has_trained_D
from stylegan2_compress.losses.features import TeacherPass, maps_alone, require_same_latents
from stylegan2_compress.losses.method import Context, PairedMethod
from stylegan2_compress.losses.terms import Batch, Summand, Term, total
from stylegan2_compress.losses.trained_beside import TermWithNetwork, TrainedBeside
from stylegan2_compress.runs.plan import Plan

LARGE = 256  # Side of images of which half and more of the gradient was seen to be lost in FP16 (128 pixels: not seen).
SMALLEST = 8  # Side of the smaller ones of the feature maps that are compared.


def gram(maps: torch.Tensor) -> torch.Tensor:
    """Products [N, C, C] of the channels of maps [N, C, H, W], over C · H · W."""
    rows = maps.flatten(2)
    return rows @ rows.mT / rows[0].numel()


def root_mean_square(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """√ mean (x − y)², a scalar with gradient 0 where both are equal."""
    return torch.linalg.vector_norm(x - y) / x.numel() ** 0.5


class FeatureDistillation(TermWithNetwork):
    """λ₁ Σ_l RMS(f_S − f_T) + λ₂ Σ_l RMS(gram(f_S) − gram(f_T)) (GCC, NeurIPS 2021).

    Over feature maps f of both generators, the student's after a 1×1 convolution that is trained with it, and over
    those that the teacher's discriminator has of both images, unaugmented. Main G phase only.

    Args:
        teacher: its images and maps.
        D: the teacher's discriminator, frozen.
        convolutions: for each block of the generators, from the student's channels to the teacher's.
        judged: names of the discriminator's blocks.
        content_weight, gram_weight: λ₁, λ₂.
        precision: arguments of the discriminator's forward pass.
    """

    def __init__(
        self,
        teacher: TeacherPass,
        D: torch.nn.Module,
        convolutions: TrainedBeside,
        judged: Collection[str],
        content_weight: float,
        gram_weight: float,
        precision: Mapping[str, bool],
    ):
        super().__init__(convolutions)
        self.teacher = teacher
        self.D = D
        self.watched = [name for name, _convolution in convolutions.network.named_children()]
        self.judged = judged
        self.content_weight = content_weight
        self.gram_weight = gram_weight
        self.precision = precision
        teacher.watch(self.watched)

    def generator(self, batch: Batch) -> list[Summand]:
        taught = self.teacher(batch)
        with torch.no_grad():
            wanted = maps_alone(self.D, self.judged, taught.images, batch.c, **self.precision)
        seen = maps_alone(self.D, self.judged, batch.images, batch.c, **self.precision)
        pairs = [(seen[name], wanted[name]) for name in self.judged]
        self.trained.expect()
        for name, convolution in self.trained.network.named_children():
            pairs.append((convolution(_precise(batch.maps[name])), taught.maps[name]))
        pairs = [(_precise(found), _precise(wanted)) for found, wanted in pairs]
        content = total(root_mean_square(*pair) for pair in pairs)
        style = total(root_mean_square(gram(found), gram(wanted)) for found, wanted in pairs)
        return [Summand('GCC/content', content, self.content_weight), Summand('GCC/gram', style, self.gram_weight)]


def _precise(maps: torch.Tensor) -> torch.Tensor:
    return maps.to(torch.promote_types(maps.dtype, torch.float32))


@dataclass(frozen=True)
class GCC(PairedMethod):
    """Feature maps of the teacher's generator and discriminator (the distillation of GCC, arXiv 2110.14439)."""

    teacher: str = argument("Network pickle with the teacher's G_ema and D.", default_text='`--teacher`')
    content_weight: float = argument('Weight λ₁ of the feature maps.', 1.0, least=0)
    gram_weight: float = argument('Weight λ₂ of the products of their channels.', 1.0, least=0)
    convolution_lr: float = argument(
        "Learning rate of the convolutions from the student's channels to the teacher's.", 0.002, above=0
    )

    def check(self, plan: Plan) -> Iterable[str]:
        if not has_trained_D(plan.resources.networks[self.teacher]):
            raise UserError(
                f'--teacher={self.teacher} holds no discriminator, whose feature maps GCC compares; give one that does.'
            )
        require_same_latents('GCC', self.teacher, plan)
        on_cuda = distributed.named_device(plan.args.get('device')).type == 'cuda'
        is_mixed = on_cuda and Precision.of_generator(plan.args['G_kwargs']).num_fp16_res > 0
        if is_mixed and plan.args['training_set_kwargs'].get('resolution', 0) >= LARGE:
            return [
                f'From {LARGE} pixels on, GCC takes means over so many entries that FP16 rounds most of its gradient '
                'away: --fp32=1 keeps it.'
            ]
        return ()

    def terms(self, context: Context) -> Sequence[Term]:
        teacher = self.teacher_pass(context)
        student = distributed.unwrapped(context.G_synthesis)
        sides = compared_sides(teacher.G.img_resolution)
        widths = {side: [_channels(synthesis, side) for synthesis in (student, teacher.G.synthesis)] for side in sides}
        convolutions = torch.nn.ModuleDict(
            {f'b{side}': torch.nn.Conv2d(old, new, 1, bias=False) for side, (old, new) in widths.items()}
        ).to(context.device)
        return [
            FeatureDistillation(
                teacher,
                context.discriminator(self.teacher),
                TrainedBeside(convolutions, self.convolution_lr, betas=(0.0, 0.99)),
                [f'b{2 * side}' for side in sides],  # A block of the discriminator puts out maps of half its size.
                self.content_weight,
                self.gram_weight,
                context.precision,
            )
        ]


def compared_sides(img_resolution: int) -> list[int]:
    """Sides of the feature maps to compare: a small one and the largest below the image's."""
    return sorted({min(SMALLEST, img_resolution // 2), img_resolution // 2})


def _channels(synthesis: torch.nn.Module, side: int) -> int:
    return getattr(synthesis, f'b{side}').conv1.weight.shape[0]


class GCCLoss(AdversarialLoss):
    """The adversarial loss and the distillation of feature maps that belongs to GCC."""

    methods = (GCC,)
