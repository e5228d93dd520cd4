"""Moment matching: images are to have the reference's means and variances in all layers of a frozen network (SLT)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import dnnlib
import torch

from stylegan2_compress import distributed
from stylegan2_compress.arguments import argument
from stylegan2_compress.distributions import layer_features, moments
from stylegan2_compress.distributions.layer_features import LayerFeatures
from stylegan2_compress.distributions.sources import (
    REFERENCES,
    TEACHER_SAMPLES,
    Source,
    reference_images,
    require_data,
    require_several_of_each_label,
)
from stylegan2_compress.errors import UserError
from stylegan2_compress.host.datasets import has_classes
from stylegan2_compress.losses.adam_average import AdamAverage
from stylegan2_compress.losses.fading import Fading
from stylegan2_compress.losses.generator_loss import GeneratorLoss
from stylegan2_compress.losses.masks import Masks
from stylegan2_compress.losses.method import Context, Method
from stylegan2_compress.losses.terms import Batch, Summand, Term
from stylegan2_compress.pickles.networks import Networks
from stylegan2_compress.runs import learning_rates
from stylegan2_compress.runs.plan import Plan

PAPER_EMBEDDING = 'vgg19_bn'
PAPER_RATE = 1e-5


class LayerMoments(Term):
    """Σ_j w_j (v_μ d_μ + v_σ d_σ + ρ d_μ²)_j, in the main G phase; v_μ·d_μ + v_σ·d_σ is SLT's (arXiv 2212.08311).

    d_μ = μ − mean f(x) and d_σ = σ² − var f(x), where f are the features of all layers of a frozen network, and μ and
    σ² (unbiased) the reference's moments. v_μ and v_σ follow these differences, see `AdamAverage`. Moments are those of
    one accumulation round in all processes together.

    A sum of signs goes on pushing long after a difference has changed its sign, and v·d has no end on the far side of
    0: alone, it is lowest for images that overshoot. So the square is added that makes an augmented Lagrangian out of
    it, with ρ in proportion to the mean size of v_μ, so that neither outgrows the other. The batch's d_μ is mostly
    noise, and its square would pull all images of a label to the mean; d_μ² − var f(x) / n is an unbiased estimate of
    the square of the population's difference from n images.

    Args:
        features: f.
        mean, variance: μ and σ² [max(classes, 1), dim].
        classes: how many labels have moments of their own; 0 for moments of all images together.
        normalize: whether each layer is divided by its standard deviation over the reference.
        lr: learning rate of v, which follows in every round.
        lr_decay_kimg: between which thousands of images the learning rates of the run fall to 0, and v's with them.
        penalty: ρ over the mean size of v_μ.
        side_power: p, if w_j is to be the side of entry j's feature map to the power of p, over the mean of these.
        weight: of the objective beside other terms.
        fading: of that weight; None is without.
    """

    def __init__(
        self,
        features: LayerFeatures,
        mean: torch.Tensor,
        variance: torch.Tensor,
        classes: int,
        normalize: bool,
        lr: float = PAPER_RATE,
        lr_decay_kimg: Sequence[float] | None = None,
        penalty: float = 0,
        side_power: float = 0,
        weight: float = 1,
        fading: Fading | None = None,
    ):
        self.features = features
        self.weight = weight
        self.fading = fading or Fading()
        self.classes = classes
        self.scale = self._scale(variance) if normalize else torch.ones_like(mean[0])
        self.mean, self.variance = mean * self.scale, variance * self.scale.square()
        self.v_mean, self.v_variance = (AdamAverage(mean.shape, lr, mean.device) for _ in range(2))
        self.lr_decay_kimg = lr_decay_kimg
        self.penalty = penalty
        powers = self._by_entry(torch.tensor(features.sides, device=mean.device) ** side_power)
        self.entry_weights = powers / powers.mean()

    def before_step(self, nimg: int) -> None:
        self.fading.follow(nimg)
        if self.lr_decay_kimg is not None:
            for v in (self.v_mean, self.v_variance):
                v.begin(learning_rates.share(nimg, self.lr_decay_kimg))

    def generator(self, batch: Batch) -> list[Summand]:
        """The objective after v has followed the differences, and their mean sizes to report."""
        if self.fading.share == 0:
            return []
        groups = batch.c if self.classes else batch.c.new_ones([len(batch.c), 1])
        f = self.features.of_maps(batch.layers(self.features.embedding)) * self.scale
        mean, variance, counts = moments.mean_and_variance(f, groups, distributed.world())
        total, reported = mean.new_zeros([]), []
        for name, v, wanted, got, least in [
            ('mean', self.v_mean, self.mean, mean, 1),
            ('variance', self.v_variance, self.variance, variance, 2),
        ]:
            rows = counts >= least  # Labels of which the batch has enough images.
            difference = torch.where(rows[:, None], wanted - got, 0)
            size = difference.abs().sum() / (rows.sum().clamp_min(1) * difference.shape[1])
            reported.append(Summand(f'moments/{name}', size, weight=None))
            total = total + (self.entry_weights * v.update(difference.detach(), rows) * difference).sum()
        if self.penalty:
            squares = (self.mean - mean).square() - variance / counts.clamp_min(1)[:, None]
            squares = torch.where(counts[:, None] >= 2, self.entry_weights * squares, 0)
            total = total + self.penalty * self.v_mean.value.abs().mean() * squares.sum()
        return [
            *reported,
            Summand('moments/objective', total, self.fading.share * self.weight, label='moment matching'),
        ]

    def _scale(self, variance: torch.Tensor) -> torch.Tensor:
        """For each entry [dim], one over the standard deviation of its layer: the root of its mean variance."""
        layers = variance.mean(0).split(self.features.sizes)
        return self._by_entry(torch.stack([layer.mean() for layer in layers]).clamp_min(1e-12).rsqrt())

    def _by_entry(self, by_layer: torch.Tensor) -> torch.Tensor:
        """For each entry [dim], its layer's number of [layers]."""
        return by_layer.repeat_interleave(torch.tensor(self.features.sizes, device=by_layer.device))

    def obstacle(self) -> str:
        return self.fading.obstacle('moment matching')

    def averages(self) -> Iterable[torch.Tensor]:
        return *self.v_mean.tensors().values(), *self.v_variance.tensors().values()

    def state_dict(self) -> dict:
        return {'v_mean': self.v_mean.tensors(), 'v_variance': self.v_variance.tensors()}

    def load_state_dict(self, state: dict) -> None:
        for name in ('v_mean', 'v_variance'):
            for key, tensor in getattr(self, name).tensors().items():
                tensor.copy_(state[name][key])


# --- The method -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MomentMatching(Method):
    """Moments of the features of all layers of a frozen network (SLT, arXiv 2212.08311). Works for any generator."""

    fading: ClassVar[str] = 'moments_kimg'

    embedding: str = argument(
        'Network that shows layers.', PAPER_EMBEDDING, default_text='`vgg19_bn` (paper)', metavar='SPEC'
    )
    layers: int | str | Sequence[int] | None = argument(
        'Which of its layers, counted from 0: a number, a list, or text such as `0,4-7`.', None, default_text='all'
    )
    pool: int = argument(
        'Feature maps are averaged over parts of the image until they have this side; 0 leaves them as they are '
        '(paper). Moments take memory for channels · side² of each layer.',
        0,
        least=0,
    )
    normalize: bool = argument(
        "Whether each layer is divided by its standard deviation over the reference. Adam's steps are as large for "
        'small differences as for large ones, so that without it layers with large values count most. In VGG-19 with '
        'batch norm all are alike, and the paper does without.',
        False,
    )
    per_class: bool | None = argument(
        'Whether moments are taken for each label on its own, over the images of that label in a batch; not in the '
        'paper.',
        None,
        default_text='if the generator takes labels, and they are classes',
    )
    teacher: str | None = argument(
        'Network pickle whose images are the reference.', None, default_text='`--teacher`; else the data set is'
    )
    reference: str = argument(
        'Whose images to match where there is a teacher: its own, or those of the `data` set all the same.',
        'teacher',
        choices=REFERENCES,
    )
    samples: int | None = argument(
        'How many images the reference has.',
        None,
        least=2,
        default_text='all of the data set, or 10000 of the teacher',
    )
    moving_average_lr: float = argument(
        'Learning rate of v. With `--lr-decay`, it falls as the others do.', PAPER_RATE, above=0
    )
    moments_penalty: float = argument(
        'How much squared differences of means count beside v, as a share of the mean size of v; 0 is without (paper).',
        0.0,
        least=0,
    )
    side_power: float = argument(
        'Entries of larger feature maps count more: by their side to this power. 0: all count alike (paper).',
        0.0,
        least=0,
        most=8,
    )
    truncation_psi: float = argument("Of the teacher's images; 1 is the distribution it was trained for.", 1)
    moments_weight: float = argument('Weight of the objective beside other methods.', 1.0, least=0)
    moments_kimg: float | None = argument(
        'After how many thousands of images that weight has fallen to 0, in a straight line.',
        None,
        above=0,
        default_text='it stays',
    )
    training_set_kwargs: dict | None = argument('The data set of the run.', None, internal=True)
    lr_decay_kimg: Sequence[float] | None = argument(
        'Between which thousands of images learning rates fall to 0.', None, internal=True
    )
    rounds: int = argument('In how many rounds a step is computed.', 1, internal=True)

    def idle(self) -> Mapping[str, str]:
        if self.truncation_psi == 1 or self.matched_teacher is not None:
            return {}
        needed = 'teacher=PKL' if self.teacher is None else 'reference=teacher'
        return {
            'truncation_psi': f'--loss-arg truncation_psi={self.truncation_psi:g} needs --loss-arg {needed}.',
        }

    @property
    def matched_teacher(self) -> str | None:
        """The network pickle whose images are the reference; None if the data set is."""
        return self.teacher if self.reference == 'teacher' else None

    def check(self, plan: Plan) -> Iterable[str]:
        if self.matched_teacher is None:
            require_data(self._data())
        training_set = dnnlib.util.construct_class_by_name(**self._data())
        if self.per_class and not training_set.has_labels:
            raise UserError('--loss-arg per_class=true needs labels: --cond=1 turns them on where the data has any.')
        if self.per_class and not training_set.has_onehot_labels:
            raise UserError('--loss-arg per_class=true needs labels that are classes, and those of --data are vectors.')
        if self.matched_teacher is None and len(training_set) < 2:
            raise UserError('There is one image in the data set, and a variance needs two: match the teacher instead.')
        if self.matched_teacher is None and self.samples is not None and self.samples > len(training_set):
            raise UserError(
                f'--loss-arg samples={self.samples} is more than the {len(training_set)} images of the data set.'
            )
        goes_by_class = self._goes_by_class(training_set.label_dim)
        if goes_by_class and self.samples is not None and self.samples <= training_set.label_dim:
            raise UserError(
                f'--loss-arg samples={self.samples} is for the {training_set.label_dim} labels together, each of which '
                f'takes two or more: give {2 * training_set.label_dim} or more, or per_class=false.'
            )
        if self.matched_teacher is None and goes_by_class:
            require_several_of_each_label(training_set, 'add --loss-arg per_class=false for all images together')
        embedding = plan.embedding(self.embedding)
        LayerFeatures(embedding, training_set.image_shape, self.layers, self.pool, plan.device)
        rounds = self._rounds(plan)
        if rounds > 1:
            batch = plan.args['batch_size']
            yield (
                f'Moments are those of {batch // rounds} images at a time, not of the batch of {batch}. If memory '
                'allows, raise it with `distill --batch-gpu` or `train.py --batch`.'
            )

    def adapt(self, plan: Plan) -> None:
        """Tell the loss when the learning rates of the run fall, if they do, and in how many rounds v follows."""
        rounds = self._rounds(plan)
        if rounds > 1:
            plan.args.loss_kwargs.rounds = rounds
        if plan.args.get('lr_decay_kimg') is not None:
            plan.args.loss_kwargs.lr_decay_kimg = plan.args.lr_decay_kimg

    @staticmethod
    def _rounds(plan: Plan) -> int:
        args = plan.args
        return args['batch_size'] // (args['batch_gpu'] * args['num_gpus'])

    def terms(self, context: Context) -> Sequence[Term]:
        mapping, synthesis = (distributed.unwrapped(part) for part in (context.G_mapping, context.G_synthesis))
        shape = synthesis.img_channels, synthesis.img_resolution, synthesis.img_resolution
        features = LayerFeatures(
            context.embedding(self.embedding), shape, self.layers, self.pool, device=context.device
        )
        classes = mapping.c_dim if self._goes_by_class(mapping.c_dim) else 0
        source, samples = self._source(context.networks, context.device)
        mean, variance = layer_features.reference_moments(features, source, samples, classes)
        return [
            LayerMoments(
                features,
                mean,
                variance,
                classes,
                self.normalize,
                self.moving_average_lr / self.rounds,
                self.lr_decay_kimg,
                self.moments_penalty,
                self.side_power,
                self.moments_weight,
                Fading(self.moments_kimg),
            )
        ]

    def _source(self, networks: Networks, device: torch.device) -> tuple[Source, int | None]:
        """The images to match, and how many of them; None for all."""
        source = reference_images(
            self.matched_teacher,
            networks,
            truncation_psi=self.truncation_psi,
            training_set_kwargs=self.training_set_kwargs,
            device=device,
        )
        return source, self.samples or (None if self.matched_teacher is None else TEACHER_SAMPLES)

    def _goes_by_class(self, c_dim: int) -> bool:
        """Whether moments are taken for each label; without a data set, labels are taken to be classes."""
        if self.per_class is not None:
            return self.per_class
        return c_dim > 0 and (self.training_set_kwargs is None or has_classes(self.training_set_kwargs))

    def _data(self) -> dict:
        """Class name and arguments of the data set.

        Raises:
            UserError: the loss was constructed without.
        """
        if self.training_set_kwargs is None:
            raise UserError('Moment matching needs training_set_kwargs, the data set of the run.')
        return self.training_set_kwargs


class MomentMatchingLoss(GeneratorLoss):
    """Moments of the features of all layers of a frozen network, without a discriminator (SLT, arXiv 2212.08311)."""

    methods = (MomentMatching, Masks)
