"""A run's statistics and image grids for TensorBoard, if it is installed (extra `monitor`)."""

import os
from collections.abc import Mapping

import numpy as np
import PIL.Image

IMAGE_SIDE = 1024  # Grids are stored in every snapshot: no larger than a screen shows.


class TensorBoard:
    """Writes event files into a run directory, under the host's names: `Loss/…`, `Timing/…`, `Metrics/…`.

    Steps are images seen (kimg · 1000): runs with different batch sizes and tick lengths share an axis.
    """

    def __init__(self, writer):
        self.writer = writer

    @classmethod
    def open(cls, run_dir: str | os.PathLike, cur_nimg: int = 0) -> 'TensorBoard | None':
        """A writer for the run, or None where TensorBoard is not installed.

        Args:
            run_dir: directory for the event files; `tensorboard --logdir` takes it, or its parent.
            cur_nimg: where a continued run goes on. What it wrote after that, before it was stopped, is purged.
        """
        try:
            # Only here, because it is optional, and slow to import.
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return cls(SummaryWriter(os.fspath(run_dir), purge_step=cur_nimg + 1 if cur_nimg else None))

    def scalars(self, statistics: Mapping[str, Mapping[str, float]], cur_nimg: int) -> None:
        """Write the means in a `training_stats.Collector.as_dict()`, under their own names."""
        for name, statistic in statistics.items():
            self.writer.add_scalar(name, statistic['mean'], cur_nimg)
        self.writer.flush()

    def metrics(self, results: Mapping[str, float], cur_nimg: int) -> None:
        """Write the `results` of the host's `calc_metric`, as `Metrics/…`."""
        for name, value in results.items():
            self.writer.add_scalar(f'Metrics/{name}', value, cur_nimg)

    def image(self, name: str, png_path: str | os.PathLike, cur_nimg: int) -> None:
        """Write a grid of images that is in a file, scaled down to `IMAGE_SIDE`."""
        with PIL.Image.open(png_path) as picture:
            picture = picture.convert('RGB')
            picture.thumbnail((IMAGE_SIDE, IMAGE_SIDE), PIL.Image.Resampling.LANCZOS)
        self.writer.add_image(name, np.asarray(picture), cur_nimg, dataformats='HWC')

    def close(self) -> None:
        """Close the event files."""
        self.writer.close()
