"""Methods: the arguments of a compression method, declared once, with what they mean for a run and for its loss."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any, ClassVar, overload

import torch
from training.loss import Loss
from training.networks import Discriminator, Generator

from stylegan2_compress import arguments, distributed
from stylegan2_compress.arguments import argument
from stylegan2_compress.embeddings import Embedding
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import devices
from stylegan2_compress.host.networks import init_arguments, student_of
from stylegan2_compress.host.precision import Precision, discriminator_for, generator_for
from stylegan2_compress.losses.features import TeacherPass
from stylegan2_compress.losses.steps import Steps
from stylegan2_compress.losses.terms import Summand, Term
from stylegan2_compress.pickles.networks import Networks
from stylegan2_compress.runs import resources
from stylegan2_compress.runs.plan import Plan
from stylegan2_compress.runs.resources import Resources

PHASES = ('Gmain', 'Greg', 'Gboth', 'Dmain', 'Dreg', 'Dboth')
MAIN_G = ('Gmain', 'Gboth')
# What the host's loops pass to every loss: no arguments for users.
_CONTRACT = ('self', 'device', 'G_mapping', 'G_synthesis', 'D', 'augment_pipe', 'terms')


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


class MethodLoss(Loss):
    """A loss for the host's loops and ours that is made of methods.

    Its keyword arguments are those of its `methods`; where two of them have one of the same name, both get it.

    A round of `accumulate_gradients` has three parts: `begin_round` and `end_round` are Python's, and `compute` is the
    device's. `compute` looks at nothing that changes from step to step but its arguments and what is on the device, and
    leaves behind gradients, tensors changed in place and `notes`, so that it can be recorded as a CUDA graph.

    Args:
        device: where the networks are.
        G_mapping, G_synthesis, D, augment_pipe: modules, each possibly wrapped in DistributedDataParallel.
        terms: further terms, behind those of the methods.
        given: arguments of the methods.

    Raises:
        UserError: an argument does not exist, is missing or makes no sense; or a file or embedding cannot be loaded.
    """

    methods: ClassVar[tuple[type[Method], ...]] = ()
    phases: ClassVar[tuple[str, ...]] = PHASES  # In the others it does nothing.
    sees_reals: ClassVar[bool] = True  # Else it has no discriminator, and our loop makes no real images for it.

    def __init__(
        self,
        device: torch.device,
        G_mapping: torch.nn.Module,
        G_synthesis: torch.nn.Module,
        D: torch.nn.Module | None = None,
        augment_pipe: torch.nn.Module | None = None,
        *,
        terms: Sequence[Term] = (),
        **given: Any,
    ):
        super().__init__()
        self.device = torch.device(device)
        self.G_mapping = G_mapping
        self.G_synthesis = G_synthesis
        self.D = D
        self.augment_pipe = augment_pipe
        self.precision = devices.precision(self.device)
        self.steps = Steps()
        _refuse_unknown(type(self), given)
        self.chosen = methods_of(type(self), given)
        self.judged_by = next((method.judge for method in self.chosen if method.judge is not None), None)
        loaded = resources.take()
        context = Context(self.device, G_mapping, G_synthesis, D, loaded)
        self.terms = [term for method in self.chosen for term in method.terms(context)] + list(terms)
        self.watched = sorted({name for term in self.terms for name in term.watched})
        loaded.release()
        self.is_first_round = True

    @classmethod
    def declarations(cls) -> tuple[type[Method], ...]:
        """The dataclasses whose fields are the loss's arguments."""
        return cls.methods

    def state_dict(self) -> dict:
        """What a continued run needs beside the networks: where the steps are, and what the terms keep."""
        return {'steps': self.steps.state_dict(), 'terms': [term.state_dict() for term in self.terms]}

    def load_state_dict(self, state: dict) -> None:
        self.steps.load_state_dict(state['steps'])
        for term, term_state in zip(self.terms, state['terms'], strict=True):
            term.load_state_dict(term_state)

    def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, sync, gain) -> None:
        """Add this phase's gradients to the networks' parameters; the contract of the host's `Loss`.

        Args:
            phase: Gmain, Greg, Gboth, Dmain, Dreg or Dboth.
            real_img, real_c: [N, C, H, W] in [-1, 1] and [N, c_dim].
            gen_z, gen_c: [N, z_dim] and [N, c_dim].
            sync: whether this is the last round of gradient accumulation, after which processes exchange gradients.
            gain: factor on the loss, the phase's interval under lazy regularisation.

        Raises:
            DivergedError: ten steps of this phase in a row had a loss that is not finite.
        """
        if phase not in PHASES:
            raise ValueError(f'There is no training phase {phase!r}.')
        if phase in self.phases:
            self.begin_round(phase, len(gen_z))
            self.compute(phase, real_img, real_c, gen_z, gen_c, sync, gain)
            self.end_round(phase, sync)

    def begin_round(self, phase: str, images: int) -> None:
        """Take note of what the round may change, count images, and tell the terms at the first round of a step."""
        self.steps.begin(self._averages(phase))
        if phase in MAIN_G:
            if self.is_first_round:
                for term in self.terms:
                    term.before_step(self.steps.nimg)
            self.steps.count(images)

    def compute(self, phase, real_img, real_c, gen_z, gen_c, sync, gain) -> None:
        """The forward and backward passes of a round; arguments as of `accumulate_gradients`."""
        raise NotImplementedError

    def notes(self) -> list[list]:
        """The lists that `compute` appends to."""
        return [*self.steps.notes(), *(note for term in self.terms for note in term.notes())]

    def obstacle(self, phase: str) -> str:
        """What keeps `compute` in this phase from being recorded as a CUDA graph at present; '' is nothing."""
        if type(self).accumulate_gradients is not MethodLoss.accumulate_gradients:
            return f'{type(self).__name__} computes its gradients in its own way'
        obstacles = (term.obstacle() for term in self.terms if term.takes_part_in(phase))
        return next(filter(None, obstacles), '')

    def _averages(self, phase: str) -> Iterable[torch.Tensor]:
        """What a phase's forward passes change beside gradients: the average of W, and what its terms keep."""
        yield from (buffer for name, buffer in self.G_mapping.named_buffers() if name.endswith('w_avg'))
        for term in self.terms:
            if term.takes_part_in(phase):
                yield from term.averages()

    def end_round(self, phase: str, sync: bool) -> None:
        """End a round; after the last one of a phase decide whether its step is used.

        Raises:
            DivergedError: ten steps of this phase in a row had a loss that is not finite.
        """
        modules = (self.G_mapping, self.G_synthesis) if phase.startswith('G') else (self.D,)
        if phase in MAIN_G:
            self.is_first_round = sync
        if sync:
            parameters = (parameter for module in modules if module is not None for parameter in module.parameters())
            used = self.steps.end(phase, parameters)
            if used and phase in MAIN_G:
                for term in self.terms:
                    term.after_step()

    def _report(self, summand: Summand) -> None:
        self.steps.report(f'Loss/{summand.name}', summand.value)

    @overload
    def _add(self, loss: torch.Tensor, summands: Iterable[Summand]) -> torch.Tensor: ...

    @overload
    def _add(self, loss: None, summands: Iterable[Summand]) -> torch.Tensor | None: ...

    def _add(self, loss: torch.Tensor | None, summands: Iterable[Summand]) -> torch.Tensor | None:
        """The loss with the summands added to it; None stands for no loss yet."""
        for summand in summands:
            self._report(summand)
            if summand.weight is None:
                continue
            self.steps.check(summand.label or summand.name.replace('/', ' ', 1), summand.value)
            weighted = summand.weight * summand.value
            loss = weighted if loss is None else loss + weighted
        return loss


def has_discriminator(loss_class: type) -> bool:
    """Whether a loss trains a discriminator and looks at real images, as all but some of ours do."""
    return getattr(loss_class, 'sees_reals', True)


def combined(name: str, losses: Sequence[type], with_discriminator: type[MethodLoss]) -> type[MethodLoss]:
    """A loss of this name with the methods of several losses.

    Args:
        losses: whose methods it has, in this order; what two of them share once.
        with_discriminator: what the loss is a subclass of if one of the losses is; else it is one as the first is.

    Raises:
        AttributeError: one of them is no `MethodLoss`.
    """
    for loss in losses:
        if not (isinstance(loss, type) and issubclass(loss, MethodLoss)):
            raise AttributeError(f'{loss.__name__} cannot be combined with others')
    base: Any = with_discriminator
    if not any(issubclass(loss, with_discriminator) for loss in losses):
        base = next(parent for parent in losses[0].__mro__ if MethodLoss in parent.__bases__)
    methods = dict.fromkeys(method for loss in losses for method in loss.methods)
    return type(name, (base,), {'methods': tuple(methods), '__doc__': f'The methods of {name}.'})


# --- Arguments of a loss ----------------------------------------------------------------------------------------------


def accepted(loss_class: type) -> dict[str, Any]:
    """The keyword arguments that a loss class takes beyond the host's contract, with their defaults.

    Of any class they are those of its signature, and of its bases' as far as it passes keyword arguments on; of a
    `MethodLoss` those that its methods declare. An argument without a default has `dataclasses.MISSING`.
    """
    together: dict[str, Any] = {}
    for parent in loss_class.__mro__:
        if parent is MethodLoss:
            declared = arguments.declared(loss_class.declarations())
            return together | {name: each.default for name, each in declared.items() if name not in together}
        if '__init__' not in vars(parent):
            continue
        parameters = inspect.signature(parent.__init__).parameters.values()
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                default = MISSING if parameter.default is parameter.empty else parameter.default
                if parameter.name not in _CONTRACT:
                    together.setdefault(parameter.name, default)
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            break
    return together


def offered(loss_class: type) -> list[str]:
    """The arguments of a loss class that users give: those that it accepts, without what the run fills in."""
    filled_in = {
        name
        for declaration in _declarations(loss_class)
        for name, each in arguments.fields_of(declaration).items()
        if each.metadata['argument'].internal
    }
    return [name for name in accepted(loss_class) if name not in filled_in]


def parse(loss_class: type, name: str, text: str) -> Any:
    """The value that a text gives to an argument of a loss class."""
    for declaration in _declarations(loss_class):
        if name in arguments.fields_of(declaration):
            return arguments.parse(declaration, name, text)
    return arguments.parse_freely(text)


def methods_of(loss_class: type, given: Mapping[str, Any]) -> list[Method]:
    """The methods of a loss class with their share of the given arguments; none of a class that has no methods.

    Raises:
        UserError: a value is not allowed, or changes nothing in any of them.
    """
    methods = [declaration(**arguments.pick(declaration, given)) for declaration in _declarations(loss_class)]
    idle = [each.idle() for each in methods]
    for name, sentence in ((name, sentence) for each in idle for name, sentence in each.items()):
        declares = [name in arguments.fields_of(type(each)) for each in methods]
        if all(name in of_one for of_one, is_here in zip(idle, declares, strict=True) if is_here):
            raise UserError(sentence)
    return methods


def require_lasting(loss_class: type, methods: Sequence[Method]) -> None:
    """Refuse a loss of which nothing is left in the end.

    Raises:
        UserError: it has no discriminator, and the weights of all its methods fall to 0.
    """
    objectives = [each for each in methods if each.is_objective]
    falling = {each.fading: getattr(each, each.fading) for each in objectives if each.fading}
    given = [f'{name}={kimg:g}' for name, kimg in falling.items() if kimg is not None]
    if given and len(given) == len(objectives) and not has_discriminator(loss_class):
        leave = 'leaves' if len(given) == 1 else 'leave'
        raise UserError(
            f'--loss-arg {" and ".join(given)} {leave} nothing to train on in the end: leave one out, or add a method, '
            'such as --loss=stylegan2_compress.ImageDistillationLoss+….'
        )


def require(loss: str, accepted: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse a loss without an argument that it needs."""
    missing = [name for name, default in accepted.items() if default is MISSING and name not in given]
    if missing:
        options = ', '.join('--teacher' if name == 'teacher' else f'--loss-arg {name}=…' for name in missing)
        raise UserError(f'--loss={loss} needs {options}.')


def _declarations(loss_class: type) -> tuple[type[Method], ...]:
    return loss_class.declarations() if issubclass(loss_class, MethodLoss) else ()


def _refuse_unknown(loss_class: type[MethodLoss], given: Mapping[str, Any]) -> None:
    declared = arguments.declared(loss_class.declarations())
    for name in given:
        if name not in declared:
            raise UserError(
                f'--loss-arg {name}=… is not an argument of {loss_class.__name__}, which takes {", ".join(declared)}.'
            )
    require(loss_class.__name__, {name: each.default for name, each in declared.items()}, given)
