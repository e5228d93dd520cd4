"""NICKEL: the student learns from the teacher's discriminator, and its own discriminator from the teacher's generator.

D is a `DualDiscriminator`. The base gives both discriminators in it the adversarial losses and R1; the term here is the
exchange between the teacher's generator and the student's discriminator.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch_utils import misc

from stylegan2_compress.arguments import argument
from stylegan2_compress.errors import UserError
from stylegan2_compress.host.networks import student_of
from stylegan2_compress.losses import discriminators
from stylegan2_compress.losses.adversarial import STUDENT, AdversarialLoss
from stylegan2_compress.losses.dime import DiME
from stylegan2_compress.losses.features import TeacherPass, require_same_latents
from stylegan2_compress.losses.images import PairedImages
from stylegan2_compress.losses.method import Context, PairedMethod
from stylegan2_compress.losses.terms import Batch, Summand, Term, total
from stylegan2_compress.losses.wavelets import haar_levels
from stylegan2_compress.runs.plan import Plan

TEACHER = '/teacher'
PAPER_LEVELS = 4


def high_frequency_distance(x: torch.Tensor, y: torch.Tensor, levels: int) -> torch.Tensor:
    """Σ_j MSE(H_j(x), H_j(y)), H_j being the three high-frequency subbands of Haar level j (NICKEL's L_feat).

    Args:
        x, y: feature maps [N, C, H, W].
        levels: J, bounded as in `haar_levels`.

    Returns:
        A scalar, of at least float32 precision.
    """
    precision = torch.promote_types(x.dtype, torch.float32)
    difference = x.to(precision) - y.to(precision)  # The transform is linear.
    return total(torch.stack(subbands).square().mean() for subbands in haar_levels(difference, levels))


class FeatureExchange(Term):
    """λ L_feat: D_S is to see in the teacher's images what the teacher made them from (NICKEL, arXiv 2405.11614).

    Main D phase only. The teacher makes images from the student's latents, mixed in the same way, and D_S looks at
    them unaugmented, since augmented ones would not show what the teacher's feature maps do.

    Args:
        teacher: its images for the student's latents.
        D: `DualDiscriminator`, possibly wrapped in DistributedDataParallel.
        levels: J by the names of the blocks whose maps are compared.
        weight: λ.
        precision: arguments of D's forward pass.
    """

    def __init__(
        self,
        teacher: TeacherPass,
        D: torch.nn.Module,
        levels: Mapping[str, int],
        weight: float,
        precision: Mapping[str, bool],
    ):
        teacher.watch(levels)
        self.teacher = teacher
        self.D = D
        self.levels = dict(levels)
        self.weight = weight
        self.precision = precision

    def discriminator(self, batch: Batch) -> list[Summand]:
        taught = self.teacher(batch)
        with misc.ddp_sync(self.D, False):  # The pass on real images synchronises the processes.
            seen = self.D(taught.images, batch.c, match=tuple(self.levels), **self.precision)
        loss = total(
            high_frequency_distance(seen[name], taught.maps[name], levels) for name, levels in self.levels.items()
        )
        return [Summand('NICKEL/features', loss, self.weight)]

    def obstacle(self) -> str:
        return ''


# --- The method -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NICKEL(PairedMethod):
    """Adversarial losses against two discriminators, and exchange of features (NICKEL, arXiv 2405.11614).

    D_T starts from the teacher pickle's D, and both discriminators train on the student's images and on real ones.
    """

    teacher: str = argument("Network pickle with the teacher's G_ema and D.", default_text='`--teacher`')
    student_d: str = argument(
        "The student's discriminator starts from `scratch` (paper) or from the `teacher`'s.",
        'scratch',
        choices=discriminators.STARTS,
    )
    feature_weight: float = argument('Weight λ of the feature exchange; 0 is off.', 10.0, least=0, paper=10)
    resolutions: int | str | Sequence[int] | None = argument(
        'Side of the feature maps that are compared, one or several (`32,64`), whose distances are added.',
        None,
        default_text="a quarter of the image's (paper: 64 of 256)",
    )
    levels: int | None = argument(
        'Haar levels J.', None, least=1, default_text='4 (paper), or as many as the map allows'
    )

    def check(self, plan: Plan) -> Iterable[str]:
        data = plan.resources.networks[self.teacher]
        self.levels_by_block(data['G_ema'].img_resolution)
        if not discriminators.has_trained_D(data):
            raise UserError(
                f'--teacher={self.teacher} holds no discriminator, from which NICKEL starts; give one that does.'
            )
        require_same_latents('NICKEL', self.teacher, plan)
        return ()

    def adapt(self, plan: Plan) -> None:
        """Turn the D of the run into a `DualDiscriminator` for the teacher."""
        data = plan.resources.networks[self.teacher]
        G = data['G_ema']
        matched = {
            name: getattr(G.synthesis, name).conv1.weight.shape[0] for name in self.levels_by_block(G.img_resolution)
        }
        teacher_D = student_of(data['D'])
        plan.args['D_kwargs'] = discriminators.pair_arguments(plan.args['D_kwargs'], teacher_D, self.student_d, matched)

    def terms(self, context: Context) -> Sequence[Term]:
        data = context.networks[self.teacher]
        discriminators.start(context.D, student_of(data['D']), self.student_d)
        if self.feature_weight == 0:
            return []
        teacher = self.teacher_pass(context)
        levels = self.levels_by_block(teacher.G.img_resolution)
        D: Any = context.D  # `start` refuses None.
        return [FeatureExchange(teacher, D, levels, self.feature_weight, context.precision)]

    def judge(self, D: torch.nn.Module, images: torch.Tensor, c: torch.Tensor, **precision) -> dict[str, torch.Tensor]:
        """Logits [N, 1] of D_S and of D_T."""
        student, teacher = D(images, c, both=True, **precision)
        return {STUDENT: student, TEACHER: teacher}

    def levels_by_block(self, img_resolution: int) -> dict[str, int]:
        """Haar levels by the name of the block whose map is compared: `{'b64': 4}`.

        Raises:
            UserError: the networks have no such resolution, or a map is too small for that many levels.
        """
        # D_S has a map of half the image at most.
        available = [2**k for k in range(2, int(math.log2(img_resolution)))]
        if not available:
            raise UserError(
                'NICKEL compares feature maps of 4 pixels up to half of the image, and images of '
                f'{img_resolution} pixels have none: take another loss.'
            )
        sides = _sides(self.resolutions, default=max(img_resolution // 4, 4))
        if not sides or len(set(map(repr, sides))) < len(sides) or any(side not in available for side in sides):
            raise UserError(
                f'--loss-arg resolutions={self.resolutions} must be one or several of '
                f'{", ".join(map(str, available))} for images of {img_resolution} pixels.'
            )
        most = int(math.log2(min(sides)))
        if self.levels is not None and self.levels > most:
            raise UserError(
                f'--loss-arg levels={self.levels} must be from 1 to {most} for feature maps of side {min(sides)}.'
            )
        return {f'b{side}': self.levels or min(PAPER_LEVELS, int(math.log2(side))) for side in sides}


def _sides(resolutions: int | str | Sequence[int] | None, default: int) -> list:
    """The resolutions as a list; what is no number in a text stays text, for the error."""
    if isinstance(resolutions, str):
        return [int(side) if side.strip().isdecimal() else side for side in resolutions.split(',')]
    if isinstance(resolutions, (list, tuple)):
        return list(resolutions)
    return [default if resolutions is None else resolutions]


class NICKELLoss(AdversarialLoss):
    """Adversarial losses against two discriminators, and exchange of features (NICKEL, arXiv 2405.11614).

    D has to be a `stylegan2_compress.DualDiscriminator`, which `train.py` and `distill` see to.
    """

    methods = (NICKEL,)


class NickelDimeLoss(AdversarialLoss):
    """NICKEL and DiME: the terms of both methods on one adversarial loss (the paper's full method).

    With `images`, the distance to the teacher's image for the same z is a further term.
    """

    methods = (DiME, NICKEL, PairedImages)
