"""Distances of batches larger than memory allows: features first, then their gradients, then images part by part."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch_utils import misc

from stylegan2_compress import distributed
from stylegan2_compress.distributions.sources import LabelSource
from stylegan2_compress.host import devices
from stylegan2_compress.losses.space import Space
from stylegan2_compress.losses.terms import total

PURPOSE = 1  # Of the random numbers: a reference draws from [seed, chunk], without any.


class LargeBatch:
    """Gradients of distances of fresh images of the student, as many as wanted, in every so many steps.

    Three passes: features without gradient, in parts as large as a round of training; the distance's gradient with
    respect to them; then, part by part, images once more, through which that gradient goes (gradient caching, Gao et
    al. 2021, arXiv 2101.06983). The result is the gradient of the distance of the whole batch.

    The images are not style-mixed, as the reference's are not. Latents and labels depend only on the seed and on the
    place in the run.

    Args:
        size: images of all processes together; a multiple of `batch_size`. It takes part in every
            (size / batch_size)-th step, with as large a weight, so that as many images as without it take part.
        batch_size: of the run.
        seed: of the run.
        G_mapping, G_synthesis: the student's, each possibly wrapped in DistributedDataParallel.
        labels: of the images.
        precision: arguments of the student's forward pass.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        G_mapping: torch.nn.Module,
        G_synthesis: torch.nn.Module,
        labels: LabelSource,
        precision: dict[str, bool],
    ):
        self.size = size
        self.batch_size = batch_size
        self.interval = size // batch_size
        self.seed = seed
        self.G_mapping = G_mapping
        self.G_synthesis = G_synthesis
        self.labels = labels
        self.precision = precision

    def is_due(self, nimg: int) -> bool:
        """Whether it takes part in the step that begins after so many images."""
        return nimg // self.batch_size % self.interval == 0

    def backward(
        self,
        nimg: int,
        at_once: int,
        spaces: Sequence[Space],
        share: float,
        device: torch.device,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Add the gradients of share · Σ weight · distance to the student's parameters.

        They are as many times as large as a batch has rounds, over which training loops take the mean.

        Args:
            nimg: place in the run.
            at_once: images in a round of this process.
            spaces: whose distances they are.
            share: of the weights, which may fall.
            device: where the networks are.

        Returns:
            The distances, and this process's features [size / processes, dim] by space.
        """
        with torch.no_grad():
            parts = [[space.network(images) for space in spaces] for images in self.images(nimg, at_once, device)]
        features = [torch.cat(of_one).requires_grad_() for of_one in zip(*parts, strict=True)]
        values = [space.distance(of_one) for space, of_one in zip(spaces, features, strict=True)]
        loss = total(share * space.weight * value for space, value in zip(spaces, values, strict=True))
        gradients = torch.autograd.grad(loss, features)
        rounds = self.batch_size // (at_once * distributed.world_size())
        modules = distributed.unwrapped(self.G_mapping), distributed.unwrapped(self.G_synthesis)
        parameters = [each for module in modules for each in module.parameters() if each.requires_grad]
        by_part = zip(*(gradient.split(at_once) for gradient in gradients), strict=True)
        for images, of_part in zip(self.images(nimg, at_once, device), by_part, strict=True):
            products = [(space.network(images) * each).sum() for space, each in zip(spaces, of_part, strict=True)]
            accumulate(total(products) * (self.interval * rounds), parameters)
        return [value.detach() for value in values], [of_one.detach() for of_one in features]

    def images(self, nimg: int, at_once: int, device: torch.device) -> Iterator[torch.Tensor]:
        """This process's images in parts [at_once, C, H, W], with the student's gradient; every time the same."""
        rnd = np.random.default_rng([self.seed, nimg, PURPOSE])
        z_dim = distributed.unwrapped(self.G_mapping).z_dim
        z = torch.from_numpy(rnd.standard_normal([self.size, z_dim], np.float32)).to(device)
        c = self.labels.draw(self.size, rnd, device)
        first, stride = distributed.rank() * at_once, distributed.world_size() * at_once
        for start in range(first, self.size, stride):
            own = slice(start, start + at_once)
            noise_seed = int(np.random.default_rng([self.seed, nimg, PURPOSE, start]).integers(2**31))
            with (
                devices.seeded(noise_seed, device),
                misc.ddp_sync(self.G_mapping, False),
                misc.ddp_sync(self.G_synthesis, False),
            ):
                ws = self.G_mapping(z[own], c[own], skip_w_avg_update=True)
                images = self.G_synthesis(ws, **self.precision)
            yield images


def accumulate(loss: torch.Tensor, parameters: Sequence[torch.nn.Parameter]) -> None:
    """What `loss.backward()` does, unseen by DistributedDataParallel.

    Its hooks wait for the backward pass that belongs to the forward pass of the round, and would take this one for it.
    That one then spreads what is here, too.
    """
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
