"""The grid of images that shows how a run gets on, as the host's."""

from pathlib import Path

import numpy as np
import torch
from training.networks import Generator

from stylegan2_compress.host import datasets
from stylegan2_compress.host.progress_bars import progress_bar
from stylegan2_compress.images import grid, to_uint8


def grid_size(image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Columns and rows of the host's grid: what fills a large screen, within limits."""
    _channels, height, width = image_shape
    return int(np.clip(7680 // width, 7, 32)), int(np.clip(4320 // height, 4, 32))


class ImageGrid:
    """A fixed grid of latents and labels, whose images show the progress of a run.

    Args:
        training_set: gives the real images, their shape, and the labels: one per row where there are any.
        z_dim: width of the generator's latents.
        batch: how many images are generated at a time.
        device: of the latents.
    """

    def __init__(self, training_set, z_dim: int, batch: int, device: torch.device):
        self.columns, self.rows = grid_size(training_set.image_shape)
        self.training_set = training_set
        self.indices = self._choose()
        labels = np.stack([training_set.get_label(index) for index in self.indices])
        z = torch.randn([self.rows * self.columns, z_dim], device=device)
        c = torch.from_numpy(labels).to(device)
        self.batches = list(zip(z.split(batch), c.split(batch), strict=True))

    def _choose(self) -> list[int]:
        """Indices of real images: random ones, or where there are labels, one label per row."""
        training_set = self.training_set
        rnd = np.random.RandomState(0)
        count = self.rows * self.columns
        if not training_set.has_labels:
            return np.resize(rnd.permutation(len(training_set)), count).tolist()
        by_label = {}
        for index in rnd.permutation(len(training_set)):
            by_label.setdefault(tuple(np.atleast_1d(training_set.get_details(index).raw_label)), []).append(index)
        labels = sorted(by_label)
        cells = []
        for row in range(self.rows):
            pool = by_label[labels[row % len(labels)]]
            cells += np.resize(np.roll(pool, -self.columns * (row // len(labels))), self.columns).tolist()
        return cells

    def save_reals(self, path: Path) -> None:
        """Write the real images to an image file."""
        with datasets.reading(self.training_set, self.indices):
            # A teacher's images take a while on a CPU.
            shown = progress_bar(self.indices, desc='Sample images', unit='image')
            reals = [self.training_set[index][0] for index in shown]
        grid(np.stack(reals), self.columns).save(path)

    def save_fakes(self, G_ema: Generator, path: Path, **synthesis_kwargs) -> None:
        """Generate the images of the grid and write them to an image file."""
        with torch.no_grad():
            images = [G_ema(z=z, c=c, noise_mode='const', **synthesis_kwargs).cpu() for z, c in self.batches]
        grid(to_uint8(torch.cat(images)), self.columns).save(path)
