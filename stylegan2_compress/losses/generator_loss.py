"""Losses of the generator alone: the sum of what methods add, without a discriminator."""

import torch
from torch_utils import misc

from stylegan2_compress import distributed
from stylegan2_compress.losses.features import block_outputs
from stylegan2_compress.losses.method_loss import MAIN_G, MethodLoss
from stylegan2_compress.losses.terms import Batch


class GeneratorLoss(MethodLoss):
    """The sum of the methods' terms, in the generator's main phases only.

    `D` may be None, and its phases do nothing, like Greg. Steps with a loss that is not finite are left out, see
    `Steps`.
    """

    phases = MAIN_G
    sees_reals = False

    def compute(self, phase, real_img, real_c, gen_z, gen_c, sync, gain) -> None:
        with misc.ddp_sync(self.G_mapping, sync):
            ws = self.G_mapping(gen_z, gen_c)
        synthesis = distributed.unwrapped(self.G_synthesis)
        is_wrapped = synthesis is not self.G_synthesis
        if is_wrapped or any(term.looks_at_images for term in self.terms):
            with misc.ddp_sync(self.G_synthesis, sync), block_outputs(synthesis, self.watched) as maps:
                images = self.G_synthesis(ws, **self.precision)
        else:
            images, maps = ws.new_zeros([len(ws), 0]), {}
        batch = Batch(gen_z, gen_c, None, images, None, ws=ws, maps=maps)
        loss: torch.Tensor | None = None
        for term in self.terms:
            loss = self._add(loss, term.generator(batch))
        if loss is not None:
            self.steps.report('Loss/G/loss', loss)
        if loss is not None and loss.requires_grad:  # Terms may have done their own backward passes.
            loss.mul(gain).backward()
        elif is_wrapped and sync and any(parameter.grad is not None for parameter in synthesis.parameters()):
            images.sum().mul(0).backward()  # In which DistributedDataParallel brings their gradients together.
