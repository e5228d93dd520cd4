"""A run before it starts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import dnnlib
import torch

from stylegan2_compress import distributed
from stylegan2_compress.embeddings import Embedding
from stylegan2_compress.runs.resources import Resources


@dataclass
class Plan:
    """All that decides a run, with what was read to decide it.

    Attributes:
        name: of the run directory, after its number.
        args: keyword arguments of the training loop, without `run_dir` and `rank`; what `training_options.json` says.
        resources: network files and embeddings.
        student: contents of the network pickle that the run starts from, where that is yet to be written.
        choose: makes the G and G_ema of `student`, where that may take long; until then, it has others of their shapes.
        student_from: how it is made from the teacher, by the names that `inputs.json` has for it.
        chosen: the options that were given, as text by their names on the command line.
        notes: sentences for the user that are printed when the run starts.
    """

    name: str
    args: dnnlib.EasyDict
    resources: Resources = field(default_factory=Resources)
    student: dict | None = None
    choose: Callable[[], Mapping] | None = None
    student_from: dict[str, str] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def embedding(self, spec: str) -> Embedding:
        """The embedding network that a spec names, on the run's device.

        Raises:
            UserError: it cannot be loaded, or does not take the images of the run, as far as their size is known.
        """
        embedding = self.resources.embedding(spec, self.device)
        resolution = self.args.get('training_set_kwargs', {}).get('resolution')
        if resolution is not None:
            embedding.require_images(resolution)
        return embedding

    @property
    def device(self) -> torch.device:
        """Where the run's networks will be, as far as this process has to know: the CPU if others train."""
        return distributed.named_device(self.args.get('device') if self.args['num_gpus'] == 1 else 'cpu')
