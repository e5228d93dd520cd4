"""Arguments that are declared once, as fields of a dataclass, and read by all who need them.

    @dataclass(frozen=True)
    class Blur(Method):
        radius: float = argument('Radius of the blur.', 1.0, least=0, unit='pixels')

The declaration serves the check (`check`: one sentence, exit status 2), the parsing of `KEY=VALUE` (`parse`), the
options of a command (`command_options`), the table in the documents (`table`) and, as a dictionary of what was given,
`training_options.json`.
"""

import ast
import dataclasses
import functools
import inspect
import json
import math
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, TypeVar

import click

from stylegan2_compress.errors import UserError

Command = TypeVar('Command', bound=Callable)
_NO_DEFAULT = dataclasses.MISSING
LAST_SEED = 2**32 - 1  # That NumPy's older generator takes, which the host draws from.


@dataclasses.dataclass(frozen=True)
class Argument:
    """What is known of an argument beside its name, type and default; see `argument`."""

    help: str
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    choices: Iterable | None = None
    unit: str = ''
    paper: Any = None
    default_text: str = ''
    internal: bool = False
    metavar: str | None = None
    flag: bool = False
    short: str | None = None


def argument(
    help: str,
    default: Any = _NO_DEFAULT,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    choices: Iterable | None = None,
    unit: str = '',
    paper: Any = None,
    default_text: str = '',
    internal: bool = False,
    metavar: str | None = None,
    flag: bool = False,
    short: str | None = None,
) -> Any:
    """Declare an argument: the value of a field of a dataclass, whose annotation says its type.

    Types are `str`, `int`, `float` and `bool`, each possibly with `None`, and tuples or sequences of one of them.

    Args:
        help: one line about what it is, for `--help` and the documents.
        default: without one, the argument is required.
        least, most: bounds of a number, or of each number of several; the bounds themselves are allowed.
        above: a bound of a number that is not allowed itself.
        choices: the names there are; of a table, its keys.
        unit: what a number counts or measures: 'images', 'steps'.
        paper: the paper's value, where the default is another.
        default_text: how the default reads where the value says nothing to a reader.
        internal: filled in by the run, so no argument for users.
        metavar, flag, short: of the command's option: what stands for the value, whether there is no value, and its
            one-letter name.
    """
    about = Argument(help, least, most, above, choices, unit, paper, default_text, internal, metavar, flag, short)
    if isinstance(default, (list, dict)):
        raise TypeError(f'The default {default!r} could be changed: give a tuple.')
    return dataclasses.field(default=default, kw_only=True, metadata={'argument': about})


def device_argument(help: str = 'Where to compute:') -> Any:
    """Declare the device of a command, which `devices.choose` understands."""
    default_text = 'cuda where there is one, else cpu'
    return argument(f'{help} cpu, cuda, cuda:1, mps.', None, default_text=default_text, metavar='NAME')


def again(cls: type, name: str, **changed: Any) -> Any:
    """The argument of another dataclass once more, changed in some respects (its `default`, its `help`)."""
    original = fields_of(cls)[name]
    about = dataclasses.asdict(original.metadata['argument'])
    default = changed.pop('default', original.default)
    return argument(default=default, **{**about, **changed})


@functools.cache
def fields_of(cls: type) -> dict[str, dataclasses.Field]:
    """The fields of a dataclass that are arguments, by name; those of the class itself before those of its bases."""
    declared_here = {each.name: each for each in dataclasses.fields(cls) if 'argument' in each.metadata}
    order = [name for parent in cls.__mro__ for name in inspect.get_annotations(parent)]
    return {name: declared_here[name] for name in dict.fromkeys(order) if name in declared_here}


def users_fields(cls: type) -> dict[str, dataclasses.Field]:
    """Those of `fields_of` that users give."""
    return {name: each for name, each in fields_of(cls).items() if not each.metadata['argument'].internal}


# --- Types ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Kind:
    """An annotation, taken apart."""

    scalars: tuple[type, ...]  # Of str, int, float, bool.
    optional: bool
    several: bool

    @property
    def is_text(self) -> bool:
        return self.scalars == (str,)


@functools.cache
def kinds_of(cls: type) -> dict[str, Kind]:
    """The kind of each argument of a dataclass, by name."""
    hints = typing.get_type_hints(cls)
    return {name: _kind(hints[name]) for name in fields_of(cls)}


def _kind(hint: Any) -> Kind:
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, UnionType) else (hint,)
    scalars, several = [], False
    for member in members:
        if typing.get_origin(member) is not None:
            several = True
            scalars += [each for each in typing.get_args(member) if each is not Ellipsis]
        elif member is not NoneType:
            scalars.append(member)
    return Kind(tuple(dict.fromkeys(scalars)), NoneType in members, several)


# --- Parsing ----------------------------------------------------------------------------------------------------------


def split_text(option: str, text: str) -> tuple[str, str]:
    """Name and value of `KEY=VALUE`.

    Raises:
        UserError: the text has another form.
    """
    name, equals, value = text.partition('=')
    if not equals or not name.isidentifier():
        raise UserError(f'{option} {text} must have the form KEY=VALUE.')
    return name, value


def parse(cls: type, name: str, text: str) -> Any:
    """The value that a text gives to an argument of a dataclass.

    Text stays text where only text is wanted. Everything else is JSON (numbers, `true`, `false`, `null`, lists), or the
    same as Python writes it; what is none of that stays text as well, for `check` to refuse.
    """
    kind = kinds_of(cls)[name]
    if kind.is_text and not (text[:1] == text[-1:] == '"' or text[:1] == '[' * kind.several or text == 'null'):
        return text
    return parse_freely(text)


def parse_freely(text: str) -> Any:
    """JSON or a literal of Python where it is one, such as `.5` and `True`, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return json.loads(json.dumps(ast.literal_eval(text)))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


# --- Checks -----------------------------------------------------------------------------------------------------------


def check(values: Any, prefix: str = '--') -> None:
    """Refuse values of a dataclass that their declarations do not allow.

    Args:
        values: the dataclass.
        prefix: of names in the error: '--' for options of commands, '--loss-arg ' for arguments of losses.

    Raises:
        UserError: one sentence with option, value and what is allowed.
    """
    for name, each in fields_of(type(values)).items():
        option = prefix + (option_name(name) if prefix == '--' else name)
        _check(option, getattr(values, name), kinds_of(type(values))[name], each.metadata['argument'])


def _check(option: str, value: Any, kind: Kind, about: Argument) -> None:
    if (value is None and kind.optional) or about.internal:
        return
    is_sequence = isinstance(value, (list, tuple))
    if kind.several and is_sequence:
        for each in value:
            _check_one(option, each, kind, about)
    else:
        _check_one(option, value, kind, about)


def _check_one(option: str, value: Any, kind: Kind, about: Argument) -> None:
    if Any in kind.scalars:
        return
    if bool in kind.scalars:
        if value not in (True, False):
            raise UserError(f'{option}={value} must be true or false.')
    elif str in kind.scalars and isinstance(value, str):
        if about.choices is not None:
            require_choice(option, value, about.choices)
    elif float in kind.scalars:
        require_number(option, value, max(about.least, about.above), about.most, above=about.above > -math.inf)
    elif int in kind.scalars:
        require_whole_number(option, value, about.least, about.unit, about.most)
    else:
        raise UserError(f'{option}={value} must be text.')


def require_choice(option: str, value: Any, choices: Iterable) -> None:
    """Refuse a name that does not exist.

    Raises:
        UserError: the value is not one of the choices.
    """
    choices = list(choices)
    if value not in choices:
        raise UserError(f'{_given(option, value)} does not exist; there are {", ".join(map(str, choices))}.')


def require_number(
    option: str, value: Any, least: float = -math.inf, most: float = math.inf, *, above: bool = False
) -> None:
    """Refuse anything but a finite number from `least` to `most`, without `least` itself for `above`.

    Raises:
        UserError: the value is no such number, or of another type.
    """
    if not is_number(value, least, most) or (above and value == least):
        wanted = ''
        if above:
            wanted = f' above {least:g}' + (f' and at most {most:g}' if most < math.inf else '')
        elif least > -math.inf:
            wanted = f' from {least:g} ' + (f'to {most:g}' if most < math.inf else 'on')
        raise UserError(f'{_given(option, value)} must be a number{wanted}.')


def require_whole_number(
    option: str, value: Any, least: float = -math.inf, unit: str = '', most: float = math.inf
) -> None:
    """Refuse anything but a whole number from `least` to `most`; `unit` is what it counts.

    Raises:
        UserError: the value is no such number, or of another type.
    """
    if not (isinstance(value, int) and not isinstance(value, bool) and least <= value <= most):
        counted = f' of {unit}' if unit else ''
        wanted = f', at least {least:g}' if least > -math.inf else ''
        wanted += f'{" and" if wanted else ","} at most {most:.0f}' if most < math.inf else ''
        raise UserError(f'{_given(option, value)} must be a whole number{counted}{wanted}.')


def is_number(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    """Whether this is a finite number from `least` to `most`."""
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and least <= value <= most
    )


def _given(option: str, value: Any) -> str:
    return f'{option}={value:g}' if isinstance(value, float) else f'{option}={value}'


# --- Command lines ----------------------------------------------------------------------------------------------------


def command_options(cls: type) -> Callable[[Command], Command]:
    """A decorator that gives a click command an option for each argument of a dataclass, in their order."""

    def decorate(command: Command) -> Command:
        for name in reversed(users_fields(cls)):
            names, attributes = _option(cls, name)
            command = click.option(*names, **attributes)(command)
        return command

    return decorate


def click_options(cls: type) -> list[click.Option]:
    """The same options as objects, for a command that exists already."""
    return [
        click.Option(names, **attributes) for names, attributes in (_option(cls, name) for name in users_fields(cls))
    ]


def option_name(name: str) -> str:
    """The name of an argument's option, without its dashes. A field that would be a keyword ends in an underscore."""
    return name.rstrip('_').replace('_', '-')


def _option(cls: type, name: str) -> tuple[list[str], dict[str, Any]]:
    """Names and attributes of an argument's option. Values are checked by `check`, not by click."""
    default, kind = fields_of(cls)[name].default, kinds_of(cls)[name]
    about = fields_of(cls)[name].metadata['argument']
    singular = name.removesuffix('s') if kind.several else name
    names = [f'--{option_name(singular)}', name, *([about.short] if about.short else [])]
    attributes: dict[str, Any] = dict(help=about.help + _default_in_help(default, about))
    if about.flag:
        return names, dict(attributes, is_flag=True)
    scalar = next(each for each in (bool, float, int, str) if each in kind.scalars)
    attributes.update(type=scalar, metavar=about.metavar or _METAVARS[scalar])
    if kind.several:
        attributes.update(multiple=True)
        if default is None:  # Click has an empty tuple for what was not given.
            attributes.update(callback=lambda _context, _option, values: values or None)
    return names, dict(attributes, required=True) if default is _NO_DEFAULT else dict(attributes, default=default)


_METAVARS = {bool: 'BOOL', float: 'NUMBER', int: 'N', str: 'TEXT'}


def _default_in_help(default: Any, about: Argument) -> str:
    text = about.default_text or _default_as_text(default)
    return f'  [default: {text}]' if text else ''


def _default_as_text(default: Any) -> str:
    if default is _NO_DEFAULT or default is None or default == () or default is False:
        return ''
    return ', '.join(map(str, default)) if isinstance(default, tuple) else str(default)


def given_options(values: Any, without: Collection[str] = ()) -> dict[str, str]:
    """The options that give a dataclass's arguments their values, with these as text, where they are not the defaults.

    Args:
        values: an instance.
        without: names of arguments to leave out.
    """
    given = {}
    for name, each in users_fields(type(values)).items():
        value = getattr(values, name)
        if name not in without and value != each.default:
            given[_option(type(values), name)[0][0]] = value_as_text(value)
    return given


def value_as_text(value: Any) -> str:
    """A value as one might give it on a command line: true, 0.8, a,b, key=1,other=2."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ','.join(f'{key}={value_as_text(each)}' for key, each in value.items())
    if isinstance(value, (tuple, list)):
        return ','.join(map(value_as_text, value))
    return f'{value:g}' if isinstance(value, float) else str(value)


# --- Documents --------------------------------------------------------------------------------------------------------


def table(cls: type) -> str:
    """The arguments of a dataclass as a Markdown table: name, meaning, default."""
    lines = ['| argument | meaning | default |', '| --- | --- | --- |']
    for name, each in users_fields(cls).items():
        about = each.metadata['argument']
        default = about.default_text or _markdown_default(each.default)
        if about.paper is not None:
            default += f' (paper: {about.paper})'
        meaning = about.help
        if about.choices is not None:
            meaning += ' (' + ', '.join(f'`{choice}`' for choice in about.choices) + ')'
        lines.append(f'| `{name}` | {meaning} | {default} |'.replace('||', '| |'))
    return '\n'.join(lines)


def _markdown_default(default: Any) -> str:
    if default is _NO_DEFAULT:
        return 'required'
    if isinstance(default, bool):
        return f'`{str(default).lower()}`'
    text = _default_as_text(default)
    return f'`{text}`' if text else ''


# --- From what was given ----------------------------------------------------------------------------------------------


def pick(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given values that are arguments of a dataclass."""
    return {name: value for name, value in given.items() if name in fields_of(cls)}


def declared(classes: Sequence[type]) -> dict[str, dataclasses.Field]:
    """The arguments of several dataclasses by name; where they share one, that of the first which requires it."""
    together: dict[str, dataclasses.Field] = {}
    for cls in classes:
        for name, each in fields_of(cls).items():
            if name not in together or each.default is _NO_DEFAULT:
                together[name] = each
    return together
