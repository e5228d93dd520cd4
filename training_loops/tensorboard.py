"""A run's statistics and image grids for TensorBoard, where that is installed (extra `monitor`)."""

from collections.abc import Mapping

import numpy as np
import PIL.Image

IMAGE_SIDE = 1024  # Grids are stored in every snapshot: no larger than a screen shows.


class TensorBoard:
    """Writes event files into a run directory, with the host's names for things: `Loss/…`, `Timing/…`, `Metrics/…`.

    Steps are images seen (kimg · 1000), so that runs of other batch sizes and tick lengths lie on one axis.
    """

    def __init__(self, writer):
        self.writer = writer

    @classmethod
    def open(cls, run_dir: str, cur_nimg: int = 0) -> 'TensorBoard | None':
        """A writer for the run, or None where TensorBoard is not installed.

        Args:
            run_dir: where the event files go; `tensorboard --logdir` takes it, or the directory above.
            cur_nimg: where a continued run goes on. What it wrote beyond that before it was stopped is purged.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return cls(SummaryWriter(run_dir, purge_step=cur_nimg + 1 if cur_nimg else None))

    def scalars(self, statistics: Mapping[str, Mapping[str, float]], cur_nimg: int) -> None:
        """The means of what a `training_stats.Collector` has collected (its `as_dict()`), under their own names."""
        for name, statistic in statistics.items():
            self.writer.add_scalar(name, statistic['mean'], cur_nimg)
        self.writer.flush()

    def metrics(self, results: Mapping[str, float], cur_nimg: int) -> None:
        """The `results` of the host's `calc_metric`, as `Metrics/…`."""
        for name, value in results.items():
            self.writer.add_scalar(f'Metrics/{name}', value, cur_nimg)

    def image(self, name: str, png_path: str, cur_nimg: int) -> None:
        """A grid of images that was written to a file."""
        with PIL.Image.open(png_path) as picture:
            picture = picture.convert('RGB')
            picture.thumbnail((IMAGE_SIDE, IMAGE_SIDE), PIL.Image.Resampling.LANCZOS)
        self.writer.add_image(name, np.asarray(picture), cur_nimg, dataformats='HWC')

    def close(self) -> None:
        self.writer.close()
