"""Films as H.264, which browsers show. Imported on demand, because its package is optional (extra `video`)."""

import itertools
import tempfile
from collections.abc import Iterable
from pathlib import Path

import imageio_ffmpeg
import PIL.Image

# How ffmpeg turns RGB into YUV. A film that does not say so has other colours in browsers from 720 rows on.
COLOURS = ['-colorspace', 'smpte170m', '-color_primaries', 'smpte170m', '-color_trc', 'smpte170m']


def encode(frames: Iterable[PIL.Image.Image], frames_per_second: int) -> bytes:
    """The bytes of an mp4 file of frames of one size, whose width and height are even."""
    frames = iter(frames)
    first = next(frames)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, 'film.mp4')
        encoder = imageio_ffmpeg.write_frames(
            str(path),
            first.size,
            fps=frames_per_second,
            codec='libx264',
            quality=8,
            macro_block_size=2,
            output_params=COLOURS,
        )
        encoder.send(None)
        for frame in itertools.chain([first], frames):
            encoder.send(frame.convert('RGB').tobytes())
        encoder.close()
        return path.read_bytes()
