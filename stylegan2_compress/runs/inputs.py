"""What a run reads: the arguments that name it, and what else `inputs.json` has. Nothing here imports torch."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# Arguments of a loop that name what it reads.
DATA = ('training_set_kwargs.path', 'loss_kwargs.training_set_kwargs.path')
NETWORKS = ('loss_kwargs.teacher', 'resume_pkl')
FILES = ('loss_kwargs.statistics',)
NAMES = (*DATA, *NETWORKS, *FILES)

# How the run's own student was made: of which contents, unless they are the loss's teacher's, too.
TEACHER, RATIO, CRITERION = 'student.teacher', 'student.ratio', 'student.criterion'
STUDENT = (TEACHER, RATIO, CRITERION)

DIRECTORY = 'directory'  # That relative paths start from.
TORCHRUN = 'torchrun'  # Under which id torchrun starts the run again.
CHOSEN = 'option.'  # Before the names of options that were given.


def teacher(args: Mapping, recorded: Mapping) -> str | None:
    """The teacher of a run as it was named: that of its loss, or the one that its student and options are from.

    Args:
        args: arguments of its loop.
        recorded: what `inputs.json` has.
    """
    names = [value_of(args, 'loss_kwargs.teacher'), recorded.get(f'{CHOSEN}--teacher')]
    return next((name for name in names if isinstance(name, str)), None)


def chosen(recorded: Mapping[str, Any]) -> dict[str, str]:
    """The options that were given, by name, of what `inputs.json` has."""
    names = {name: str(value) for name, value in recorded.items() if name.startswith(CHOSEN)}
    return {name.removeprefix(CHOSEN): value for name, value in names.items()}


def given(args: Mapping, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Those of the dotted names that have a text as their value, with it."""
    for name in names:
        value = value_of(args, name)
        if isinstance(value, str):
            yield name, value


def value_of(args: Mapping, name: str) -> Any:
    """The value of a dotted name, or None."""
    value: Any = args
    for key in name.split('.'):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
