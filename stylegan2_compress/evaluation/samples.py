"""Images for evaluation: generated ones, and those of data sets."""

import contextlib
from collections.abc import Iterator

import dnnlib
import numpy as np
import torch
from training.networks import Generator

from stylegan2_compress.errors import UserError
from stylegan2_compress.host import datasets, devices
from stylegan2_compress.images import quantised


def generate(G: Generator, count: int, seed: int, batch: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [count, C, H, W] in [-1, 1], quantised to 8 bits as in files, and their labels [count, c_dim].

    The same seed gives the same z for all generators with equal z_dim. Labels cycle through the classes.
    """
    c = torch.eye(G.c_dim)[torch.arange(count) % G.c_dim] if G.c_dim else torch.zeros([count, 0])
    return torch.cat([images.cpu() for images in fakes(G, latents(G, count, seed), c, batch=batch)]), c


def latents(G: Generator, count: int, seed: int) -> torch.Tensor:
    """z [count, z_dim], the same for all generators with equal z_dim."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal([count, G.z_dim])).float()


@torch.no_grad()
def fakes(
    G: Generator, z: torch.Tensor, c: torch.Tensor, noise_seed: int | None = None, batch: int = 64
) -> Iterator[torch.Tensor]:
    """Batches of a generator's images [N, C, H, W] in [-1, 1], quantised to 8 bits as in files.

    The global random state is neither used nor changed.

    Args:
        G: generator in eval mode, on the device where it runs.
        z, c: [count, z_dim] and [count, c_dim].
        noise_seed: of random noise inputs, as in the host's metrics; None for constant noise.
        batch: images at a time.
    """
    device = next(G.buffers()).device
    noise_mode = 'const' if noise_seed is None else 'random'
    for start, (some_z, some_c) in enumerate(zip(z.split(batch), c.split(batch), strict=True)):
        own_seed = np.random.SeedSequence([noise_seed or 0, start]).generate_state(1)[0].item()
        with devices.seeded(own_seed, device):
            images = G(some_z.to(device), some_c.to(device), noise_mode=noise_mode, **devices.precision(device))
        yield quantised(images)


@contextlib.contextmanager
def required_to_be_finite(file: str, G: Generator) -> Iterator[None]:
    """Refuse images of a generator, whoever asks for them in the block, that are not finite.

    Rounded to 8 bits, as metrics see them, they would be black, which is nearer to some data than a poor generator is.

    Raises:
        UserError: in a forward pass, with the number of images.
    """
    seen = 0

    def check(_synthesis, _inputs, images):
        nonlocal seen
        seen += len(images)
        bad = int((~images.isfinite().flatten(1).all(dim=1)).sum())
        if bad:
            raise UserError(f'{file} makes images that are NaN or infinite ({bad} of the first {seen}).')

    hook = G.synthesis.register_forward_hook(check)  # Path lengths call it without G; copies of G have it, too.
    try:
        yield
    finally:
        hook.remove()


def reals(training_set, batch: int = 64) -> Iterator[torch.Tensor]:
    """Batches of all images [N, C, H, W] in [-1, 1] of one of the host's data sets, in its order."""
    for start in range(0, len(training_set), batch):
        indices = range(start, min(start + batch, len(training_set)))
        with datasets.reading(training_set, indices):
            images = [training_set[index][0] for index in indices]
        yield torch.from_numpy(np.stack(images)).float() / 127.5 - 1


def draw_labels(training_set_kwargs: dict, c_dim: int, count: int, seed: int) -> torch.Tensor:
    """Labels [count, c_dim], drawn at random from those of the data, as in the host's metrics."""
    if not c_dim:
        return torch.zeros([count, 0])
    labels = datasets.labels(dnnlib.util.construct_class_by_name(**training_set_kwargs))
    return torch.from_numpy(labels[np.random.default_rng([seed, 1]).integers(len(labels), size=count)])
