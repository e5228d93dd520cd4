"""What may be given for an option: a name among some, a number in a range."""

import math
from collections.abc import Iterable

from stylegan2_compress.errors import UserError


def require_choice(option: str, value, choices: Iterable[str]) -> None:
    """Refuse a name that does not exist.

    Raises:
        UserError: the value is none of the choices.
    """
    choices = list(choices)
    if value not in choices:
        raise UserError(f'{_given(option, value)} does not exist; there are {", ".join(choices)}.')


def require_number(
    option: str, value, least: float = -math.inf, most: float = math.inf, *, above: bool = False
) -> None:
    """Refuse what is not a finite number from `least` to `most`, without `least` itself for `above`.

    Raises:
        UserError: the value is none, or of another type.
    """
    if not is_number(value, least, most) or (above and value == least):
        wanted = ''
        if above:
            wanted = f' above {least:g}'
        elif least > -math.inf:
            wanted = f' from {least:g} ' + (f'to {most:g}' if most < math.inf else 'on')
        raise UserError(f'{_given(option, value)} must be a number{wanted}.')


def require_whole_number(option: str, value, least: int, of: str = '') -> None:
    """Refuse what is not a whole number from `least` on; `of` says what it counts.

    Raises:
        UserError: the value is none, or of another type.
    """
    if not (isinstance(value, int) and value >= least):
        counted = f' of {of}' if of else ''
        raise UserError(f'{_given(option, value)} must be a whole number{counted}, at least {least}.')


def is_number(value, least: float = -math.inf, most: float = math.inf) -> bool:
    """Whether this is a finite number from `least` to `most`."""
    return isinstance(value, (int, float)) and math.isfinite(value) and least <= value <= most


def _given(option: str, value) -> str:
    return f'{option}={value:g}' if isinstance(value, float) else f'{option}={value}'
