"""Runs in trackio (extra `trackio`). Imported when one is tracked, because it is optional and slow to import."""

import contextlib
import os
from collections.abc import Iterator, Mapping

import numpy as np
import trackio  # pyright: ignore[reportMissingImports]  # Not in the extra `test`.

from stylegan2_compress.training_loops.trackers import PROJECT, NamedRun


class TrackioRun(NamedRun):
    """A run in trackio's files on this machine, or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say."""

    name = 'trackio'

    def begin(self) -> None:
        """Start quietly; a line says how to look at the run."""
        with quiet():
            self.run = trackio.init(
                project=PROJECT,
                name=self.title,
                resume='allow',
                config=self.directory.read_options(),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        print(f'Tracked by trackio: `trackio show --project {PROJECT}` has {self.title}')

    def write_scalars(self, values: Mapping[str, float], cur_nimg: int) -> None:
        self.run.log(dict(values), step=cur_nimg)

    def write_image(self, name: str, pixels: np.ndarray, cur_nimg: int) -> None:
        self.run.log({name: trackio.Image(pixels)}, step=cur_nimg)

    def close(self, failed: bool) -> None:  # It knows no failures.
        with quiet():
            trackio.finish()  # And not the run's own, after which it would be finished once more at exit.


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what trackio prints."""
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
        yield
