"""From a teacher's networks to its student's: score channels, cut them out, initialise the rest."""

import copy
from collections.abc import Mapping

from stylegan2_compress.errors import UserError
from stylegan2_compress.pruning import graph
from stylegan2_compress.pruning.criteria import CRITERIA, CriterionOptions, Scores
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
        stay the teacher's.

    Raises:
        UserError: there is no such criterion or initialization, or the scores do not fit or are not finite.
    """
    score_channels = lookup('--criterion', criterion, CRITERIA)
    initialize = lookup('--init', init, INITIALIZATIONS)
    for option, name, function in [('--criterion', criterion, score_channels), ('--init', init, initialize)]:
        if not callable(function):
            raise UserError(f'{option}={name} must be a function, but it is of type {type(function).__name__}.')
    G_ema = teacher['G_ema']
    scores = score_channels(G_ema, options or CriterionOptions())
    check_scores(scores, graph.widths(G_ema), criterion)
    student = prune(G_ema, masks_from_scores(scores, widths))
    initialize(student)
    return dict(teacher, G=student, G_ema=copy.deepcopy(student))


def check_scores(scores: Scores, widths: Mapping[str, int], criterion: str) -> None:
    """Check that a criterion has scored every channel of every feature map.

    Raises:
        UserError: it has not.
    """
    expected = {name: [width] for name, width in widths.items()}
    shapes = {name: list(score.shape) for name, score in scores.items()}
    for name in sorted(expected.keys() | shapes.keys()):
        if shapes.get(name) != expected.get(name):
            raise UserError(
                f'--criterion={criterion} must return a score for every channel of every feature map, by its name (got '
                f'{name}: {shapes.get(name, "none")}, expected {expected.get(name, "none")}).'
            )
