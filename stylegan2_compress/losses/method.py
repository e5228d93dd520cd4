"""Methods: the arguments of a compression method, declared once, with what they mean for a run and for its loss."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from training.networks import Discriminator, Generator

from stylegan2_compress import arguments, distributed
from stylegan2_compress.arguments import argument
from stylegan2_compress.embeddings import Embedding
from stylegan2_compress.host import devices
from stylegan2_compress.host.networks import init_arguments, student_of
from stylegan2_compress.host.precision import Precision, discriminator_for, generator_for
from stylegan2_compress.losses.features import TeacherPass
from stylegan2_compress.losses.terms import Term
from stylegan2_compress.pickles.networks import Networks
from stylegan2_compress.runs.plan import Plan
from stylegan2_compress.runs.resources import Resources


@dataclass(frozen=True)
class Context:
    """What a method's terms are made from: the modules of the run, and what was loaded for it.

    Attributes:
        device: where the networks are.
        G_mapping, G_synthesis, D: modules, each possibly wrapped in DistributedDataParallel; D may be None.
        resources: network files and embeddings.
    """

    device: torch.device
    G_mapping: torch.nn.Module
    G_synthesis: torch.nn.Module
    D: torch.nn.Module | None
    resources: Resources
    _teachers: dict[str, Generator] = field(default_factory=dict)
    _passes: dict[tuple[str, float], TeacherPass] = field(default_factory=dict)

    @property
    def networks(self) -> Networks:
        """Contents of network files by path or URL, on the CPU when they are first read."""
        return self.resources.networks

    @property
    def precision(self) -> dict[str, bool]:
        """Keyword arguments of the networks' forward passes."""
        return devices.precision(self.device)

    def teacher(self, file: str) -> Generator:
        """The G_ema of a network file, frozen, on the device, and in the precision of the run."""
        if file not in self._teachers:
            self._teachers[file] = generator_for(self.networks[file]['G_ema'], self._of_the_run(), self.device)
        return self._teachers[file]

    def discriminator(self, file: str) -> Discriminator:
        """A copy of the D of a network file (of a pair the student's), frozen, likewise."""
        return discriminator_for(student_of(self.networks[file]['D']), self._of_the_run(), self.device)

    def _of_the_run(self) -> Precision:
        return Precision.of_synthesis(init_arguments(distributed.unwrapped(self.G_synthesis))[1])

    def teacher_pass(self, file: str, truncation_psi: float) -> TeacherPass:
        """The images of that `teacher` for the student's latents, made once for all terms."""
        key = file, truncation_psi
        if key not in self._passes:
            self._passes[key] = TeacherPass(self.teacher(file), self.precision, truncation_psi)
        return self._passes[key]

    def embedding(self, spec: str) -> Embedding:
        """The embedding that a spec names, on the device."""
        return self.resources.embedding(spec, self.device)


@dataclass(frozen=True)
class Method:
    """A compression method. Its arguments are fields made by `arguments.argument`.

    A subclass overrides what it needs of `check`, `adapt` and `terms`.

    Attributes:
        judge: `judge(D, images, c, **precision)` gives logits [N, 1] by the suffix of their statistics, of a method
            that puts several discriminators into D; '' is the student's. None leaves D to the loss.
        fading: the argument that says after how many thousands of images the method's weight is 0; '' is none.
        is_objective: whether a generator learns to make images by the method.

    Raises:
        UserError: an argument is not what its declaration allows.
    """

    judge: ClassVar[Callable[..., dict[str, torch.Tensor]] | None] = None
    fading: ClassVar[str] = ''
    is_objective: ClassVar[bool] = True

    def __post_init__(self):
        arguments.check(self, '--loss-arg ')

    def idle(self) -> Mapping[str, str]:
        """Arguments that were given and change nothing here, each with the sentence that refuses it.

        Another method of the loss may use one of the same name, which is then nothing to refuse.
        """
        return {}

    def check(self, plan: Plan) -> Iterable[str]:
        """Refuse a run that could not train, before anything is written.

        Returns:
            Warnings about a run that can, a sentence each.

        Raises:
            UserError: the arguments do not fit teacher, data or batch.
        """
        return ()

    def adapt(self, plan: Plan) -> None:
        """Change the arguments of the training loop, `plan.args`: the networks of the run, say."""

    def terms(self, context: Context) -> Sequence[Term]:
        """What the method adds to the losses."""
        return ()


@dataclass(frozen=True)
class PairedMethod(Method):
    """A method that looks at what the teacher makes of the student's latents."""

    teacher: str = argument('Network pickle whose G_ema is matched.', default_text='`--teacher`')
    truncation_psi: float = argument("Of the teacher's images; 1 is the distribution it was trained for.", 1)

    def teacher_pass(self, context: Context) -> TeacherPass:
        return context.teacher_pass(self.teacher, self.truncation_psi)
