"""From a teacher's pickle to its student's: scores, masks, the cut, and what may be done to the weights after it."""

import copy
from collections.abc import Mapping

from stylegan2_compress.errors import UserError
from stylegan2_compress.pruning.criteria import CRITERIA, CriterionOptions
from stylegan2_compress.pruning.initialization import INITIALIZATIONS
from stylegan2_compress.pruning.surgery import masks_from_scores, prune


def make_student(
    teacher: Mapping,
    widths: Mapping[str, int],
    criterion: str = 'l1',
    options: CriterionOptions | None = None,
    init: str = 'none',
) -> dict:
    """The content of a student's pickle, which the host's `--resume` takes like any other.

    Args:
        teacher: The content of the teacher's pickle, as `pickles.load` returns it.
        widths: Channels to keep of every feature map, as `widths_for_ratio(teacher['G_ema'], ratio)` returns them.
        criterion: A name in `CRITERIA`.
        options: What the criterion needs to know; the defaults if None.
        init: A name in `INITIALIZATIONS`.

    Returns:
        `teacher` with G and G_ema replaced by two copies of the pruned G_ema: D, augment_pipe and training_set_kwargs
        stay the teacher's.

    Raises:
        UserError: There is no such criterion or initialization, or the scores are not finite.
    """
    if criterion not in CRITERIA:
        raise UserError(f'There is no pruning criterion {criterion!r}: choose one of {", ".join(CRITERIA)}.')
    if init not in INITIALIZATIONS:
        raise UserError(f'There is no initialization {init!r}: choose one of {", ".join(INITIALIZATIONS)}.')
    G_ema = teacher['G_ema']
    masks = masks_from_scores(CRITERIA[criterion](G_ema, options or CriterionOptions()), widths)
    student = prune(G_ema, masks)
    INITIALIZATIONS[init](student)
    return dict(teacher, G=student, G_ema=copy.deepcopy(student))
