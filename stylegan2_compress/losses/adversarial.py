"""The adversarial base: StyleGAN2's losses as the host computes them, and the places where terms are added."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch_utils import misc
from torch_utils.ops import conv2d_gradfix

from stylegan2_compress import distributed
from stylegan2_compress.arguments import argument
from stylegan2_compress.losses.features import block_outputs
from stylegan2_compress.losses.method import Method
from stylegan2_compress.losses.method_loss import MAIN_G, MethodLoss
from stylegan2_compress.losses.terms import Batch, StyleMixing, total

STUDENT = ''  # The student's discriminator among several: its statistics have the host's names, without a suffix.


@dataclass(frozen=True)
class Adversarial(Method):
    """The adversarial base, with the host's arguments and defaults."""

    style_mixing_prob: float = argument(
        'How often two latents share an image (StyleGAN, section 3.1).', 0.9, least=0, most=1
    )
    r1_gamma: float = argument('Weight of the R1 penalty (Mescheder et al. 2018); 0 is off.', 10, least=0)
    pl_batch_shrink: int = argument('Path length regularisation uses one image in this many, at least one.', 2, least=1)
    pl_decay: float = argument('How fast the average of path lengths follows.', 0.01, least=0, most=1)
    pl_weight: float = argument('Weight of path length regularisation (StyleGAN2, section 3.2); 0 is off.', 2, least=0)


class AdversarialLoss(MethodLoss):
    """Non-saturating adversarial loss with R1, path length regularisation, style mixing and augmentation.

    Without methods, every gradient in every phase equals that of the host's `StyleGAN2Loss` bit for bit under the same
    random state. The arguments are the host's, and so are the names of the statistics it reports. Steps with a loss
    that is not finite are left out, see `Steps`. With several processes, the moving average of path lengths follows
    those of all, and is the same in each (the host has one per process).

    A subclass names what is added in `methods`. Arguments are those of `Adversarial` and of the methods; see
    `MethodLoss` for the others.
    """

    D: torch.nn.Module

    def __init__(self, device, G_mapping, G_synthesis, D, augment_pipe=None, **given):
        super().__init__(device, G_mapping, G_synthesis, D, augment_pipe, **given)
        self.adversarial = next(method for method in self.chosen if isinstance(method, Adversarial))
        self.pl_mean = torch.zeros([], device=self.device)

    @classmethod
    def declarations(cls) -> tuple[type[Method], ...]:
        return Adversarial, *cls.methods

    def state_dict(self) -> dict:
        return {'pl_mean': self.pl_mean, **super().state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.pl_mean.copy_(state['pl_mean'])
        super().load_state_dict(state)

    def compute(self, phase, real_img, real_c, gen_z, gen_c, sync, gain) -> None:
        G_main, G_reg = phase in MAIN_G, phase in ('Greg', 'Gboth') and self.adversarial.pl_weight != 0
        D_main, D_reg = phase in ('Dmain', 'Dboth'), phase in ('Dreg', 'Dboth') and self.adversarial.r1_gamma != 0
        if G_main:
            self._fool_discriminator(gen_z, gen_c, sync and not G_reg, gain)
        if G_reg:
            self._regularize_path_length(gen_z, gen_c, sync, gain)
        loss_on_fakes = 0
        if D_main:
            loss_on_fakes = self._reject_fakes(gen_z, gen_c, gain)
        if D_main or D_reg:
            self._accept_reals(real_img, real_c, sync, gain, loss_on_fakes, D_main, D_reg)

    def obstacle(self, phase: str) -> str:
        if self.augment_pipe is not None and phase != 'Greg':
            return 'the augmentation pads images by as much as it moves them'
        return super().obstacle(phase)

    def _averages(self, phase: str) -> Iterable[torch.Tensor]:
        yield self.pl_mean
        yield from super()._averages(phase)

    # --- One method per backward pass ---------------------------------------------------------------------------

    def _fool_discriminator(self, z, c, sync, gain) -> None:
        """Gmain: softplus(−D(G(z))), and what the terms add."""
        with block_outputs(distributed.unwrapped(self.G_synthesis), self.watched) as maps:
            images, ws, mixing = self.run_G(z, c, sync)
        logits = self.run_D(images, c, sync=False)
        self._report_logits('fake', logits)
        per_image = total(torch.nn.functional.softplus(-each) for each in logits.values())
        loss = self.steps.check('generator loss', self.steps.report('Loss/G/loss', per_image).mean())
        batch = Batch(z, c, mixing, images, logits[STUDENT], loss, ws, maps)
        for term in self.terms:
            loss = self._add(loss, term.generator(batch))
        loss.mul(gain).backward()

    def _regularize_path_length(self, z, c, sync, gain) -> None:
        """Greg: (‖Jᵀy‖ − a)² for images y of white noise, a being the norm's moving average."""
        batch_size = max(z.shape[0] // self.adversarial.pl_batch_shrink, 1)
        images, ws, _mixing = self.run_G(z[:batch_size], c[:batch_size], sync)
        noise = torch.randn_like(images) / np.sqrt(images.shape[2] * images.shape[3])
        with conv2d_gradfix.no_weight_gradients():
            (grads,) = torch.autograd.grad([(images * noise).sum()], [ws], create_graph=True, only_inputs=True)
        lengths = grads.square().sum(2).mean(1).sqrt()
        pl_mean = self.pl_mean.lerp(lengths.mean(), self.adversarial.pl_decay)
        self.pl_mean.copy_(pl_mean.detach())  # That of this round, in the penalty; of all processes, from here on.
        distributed.average([self.pl_mean])
        penalty = self.steps.report('Loss/pl_penalty', (lengths - pl_mean).square())
        loss = self.steps.report('Loss/G/reg', penalty * self.adversarial.pl_weight)
        # Multiplied by zero, the images tie every parameter into the graph: DistributedDataParallel waits for each.
        self.steps.check('path length penalty', (images[:, 0, 0, 0] * 0 + loss).mean()).mul(gain).backward()

    def _reject_fakes(self, z, c, gain) -> torch.Tensor:
        """Dmain, first half: softplus(D(G(z))), and what the terms add. Returns the loss per image."""
        with torch.no_grad():
            images, _ws, mixing = self.run_G(z, c, sync=False)
        logits = self.run_D(images, c, sync=False)  # The second half synchronises the processes.
        self._report_logits('fake', logits)
        per_image = total(torch.nn.functional.softplus(each) for each in logits.values())
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
            loss_on_reals = total(torch.nn.functional.softplus(-each) for each in logits.values())
            self.steps.report('Loss/D/loss', loss_on_fakes + loss_on_reals)
        if r1:
            penalties = []
            for name, each in logits.items():
                with conv2d_gradfix.no_weight_gradients():
                    (grads,) = torch.autograd.grad([each.sum()], [images], create_graph=True, only_inputs=True)
                penalty = self.steps.report(f'Loss/r1_penalty{name}', grads.square().sum([1, 2, 3]))
                penalties.append(penalty * (self.adversarial.r1_gamma / 2))
            loss_on_gradient = total(penalties)
            self.steps.check('R1 penalty', loss_on_gradient.mean())
            self.steps.report('Loss/D/reg', loss_on_gradient)
        # Multiplied by zero, the logits tie every parameter into the graph, as above.
        loss = total(logits.values()) * 0 + loss_on_reals
        self.steps.check('discriminator loss on real images', loss.mean())
        (loss + loss_on_gradient).mean().mul(gain).backward()

    # --- Forward passes -----------------------------------------------------------------------------------------

    def run_G(self, z, c, sync) -> tuple[torch.Tensor, torch.Tensor, StyleMixing | None]:
        """Images, the ws they came from, and how styles were mixed."""
        mixing = None
        with misc.ddp_sync(self.G_mapping, sync):
            ws = self.G_mapping(z, c)
            if self.adversarial.style_mixing_prob > 0:
                mixing = self._draw_mixing(z, num_ws=ws.shape[1])
                ws = mixing.mix(ws, self.G_mapping(mixing.z, c, skip_w_avg_update=True))
        with misc.ddp_sync(self.G_synthesis, sync):
            images = self.G_synthesis(ws, **self.precision)
        return images, ws, mixing

    def _draw_mixing(self, z, num_ws) -> StyleMixing:
        # The host's draws in the host's order, so that the same random state gives the same images.
        cutoff = torch.empty([], dtype=torch.int64, device=z.device).random_(1, num_ws)
        mixes = torch.rand([], device=z.device) < self.adversarial.style_mixing_prob
        cutoff = torch.where(mixes, cutoff, num_ws)
        return StyleMixing(z=torch.randn_like(z), cutoff=cutoff)

    def run_D(self, images, c, sync) -> dict[str, torch.Tensor]:
        """Logits of images after augmentation, see `judge`."""
        if self.augment_pipe is not None:
            images = self.augment_pipe(images)
        with misc.ddp_sync(self.D, sync):
            return self.judge(images, c)

    def judge(self, images, c) -> dict[str, torch.Tensor]:
        """Logits [N, 1] by discriminator, which is named by the suffix of its statistics.

        A method whose D holds several says which (`Method.judge`): each gets the adversarial losses and the R1 penalty
        by itself.
        """
        if self.judged_by is None:
            return {STUDENT: self.D(images, c, **self.precision)}
        return self.judged_by(self.D, images, c, **self.precision)

    # --- What goes with a loss ----------------------------------------------------------------------------------

    def _report_logits(self, kind: str, logits: dict[str, torch.Tensor]) -> None:
        for name, each in logits.items():
            self.steps.report(f'Loss/scores/{kind}{name}', each)
            self.steps.report(f'Loss/signs/{kind}{name}', each.sign())
