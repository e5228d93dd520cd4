"""The adversarial base: StyleGAN2's losses as the host computes them, and the places where terms hang."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
from torch_utils import misc
from torch_utils.ops import conv2d_gradfix
from training.loss import Loss

from stylegan2_compress import distributed
from stylegan2_compress.arguments import require_number, require_whole_number
from stylegan2_compress.losses.steps import Steps

STUDENT = ''  # The student's discriminator among several: its statistics have the host's names, without a suffix.


@dataclass(frozen=True)
class StyleMixing:
    """Which second latent replaces the first, and from which layer on. The teacher must get the same one."""

    z: torch.Tensor  # [N, z_dim]
    cutoff: int  # In [1, num_ws]; num_ws means that nothing is mixed.


@dataclass(frozen=True)
class Batch:
    """What one forward pass of the student in a main phase offers to the terms."""

    z: torch.Tensor  # [N, z_dim]
    c: torch.Tensor  # [N, c_dim]
    mixing: StyleMixing | None
    images: torch.Tensor  # [N, C, H, W] in [-1, 1], before augmentation; with gradient in G phases only.
    logits: torch.Tensor  # [N, 1] of the student's discriminator.


@dataclass(frozen=True)
class Summand:
    """What a term adds to a loss: weight * value. The value is reported to `training_stats` as `Loss/NAME`."""

    name: str  # Such as 'DiME/dino_resnet50'.
    value: torch.Tensor  # A scalar.
    weight: float = 1


class Term:
    """Adds to the mean adversarial loss. A method is a subclass with one or both of the first two methods.

    What a term has to remember between steps it hands out as `state_dict`.
    """

    def generator(self, batch: Batch) -> Sequence[Summand]:
        """What the term adds in the main G phase. `batch.images` carries the student's gradient."""
        return ()

    def discriminator(self, batch: Batch) -> Sequence[Summand]:
        """What the term adds in the main D phase, beside the loss on the student's images."""
        return ()

    def after_step(self) -> None:
        """Called after every main G phase whose gradients are used."""

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        if state:
            raise ValueError(f'{type(self).__name__} keeps no state, but was given {sorted(state)}.')


class AdversarialLoss(Loss):
    """Non-saturating adversarial loss with R1, path length regularisation, style mixing and augmentation.

    Without terms, every gradient in every phase equals that of the host's `StyleGAN2Loss` bit for bit under the same
    random state. The arguments are the host's, and so are the names of the statistics it reports. Steps with a loss
    that is not finite are left out, see `Steps`. With several processes, the moving average of path lengths follows
    those of all, and is the same in each (the host has one per process).

    Args:
        device: where the networks are.
        G_mapping, G_synthesis, D, augment_pipe: modules, each possibly wrapped in DistributedDataParallel.
        style_mixing_prob: how often two latents share an image (StyleGAN, section 3.1).
        r1_gamma: weight of the R1 penalty (Mescheder et al. 2018); 0 switches it off.
        pl_batch_shrink, pl_decay, pl_weight: path length regularisation (StyleGAN2, section 3.2); weight 0 is off.
        terms: what a compression method adds, see `Term`.
    """

    def __init__(
        self,
        device: torch.device,
        G_mapping: torch.nn.Module,
        G_synthesis: torch.nn.Module,
        D: torch.nn.Module,
        augment_pipe: torch.nn.Module | None = None,
        style_mixing_prob: float = 0.9,
        r1_gamma: float = 10,
        pl_batch_shrink: int = 2,
        pl_decay: float = 0.01,
        pl_weight: float = 2,
        terms: Sequence[Term] = (),
    ):
        super().__init__()
        self.device = torch.device(device)
        self.G_mapping = G_mapping
        self.G_synthesis = G_synthesis
        self.D = D
        self.augment_pipe = augment_pipe
        self.style_mixing_prob = style_mixing_prob
        self.r1_gamma = r1_gamma
        self.pl_batch_shrink = pl_batch_shrink
        self.pl_decay = pl_decay
        self.pl_weight = pl_weight
        self.pl_mean = torch.zeros([], device=self.device)
        self.terms = list(terms)
        self.steps = Steps()
        # The host's FP16 blocks have no fast path on a CPU, and some of their operations none at all.
        self.precision = {'force_fp32': True} if self.device.type == 'cpu' else {}

    @classmethod
    def check_arguments(
        cls, *, style_mixing_prob=0.9, r1_gamma=10, pl_batch_shrink=2, pl_decay=0.01, pl_weight=2, **_others
    ) -> None:
        """Refuse what the constructor would trip over, before a run directory exists.

        Raises:
            UserError: an argument is no number, or none that makes sense.
        """
        for name, value, most in [
            ('style_mixing_prob', style_mixing_prob, 1),
            ('r1_gamma', r1_gamma, math.inf),
            ('pl_decay', pl_decay, 1),
            ('pl_weight', pl_weight, math.inf),
        ]:
            require_number(f'--loss-arg {name}', value, 0, most)
        require_whole_number('--loss-arg pl_batch_shrink', pl_batch_shrink, least=1)

    def state_dict(self) -> dict:
        """What a continued run needs beside the networks: the path length average, and where steps and terms are."""
        terms = [term.state_dict() for term in self.terms]
        return {'pl_mean': self.pl_mean, 'steps': self.steps.state_dict(), 'terms': terms}

    def load_state_dict(self, state: dict) -> None:
        self.pl_mean.copy_(state['pl_mean'])
        self.steps.load_state_dict(state['steps'])
        for term, term_state in zip(self.terms, state['terms'], strict=True):
            term.load_state_dict(term_state)

    def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, sync, gain) -> None:
        """Add this phase's gradients to the networks' parameters; the contract of the host's `Loss`.

        Args:
            phase: Gmain, Greg, Gboth, Dmain, Dreg or Dboth.
            real_img, real_c: [N, C, H, W] in [-1, 1] and [N, c_dim].
            gen_z, gen_c: [N, z_dim] and [N, c_dim].
            sync: whether this is the last round of gradient accumulation, after which processes exchange gradients.
            gain: factor on the loss, the phase's interval under lazy regularisation.

        Raises:
            DivergedError: ten steps of this phase in a row had a loss that is not finite.
        """
        if phase not in ('Gmain', 'Greg', 'Gboth', 'Dmain', 'Dreg', 'Dboth'):
            raise ValueError(f'There is no training phase {phase!r}.')
        G_main, G_reg = phase in ('Gmain', 'Gboth'), phase in ('Greg', 'Gboth') and self.pl_weight != 0
        D_main, D_reg = phase in ('Dmain', 'Dboth'), phase in ('Dreg', 'Dboth') and self.r1_gamma != 0

        self.steps.begin(self._averages())
        if G_main:
            self.steps.count(len(gen_z))
            self._fool_discriminator(gen_z, gen_c, sync and not G_reg, gain)
        if G_reg:
            self._regularize_path_length(gen_z, gen_c, sync, gain)
        loss_on_fakes = 0
        if D_main:
            loss_on_fakes = self._reject_fakes(gen_z, gen_c, gain)
        if D_main or D_reg:
            self._accept_reals(real_img, real_c, sync, gain, loss_on_fakes, D_main, D_reg)
        if sync:
            modules = (self.G_mapping, self.G_synthesis) if phase.startswith('G') else (self.D,)
            used = self.steps.end(phase, (parameter for module in modules for parameter in module.parameters()))
            if used and G_main:
                for term in self.terms:
                    term.after_step()

    def _averages(self) -> Iterable[torch.Tensor]:
        """What our forward passes change beside gradients: the averages of path lengths and of W."""
        yield self.pl_mean
        yield from (buffer for name, buffer in self.G_mapping.named_buffers() if name.endswith('w_avg'))

    # --- One method per backward pass ---------------------------------------------------------------------------

    def _fool_discriminator(self, z, c, sync, gain) -> None:
        """Gmain: softplus(−D(G(z))), and what the terms add."""
        images, _ws, mixing = self.run_G(z, c, sync)
        logits = self.run_D(images, c, sync=False)
        self._report_logits('fake', logits)
        per_image = sum(torch.nn.functional.softplus(-each) for each in logits.values())
        loss = self.steps.check('generator loss', self.steps.report('Loss/G/loss', per_image).mean())
        batch = Batch(z, c, mixing, images, logits[STUDENT])
        for term in self.terms:
            loss = self._add(loss, term.generator(batch))
        loss.mul(gain).backward()

    def _regularize_path_length(self, z, c, sync, gain) -> None:
        """Greg: (‖Jᵀy‖ − a)² for images y of white noise, a being the norm's moving average."""
        batch_size = z.shape[0] // self.pl_batch_shrink
        images, ws, _mixing = self.run_G(z[:batch_size], c[:batch_size], sync)
        noise = torch.randn_like(images) / np.sqrt(images.shape[2] * images.shape[3])
        with conv2d_gradfix.no_weight_gradients():
            (grads,) = torch.autograd.grad([(images * noise).sum()], [ws], create_graph=True, only_inputs=True)
        lengths = grads.square().sum(2).mean(1).sqrt()
        pl_mean = self.pl_mean.lerp(mean_of_all_processes(lengths), self.pl_decay)
        self.pl_mean.copy_(pl_mean.detach())
        penalty = self.steps.report('Loss/pl_penalty', (lengths - pl_mean).square())
        loss = self.steps.report('Loss/G/reg', penalty * self.pl_weight)
        # Multiplied by zero, the images tie every parameter into the graph: DistributedDataParallel waits for each.
        self.steps.check('path length penalty', (images[:, 0, 0, 0] * 0 + loss).mean()).mul(gain).backward()

    def _reject_fakes(self, z, c, gain) -> torch.Tensor:
        """Dmain, first half: softplus(D(G(z))), and what the terms add. Returns the loss per image."""
        with torch.no_grad():
            images, _ws, mixing = self.run_G(z, c, sync=False)
        logits = self.run_D(images, c, sync=False)  # The second half synchronises the processes.
        self._report_logits('fake', logits)
        per_image = sum(torch.nn.functional.softplus(each) for each in logits.values())
        loss = self.steps.check("discriminator loss on the student's images", per_image.mean())
        batch = Batch(z, c, mixing, images, logits[STUDENT])
        for term in self.terms:
            loss = self._add(loss, term.discriminator(batch))
        loss.mul(gain).backward()
        return per_image.detach()

    def _accept_reals(self, real_img, real_c, sync, gain, loss_on_fakes, main, r1) -> None:
        """Dmain, second half: softplus(−D(x)). Dreg: γ/2 ‖∇D(x)‖²."""
        images = real_img.detach().requires_grad_(r1)
        logits = self.run_D(images, real_c, sync)
        self._report_logits('real', logits)
        loss_on_reals = loss_on_gradient = 0
        if main:
            loss_on_reals = sum(torch.nn.functional.softplus(-each) for each in logits.values())
            self.steps.report('Loss/D/loss', loss_on_fakes + loss_on_reals)
        if r1:
            for name, each in logits.items():
                with conv2d_gradfix.no_weight_gradients():
                    (grads,) = torch.autograd.grad([each.sum()], [images], create_graph=True, only_inputs=True)
                penalty = self.steps.report(f'Loss/r1_penalty{name}', grads.square().sum([1, 2, 3]))
                loss_on_gradient = loss_on_gradient + penalty * (self.r1_gamma / 2)
            self.steps.check('R1 penalty', loss_on_gradient.mean())
            self.steps.report('Loss/D/reg', loss_on_gradient)
        # Multiplied by zero, the logits tie every parameter into the graph, as above.
        loss = sum(logits.values()) * 0 + loss_on_reals
        self.steps.check('discriminator loss on real images', loss.mean())
        (loss + loss_on_gradient).mean().mul(gain).backward()

    # --- Forward passes -----------------------------------------------------------------------------------------

    def run_G(self, z, c, sync) -> tuple[torch.Tensor, torch.Tensor, StyleMixing | None]:
        """Images, the ws they came from, and how styles were mixed."""
        mixing = None
        with misc.ddp_sync(self.G_mapping, sync):
            ws = self.G_mapping(z, c)
            if self.style_mixing_prob > 0:
                mixing = self._draw_mixing(z, num_ws=ws.shape[1])
                ws[:, mixing.cutoff :] = self.G_mapping(mixing.z, c, skip_w_avg_update=True)[:, mixing.cutoff :]
        with misc.ddp_sync(self.G_synthesis, sync):
            images = self.G_synthesis(ws, **self.precision)
        return images, ws, mixing

    def _draw_mixing(self, z, num_ws) -> StyleMixing:
        # The host's draws in the host's order, so that the same random state gives the same images.
        cutoff = torch.empty([], dtype=torch.int64, device=z.device).random_(1, num_ws)
        if torch.rand([], device=z.device) >= self.style_mixing_prob:
            cutoff.fill_(num_ws)
        return StyleMixing(z=torch.randn_like(z), cutoff=int(cutoff))

    def run_D(self, images, c, sync) -> dict[str, torch.Tensor]:
        """Logits of images after augmentation, see `judge`."""
        if self.augment_pipe is not None:
            images = self.augment_pipe(images)
        with misc.ddp_sync(self.D, sync):
            return self.judge(images, c)

    def judge(self, images, c) -> dict[str, torch.Tensor]:
        """Logits [N, 1] by discriminator, which is named by the suffix of its statistics. Here there is one only.

        A loss whose D holds several overrides this: each gets the adversarial losses and the R1 penalty by itself.
        """
        return {STUDENT: self.D(images, c, **self.precision)}

    # --- What goes with a loss ----------------------------------------------------------------------------------

    def _add(self, loss: torch.Tensor, summands: Sequence[Summand]) -> torch.Tensor:
        for summand in summands:
            self.steps.check(summand.name.replace('/', ' ', 1), summand.value)
            loss = loss + summand.weight * self.steps.report(f'Loss/{summand.name}', summand.value)
        return loss

    def _report_logits(self, kind: str, logits: dict[str, torch.Tensor]) -> None:
        for name, each in logits.items():
            self.steps.report(f'Loss/scores/{kind}{name}', each)
            self.steps.report(f'Loss/signs/{kind}{name}', each.sign())


def mean_of_all_processes(x: torch.Tensor) -> torch.Tensor:
    """The mean over the batches of all processes, equally large; its gradient is that of this process's share."""
    mean = x.mean()
    group = distributed.world()
    if group is None:
        return mean
    total = mean.detach().clone()
    torch.distributed.all_reduce(total, group=group)
    return mean + (total / torch.distributed.get_world_size(group) - mean.detach())
