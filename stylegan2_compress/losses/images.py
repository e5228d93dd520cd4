"""Image distillation: the student is to make the teacher's image for the same latent, in pixels and in features."""

from collections.abc import Mapping

import torch

from stylegan2_compress import pickles
from stylegan2_compress.arguments import require_number
from stylegan2_compress.embeddings import Embedding, load
from stylegan2_compress.embeddings.perceptual import perceptual_distance
from stylegan2_compress.errors import UserError
from stylegan2_compress.losses.adversarial import AdversarialLoss, Batch, Summand, Term
from stylegan2_compress.losses.features import require_same_latents, teacher_ws


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

    def __init__(
        self, G: torch.nn.Module, embedding: Embedding, pixel_weight: float, feature_weight: float, precision: dict
    ):
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


class ImageDistillationLoss(AdversarialLoss):
    """The adversarial loss, and L1 and perceptual distance to the teacher's images (Content-Aware GAN Compression).

    Args:
        teacher: network pickle (path or URL) whose G_ema is to be matched.
        embedding: spec string of a network that shows its layers. The paper uses LPIPS, whose weights are not for us
            to ship.
        pixel_weight, feature_weight: weights of the two; 3 each in the paper.
        adversarial: arguments of `AdversarialLoss`.

    Raises:
        UserError: for an embedding that cannot be loaded here or shows no layers.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        teacher: str,
        embedding: str = 'efficientnet_lite0',
        pixel_weight: float = 3.0,
        feature_weight: float = 3.0,
        **adversarial,
    ):
        super().__init__(device, **adversarial)
        G = pickles.load(teacher, device=self.device)['G_ema'].eval().requires_grad_(False)
        network = load(embedding, self.device)
        self.terms.append(ImageMatching(G, network, pixel_weight, feature_weight, self.precision))

    @classmethod
    def check_arguments(
        cls, *, embedding: str = 'efficientnet_lite0', pixel_weight=3.0, feature_weight=3.0, **adversarial
    ) -> None:
        """Refuse what the constructor would trip over, before a run directory exists."""
        AdversarialLoss.check_arguments(**adversarial)
        if not load(embedding, 'cpu').has_layers:
            raise UserError(
                f'--loss-arg embedding={embedding} shows no layers; use one that does, such as efficientnet_lite0.'
            )
        for name, weight in [('pixel_weight', pixel_weight), ('feature_weight', feature_weight)]:
            require_number(f'--loss-arg {name}', weight, least=0)

    @classmethod
    def adapt(cls, args: dict, networks: Mapping[str, dict]) -> None:
        """Refuse a student that takes other latents than the teacher. `args` are the training loop's."""
        teacher = args['loss_kwargs']['teacher']
        require_same_latents('image distillation', teacher, networks[teacher]['G_ema'], args)
