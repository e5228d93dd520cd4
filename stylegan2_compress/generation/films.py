"""Films: curves through places in W, and files of frames."""

from collections.abc import Iterable, Iterator

import numpy as np
import PIL.Image
from scipy.interpolate import CubicSpline

from stylegan2_compress import files

FRAMES_PER_SECOND = 25  # GIF counts in hundredths of a second.


def closed_curve(places: np.ndarray, count: int, batch: int = 1) -> Iterator[np.ndarray]:
    """Batches [N, …] of points on the periodic cubic spline through places [M, …], `count` from each to the next."""
    curve = CubicSpline(np.arange(len(places) + 1), np.concatenate([places, places[:1]]), bc_type='periodic')
    for start in range(0, len(places) * count, batch):
        yield curve(np.arange(start, min(start + batch, len(places) * count)) / count)


def write(path: str, frames: Iterable[PIL.Image.Image]) -> None:
    """Write a film, complete or not at all, in the format that the end of `path` says: `.gif` or `.mp4`.

    Args:
        path: file to write; an existing one is replaced.
        frames: pictures of one size; of an mp4, width and height are even.

    Raises:
        UserError: the file cannot be written.
    """
    with files.atomic_write(path) as file:
        if path.endswith('.gif'):
            frames = iter(frames)
            next(frames).save(
                file, format='gif', save_all=True, append_images=frames, duration=1000 // FRAMES_PER_SECOND, loop=0
            )
        else:
            from stylegan2_compress.generation import mp4  # Of the extra `video`, which need not be installed.

            file.write(mp4.encode(frames, FRAMES_PER_SECOND))
