"""What a metric is."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Setting:
    """What all metrics of one evaluation share."""

    training_set_kwargs: dict  # Of the host's dataset, as its calc_metrics.py makes them.
    device: torch.device
    teacher: torch.nn.Module  # The first generator.
    reals: dict = field(default_factory=dict)  # Features of all images of the data, by the embedding's fingerprint.
    latest: dict = field(default_factory=dict)  # What was computed last, for metrics that look at the same images.


class Metric:
    """One kind of number, or several that come from the same images.

    Attributes:
        name: with the number of images in it; the names of its results begin with it.
        of_teacher: whether there is a number for the teacher itself.
    """

    name: str
    of_teacher = True

    def prepare(self, setting: Setting) -> None:
        """Load what the metric needs, before anything is measured.

        Raises:
            UserError: it cannot be had.
        """
        self.setting = setting

    def facts(self) -> dict:
        """What else a record of it has to say."""
        return {}

    def measure(self, G: torch.nn.Module, seed: int) -> dict[str, float]:
        """The results, by name, for a generator on the setting's device. Shows progress."""
        raise NotImplementedError
