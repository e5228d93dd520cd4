"""Image distillation: the student is to make the teacher's image for the same latent, in pixels and in features."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from training.networks import Generator

from stylegan2_compress.arguments import argument
from stylegan2_compress.embeddings import Embedding
from stylegan2_compress.embeddings.perceptual import perceptual_distance
from stylegan2_compress.errors import UserError
from stylegan2_compress.losses.adversarial import AdversarialLoss
from stylegan2_compress.losses.features import require_same_latents, teacher_ws
from stylegan2_compress.losses.method import Context, Method
from stylegan2_compress.losses.terms import Batch, Summand, Term
from stylegan2_compress.runs.plan import Plan


class ImageMatching(Term):
    """λ₁ mean |x_S − x_T| + λ₂ d(x_S, x_T) for the same latents (Content-Aware GAN Compression, arXiv 2104.02244).

    Main G phase only. The paper lets both look at the content of the image, as a face parser marks it; here both look
    at all of it.

    Args:
        G: the teacher's generator, frozen and in eval mode.
        embedding: frozen network whose layers d compares, see `perceptual_distance`.
        pixel_weight, feature_weight: λ₁, λ₂.
        precision: arguments of G's forward pass.
        fade_nimg: after how many images of the run both weights have fallen to 0, in a straight line; None is never.
    """

    def __init__(
        self,
        G: Generator,
        embedding: Embedding,
        pixel_weight: float,
        feature_weight: float,
        precision: dict,
        fade_nimg: float | None = None,
    ):
        self.G = G
        self.embedding = embedding
        self.pixel_weight = pixel_weight
        self.feature_weight = feature_weight
        self.precision = precision
        self.fade_nimg = fade_nimg
        self.share = 1.0  # Of the weights that is left.

    def before_step(self, nimg: int) -> None:
        if self.fade_nimg is not None:
            self.share = max(1 - nimg / self.fade_nimg, 0)

    def generator(self, batch: Batch) -> list[Summand]:
        if self.share == 0:
            return []
        with torch.no_grad():
            wanted = self.G.synthesis(teacher_ws(self.G, batch), **self.precision)
        pixels = (batch.images - wanted).abs().mean()
        features = perceptual_distance(self.embedding, batch.images, wanted).mean()
        return [
            Summand('images/pixels', pixels, self.share * self.pixel_weight),
            Summand('images/features', features, self.share * self.feature_weight),
        ]


@dataclass(frozen=True)
class ImageDistillation(Method):
    """L1 and perceptual distance to the teacher's images (Content-Aware GAN Compression, arXiv 2104.02244)."""

    teacher: str = argument('Network pickle whose G_ema is matched.', default_text='`--teacher`')
    embedding: str = argument(
        "Network whose layers are compared; the paper's LPIPS weights cannot be shipped.", 'efficientnet_lite0'
    )
    pixel_weight: float = argument('Weight of the L1 distance.', 3.0, least=0, paper=3)
    feature_weight: float = argument('Weight of the perceptual distance.', 3.0, least=0, paper=3)

    def check(self, plan: Plan) -> Iterable[str]:
        require_layers('embedding', self.embedding, plan)
        return ()

    def adapt(self, plan: Plan) -> None:
        """Refuse a student that takes other latents than the teacher."""
        G = plan.resources.networks[self.teacher]['G_ema']
        require_same_latents('image distillation', self.teacher, G, plan.args)

    def terms(self, context: Context) -> Sequence[Term]:
        G = context.teacher(self.teacher)
        embedding = context.embedding(self.embedding)
        return [ImageMatching(G, embedding, self.pixel_weight, self.feature_weight, context.precision)]


@dataclass(frozen=True)
class PairedImages(Method):
    """The distances of `ImageDistillation` beside the terms of other methods, off by default."""

    teacher: str = argument('Network pickle whose G_ema is matched.', default_text='`--teacher`')
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

    def check(self, plan: Plan) -> Iterable[str]:
        if self.images:
            require_layers('images_embedding', self.images_embedding, plan)
        return ()

    def adapt(self, plan: Plan) -> None:
        """Refuse a student that takes other latents than the teacher."""
        if self.images:
            require_same_latents('images', self.teacher, plan.resources.networks[self.teacher]['G_ema'], plan.args)

    def terms(self, context: Context) -> Sequence[Term]:
        if self.images == 0:
            return []
        embedding = context.embedding(self.images_embedding)
        fade_nimg = None if self.images_kimg is None else 1000 * self.images_kimg
        G = context.teacher(self.teacher)
        return [ImageMatching(G, embedding, self.images, self.images, context.precision, fade_nimg)]


def require_layers(option: str, spec: str, plan: Plan) -> None:
    """Refuse an embedding without layers.

    Raises:
        UserError: with the loss's argument that names it.
    """
    if not plan.resources.embedding(spec, plan.device).has_layers:
        raise UserError(f'--loss-arg {option}={spec} shows no layers; use one that does, such as efficientnet_lite0.')


class ImageDistillationLoss(AdversarialLoss):
    """The adversarial loss, and L1 and perceptual distance to the teacher's images (Content-Aware GAN Compression)."""

    methods = (ImageDistillation,)
