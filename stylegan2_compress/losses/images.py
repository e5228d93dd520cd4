"""Image distillation: the student is to make the teacher's image for the same latent, in pixels and in features."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from training.networks import Generator

from stylegan2_compress.arguments import argument
from stylegan2_compress.embeddings import Embedding
from stylegan2_compress.embeddings.perceptual import distance_of_layers
from stylegan2_compress.errors import UserError
from stylegan2_compress.losses.adversarial import AdversarialLoss
from stylegan2_compress.losses.fading import Fading
from stylegan2_compress.losses.features import TeacherPass, require_same_latents
from stylegan2_compress.losses.generator_loss import GeneratorLoss
from stylegan2_compress.losses.masks import Masks
from stylegan2_compress.losses.method import Context, PairedMethod
from stylegan2_compress.losses.terms import Batch, Summand, Term
from stylegan2_compress.pruning.content import ContentMask, content, load_content_mask
from stylegan2_compress.runs.plan import Plan

LOOKED_AT = 16  # Images of the teacher in which a mask has to find something.


class ImageMatching(Term):
    """λ₁ mean |x_S − x_T| + λ₂ d(x_S, x_T) for the same latents (Content-Aware GAN Compression, arXiv 2104.02244).

    Main G phase only. With a mask, both images are black where the teacher's shows no content, and the mean is still
    that over all pixels, as in the authors' code.

    Args:
        teacher: the images to match.
        embedding: frozen network whose layers d compares, see `distance_of_layers`; None leaves d out.
        pixel_weight, perceptual_weight: λ₁, λ₂.
        fading: of both weights; None is without.
        mask: where the teacher's images show their content; None is everywhere.
    """

    def __init__(
        self,
        teacher: TeacherPass,
        embedding: Embedding | None,
        pixel_weight: float,
        perceptual_weight: float,
        fading: Fading | None = None,
        mask: ContentMask | None = None,
    ):
        self.teacher = teacher
        self.embedding = embedding
        self.pixel_weight = pixel_weight
        self.perceptual_weight = perceptual_weight
        self.fading = fading or Fading()
        self.mask = mask

    def before_step(self, nimg: int) -> None:
        self.fading.follow(nimg)

    def obstacle(self) -> str:
        return self.fading.obstacle("the distance to the teacher's images")

    def generator(self, batch: Batch) -> list[Summand]:
        share = self.fading.share
        if share == 0:
            return []
        wanted = self.teacher(batch).images
        if self.mask is not None:
            shown = content(wanted, self.mask)
            batch, wanted = replace(batch, images=batch.images * shown, _layers={}), wanted * shown
        pixels = (batch.images - wanted).abs().mean()
        summands = [Summand('images/pixels', pixels, share * self.pixel_weight)]
        if self.embedding is not None:
            layers = batch.layers(self.embedding), self.embedding.layers(wanted)
            features = distance_of_layers(*layers, self.embedding.channel_weights).mean()
            summands.append(Summand('images/features', features, share * self.perceptual_weight))
        return summands


@dataclass(frozen=True)
class ImageDistillation(PairedMethod):
    """L1 and perceptual distance to the teacher's images (Content-Aware GAN Compression, arXiv 2104.02244)."""

    embedding: str = argument(
        'Network whose layers are compared; `lpips` is the distance of the paper.', 'efficientnet_lite0'
    )
    pixel_weight: float = argument('Weight of the L1 distance.', 3.0, least=0, paper=3)
    perceptual_weight: float = argument('Weight of the perceptual distance.', 3.0, least=0, paper=3)
    mask: str | None = argument(
        'TorchScript file, from images [N, C, H, W] in [-1, 1] to masks [N, 1, H, W] of their content, as `prune '
        "--mask` takes it: only the content of the teacher's images is compared.",
        None,
        default_text='all of the image (paper: faces and what belongs to them)',
    )

    def __post_init__(self):
        super().__post_init__()
        if self.pixel_weight == self.perceptual_weight == 0:
            raise UserError(
                '--loss-arg pixel_weight=0 and perceptual_weight=0 leave nothing of image distillation: give one of '
                'them a weight, or name a loss without it.'
            )

    def check(self, plan: Plan) -> Iterable[str]:
        if self.perceptual_weight:
            require_layers('embedding', self.embedding, plan)
        if self.mask is not None:
            require_content(self.mask, plan.resources.networks[self.teacher]['G_ema'])
        require_same_latents('image distillation', self.teacher, plan)
        return ()

    def terms(self, context: Context) -> Sequence[Term]:
        embedding = context.embedding(self.embedding) if self.perceptual_weight else None
        mask = None if self.mask is None else load_content_mask(self.mask, context.device)
        teacher = self.teacher_pass(context)
        return [ImageMatching(teacher, embedding, self.pixel_weight, self.perceptual_weight, mask=mask)]


@dataclass(frozen=True)
class PairedImages(PairedMethod):
    """The distances of `ImageDistillation` beside the terms of other methods, off by default."""

    images: float = argument(
        "Weight of the L1 and of the perceptual distance to the teacher's image for the same z; 0 is off.", 0.0, least=0
    )
    images_kimg: float | None = argument(
        'After how many thousands of images that weight has fallen to 0, in a straight line.',
        None,
        above=0,
        default_text='it stays',
    )
    images_embedding: str = argument('Network whose layers the perceptual distance compares.', 'efficientnet_lite0')

    def __post_init__(self):
        super().__post_init__()
        if self.images_kimg is not None and self.images == 0:
            raise UserError(f'--loss-arg images_kimg={self.images_kimg:g} needs a weight that falls: add images=1.')
        if self.images_embedding != type(self).images_embedding and self.images == 0:
            raise UserError(f'--loss-arg images_embedding={self.images_embedding} needs a weight: add images=1.')

    def check(self, plan: Plan) -> Iterable[str]:
        if self.images:
            require_layers('images_embedding', self.images_embedding, plan)
            require_same_latents('images', self.teacher, plan)
        return ()

    def terms(self, context: Context) -> Sequence[Term]:
        if self.images == 0:
            return []
        embedding = context.embedding(self.images_embedding)
        teacher = self.teacher_pass(context)
        return [ImageMatching(teacher, embedding, self.images, self.images, Fading(self.images_kimg))]


def require_layers(option: str, spec: str, plan: Plan) -> None:
    """Refuse an embedding without layers.

    Raises:
        UserError: with the loss's argument that names it.
    """
    if not plan.embedding(spec).has_layers:
        raise UserError(f'--loss-arg {option}={spec} shows no layers; use one that does, such as efficientnet_lite0.')


@torch.no_grad()
def require_content(mask: str, G: Generator) -> None:
    """Refuse a content mask that fails on a teacher's images, or finds nothing in any of `LOOKED_AT`.

    Raises:
        UserError: with the loss's argument that names it.
    """
    G = copy.deepcopy(G).eval().cpu()
    content_mask = load_content_mask(mask)
    rnd = torch.Generator().manual_seed(0)
    for _ in range(LOOKED_AT):  # One at a time, and no more than it takes.
        c = torch.eye(max(G.c_dim, 1))[torch.randint(max(G.c_dim, 1), [1], generator=rnd)][:, : G.c_dim]
        image = G(torch.randn([1, G.z_dim], generator=rnd), c, noise_mode='const', force_fp32=True)
        if content(image, content_mask).any():
            return
    raise UserError(
        f"--loss-arg mask={mask} finds no content in {LOOKED_AT} of the teacher's images: leave it out, or give one "
        'that does.'
    )


class ImageDistillationLoss(AdversarialLoss):
    """The adversarial loss, and L1 and perceptual distance to the teacher's images (Content-Aware GAN Compression)."""

    methods = (ImageDistillation,)


class RegressionLoss(GeneratorLoss):
    """L1 and perceptual distance to the teacher's images alone, without a discriminator; also for masks."""

    methods = (ImageDistillation, Masks)
