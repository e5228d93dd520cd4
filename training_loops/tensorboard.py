"""A run's statistics and image grids for TensorBoard, if it is installed (extra `monitor`)."""

import os
from collections.abc import Mapping

import numpy as np

from stylegan2_compress.training_loops.trackers import Tracker


class TensorBoard(Tracker):
    """Writes event files into a run directory."""

    def __init__(self, writer):
        self.writer = writer

    @classmethod
    def open(cls, run_dir: str | os.PathLike, cur_nimg: int = 0) -> 'TensorBoard | None':
        """A writer for the run, or None where TensorBoard is not installed.

        Args:
            run_dir: directory for the event files; `tensorboard --logdir` takes it, or its parent.
            cur_nimg: where a continued run goes on, also one that begins again. What it wrote after that, before it was
                stopped, is purged.
        """
        try:
            # Only here, because it is optional, and slow to import.
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return cls(SummaryWriter(os.fspath(run_dir), purge_step=cur_nimg + 1))

    def write_scalars(self, values: Mapping[str, float], cur_nimg: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, cur_nimg)
        self.writer.flush()

    def write_image(self, name: str, pixels: np.ndarray, cur_nimg: int) -> None:
        self.writer.add_image(name, pixels, cur_nimg, dataformats='HWC')

    def close(self, failed: bool) -> None:
        self.writer.close()
