"""StyleKD: a student is to see the same relations between latents and their neighbours as its teacher does."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import kl_div, normalize
from training.networks import Generator

from stylegan2_compress import distributed
from stylegan2_compress.arguments import argument
from stylegan2_compress.errors import UserError
from stylegan2_compress.losses.adversarial import AdversarialLoss
from stylegan2_compress.losses.features import TeacherPass, maps_alone, require_same_latents
from stylegan2_compress.losses.images import ImageDistillation
from stylegan2_compress.losses.method import Context, PairedMethod
from stylegan2_compress.losses.terms import Batch, Summand, Term, total
from stylegan2_compress.runs.plan import Plan

SMALLEST, LARGEST = 16, 128  # Sides of the feature maps that the authors compare.
FIRST = 8  # Side of the first ones whose styles say what the directions are.


@torch.no_grad()
def principal_directions(G: Generator, sides: Collection[int], count: int) -> torch.Tensor:
    """The directions of W that change the styles of a generator most, resolution by resolution.

    Those of a resolution are the first eigenvectors of AᵀA, where A [channels, w_dim] are the weights of the affine
    layers of its two convolutions, each row of unit length.

    Args:
        G: the generator.
        sides: resolutions, each of 8 or more.
        count: directions of each; as many as W has, if that is less.

    Returns:
        [directions, w_dim], of unit length.
    """
    directions, device = [], next(G.parameters()).device
    for side in sides:
        block = getattr(G.synthesis, f'b{side}')
        # On the CPU: not every device has double precision, or eigenvectors.
        rows = torch.cat([layer.affine.weight.cpu().double() for layer in (block.conv0, block.conv1)])
        rows = normalize(rows, dim=1)
        _values, vectors = torch.linalg.eigh(rows.T @ rows)  # In rising order of eigenvalues.
        directions.append(vectors.T.flip(0)[:count])
    return torch.cat(directions).float().to(device)


def divergence(student: tuple[torch.Tensor, torch.Tensor], teacher: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """mean_i KL(softmax_j t_ij ‖ softmax_j s_ij), where s_ij and t_ij are cosines of feature maps.

    Args:
        student, teacher: maps [N, channels, side, side] of latents, and of those moved away from them.

    Returns:
        A scalar, of at least float32 precision.
    """
    s, t = cosines(*student), cosines(*teacher)
    return kl_div(s.log_softmax(dim=1), t.softmax(dim=1), reduction='batchmean')


def cosines(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The cosine [N, N] of the angle between each map [N, …] of the first and each of the second."""
    precision = torch.promote_types(first.dtype, torch.float32)
    rows, columns = (normalize(maps.to(precision).flatten(1), dim=1) for maps in (first, second))
    return rows @ columns.T


class LatentRelations(Term):
    """λ Σ_l KL between the cosines of feature maps at latents w_i and at moved ones w_j + d_j (StyleKD, ECCV 2022).

    Main G phase only. Each latent is moved along a direction of its own, by a length that is normally distributed;
    both generators get the same one, each from its own w. Images that are made together are compared.

    Args:
        teacher: the teacher's maps at w.
        G_synthesis: the student's, possibly wrapped in DistributedDataParallel.
        directions: [directions, w_dim], of unit length, from which one is drawn for each image.
        length: standard deviation of the lengths.
        blocks: names of the synthesis blocks whose maps are compared.
        weight: λ.
        precision: arguments of the student's forward pass.
    """

    def __init__(
        self,
        teacher: TeacherPass,
        G_synthesis: torch.nn.Module,
        directions: torch.Tensor,
        length: float,
        blocks: Collection[str],
        weight: float,
        precision: dict[str, bool],
    ):
        teacher.watch(blocks)
        self.teacher = teacher
        # Not the wrapper: the images of the batch are its pass, whose backward pass collects these gradients, too.
        self.synthesis = distributed.unwrapped(G_synthesis)
        self.directions = directions
        self.length = length
        self.watched = blocks
        self.weight = weight
        self.precision = precision

    def generator(self, batch: Batch) -> list[Summand]:
        taught = self.teacher(batch)
        offsets = self.offsets(batch.images)
        with torch.no_grad():
            wanted = maps_alone(self.teacher.G.synthesis, self.watched, taught.ws + offsets, **self.teacher.precision)
        ws = batch.ws + offsets  # pyright: ignore[reportOptionalOperand]  # G phases have them.
        moved = maps_alone(self.synthesis, self.watched, ws, **self.precision)
        loss = total(
            divergence((batch.maps[name], moved[name]), (taught.maps[name], wanted[name])) for name in self.watched
        )
        return [Summand('StyleKD/relations', loss, self.weight)]

    def offsets(self, images: torch.Tensor) -> torch.Tensor:
        """What to add to all styles of each image: [N, 1, w_dim]."""
        drawn = torch.randint(len(self.directions), [len(images)], device=images.device)
        lengths = self.length * torch.randn([len(images), 1], device=images.device)
        return (lengths * self.directions[drawn]).unsqueeze(1)


@dataclass(frozen=True)
class StyleKD(PairedMethod):
    """Relations between latents as the teacher sees them (StyleKD, arXiv 2208.08840)."""

    relation_weight: float = argument('Weight λ of the relations; 0 is off.', 30.0, least=0)
    direction_length: float = argument(
        'Standard deviation of the lengths by which latents are moved in W.', 5.0, above=0
    )
    directions: int = argument('Directions of each resolution that latents are moved along.', 5, least=1)

    def check(self, plan: Plan) -> Iterable[str]:
        if plan.args['batch_gpu'] < 2 and self.relation_weight:
            raise UserError(
                'StyleKD compares images that are made together, and there is 1 on a GPU at a time: raise --batch '
                'or --batch-gpu.'
            )
        require_same_latents('StyleKD', self.teacher, plan)
        G = plan.resources.networks[self.teacher]['G_ema']
        w_dim = plan.args['G_kwargs'].get('w_dim', G.w_dim)
        if G.w_dim != w_dim:
            raise UserError(
                f'--teacher={self.teacher} has a W of {G.w_dim} dimensions, but the student one of {w_dim}; StyleKD '
                'moves both along the same directions.'
            )
        return ()

    def terms(self, context: Context) -> Sequence[Term]:
        if self.relation_weight == 0:
            return []
        teacher = self.teacher_pass(context)
        sides = compared_sides(teacher.G.img_resolution)
        styled = [2**k for k in range(int(math.log2(FIRST)), int(math.log2(sides[-1])) + 1)]
        return [
            LatentRelations(
                teacher,
                context.G_synthesis,
                principal_directions(teacher.G, styled, self.directions),
                self.direction_length,
                [f'b{side}' for side in sides],
                self.relation_weight,
                context.precision,
            )
        ]


def compared_sides(img_resolution: int) -> list[int]:
    """Sides of the feature maps to compare: 16 to 128 as the authors do, as far as they are smaller than the image.

    Of images of 16 pixels, and of 8, it is 8: a block of 4 has no directions.
    """
    sides = [2**k for k in range(int(math.log2(img_resolution))) if SMALLEST <= 2**k <= LARGEST]
    return sides or [FIRST]


class StyleKDLoss(AdversarialLoss):
    """The adversarial loss, the distance to the teacher's images, and relations between latents (StyleKD)."""

    methods = (ImageDistillation, StyleKD)
