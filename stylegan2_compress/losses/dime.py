"""DiME: the student's images are to have a reference's distribution in the spaces of foundation models.

Here are the arguments and what they mean for a run; the term is in `distribution_matching`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import dnnlib
import torch

from stylegan2_compress import distributed
from stylegan2_compress.arguments import argument, is_number, value_as_text
from stylegan2_compress.distributions import labels, statistics
from stylegan2_compress.distributions.labels import LabelledStatistics
from stylegan2_compress.distributions.memory import FeatureMemory
from stylegan2_compress.distributions.sources import (
    REFERENCES,
    TEACHER_SAMPLES,
    LabelSource,
    Source,
    check_size,
    reference_images,
    require_several_of_each_label,
)
from stylegan2_compress.distributions.statistics import Statistics
from stylegan2_compress.embeddings import Embedding, parse, split
from stylegan2_compress.errors import UserError
from stylegan2_compress.host.datasets import has_classes
from stylegan2_compress.losses.adversarial import AdversarialLoss
from stylegan2_compress.losses.balance import Balance, Floors
from stylegan2_compress.losses.distribution_matching import DistributionMatching
from stylegan2_compress.losses.estimators import ESTIMATORS
from stylegan2_compress.losses.fading import Fading
from stylegan2_compress.losses.generator_loss import GeneratorLoss
from stylegan2_compress.losses.large_batch import LargeBatch
from stylegan2_compress.losses.loss_classes import has_discriminator
from stylegan2_compress.losses.masks import Masks
from stylegan2_compress.losses.method import Context, Method
from stylegan2_compress.losses.space import Space
from stylegan2_compress.losses.spread import Spread
from stylegan2_compress.losses.terms import Term
from stylegan2_compress.pickles.networks import Networks
from stylegan2_compress.runs.plan import Plan

PAPER_EMBEDDINGS = ('dino_resnet50', 'clip_rn50')
PAPER_WEIGHTS = {'dino_resnet50': 20.0, 'clip_rn50': 15.0}
BANK = 2048


@dataclass(frozen=True)
class DiME(Method):
    """Distribution matching in embedding spaces (DiME, arXiv 2405.11614)."""

    fading: ClassVar[str] = 'dime_kimg'

    teacher: str | None = argument('Network pickle whose G_ema is matched.', None, default_text='`--teacher`')
    embeddings: str | Sequence[str] = argument(
        'Spec strings of the embeddings, separated by commas or as a JSON list.',
        PAPER_EMBEDDINGS,
        default_text='`dino_resnet50,clip_rn50` (paper)',
    )
    weights: float | Sequence[float] | None = argument(
        'λ, one number or one per embedding.',
        None,
        default_text='`moments`: 20 for `dino_resnet50`, 15 for `clip_rn50` (paper), 20 for others; '
        '`squared-moments` 0.8, `linear` 0.1, `rbf` 2, `cubic` 30 (ours)',
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
        most=10**7,
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
    large_batch: int = argument(
        'How many fresh images are compared at a time, with the exact gradient and without style mixing; for K times '
        'the batch in every K-th step, with K times the weight. 0 is the images of each step.',
        0,
        least=0,
        unit='images',
    )
    balance: float | None = argument(
        'Instead of weights: how many times as strong as that of the adversarial loss the gradient at the images is; '
        'λ follows, and is 0 while the distance is at its floor, that between images of the reference.',
        None,
        above=0,
        default_text='λ are constant (paper)',
    )
    dime_kimg: float | None = argument(
        'After how many thousands of images weights have fallen to 0, in a straight line.',
        None,
        above=0,
        default_text='they stay (paper)',
    )
    reference: str = argument(
        'What to match: the `teacher` (paper), or the `data` set, which needs no `--teacher`.',
        'teacher',
        choices=REFERENCES,
    )
    by_label: bool = argument(
        'Whether features and labels are compared together, for a generator that takes labels: images with those of '
        'their label.',
        False,
    )
    samples: int | None = argument(
        "Moments: how many images the reference's are taken over; cached between runs.",
        None,
        least=2,
        most=10**9,
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
    batch_size: int | None = argument('Of the run, for `large_batch`.', None, internal=True)
    random_seed: int = argument('Of the run, for `large_batch`.', 0, internal=True)

    def __post_init__(self):
        super().__post_init__()
        if self.reference == 'teacher' and self.teacher is None:
            raise UserError('DiME needs --teacher, or --loss-arg reference=data to match the data set.')
        if self.statistics is not None and self.refresh:
            both = f'statistics={self.statistics} and refresh={self.refresh}'
            raise UserError(f'--loss-arg {both} exclude each other: the contents of a file do not change.')
        for one, other, reason in [
            ('by_label', 'statistics', 'a file has statistics of all images together'),
            ('by_label', 'refresh', 'a bank of each label stays as it is'),
            ('by_label', 'balance', 'floors are of all images together'),
            ('by_label', 'large_batch', 'fresh images are compared all together'),
            ('weights', 'balance', 'weights are constant, or found by the gradients'),
            ('memory', 'large_batch', 'images are of earlier steps, or all fresh'),
            ('balance', 'large_batch', 'gradients are compared at the images of a step'),
        ]:
            first, second = getattr(self, one), getattr(self, other)
            if first not in (None, 0) and second not in (None, 0):
                given = f'{one}={value_as_text(first)} and {other}={value_as_text(second)}'
                raise UserError(f'--loss-arg {given} exclude each other: {reason}.')
        self.embeddings_and_weights()

    def idle(self) -> Mapping[str, str]:
        kernels = [name for name, estimator in ESTIMATORS.items() if estimator.has_bank]
        without_bank = [name for name, estimator in ESTIMATORS.items() if not estimator.has_bank]
        sentences = {}
        for option, default, needs, possible in [
            ('unbiased', None, 'estimator', kernels),
            ('bank', None, 'estimator', kernels),
            ('refresh', 0, 'estimator', kernels),
            ('samples', None, 'estimator', without_bank),
            ('truncation_psi', 1, 'reference', ['teacher']),
        ]:
            value, given = getattr(self, option), getattr(self, needs)
            if value != default and given not in possible:
                goes_with = f'{needs}={", ".join(possible)}, not with {given}'
                sentences[option] = f'--loss-arg {option}={value_as_text(value)} goes with {goes_with}.'
        return sentences

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
            paper = PAPER_WEIGHTS if self.estimator == 'moments' else {}
            weights = [paper.get(parse(spec).name, ESTIMATORS[self.estimator].weight) for spec in specs]
        weights = weights if isinstance(weights, (list, tuple)) else [weights]
        if len(weights) != len(specs) or not all(is_number(weight, least=0) for weight in weights):
            raise UserError(
                f'--loss-arg weights={weights} must be one number from 0 on for each embedding ({", ".join(specs)}).'
            )
        return list(zip(specs, weights, strict=True))  # pyright: ignore[reportReturnType]  # Each is a number.

    def check(self, plan: Plan) -> Iterable[str]:
        source = self._source(plan.resources.networks, plan.device)
        if self.by_label and not plan.args['training_set_kwargs'].get('use_labels'):
            raise UserError('--loss-arg by_label=true needs a generator that takes labels: --cond=1 turns them on.')
        if self.by_label and not has_classes(plan.args['training_set_kwargs']):
            raise UserError('--loss-arg by_label=true needs labels that are classes, and those of --data are vectors.')
        if self.by_label and self.reference == 'data':
            training_set = dnnlib.util.construct_class_by_name(**plan.args['training_set_kwargs'])
            require_several_of_each_label(training_set, 'compare all images together, without by_label')
        trains_D = has_discriminator(dnnlib.util.get_obj_by_name(plan.args['loss_kwargs']['class_name']))
        if self.balance is not None and not trains_D:
            raise UserError(
                f'--loss-arg balance={self.balance:g} goes by the gradient of a discriminator, and this loss has none: '
                'give weights, or a loss such as stylegan2_compress.DiMELoss.'
            )
        batch, at_once = plan.args['batch_size'], plan.args['batch_gpu'] * plan.args['num_gpus']
        if self.has_bank and self.is_unbiased and max(at_once, self.large_batch) < 2:
            raise UserError(
                f'--loss-arg estimator={self.estimator} compares the images of a batch with each other: with one at a '
                'time, add unbiased=false or raise --batch-gpu.'
            )
        if self.memory and self.memory < batch:
            raise UserError(
                f'--loss-arg memory={self.memory} is less than the batch of {batch} images, which it is to extend: '
                'give several times that.'
            )
        if self.large_batch and (self.large_batch < batch or self.large_batch % batch):
            raise UserError(
                f'--loss-arg large_batch={self.large_batch} must be the batch of {batch} images or a multiple of it, '
                'as large as the distance is to be exact for.'
            )
        networks = [plan.embedding(spec) for spec, _weight in self.embeddings_and_weights()]
        if self.statistics is not None:
            self._reference(source, networks)
        samples, bank = self._counts(source)
        check_size(source, f'--loss-arg {"bank" if bank else "samples"}', samples)
        specs = [parse(spec) for spec, _weight in self.embeddings_and_weights()]
        unknown = [str(spec) for spec in specs if spec.name not in PAPER_WEIGHTS or spec.layers is not None]
        is_chosen = self.weights is not None or self.balance is not None
        if unknown and not is_chosen and ESTIMATORS[self.estimator].has_scale and trains_D:
            takes_labels = plan.args.get('training_set_kwargs', {}).get('use_labels')  # `by_label` excludes `balance`.
            yield (
                f'How hard estimator={self.estimator} pulls with the default weight depends on the scale of the '
                f'features of {", ".join(unknown)}: it can be thousands of times as hard as the discriminator. Choose '
                f'--loss-arg weights{"" if takes_labels else ", or let balance=1 make it as hard"}.'
            )
        if self._mixes_labels(plan, at_once):
            yield (
                'DiME compares images of all labels together, and students lost their classes by it: --loss-arg '
                'by_label=true compares them with those of their label.'
            )
        if at_once < batch and not (self.has_bank or self.memory or self.large_batch):
            yield (
                f'DiME takes moments over {at_once} images at a time, not over the batch of {batch}. If memory allows, '
                'raise it with `distill --batch-gpu` or `train.py --batch`; else --loss-arg '
                f'large_batch={batch} compares the whole batch, memory={16 * batch} lets earlier images count, and '
                'estimator=rbf is right on average.'
            )

    def _mixes_labels(self, plan: Plan, at_once: int) -> bool:
        """Whether labels do not count where they could: classes, of which a round has about an image each or more."""
        kwargs = plan.args.get('training_set_kwargs', {})
        by_label_or_excluded = self.by_label, self.statistics, self.refresh, self.balance, self.large_batch
        if any(by_label_or_excluded) or not kwargs.get('use_labels'):
            return False
        training_set = dnnlib.util.construct_class_by_name(**kwargs)
        return training_set.has_onehot_labels and training_set.label_dim <= at_once

    def terms(self, context: Context) -> Sequence[Term]:
        source = self._source(context.networks, context.device)
        specs, weights = zip(*self.embeddings_and_weights(), strict=True)
        networks = [context.embedding(spec) for spec in specs]
        classes = distributed.unwrapped(context.G_mapping).c_dim if self.by_label else 0
        if self.by_label and not classes:
            raise ValueError('This generator takes no labels.')
        shares = source.shares() if classes else []
        references = self._reference(source, networks, shares)
        spaces = []
        for network, reference, weight in zip(networks, references, weights, strict=True):
            of_all = reference.of_all() if isinstance(reference, LabelledStatistics) else reference
            memory = FeatureMemory(self.memory, network.dim + classes, context.device) if self.memory else None
            distance = self._distance(reference, shares)
            spaces.append(Space(network, distance, weight, memory, Spread(network.spec, of_all)))
        balance = floors = None
        if self.balance is not None:
            balance = Balance(self.balance, len(spaces), context.device)
            floors = Floors(source, spaces, self.memory)
        return [
            DistributionMatching(
                spaces,
                source if self.refresh else None,
                self.refresh,
                balance,
                floors,
                self._large_batch(context) if self.large_batch else None,
                by_label=self.by_label,
                fading=Fading(self.dime_kimg),
            )
        ]

    def adapt(self, plan: Plan) -> None:
        """Tell the loss which images are next, and how many of them a step has."""
        if self.large_batch:
            plan.args.loss_kwargs.update(batch_size=plan.args.batch_size, random_seed=plan.args.random_seed)

    def _large_batch(self, context: Context) -> LargeBatch:
        if self.batch_size is None:
            raise UserError(f'--loss-arg large_batch={self.large_batch} needs batch_size, the batch of the run.')
        drawn = LabelSource(distributed.unwrapped(context.G_mapping).c_dim, self.training_set_kwargs)
        modules = context.G_mapping, context.G_synthesis
        return LargeBatch(self.large_batch, self.batch_size, self.random_seed, *modules, drawn, context.precision)

    def _source(self, networks: Networks, device: torch.device) -> Source:
        """The images to match."""
        return reference_images(
            self.teacher if self.reference == 'teacher' else None,
            networks,
            truncation_psi=self.truncation_psi,
            training_set_kwargs=self.training_set_kwargs,
            device=device,
        )

    def _reference(
        self, source: Source, networks: Sequence[Embedding], shares: Sequence[float] = ()
    ) -> list[Statistics] | list[LabelledStatistics]:
        """What to match, of each embedding: from the user's file, or made and cached; with labels if they have shares.

        Raises:
            UserError: the file is not of these images and embeddings, or there are not enough images.
        """
        if self.statistics is None:
            samples, bank = self._counts(source)
            if shares:
                return labels.labelled_statistics(source, networks, shares, samples=samples, bank=bank)
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

    def _distance(
        self, reference: Statistics | LabelledStatistics, shares: Sequence[float]
    ) -> Callable[..., torch.Tensor]:
        choices = [self.is_unbiased] if self.has_bank else []
        return ESTIMATORS[self.estimator].build(*choices, reference, shares)


class DiMELoss(AdversarialLoss):
    """The adversarial loss and distribution matching in embedding spaces (DiME, arXiv 2405.11614)."""

    methods = (DiME,)


class DistanceLoss(GeneratorLoss):
    """Distribution matching in embedding spaces alone, without a discriminator; also for masks."""

    methods = (DiME, Masks)
