"""DiME: the student's images are to have a reference's distribution in the spaces of foundation models."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial

import torch

from stylegan2_compress import distributed, pickles
from stylegan2_compress.arguments import is_number, require_number, require_whole_number
from stylegan2_compress.distributions import mmd, moments, sources, statistics
from stylegan2_compress.embeddings import Embedding, load, parse, split
from stylegan2_compress.errors import UserError
from stylegan2_compress.losses.adversarial import AdversarialLoss, Batch, Summand, Term

PAPER_EMBEDDINGS = ('dino_resnet50', 'clip_rn50')
PAPER_WEIGHTS = {'dino_resnet50': 20.0, 'clip_rn50': 15.0}
REFERENCES = ('teacher', 'data')
TEACHER_SAMPLES = 10000
BANK = 2048

# --- Estimators of the distance between the student's features and the reference's ------------------------------------


class MomentDistance:
    """mean |a1 − m1| + mean |a2 − m2|: a1 and a2 are the first two raw moments of the batch, m1 and m2 the reference's.

    What the paper's code computes. A small batch has a distance from its own distribution, too, of the order of
    1/√batch; its gradient pulls single images to the mean.
    """

    def __init__(self, reference: statistics.Statistics):
        self.reference = reference

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        return moments.moment_distance(features, self.reference.m1, self.reference.m2, distributed.world())


class KernelDistance:
    """Squared maximum mean discrepancy between the batch and a bank of the reference's features.

    The gradient of the unbiased estimate is right on average for batches of any size.

    Args:
        kernel: name in `mmd.KERNELS`.
        unbiased: see `mmd.mmd2`.
        reference: whose `bank` is used. The bandwidths of `rbf` are its, and stay when it is refreshed.
    """

    def __init__(self, kernel: str, unbiased: bool, reference: statistics.Statistics):
        try:
            self.kernel = mmd.KERNELS[kernel](reference.bank)
        except ValueError as error:
            raise UserError(f'--loss-arg estimator={kernel} has nothing to go by: {error}.') from error
        self.unbiased = unbiased
        self.fill(reference.bank)

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        bank = self.bank.to(features)  # Of another precision only under @dtype=fp64.
        return mmd.mmd2(
            features, bank, self.kernel, unbiased=self.unbiased, within_y=self.within, group=distributed.world()
        )

    def fill(self, bank: torch.Tensor) -> None:
        """Use other features [bank, dim] of the reference."""
        self.bank = bank
        self.within = mmd.mean_within(bank, self.kernel, self.unbiased)


@dataclass(frozen=True)
class Estimator:
    """An entry of `ESTIMATORS`."""

    build: Callable[..., Callable[[torch.Tensor], torch.Tensor]]  # From (unbiased, reference) if it has a bank.
    weight: float  # λ where neither the user nor the paper says one.
    has_bank: bool = True


# By name. The weights of the kernels are not from the paper: on the images of the quickstart's pruned start, they make
# the gradient about as strong as that of `moments` with its 20 (benchmarks/estimator_weights.py). Those of `linear` and
# `cubic` depend on the scale of an embedding's features, that of `rbf` does not.
ESTIMATORS = {
    'moments': Estimator(MomentDistance, weight=20, has_bank=False),
    'linear': Estimator(partial(KernelDistance, 'linear'), weight=0.1),
    'rbf': Estimator(partial(KernelDistance, 'rbf'), weight=2),
    'cubic': Estimator(partial(KernelDistance, 'cubic'), weight=30),
}


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
    """

    def __init__(
        self,
        networks: Sequence[Embedding],
        distances: Sequence[Callable[[torch.Tensor], torch.Tensor]],
        weights: Sequence[float],
        source: sources.Source | None = None,
        refresh: int = 0,
    ):
        self.parts = list(zip(networks, distances, weights, strict=True))
        self.source = source
        self.refresh = refresh
        self.taken = 0  # Steps of the generator.

    def generator(self, batch: Batch) -> list[Summand]:
        return [
            Summand(f'DiME/{network.spec}', distance(network(batch.images)), weight)
            for network, distance, weight in self.parts
        ]

    def after_step(self) -> None:
        self.taken += 1
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
        return {'taken': self.taken, 'banks': [distance.bank for _, distance, _ in self.parts]} if self.refresh else {}

    def load_state_dict(self, state: dict) -> None:
        if bool(state) != bool(self.refresh):
            raise UserError('The run to go on with had another --loss-arg refresh: give the one it had.')
        if state:
            self.taken = state['taken']
            for (_network, distance, _weight), bank in zip(self.parts, state['banks'], strict=True):
                distance.fill(bank.to(distance.bank))


# --- The loss ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matching:
    """The arguments of `DiMELoss`, which documents them, looked over as far as that takes no file.

    Raises:
        UserError: for what makes no sense.
    """

    teacher: str | None
    embeddings: str | Sequence[str]
    weights: float | Sequence[float] | None
    estimator: str
    unbiased: bool | None
    bank: int | None
    refresh: int
    reference: str
    samples: int | None
    truncation_psi: float
    statistics: str | None

    def __post_init__(self):
        for option, value, choices in [
            ('estimator', self.estimator, ESTIMATORS),
            ('reference', self.reference, REFERENCES),
            ('unbiased', self.unbiased, (True, False, None)),
        ]:
            if value not in tuple(choices):
                raise UserError(f'--loss-arg {option}={value} does not exist; there are {_words(choices)}.')
        for option, value, least, what in [
            ('samples', self.samples, 1, 'images'),
            ('bank', self.bank, 2, 'images'),
            ('refresh', self.refresh, 0, 'steps'),
        ]:
            if value is not None:
                require_whole_number(f'--loss-arg {option}', value, least, what)
        require_number('--loss-arg truncation_psi', self.truncation_psi)
        kernels = [name for name, estimator in ESTIMATORS.items() if estimator.has_bank]
        moments = [name for name, estimator in ESTIMATORS.items() if not estimator.has_bank]
        for option, value, default, needs, has in [
            ('unbiased', self.unbiased, None, 'estimator', kernels),
            ('bank', self.bank, None, 'estimator', kernels),
            ('refresh', self.refresh, 0, 'estimator', kernels),
            ('samples', self.samples, None, 'estimator', moments),
            ('truncation_psi', self.truncation_psi, 1, 'reference', ['teacher']),
        ]:
            if value != default and getattr(self, needs) not in has:
                given = getattr(self, needs)
                raise UserError(f'--loss-arg {option}={value} goes with {needs}={_words(has)}, not with {given}.')
        if self.reference == 'teacher' and self.teacher is None:
            raise UserError('DiME needs --teacher, or --loss-arg reference=data to match the data set.')
        if self.statistics is not None and self.refresh:
            both = f'statistics={self.statistics} and refresh={self.refresh}'
            raise UserError(f'--loss-arg {both} exclude each other: what a file holds stays.')
        self.embeddings_and_weights()

    def embeddings_and_weights(self) -> list[tuple[str, float]]:
        """Specs φ_k and λ_k."""
        specs, weights, estimator = split(self.embeddings), self.weights, ESTIMATORS[self.estimator]
        if weights is None:
            paper = {} if estimator.has_bank else PAPER_WEIGHTS
            weights = [paper.get(parse(spec).name, estimator.weight) for spec in specs]
        weights = weights if isinstance(weights, (list, tuple)) else [weights]
        if len(weights) != len(specs) or not all(is_number(weight, least=0) for weight in weights):
            raise UserError(
                f'--loss-arg weights={weights} must be one number from 0 on for each embedding ({", ".join(specs)}).'
            )
        return list(zip(specs, weights, strict=True))

    def source(
        self,
        training_set_kwargs: Mapping | None,
        device: torch.device | str = 'cpu',
        networks: Mapping[str, dict] | None = None,
    ) -> sources.Source:
        """The images to match. `networks` are contents of network pickles by path, as `options.Networks` has them."""
        if self.reference == 'data':
            if training_set_kwargs is None:
                raise UserError('--loss-arg reference=data needs training_set_kwargs, the training set to match.')
            return sources.DatasetImages(training_set_kwargs, device=device)
        teacher = pickles.load(self.teacher) if networks is None else networks[self.teacher]
        return sources.TeacherImages(
            self.teacher,
            teacher['G_ema'],
            truncation_psi=self.truncation_psi,
            training_set_kwargs=training_set_kwargs,
            device=device,
        )

    def statistics_of(self, source: sources.Source, networks: Sequence[Embedding]) -> list[statistics.Statistics]:
        """What to match, of each embedding: from the user's file, or made and cached.

        Raises:
            UserError: the file is not of these images and embeddings, or there are not enough images.
        """
        if self.statistics is None:
            samples, bank = self._counts(source)
            return statistics.statistics_of(source, networks, samples=samples, bank=bank)
        bank = self.bank if ESTIMATORS[self.estimator].has_bank else 0
        found = [statistics.read(self.statistics, source, network, self.samples, bank) for network in networks]
        return [statistics.to(each, source.device) for each in found]

    def check(self, source: sources.Source, networks: Sequence[Embedding]) -> None:
        """Refuse what `statistics_of` would refuse, without its work."""
        if self.statistics is not None:
            self.statistics_of(source, networks)
        samples, bank = self._counts(source)
        sources.check_size(source, 'bank' if bank else 'samples', samples)

    def _counts(self, source: sources.Source) -> tuple[int, int]:
        """Over how many images moments are taken, and of how many features are kept."""
        if ESTIMATORS[self.estimator].has_bank:
            bank = self.bank or min(BANK, source.size or BANK)
            return bank, bank
        return self.samples or source.size or TEACHER_SAMPLES, 0

    def distance(self, reference: statistics.Statistics) -> Callable[[torch.Tensor], torch.Tensor]:
        estimator = ESTIMATORS[self.estimator]
        choices = [self.unbiased is not False] if estimator.has_bank else []
        return estimator.build(*choices, reference)


def _words(values) -> str:
    return ', '.join(str(value).lower() for value in values if value is not None)


class DiMELoss(AdversarialLoss):
    """The adversarial loss and distribution matching in embedding spaces (DiME, arXiv 2405.11614).

    Args:
        teacher: network pickle (path or URL) whose G_ema is to be matched.
        embeddings: spec strings, one or several, as a list or separated by commas. The paper's by default.
        weights: λ, one number or one per embedding. By default the paper's 20 for DINO ResNet-50 and 15 for CLIP RN50,
            and 20 for any other; for estimators other than `moments` see `ESTIMATORS`.
        estimator: how distributions are compared: 'moments' (the paper's), or the squared maximum mean discrepancy
            with the kernel 'linear', 'rbf' or 'cubic'.
        unbiased: for kernels, whether to leave out pairs of an image with itself; True by default.
        bank: for kernels, how many of the reference's images the student's are compared with; 2048 by default, or all
            that the data set or the file of statistics has.
        refresh: for kernels, after how many of the generator's steps 32 (or fewer, of large images) of them make way
            for new ones; 0 is never.
        reference: what to match, the 'teacher' or the 'data' set.
        samples: how many images the reference's moments are taken over, by default 10000 of a teacher's and all of a
            data set's. They are cached.
        truncation_psi: of the teacher's images; 1 is the distribution it was trained for.
        statistics: file of `stylegan2-compress stats` to take the reference's moments or bank from.
        training_set_kwargs: the data set, which labels for the teacher's images come from, too; the training loops'
            options fill it in.
        adversarial: arguments of `AdversarialLoss`.

    Raises:
        UserError: for an embedding that does not exist or cannot be loaded here, or arguments that make no sense.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        teacher: str | None = None,
        embeddings: str | Sequence[str] = PAPER_EMBEDDINGS,
        weights: float | Sequence[float] | None = None,
        estimator: str = 'moments',
        unbiased: bool | None = None,
        bank: int | None = None,
        refresh: int = 0,
        reference: str = 'teacher',
        samples: int | None = None,
        truncation_psi: float = 1,
        statistics: str | None = None,
        training_set_kwargs: dict | None = None,
        **adversarial,
    ):
        matching = Matching(
            teacher, embeddings, weights, estimator, unbiased, bank, refresh, reference, samples, truncation_psi,
            statistics,
        )  # fmt: skip
        super().__init__(device, **adversarial)
        source = matching.source(training_set_kwargs, self.device)
        specs, weights = zip(*matching.embeddings_and_weights(), strict=True)
        networks = [load(spec, self.device) for spec in specs]
        distances = [matching.distance(found) for found in matching.statistics_of(source, networks)]
        self.terms.append(DistributionMatching(networks, distances, weights, source if refresh else None, refresh))

    @classmethod
    def check_arguments(
        cls, *, networks: Mapping[str, dict], training_set_kwargs: dict | None = None, **arguments
    ) -> None:
        """Refuse what the constructor would trip over, before a run directory exists."""
        AdversarialLoss.check_arguments(**arguments)
        matching = _matching(arguments)
        source = matching.source(training_set_kwargs, networks=networks)
        specs = [spec for spec, _weight in matching.embeddings_and_weights()]
        matching.check(source, [load(spec, 'cpu') for spec in specs])  # What is missing now is missing in an hour, too.

    @classmethod
    def warn(cls, args: Mapping) -> None:
        """Say what a user should know about such a run, or refuse it. `args` are the training loop's."""
        matching = _matching(args['loss_kwargs'])
        batch, at_once = args['batch_size'], args['batch_gpu'] * args['num_gpus']
        if ESTIMATORS[matching.estimator].has_bank and matching.unbiased is not False and at_once < 2:
            raise UserError(
                f'--loss-arg estimator={matching.estimator} compares the images of a batch with each other: with one '
                'at a time, add unbiased=false or raise --batch-gpu.'
            )
        if at_once < batch and not ESTIMATORS[matching.estimator].has_bank:
            print(
                f'DiME takes moments over {at_once} images at a time, not over the batch of {batch}. If memory allows, '
                'raise that: `distill --batch-gpu`, `train.py --batch`; or take an estimator that does not mind, '
                '--loss-arg estimator=rbf.'
            )


def _matching(arguments: Mapping) -> Matching:
    """From some of the arguments of `DiMELoss`, among others."""
    defaults = {name: each.default for name, each in inspect.signature(DiMELoss.__init__).parameters.items()}
    return Matching(**{field.name: arguments.get(field.name, defaults[field.name]) for field in fields(Matching)})
