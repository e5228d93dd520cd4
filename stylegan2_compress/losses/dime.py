"""DiME: the student's images are to have the teacher's distribution in the spaces of foundation models."""

from collections.abc import Sequence

import torch

from stylegan2_compress import references, statistics
from stylegan2_compress.embeddings import Embedding, load, parse, split
from stylegan2_compress.errors import UserError
from stylegan2_compress.losses.base import AdversarialLoss, Batch, Summand, Term

PAPER_EMBEDDINGS = ('dino_resnet50', 'clip_rn50')
PAPER_WEIGHTS = {'dino_resnet50': 20.0, 'clip_rn50': 15.0}
DEFAULT_WEIGHT = 20.0


class MomentMatching(Term):
    """Σ_k λ_k (mean |a1 − m1| + mean |a2 − m2|) over embeddings k (DiME, arXiv 2405.11614).

    a1 and a2 are the first two raw moments of the student's batch, m1 and m2 the teacher's.

    Args:
        networks: frozen embeddings φ_k.
        moments: of the teacher, per embedding (m1, m2), each [dim].
        weights: λ_k.
    """

    def __init__(
        self,
        networks: Sequence[Embedding],
        moments: Sequence[tuple[torch.Tensor, torch.Tensor]],
        weights: Sequence[float],
    ):
        self.parts = list(zip(networks, moments, weights, strict=True))

    def generator(self, batch: Batch) -> list[Summand]:
        return [
            Summand(
                f'DiME/{network.spec}',
                statistics.moment_distance(network(batch.images), m1, m2, statistics.world()),
                weight,
            )
            for network, (m1, m2), weight in self.parts
        ]


class DiMELoss(AdversarialLoss):
    """The adversarial loss and moment matching in embedding spaces (DiME, arXiv 2405.11614).

    Args:
        teacher: network pickle (path or URL) whose G_ema is to be matched.
        embeddings: spec strings, one or several, as a list or separated by commas. The paper's by default.
        weights: λ, one number or one per embedding. By default the paper's 20 for DINO ResNet-50 and 15 for CLIP
            RN50, and 20 for any other.
        samples: how many of the teacher's images its moments are taken over. They are cached.
        truncation_psi: of the teacher's images; 1 is the distribution it was trained for.
        training_set_kwargs: where labels for the teacher's images come from; the training loops' options fill it in.
        adversarial: arguments of `AdversarialLoss`.

    Raises:
        UserError: for an embedding that does not exist or cannot be loaded here.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        teacher: str,
        embeddings: str | Sequence[str] = PAPER_EMBEDDINGS,
        weights: float | Sequence[float] | None = None,
        samples: int = 10000,
        truncation_psi: float = 1,
        training_set_kwargs: dict | None = None,
        **adversarial,
    ):
        specs = self._embeddings_and_weights(embeddings, weights)
        super().__init__(device, **adversarial)
        networks = [load(spec, self.device) for spec, _weight in specs]
        moments = references.teacher_moments(
            teacher,
            networks,
            samples=samples,
            truncation_psi=truncation_psi,
            training_set_kwargs=training_set_kwargs,
            device=self.device,
        )
        self.terms.append(MomentMatching(networks, moments, [weight for _spec, weight in specs]))

    @classmethod
    def check_arguments(cls, *, embeddings=PAPER_EMBEDDINGS, weights=None, samples=10000, **_others) -> None:
        """Refuse what the constructor would trip over, before a run directory exists."""
        for spec, _weight in cls._embeddings_and_weights(embeddings, weights):
            load(spec, 'cpu')  # Weights that are missing here are missing in an hour, too.
        if not (isinstance(samples, int) and samples >= 1):
            raise UserError(f'--loss-arg samples={samples} must be a whole number of images, at least 1.')

    @staticmethod
    def _embeddings_and_weights(specs, weights) -> list[tuple[str, float]]:
        specs = split(specs)
        parsed = [parse(spec) for spec in specs]
        if weights is None:
            weights = [PAPER_WEIGHTS.get(spec.name, DEFAULT_WEIGHT) for spec in parsed]
        weights = weights if isinstance(weights, (list, tuple)) else [weights]
        if len(weights) != len(specs) or not all(isinstance(w, (int, float)) and w >= 0 for w in weights):
            raise UserError(
                f'--loss-arg weights={weights} must be one number from 0 on for each embedding ({", ".join(specs)}).'
            )
        return list(zip(specs, weights, strict=True))
