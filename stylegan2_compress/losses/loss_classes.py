"""What there is to know of a loss class before it is constructed: its arguments, its methods, whether it has a D."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from typing import Any

from stylegan2_compress import arguments
from stylegan2_compress.errors import UserError
from stylegan2_compress.losses.method import Method

# What the host's loops pass to every loss: no arguments for users.
_CONTRACT = ('self', 'device', 'G_mapping', 'G_synthesis', 'D', 'augment_pipe', 'terms')


def declarations_of(loss_class: Any) -> Sequence[type[Method]]:
    """The methods of a loss that is made of them (`MethodLoss`), whose fields are its arguments; else none."""
    return loss_class.declarations() if hasattr(loss_class, 'declarations') else ()


def has_discriminator(loss_class: type) -> bool:
    """Whether a loss trains a discriminator and looks at real images, as all but some of ours do."""
    return getattr(loss_class, 'sees_reals', True)


def accepted(loss_class: type) -> dict[str, Any]:
    """The keyword arguments that a loss class takes beyond the host's contract, with their defaults.

    Of any class they are those of its signature, and of its bases' as far as it passes keyword arguments on; of a
    `MethodLoss` those that its methods declare. An argument without a default has `dataclasses.MISSING`.
    """
    together: dict[str, Any] = {}
    for parent in loss_class.__mro__:
        if '__init__' not in vars(parent):
            continue
        parameters = inspect.signature(parent.__init__).parameters.values()
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                default = MISSING if parameter.default is parameter.empty else parameter.default
                if parameter.name not in _CONTRACT:
                    together.setdefault(parameter.name, default)
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            return together
    declared = arguments.declared(declarations_of(loss_class))
    return together | {name: each.default for name, each in declared.items() if name not in together}


def offered(loss_class: type) -> list[str]:
    """The arguments of a loss class that users give: those that it accepts, without what the run fills in."""
    filled_in = {
        name
        for declaration in declarations_of(loss_class)
        for name, each in arguments.fields_of(declaration).items()
        if each.metadata['argument'].internal
    }
    return [name for name in accepted(loss_class) if name not in filled_in]


def parse(loss_class: type, name: str, text: str) -> Any:
    """The value that a text gives to an argument of a loss class."""
    for declaration in declarations_of(loss_class):
        if name in arguments.fields_of(declaration):
            return arguments.parse(declaration, name, text)
    return arguments.parse_freely(text)


def methods_of(loss_class: type, given: Mapping[str, Any]) -> list[Method]:
    """The methods of a loss class with their share of the given arguments; none of a class that has no methods.

    Raises:
        UserError: a value is not allowed, or changes nothing in any of them.
    """
    methods = [declaration(**arguments.pick(declaration, given)) for declaration in declarations_of(loss_class)]
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


def refuse_unknown(loss_class: type, given: Mapping[str, Any]) -> None:
    """Refuse arguments that no method of a loss class declares, and a loss without those that one needs.

    Raises:
        UserError: with the name of the argument.
    """
    declared = arguments.declared(declarations_of(loss_class))
    for name in given:
        if name not in declared:
            raise UserError(
                f'--loss-arg {name}=… is not an argument of {loss_class.__name__}, which takes {", ".join(declared)}.'
            )
    require(loss_class.__name__, {name: each.default for name, each in declared.items()}, given)
