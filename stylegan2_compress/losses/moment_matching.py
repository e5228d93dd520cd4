"""Moment matching: images are to have the reference's means and variances in all layers of a frozen network (SLT)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import dnnlib
import torch

from stylegan2_compress import distributed
from stylegan2_compress.arguments import argument
from stylegan2_compress.distributions import layer_features, moments
from stylegan2_compress.distributions.layer_features import LayerFeatures
from stylegan2_compress.distributions.sources import DatasetImages, Source, TeacherImages
from stylegan2_compress.errors import UserError
from stylegan2_compress.losses.followers import FOLLOWERS, AdamAverage, SignificantAverage
from stylegan2_compress.losses.generator_loss import GeneratorLoss
from stylegan2_compress.losses.masks import Masks
from stylegan2_compress.losses.method import Context, Method
from stylegan2_compress.losses.terms import Batch, Summand, Term
from stylegan2_compress.pickles.networks import Networks
from stylegan2_compress.runs.plan import Plan

PAPER_EMBEDDING = 'vgg19_bn'
PAPER_RATE = 1e-5
AVERAGE_KIMG = 2.2
TEACHER_SAMPLES = 10000


class LayerMoments(Term):
    """v_μ·(μ − mean f(x)) + v_σ·(σ² − var f(x)), in the main G phase (SLT, arXiv 2212.08311).

    f are the features of all layers of a frozen network, μ and σ² (unbiased) the reference's moments, and v_μ and v_σ
    follow the differences in the brackets, see `followers`. Moments are those of one accumulation round in all
    processes together.

    Args:
        features: f.
        mean, variance: μ and σ² [max(classes, 1), dim].
        classes: how many labels have moments of their own; 0 for moments of all images together.
        normalize: whether each layer is divided by its standard deviation over the reference.
        follower: makes v of a shape, [max(classes, 1), dim].
        weight: of the objective beside other terms.
    """

    def __init__(
        self,
        features: LayerFeatures,
        mean: torch.Tensor,
        variance: torch.Tensor,
        classes: int,
        normalize: bool,
        follower: Callable[[Sequence[int]], AdamAverage | SignificantAverage],
        weight: float = 1,
    ):
        self.features = features
        self.weight = weight
        self.classes = classes
        self.scale = self._scale(variance) if normalize else torch.ones_like(mean[0])
        self.mean, self.variance = mean * self.scale, variance * self.scale.square()
        self.v_mean, self.v_variance = (follower(mean.shape) for _ in range(2))

    def generator(self, batch: Batch) -> list[Summand]:
        """The objective after v has followed the differences, and their mean sizes to report."""
        images = batch.images
        groups = batch.c if self.classes else batch.c.new_ones([len(images), 1])
        f = self.features(images) * self.scale
        mean, variance, counts = moments.mean_and_variance(f, groups, distributed.world())
        total, reported = images.new_zeros([]), []
        for name, v, wanted, got, least in [
            ('mean', self.v_mean, self.mean, mean, 1),
            ('variance', self.v_variance, self.variance, variance, 2),
        ]:
            rows = counts >= least  # Labels of which the batch has enough images.
            difference = torch.where(rows[:, None], wanted - got, 0)
            reported.append(Summand(f'moments/{name}', difference.abs().mean(), weight=None))
            total = total + (v.update(difference.detach(), rows, counts.sum()) * difference).sum()
        return [*reported, Summand('moments/objective', total, self.weight, label='moment matching')]

    def _scale(self, variance: torch.Tensor) -> torch.Tensor:
        """For each entry [dim], one over the standard deviation of its layer: the root of its mean variance."""
        layers = variance.mean(0).split(self.features.sizes)
        return torch.cat([layer.mean().clamp_min(1e-12).rsqrt().expand(len(layer)) for layer in layers])

    def obstacle(self) -> str:
        return ''

    def averages(self) -> Iterable[torch.Tensor]:
        return *self.v_mean.tensors().values(), *self.v_variance.tensors().values()

    def state_dict(self) -> dict:
        return {'v_mean': self.v_mean.tensors(), 'v_variance': self.v_variance.tensors()}

    def load_state_dict(self, state: dict) -> None:
        for name in ('v_mean', 'v_variance'):
            own = getattr(self, name).tensors()
            if own.keys() != state[name].keys():
                raise UserError('The run to go on with had another --loss-arg follow: give the one it had.')
            for key, tensor in own.items():
                tensor.copy_(state[name][key])


# --- The method -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MomentMatching(Method):
    """Moments of the features of all layers of a frozen network (SLT, arXiv 2212.08311). Works for any generator."""

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
        default_text='if the generator takes labels',
    )
    teacher: str | None = argument(
        'Network pickle whose images are the reference.', None, default_text='the data set is'
    )
    samples: int | None = argument(
        'How many images the reference has.',
        None,
        least=2,
        default_text='all of the data set, or 10000 of the teacher',
    )
    follow: str = argument(
        'How v follows the differences: their average over the latest images, less what noise makes of it (ours), or '
        'Adam (paper).',
        'significant',
        choices=FOLLOWERS,
    )
    average_kimg: float = argument(
        'Half-life of that average in thousands of images.', AVERAGE_KIMG, above=0, default_text=f'`{AVERAGE_KIMG:g}`'
    )
    moving_average_lr: float = argument('Learning rate of v for `adam`.', PAPER_RATE, above=0)
    moments_weight: float = argument('Weight of the objective beside other methods.', 1.0, least=0)
    training_set_kwargs: dict | None = argument('The data set of the run.', None, internal=True)

    def check(self, plan: Plan) -> Iterable[str]:
        training_set = dnnlib.util.construct_class_by_name(**self._data())
        if self.per_class and not training_set.has_labels:
            raise UserError('--loss-arg per_class=true needs labels: --cond=1 turns them on where the data has any.')
        if self.teacher is None and self.samples is not None and self.samples > len(training_set):
            raise UserError(
                f'--loss-arg samples={self.samples} is more than the {len(training_set)} images of the data set.'
            )
        embedding = plan.resources.embedding(self.embedding, plan.device)
        LayerFeatures(embedding, training_set.image_shape, self.layers, self.pool, plan.device)
        return ()

    def terms(self, context: Context) -> Sequence[Term]:
        mapping, synthesis = (distributed.unwrapped(part) for part in (context.G_mapping, context.G_synthesis))
        shape = synthesis.img_channels, synthesis.img_resolution, synthesis.img_resolution
        features = LayerFeatures(
            context.embedding(self.embedding), shape, self.layers, self.pool, device=context.device
        )
        per_class = mapping.c_dim > 0 if self.per_class is None else self.per_class
        classes = mapping.c_dim if per_class else 0
        source, samples = self._source(context.networks, context.device)
        mean, variance = layer_features.reference_moments(features, source, samples, classes)
        follower = partial(
            FOLLOWERS[self.follow],
            lr=self.moving_average_lr,
            half_life=self.average_kimg * 1000,
            device=context.device,
        )
        return [LayerMoments(features, mean, variance, classes, self.normalize, follower, self.moments_weight)]

    def _source(self, networks: Networks, device: torch.device) -> tuple[Source, int | None]:
        """The images to match, and how many of them; None for all."""
        if self.teacher is None:
            return DatasetImages(self._data(), device=device), self.samples
        source = TeacherImages(self.teacher, networks, training_set_kwargs=self.training_set_kwargs, device=device)
        return source, self.samples or TEACHER_SAMPLES

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

    def load_state_dict(self, state: dict) -> None:
        if 'terms' not in state:  # Of an earlier version, whose terms were these two.
            state = {'steps': state['steps'], 'terms': [state, {}][: len(self.terms)]}
        super().load_state_dict(state)
