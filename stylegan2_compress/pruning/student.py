"""From a teacher's networks to its student's: score channels, cut them out, initialise the rest."""

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from stylegan2_compress.errors import UserError
from stylegan2_compress.host.networks import class_name, student_of
from stylegan2_compress.pruning import graph
from stylegan2_compress.pruning.criteria import CRITERIA, Criterion, CriterionOptions
from stylegan2_compress.pruning.initialization import INITIALIZATIONS
from stylegan2_compress.pruning.surgery import masks_from_scores, prune
from stylegan2_compress.registry import lookup


def make_student(
    teacher: Mapping,
    widths: Mapping[str, int],
    criterion: str = 'l1',
    options: CriterionOptions | None = None,
    init: str = 'none',
) -> dict:
    """The contents of a student's pickle, which the host's `--resume` accepts like any other.

    Args:
        teacher: the contents of the teacher's pickle, as `pickles.load` returns them.
        widths: channels to keep of every feature map, as `widths_for_ratio(teacher['G_ema'], ratio)` returns them.
        criterion: a name in `CRITERIA`, or an importable name of a `Criterion`.
        options: options of the criterion; the defaults if None.
        init: a name in `INITIALIZATIONS`, or an importable name of an `Initialization`.

    Returns:
        `teacher` with G and G_ema replaced by two copies of the pruned G_ema: D, augment_pipe and training_set_kwargs
        stay the teacher's. Of a teacher that NICKEL trained, D is its own and not the pair with that of its teacher.

    Raises:
        UserError: there is no such criterion or initialization, or the scores are none, do not fit or are not finite.
    """
    G_ema, options = teacher['G_ema'], options or CriterionOptions()
    score_channels = find_criterion(criterion, G_ema, options)
    initialize = lookup('--init', init, INITIALIZATIONS)
    require_function('--init', init, initialize, G_ema)
    scores = score_channels(copy.deepcopy(G_ema).to(options.device), options)
    check_scores(scores, graph.widths(G_ema), criterion)
    student = prune(G_ema, masks_from_scores({name: score.cpu() for name, score in scores.items()}, widths))
    initialize(student)
    networks = dict(teacher, G=student, G_ema=copy.deepcopy(student))
    if networks.get('D') is not None:
        networks['D'] = student_of(networks['D'])
    return networks


def find_criterion(name: str, G: torch.nn.Module, options: CriterionOptions) -> Criterion:
    """The criterion of a name in `CRITERIA`, or of an importable name.

    Raises:
        UserError: there is none, or it cannot be called with this generator and these options.
    """
    criterion = lookup('--criterion', name, CRITERIA)
    require_function('--criterion', name, criterion, G, options)
    return criterion


def require_prunable(file: str, G: torch.nn.Module) -> None:
    """Refuse a generator whose channels cannot be cut.

    Raises:
        UserError: its weights are masked.
    """
    if class_name(G) == 'ScoreMaskedGenerator':
        raise UserError(f'{file} has masked weights: prune what `ticket save` and `ticket bake` make of it.')


def require_function(option: str, name: str, function: Callable, *arguments: Any) -> None:
    """Refuse what cannot be called with these arguments, as far as its signature says.

    Raises:
        UserError: it cannot.
    """
    if not callable(function):
        raise UserError(f'{option}={name} must be a function, but it is of type {type(function).__name__}.')
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # Some that are written in C have none.
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise UserError(
            f'{option}={name} cannot be called with what it is given ({error}): docs/extending.md shows one that can.'
        ) from error


def check_scores(scores: Any, widths: Mapping[str, int], criterion: str) -> None:
    """Check that a criterion has scored every channel of every feature map.

    Raises:
        UserError: it has not.
    """
    if not isinstance(scores, Mapping) or not all(isinstance(score, torch.Tensor) for score in scores.values()):
        raise UserError(
            f'--criterion={criterion} must return a dictionary with a tensor of scores for every feature map, and '
            f'returns {_kind(scores)}: docs/extending.md shows one that does.'
        )
    expected = {name: [width] for name, width in widths.items()}
    shapes = {name: list(score.shape) for name, score in scores.items()}
    for name in sorted(expected.keys() | shapes.keys()):
        if shapes.get(name) != expected.get(name):
            raise UserError(
                f'--criterion={criterion} must return a score for every channel of every feature map, by its name (got '
                f'{name}: {shapes.get(name, "none")}, expected {expected.get(name, "none")}).'
            )


def _kind(scores: Any) -> str:
    """What a criterion returned, for the error: a type, or a dictionary with values of a type."""
    if not isinstance(scores, Mapping):
        return 'None' if scores is None else f'a {type(scores).__name__}'
    wrong = next(score for score in scores.values() if not isinstance(score, torch.Tensor))
    return f'a dictionary with a {type(wrong).__name__}'
