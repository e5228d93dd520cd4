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
    """

    def __init__(self, G: Generator, embedding: Embedding, pixel_weight: float, feature_weight: float, precision: dict):
        self.G = G
        self.embedding = embedding
        self.pixel_weight = pixel_weight
        self.feature_weight = feature_weight
        self.precision = precision

    def generator(self, batch: Batch) -> list[Summand]:
        with torch.no_grad():
            wanted = self.G.synthesis(teacher_ws(self.G, batch), **self.precision)
        pixels = (batch.images - wanted).abs().mean()
        features = perceptual_distance(self.embedding, batch.images, wanted).mean()
        return [
            Summand('images/pixels', pixels, self.pixel_weight),
            Summand('images/features', features, self.feature_weight),
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
        if not plan.resources.embedding(self.embedding, plan.device).has_layers:
            raise UserError(
                f'--loss-arg embedding={self.embedding} shows no layers; use one that does, such as efficientnet_lite0.'
            )
        return ()

    def adapt(self, plan: Plan) -> None:
        """Refuse a student that takes other latents than the teacher."""
        G = plan.resources.networks[self.teacher]['G_ema']
        require_same_latents('image distillation', self.teacher, G, plan.args)

    def terms(self, context: Context) -> Sequence[Term]:
        G = context.teacher(self.teacher)
        embedding = context.embedding(self.embedding)
        return [ImageMatching(G, embedding, self.pixel_weight, self.feature_weight, context.precision)]


class ImageDistillationLoss(AdversarialLoss):
    """The adversarial loss, and L1 and perceptual distance to the teacher's images (Content-Aware GAN Compression)."""

    methods = (ImageDistillation,)
