"""Where a run's statistics and image grids go, beside the files that it writes."""

import importlib
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import PIL.Image

from stylegan2_compress.runs.directory import RunDirectory
from stylegan2_compress.runs.trackers import TRACKERS

PROJECT = 'stylegan2-compress'
IMAGE_SIDE = 1024  # Grids are stored in every snapshot: no larger than a screen shows.


class Tracker(ABC):
    """Passes on statistics and images under the host's names: `Loss/…`, `Timing/…`, `Metrics/…`.

    Steps are images seen (kimg · 1000): runs with different batch sizes and tick lengths share an axis.
    """

    def scalars(self, statistics: Mapping[str, Mapping[str, float]], cur_nimg: int) -> None:
        """Pass on the means in a `training_stats.Collector.as_dict()`, under their own names: the end of a tick."""
        self.write_scalars({name: statistic['mean'] for name, statistic in statistics.items()}, cur_nimg)

    def metrics(self, results: Mapping[str, float], cur_nimg: int) -> None:
        """Pass on the `results` of the host's `calc_metric`, as `Metrics/…`."""
        self.write_scalars({f'Metrics/{name}': value for name, value in results.items()}, cur_nimg)

    def image(self, name: str, png_path: str | os.PathLike, cur_nimg: int) -> None:
        """Pass on a grid of images that is in a file, scaled down to `IMAGE_SIDE`."""
        with PIL.Image.open(png_path) as picture:
            picture = picture.convert('RGB')
            picture.thumbnail((IMAGE_SIDE, IMAGE_SIDE), PIL.Image.Resampling.LANCZOS)
        self.write_image(name, np.asarray(picture), cur_nimg)

    @abstractmethod
    def write_scalars(self, values: Mapping[str, float], cur_nimg: int) -> None:
        """Pass on numbers by their names."""

    @abstractmethod
    def write_image(self, name: str, pixels: np.ndarray, cur_nimg: int) -> None:
        """Pass on an image [H, W, 3] of uint8."""

    @abstractmethod
    def close(self, failed: bool) -> None:
        """Pass on what is left, and that the run has ended: by itself or a signal, or because it failed."""


class NamedRun(Tracker):
    """A tracker with runs that have an id, by which a continued run is continued there.

    What the tracker has had already is not passed on again: `tracker.json` in the run directory says how far that goes.

    Args:
        directory: of the run.
        run_id: for the tracker.
        known_nimg: up to where the tracker knows the run; 0 for a new one.
        known_metrics: the same for results of metrics, by their names: they are made after a tick, and when a run is
            stopped meanwhile, after it is continued.
    """

    name: str

    def __init__(self, directory: RunDirectory, run_id: str, known_nimg: int, known_metrics: Mapping[str, int]):
        self.directory, self.run_id = directory, run_id
        self.known_nimg, self.known_metrics = known_nimg, known_metrics
        self.told = {'tracker': self.name, 'id': run_id, 'nimg': known_nimg, 'metrics': dict(known_metrics)}

    @classmethod
    def open(cls, directory: RunDirectory, cur_nimg: int = 0) -> 'NamedRun':
        """The tracker's run for a run directory; a new one for a run that starts after 0 images."""
        known = directory.read_tracker() if cur_nimg else {}
        if known.get('tracker') != cls.name:
            known = {'id': secrets.token_hex(4), 'nimg': 0}
        run = cls(directory, known['id'], known['nimg'], known.get('metrics', {}))
        run.begin()
        run.remember()
        return run

    @abstractmethod
    def begin(self) -> None:
        """Start the tracker's run of the id `run_id`, or go on with it."""

    def scalars(self, statistics: Mapping[str, Mapping[str, float]], cur_nimg: int) -> None:
        if cur_nimg > self.known_nimg:
            super().scalars(statistics, cur_nimg)
            self.told['nimg'] = cur_nimg
            self.remember()

    def metrics(self, results: Mapping[str, float], cur_nimg: int) -> None:
        new = {name: value for name, value in results.items() if cur_nimg > self.known_metrics.get(name, 0)}
        if new:
            super().metrics(new, cur_nimg)
            self.told['metrics'].update(dict.fromkeys(new, cur_nimg))
            self.remember()

    def image(self, name: str, png_path: str | os.PathLike, cur_nimg: int) -> None:
        if cur_nimg > self.known_nimg:
            super().image(name, png_path, cur_nimg)

    def remember(self) -> None:
        """Record up to where the tracker knows the run, for when it is continued."""
        self.directory.write_tracker(self.told)

    @property
    def title(self) -> str:
        """The name of the run for people."""
        return f'{self.directory.path.resolve().name}-{self.run_id}'


def open_named(name: str | None, directory: RunDirectory, cur_nimg: int) -> NamedRun | None:
    """The tracker of `--track`, or None without one. A tracker that fails does not end the run: the reason is printed.

    Args:
        name: one of `TRACKERS`.
        directory: of the run.
        cur_nimg: where a continued run goes on.
    """
    if name is None:
        return None
    module, _colon, cls = TRACKERS[name].partition(':')
    try:
        return getattr(importlib.import_module(module), cls).open(directory, cur_nimg)
    except Exception as error:  # Of a library that talks to servers, any.
        print(left_out(name, error))
        return None


def left_out(name: str, error: Exception) -> str:
    """What is printed of a tracker that fails, which is once: it is not asked again."""
    return f'--track={name} does not work here, and the run goes on without it: {str(error) or type(error).__name__}'
