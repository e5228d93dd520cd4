"""DiME: the student's images are to have a reference's distribution in the spaces of foundation models."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from stylegan2_compress.arguments import argument, is_number
from stylegan2_compress.distributions import statistics
from stylegan2_compress.distributions.memory import FeatureMemory
from stylegan2_compress.distributions.sources import DatasetImages, Source, TeacherImages, check_size
from stylegan2_compress.distributions.statistics import Statistics
from stylegan2_compress.distributions.teacher_dataset import is_teachers
from stylegan2_compress.embeddings import Embedding, parse, split
from stylegan2_compress.errors import UserError
from stylegan2_compress.losses.adversarial import AdversarialLoss
from stylegan2_compress.losses.estimators import ESTIMATORS
from stylegan2_compress.losses.method import Context, Method
from stylegan2_compress.losses.spread import Spread
from stylegan2_compress.losses.terms import Batch, Summand, Term
from stylegan2_compress.pickles.networks import Networks
from stylegan2_compress.runs.plan import Plan

PAPER_EMBEDDINGS = ('dino_resnet50', 'clip_rn50')
PAPER_WEIGHTS = {'dino_resnet50': 20.0, 'clip_rn50': 15.0}
REFERENCES = ('teacher', 'data')
TEACHER_SAMPLES = 10000
BANK = 2048

# --- The term ---------------------------------------------------------------------------------------------------------


class DistributionMatching(Term):
    """Σ_k λ_k d_k(φ_k(x)) over embeddings φ_k of the student's images x (DiME, arXiv 2405.11614).

    Args:
        networks: φ_k.
        distances: d_k, from features [N, dim] to a scalar, as `ESTIMATORS` builds them.
        weights: λ_k.
        source: whose images refresh the banks of the distances.
        refresh: after how many of the generator's steps the oldest chunk of each bank makes way for a new one; 0 is
            never.
        memories: of the student's latest features, one per embedding; none is without.
        spreads: that follow the features within a batch, one per embedding; none is without.
    """

    def __init__(
        self,
        networks: Sequence[Embedding],
        distances: Sequence[Callable[..., torch.Tensor]],
        weights: Sequence[float],
        source: Source | None = None,
        refresh: int = 0,
        memories: Sequence[FeatureMemory] = (),
        spreads: Sequence[Spread] = (),
    ):
        self.parts = list(zip(networks, distances, weights, strict=True))
        self.source = source
        self.refresh = refresh
        self.memories = memories or [None] * len(self.parts)
        self.spreads = spreads or [None] * len(self.parts)
        self.kept = [*memories, *spreads]  # What follows the steps that are taken.
        self.taken = 0  # Steps of the generator.
        self.nimg = 0

    def before_step(self, nimg: int) -> None:
        self.nimg = nimg
        for each in self.kept:
            each.begin()

    def generator(self, batch: Batch) -> list[Summand]:
        summands = []
        for (network, distance, weight), memory, spread in zip(self.parts, self.memories, self.spreads, strict=True):
            features = network(batch.images)
            past = [] if memory is None else [memory.before(features)]
            summands.append(Summand(f'DiME/{network.spec}', distance(features, *past), weight))
            if memory is not None:
                memory.note(features)
            if spread is not None and len(features) > 1:
                summands.append(Summand(f'DiME/spread/{network.spec}', spread.of(features), weight=None))
        return summands

    def after_step(self) -> None:
        self.taken += 1
        for memory in filter(None, self.memories):
            memory.commit()
        for spread in filter(None, self.spreads):
            spread.commit(self.nimg)
        if self.refresh and self.taken % self.refresh == 0:
            self._refresh(self.taken // self.refresh - 1)

    @torch.no_grad()
    def _refresh(self, count: int) -> None:
        """Let the next chunk of the source into the banks, where `count` were let in before. The same everywhere."""
        size = len(self.parts[0][1].bank)
        chunk = self.source.chunk
        images = self.source.draw(-(-size // chunk) + count)[0][:size]
        rows = (count * chunk + torch.arange(len(images), device=images.device)) % size
        for network, distance, _weight in self.parts:
            new = network(images)
            bank = distance.bank.clone()
            bank[rows] = torch.where(new.isfinite().all(dim=1, keepdim=True), new, bank[rows])
            distance.fill(bank)

    def state_dict(self) -> dict:
        banks = [distance.bank for _, distance, _ in self.parts] if self.refresh else []
        return {'taken': self.taken, 'banks': banks, 'kept': [each.state_dict() for each in self.kept]}

    def load_state_dict(self, state: dict) -> None:
        for option, has, had in [
            ('refresh', bool(self.refresh), bool(state['banks'])),
            ('memory', len(self.kept), len(state['kept'])),
        ]:
            if has != had:
                raise UserError(f'The run to go on with had another --loss-arg {option}: give the one it had.')
        self.taken = state['taken']
        if self.refresh:
            for (_network, distance, _weight), bank in zip(self.parts, state['banks'], strict=True):
                distance.fill(bank.to(distance.bank))
        for each, its_state in zip(self.kept, state['kept'], strict=True):
            each.load_state_dict(its_state)


# --- The method -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DiME(Method):
    """Distribution matching in embedding spaces (DiME, arXiv 2405.11614)."""

    teacher: str | None = argument('Network pickle whose G_ema is matched.', None, default_text='`--teacher`')
    embeddings: str | Sequence[str] = argument(
        'Spec strings of the embeddings, separated by commas or as a JSON list.',
        PAPER_EMBEDDINGS,
        default_text='`dino_resnet50,clip_rn50` (paper)',
    )
    weights: float | Sequence[float] | None = argument(
        'λ, one number or one per embedding.',
        None,
        default_text='`moments`: 20 for `dino_resnet50`, 15 for `clip_rn50` (paper), 20 for others; `linear` 0.1, '
        '`rbf` 2, `cubic` 30 (ours)',
    )
    estimator: str = argument(
        "How distributions are compared: `moments` (the paper's code), their squared differences in units of the "
        "reference's variance, or the squared maximum mean discrepancy (the paper's derivation) with a kernel, of "
        "which `cubic` is KID's.",
        'moments',
        choices=ESTIMATORS,
    )
    unbiased: bool | None = argument('Kernels: leave out pairs of an image with itself.', None, default_text='`true`')
    bank: int | None = argument(
        "Kernels: how many of the reference's images the student's are compared with.",
        None,
        least=2,
        unit='images',
        default_text='2048, or all that a smaller data set or the file of statistics has',
    )
    refresh: int = argument(
        'Kernels: after how many generator steps the oldest 32 of them (8 at 512 px, 4 at 1024 px) make way for new '
        'ones; 0 is never.',
        0,
        least=0,
        unit='steps',
    )
    memory: int = argument(
        "How many of the student's latest images count together, those of the batch included: the others are of "
        'earlier steps, and only the batch gets a gradient. 0 is the batch alone (paper).',
        0,
        least=0,
        unit='images',
    )
    reference: str = argument(
        'What to match: the `teacher` (paper), or the `data` set, which needs no `--teacher`.',
        'teacher',
        choices=REFERENCES,
    )
    samples: int | None = argument(
        "Moments: how many images the reference's are taken over; cached between runs.",
        None,
        least=1,
        unit='images',
        default_text='10000 of a teacher, all of a data set',
    )
    truncation_psi: float = argument("Of the teacher's images; 1 is the distribution it was trained for.", 1)
    statistics: str | None = argument(
        'File of `stylegan2-compress stats` to take moments or bank from.',
        None,
        default_text='made and cached by the run',
    )
    training_set_kwargs: dict | None = argument('The data set; also where labels come from.', None, internal=True)

    def __post_init__(self):
        super().__post_init__()
        kernels = [name for name, estimator in ESTIMATORS.items() if estimator.has_bank]
        without_bank = [name for name, estimator in ESTIMATORS.items() if not estimator.has_bank]
        for option, default, needs, possible in [
            ('unbiased', None, 'estimator', kernels),
            ('bank', None, 'estimator', kernels),
            ('refresh', 0, 'estimator', kernels),
            ('samples', None, 'estimator', without_bank),
            ('truncation_psi', 1, 'reference', ['teacher']),
        ]:
            value, given = getattr(self, option), getattr(self, needs)
            if value != default and given not in possible:
                raise UserError(
                    f'--loss-arg {option}={value} goes with {needs}={", ".join(possible)}, not with {given}.'
                )
        if self.reference == 'teacher' and self.teacher is None:
            raise UserError('DiME needs --teacher, or --loss-arg reference=data to match the data set.')
        if self.statistics is not None and self.refresh:
            both = f'statistics={self.statistics} and refresh={self.refresh}'
            raise UserError(f'--loss-arg {both} exclude each other: the contents of a file do not change.')
        self.embeddings_and_weights()

    @property
    def has_bank(self) -> bool:
        """Whether the estimator compares with images of the reference, and not with their moments."""
        return ESTIMATORS[self.estimator].has_bank

    @property
    def is_unbiased(self) -> bool:
        return self.unbiased is not False

    def embeddings_and_weights(self) -> list[tuple[str, float]]:
        """Specs of φ_k, and λ_k.

        Raises:
            UserError: there are no such embeddings, or not one weight for each.
        """
        specs, weights = split(self.embeddings), self.weights
        if weights is None:
            paper = {} if self.has_bank else PAPER_WEIGHTS
            weights = [paper.get(parse(spec).name, ESTIMATORS[self.estimator].weight) for spec in specs]
        weights = weights if isinstance(weights, (list, tuple)) else [weights]
        if len(weights) != len(specs) or not all(is_number(weight, least=0) for weight in weights):
            raise UserError(
                f'--loss-arg weights={weights} must be one number from 0 on for each embedding ({", ".join(specs)}).'
            )
        return list(zip(specs, weights, strict=True))

    def check(self, plan: Plan) -> Iterable[str]:
        batch, at_once = plan.args['batch_size'], plan.args['batch_gpu'] * plan.args['num_gpus']
        if self.has_bank and self.is_unbiased and at_once < 2:
            raise UserError(
                f'--loss-arg estimator={self.estimator} compares the images of a batch with each other: with one at a '
                'time, add unbiased=false or raise --batch-gpu.'
            )
        if self.memory and self.memory < batch:
            raise UserError(
                f'--loss-arg memory={self.memory} is less than the batch of {batch} images, which it is to extend: '
                'give several times that.'
            )
        source = self._source(plan.resources.networks, plan.device)
        networks = [plan.resources.embedding(spec, plan.device) for spec, _weight in self.embeddings_and_weights()]
        if self.statistics is not None:
            self._reference(source, networks)
        samples, bank = self._counts(source)
        check_size(source, 'bank' if bank else 'samples', samples)
        if at_once < batch and not self.has_bank and not self.memory:
            yield (
                f'DiME takes moments over {at_once} images at a time, not over the batch of {batch}. If memory allows, '
                'raise it with `distill --batch-gpu` or `train.py --batch`; or let earlier images count, --loss-arg '
                f'memory={16 * batch}, or use an unbiased estimator, --loss-arg estimator=rbf.'
            )

    def terms(self, context: Context) -> Sequence[Term]:
        source = self._source(context.networks, context.device)
        specs, weights = zip(*self.embeddings_and_weights(), strict=True)
        networks = [context.embedding(spec) for spec in specs]
        references = self._reference(source, networks)
        memories = [FeatureMemory(self.memory, network.dim, context.device) for network in networks]
        return [
            DistributionMatching(
                networks,
                [self._distance(reference) for reference in references],
                weights,
                source if self.refresh else None,
                self.refresh,
                memories if self.memory else (),
                [Spread(network.spec, each) for network, each in zip(networks, references, strict=True)],
            )
        ]

    def _source(self, networks: Networks, device: torch.device) -> Source:
        """The images to match."""
        if self.reference == 'data':
            if self.training_set_kwargs is None:
                raise UserError('--loss-arg reference=data needs training_set_kwargs, the training set to match.')
            if is_teachers(self.training_set_kwargs):
                raise UserError(
                    '--loss-arg reference=data needs --data: without it, there is only the teacher to match.'
                )
            return DatasetImages(self.training_set_kwargs, device=device)
        return TeacherImages(
            self.teacher,
            networks,
            truncation_psi=self.truncation_psi,
            training_set_kwargs=self.training_set_kwargs,
            device=device,
        )

    def _reference(self, source: Source, networks: Sequence[Embedding]) -> list[Statistics]:
        """What to match, of each embedding: from the user's file, or made and cached.

        Raises:
            UserError: the file is not of these images and embeddings, or there are not enough images.
        """
        if self.statistics is None:
            samples, bank = self._counts(source)
            return statistics.reference_statistics(source, networks, samples=samples, bank=bank)
        bank = self.bank if self.has_bank else 0
        return [
            statistics.read_statistics(self.statistics, source, network, self.samples, bank).to(source.device)
            for network in networks
        ]

    def _counts(self, source: Source) -> tuple[int, int]:
        """Over how many images moments are taken, and of how many features are kept."""
        if self.has_bank:
            bank = self.bank or min(BANK, source.size or BANK)
            return bank, bank
        return self.samples or source.size or TEACHER_SAMPLES, 0

    def _distance(self, reference: Statistics) -> Callable[..., torch.Tensor]:
        choices = [self.is_unbiased] if self.has_bank else []
        return ESTIMATORS[self.estimator].build(*choices, reference)


class DiMELoss(AdversarialLoss):
    """The adversarial loss and distribution matching in embedding spaces (DiME, arXiv 2405.11614)."""

    methods = (DiME,)
