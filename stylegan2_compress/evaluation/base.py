"""The interface of metrics."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from training.networks import Generator


@dataclass(frozen=True)
class Setting:
    """What all metrics of one evaluation share."""

    training_set_kwargs: dict  # Arguments of the host's data set, as its calc_metrics.py makes them.
    device: torch.device
    teacher: 'Generator'  # The first generator.
    teacher_sha256: str = ''  # Of its file, in hexadecimal; not known in training.
    reals: dict = field(default_factory=dict)  # Features of all images of the data, by the embedding's fingerprint.
    latest: dict = field(default_factory=dict)  # The features computed last, for metrics of the same images.


class Metric(ABC):
    """One number of a generator, or several numbers of the same images.

    `--metrics` takes the importable dotted name of a subclass, which it constructs as `Class(samples)`.

    Attributes:
        name: includes the number of images. It is part of a file name, and the names of results begin with it.
        of_teacher: whether the teacher itself is measured, too.
        random_noise: whether networks get random noise, as in the host's metrics; exports have theirs built in.
        mirrors: whether the data's images count mirrored, too, where that is asked for.
        samples: number of images that the user asked for; None for the metric's own number.
        setting: of the evaluation; there after `prepare`.
    """

    name: str
    of_teacher = True
    random_noise = False
    mirrors = False

    def __init__(self, samples: int | None = None):
        self.samples = samples

    def prepare(self, setting: Setting) -> None:
        """Load what the metric needs, before anything is measured.

        Raises:
            UserError: it is not available.
        """
        self.setting = setting

    def facts(self) -> dict[str, object]:
        """Further entries for the records of its results."""
        return {}

    @abstractmethod
    def measure(self, G: 'Generator', seed: int) -> dict[str, float]:
        """Results by name for a generator in eval mode on the setting's device. Shows progress."""
