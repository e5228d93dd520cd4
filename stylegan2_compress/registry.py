"""Objects by name: those in a table, and anything importable, as the host's class-name registry finds its classes."""

import importlib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from stylegan2_compress.arguments import require_choice
from stylegan2_compress.errors import UserError

Entry = TypeVar('Entry')


def lookup(option: str, name: str, table: Mapping[str, Entry]) -> Entry:
    """The entry of a table, or the object of an importable dotted name such as `my_module.my_criterion`.

    Args:
        option: what the name was given for, such as `--criterion`, for the error.
        name: a key of the table, or `module.attribute`.
        table: the entries of this package by name.

    Raises:
        UserError: there is no such entry, or the name cannot be imported.
    """
    if name not in table and '.' in name:
        return import_named(option, name, table)
    require_choice(option, name, table)
    return table[name]


def import_named(option: str, name: str, existing: Iterable[str]):
    """The object of an importable dotted name.

    Args:
        option: what the name was given for, for the error.
        name: `module.attribute`; the module may be anywhere on Python's path.
        existing: names that this package has, for the error.

    Raises:
        UserError: there is no such module or attribute. Where the module was left out, the name that was meant is said.
    """
    existing = list(existing)
    module, _dot, attribute = name.rpartition('.')
    if not module:
        raise UserError(
            f'{option}={name} cannot be imported ({_what_to_say(attribute, existing)}); there are '
            f'{", ".join(existing)}.'
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f'{option}={name} cannot be imported ({error}); there are {", ".join(existing)}.') from error


def _what_to_say(attribute: str, existing: list[str]) -> str:
    """The way out for a name without a module: the shortest of the names that begin like it after their module."""
    beginning = attribute.lower()
    alike = [each for each in existing if each.rpartition('.')[2].lower().startswith(beginning)]
    if not beginning or not alike:
        return 'it names no module'
    return f'say {min(alike, key=len)}'
