"""Losses that are made of methods, and what the loops ask of them."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, overload

import torch
from training.loss import Loss

from stylegan2_compress.host import devices
from stylegan2_compress.losses.loss_classes import methods_of, refuse_unknown
from stylegan2_compress.losses.method import Context, Method
from stylegan2_compress.losses.steps import Steps
from stylegan2_compress.losses.terms import Summand, Term
from stylegan2_compress.runs import resources

PHASES = ('Gmain', 'Greg', 'Gboth', 'Dmain', 'Dreg', 'Dboth')
MAIN_G = ('Gmain', 'Gboth')


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
        refuse_unknown(type(self), given)
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
            weighted = summand.weight * summand.value
            self.steps.check(summand.label or summand.name.replace('/', ' ', 1), weighted)
            loss = weighted if loss is None else loss + weighted
        return loss


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
