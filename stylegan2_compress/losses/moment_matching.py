"""Moment matching: images are to have the reference's means and variances in all layers of a frozen network (SLT)."""

from collections.abc import Sequence

import dnnlib
import torch
from torch_utils import misc
from training.loss import Loss

from stylegan2_compress import distributed, pickles
from stylegan2_compress.arguments import require_number, require_whole_number
from stylegan2_compress.distributions import layer_features, moments, sources
from stylegan2_compress.distributions.layer_features import LayerFeatures
from stylegan2_compress.embeddings import load
from stylegan2_compress.errors import UserError
from stylegan2_compress.losses.steps import Steps
from stylegan2_compress.networks.masked import ScoreMasked, rule_of

PAPER_EMBEDDING = 'vgg19_bn'
PAPER_RATE = 1e-5
BETAS, EPS = (0.5, 0.999), 1e-8
TEACHER_SAMPLES = 10000


class AdamAverage:
    """A vector that follows noisy targets: an Adam step on its mean squared error to each (SLT, section 3).

    Rows follow on their own, so that one without a target stays where it is.

    Args:
        shape: [rows, dim].
        lr: how far it moves in one step, at the most.
        device: where it lives.
    """

    def __init__(self, shape: Sequence[int], lr: float, device: torch.device):
        self.lr = lr
        self.value, self.first, self.second = (torch.zeros(shape, device=device) for _ in range(3))
        self.steps = torch.zeros([shape[0], 1], device=device)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {'value': self.value, 'first': self.first, 'second': self.second, 'steps': self.steps}

    @torch.no_grad()
    def update(self, target: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Follow a target [rows, dim] in the rows for which the booleans `rows` [rows] say so. Returns the value."""
        rows = rows[:, None]
        gradient = 2 * (self.value - target) / target.numel()
        self.steps += rows
        for moment, new, beta in [(self.first, gradient, BETAS[0]), (self.second, gradient.square(), BETAS[1])]:
            moment.copy_(torch.where(rows, new.lerp(moment, beta), moment))
        first = self.first / (1 - BETAS[0] ** self.steps.clamp_min(1))
        second = self.second / (1 - BETAS[1] ** self.steps.clamp_min(1))
        self.value -= torch.where(rows, self.lr * first / (second.sqrt() + EPS), 0)
        return self.value


class MomentMatchingLoss(Loss):
    """v_μ·(μ − mean f(x)) + v_σ·(σ² − var f(x)), in the generator's main phases only (SLT, arXiv 2212.08311).

    f are the features of all layers of a frozen network, μ and σ² (unbiased) the reference's moments, and v_μ and v_σ
    `AdamAverage`s of the differences in the brackets. There is no discriminator: `D` may be None, and its phases do
    nothing. Moments are those of one accumulation round in all processes together. Steps with a loss that is not
    finite are left out, see `Steps`.

    Works for any generator. The masks of a `ScoreMaskedGenerator` follow their rule's schedule.

    Args:
        device: where the networks are.
        G_mapping, G_synthesis: modules, each possibly wrapped in DistributedDataParallel.
        D, augment_pipe: unused.
        embedding: spec string of a network that shows layers. The paper's is VGG-19 with batch norm.
        layers: which of them, counted from 0; all by default. A number, a list, or text such as 0,4-7.
        pool: feature maps are averaged over parts of the image until they have this side, 0 leaves them as they are
            (paper). Moments take memory for channels · side² of each layer.
        normalize: whether each layer is divided by its standard deviation over the reference. Adam's steps are as
            large for small differences as for large ones, so that without it layers with large values count most. In
            VGG-19 with batch norm all are alike, and the paper does without.
        per_class: whether moments are taken for each label on its own, over the images of that label in a batch; not in
            the paper. By default if the generator takes labels, which the moments of all would not teach it.
        teacher: network pickle whose images are the reference, instead of the data set.
        samples: how many images the reference has; by default all of the data set, or 10000 of the teacher.
        moving_average_lr: learning rate of v.
        training_set_kwargs: of the run; the options fill it in.
        total_kimg: length of the run, for rules with a schedule; the options fill it in.

    Raises:
        UserError: for an embedding that cannot be loaded or shows no layers, or layers it does not have.
    """

    def __init__(
        self,
        device: torch.device,
        G_mapping: torch.nn.Module,
        G_synthesis: torch.nn.Module,
        D: torch.nn.Module | None = None,
        augment_pipe: torch.nn.Module | None = None,
        *,
        training_set_kwargs: dict,
        total_kimg: float = 25000,
        embedding: str = PAPER_EMBEDDING,
        layers: str | int | Sequence[int] | None = None,
        pool: int = 0,
        normalize: bool = False,
        per_class: bool | None = None,
        teacher: str | None = None,
        samples: int | None = None,
        moving_average_lr: float = PAPER_RATE,
    ):
        super().__init__()
        self.device = torch.device(device)
        self.G_mapping = G_mapping
        self.G_synthesis = G_synthesis
        self.total_nimg = total_kimg * 1000
        mapping, synthesis = unwrapped(G_mapping), unwrapped(G_synthesis)
        side = synthesis.img_resolution
        self.features = LayerFeatures(load(embedding, self.device), (synthesis.img_channels, side, side), layers, pool)
        if teacher is None:
            source = sources.DatasetImages(training_set_kwargs, device=self.device)
        else:
            G = pickles.load(teacher)['G_ema']
            common = dict(training_set_kwargs=training_set_kwargs, device=self.device)
            source = sources.TeacherImages(teacher, G, **common)
            samples = samples or TEACHER_SAMPLES
        per_class = mapping.c_dim > 0 if per_class is None else per_class
        self.classes = mapping.c_dim if per_class else 0
        mean, variance = layer_features.reference_moments(self.features, source, samples, self.classes)
        self.scale = self._scale(variance) if normalize else torch.ones_like(mean[0])
        self.mean, self.variance = mean * self.scale, variance * self.scale.square()
        self.v_mean, self.v_variance = (AdamAverage(mean.shape, moving_average_lr, self.device) for _ in range(2))
        self.parts = [part for part in (mapping, synthesis) if isinstance(part, ScoreMasked)]
        self.rule = rule_of(self.parts[0].rule) if self.parts else None
        self.steps = Steps()
        self.is_first_round = True
        self.precision = {'force_fp32': True} if self.device.type == 'cpu' else {}

    @classmethod
    def adapt(cls, args: dict, networks: dict | None = None) -> None:
        """Tell the loss how long the run is, if a schedule of masks goes by it. (Other runs can be made longer.)"""
        rule = args.G_kwargs.get('rule')
        if rule is not None and rule_of(rule).scheduled:
            args.loss_kwargs.total_kimg = args.total_kimg

    @classmethod
    def check_arguments(
        cls,
        *,
        training_set_kwargs,
        embedding=PAPER_EMBEDDING,
        layers=None,
        pool=0,
        samples=None,
        moving_average_lr=PAPER_RATE,
        normalize=False,
        per_class=None,
        teacher=None,
        **_others,
    ) -> None:
        """Refuse what the constructor would trip over, before a run directory exists."""
        training_set = dnnlib.util.construct_class_by_name(**training_set_kwargs)
        for name, value, least in [('pool', pool, 0), ('samples', 2 if samples is None else samples, 2)]:
            require_whole_number(f'--loss-arg {name}', value, least)
        require_number('--loss-arg moving_average_lr', moving_average_lr, least=0, above=True)
        for name, value in [('normalize', normalize), ('per_class', per_class)]:
            if value not in (None, False, True):
                raise UserError(f'--loss-arg {name}={value} must be true or false.')
        if per_class and not training_set.has_labels:
            raise UserError('--loss-arg per_class=true needs labels: --cond=1 turns them on where the data has any.')
        if teacher is None and samples is not None and samples > len(training_set):
            raise UserError(
                f'--loss-arg samples={samples} is more than the {len(training_set)} images of the data set.'
            )
        LayerFeatures(load(embedding, 'cpu'), training_set.image_shape, layers, pool)

    def _scale(self, variance: torch.Tensor) -> torch.Tensor:
        """For each entry [dim], one over the standard deviation of its layer: the root of its mean variance."""
        layers = variance.mean(0).split(self.features.sizes)
        return torch.cat([layer.mean().clamp_min(1e-12).rsqrt().expand(len(layer)) for layer in layers])

    def state_dict(self) -> dict:
        """What a continued run needs: the moving averages, and where steps are."""
        return {
            'steps': self.steps.state_dict(),
            'v_mean': self.v_mean.tensors(),
            'v_variance': self.v_variance.tensors(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.steps.load_state_dict(state['steps'])
        for name in ('v_mean', 'v_variance'):
            for key, tensor in getattr(self, name).tensors().items():
                tensor.copy_(state[name][key])

    def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, sync, gain) -> None:
        """Add this phase's gradients to the generator's parameters; the contract of the host's `Loss`.

        Args:
            phase: Gmain and Gboth do something, Greg, Dmain, Dreg and Dboth nothing.
            real_img, real_c: unused.
            gen_z, gen_c: [N, z_dim] and [N, c_dim].
            sync: whether this is the last round of gradient accumulation, after which processes exchange gradients.
            gain: factor on the loss.

        Raises:
            DivergedError: ten steps in a row had a loss that is not finite.
        """
        if phase not in ('Gmain', 'Greg', 'Gboth', 'Dmain', 'Dreg', 'Dboth'):
            raise ValueError(f'There is no training phase {phase!r}.')
        if phase not in ('Gmain', 'Gboth'):
            return
        self.steps.begin(self._averages())
        if self.rule is not None and self.is_first_round:
            with torch.no_grad():
                self.rule.advance(self.parts, min(self.steps.nimg / self.total_nimg, 1))
        self.is_first_round = sync
        self.steps.count(len(gen_z))
        with misc.ddp_sync(self.G_mapping, sync):
            ws = self.G_mapping(gen_z, gen_c)
        with misc.ddp_sync(self.G_synthesis, sync):
            images = self.G_synthesis(ws, **self.precision)
        loss = self._mismatch(images, gen_c)
        penalty = self.rule.penalty(self.parts) if self.rule is not None else None
        if penalty is not None:
            loss = loss + self.steps.report('Loss/scores', penalty)
        self.steps.check('moment matching', loss).mul(gain).backward()
        if sync:
            self.steps.end(phase, (p for module in (self.G_mapping, self.G_synthesis) for p in module.parameters()))

    def _mismatch(self, images: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """v_μ·(μ − mean f) + v_σ·(σ² − var f), after v has followed the differences."""
        groups = c if self.classes else c.new_ones([len(images), 1])
        f = self.features(images) * self.scale
        mean, variance, counts = moments.mean_and_variance(f, groups, distributed.world())
        total = images.new_zeros([])
        for name, v, wanted, got, least in [
            ('mean', self.v_mean, self.mean, mean, 1),
            ('variance', self.v_variance, self.variance, variance, 2),
        ]:
            rows = counts >= least  # Labels of which the batch has enough images.
            difference = torch.where(rows[:, None], wanted - got, 0)
            self.steps.report(f'Loss/moments/{name}', difference.abs().mean())
            total = total + (v.update(difference.detach(), rows) * difference).sum()
        return self.steps.report('Loss/G/loss', total)

    def _averages(self):
        """What a step changes beside gradients: v, and the average of W."""
        yield from (*self.v_mean.tensors().values(), *self.v_variance.tensors().values())
        yield from (buffer for name, buffer in self.G_mapping.named_buffers() if name.endswith('w_avg'))


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """The module inside DistributedDataParallel, if it is in there."""
    return module.module if isinstance(module, torch.nn.parallel.DistributedDataParallel) else module
