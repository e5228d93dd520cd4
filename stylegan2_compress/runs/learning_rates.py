"""How learning rates fall over a run."""

from collections.abc import Sequence


def share(nimg: int, decay_kimg: Sequence[float] | None) -> float:
    """How much of the learning rates a step takes: 1 before the decay, 0 from its end on, a straight line between.

    Args:
        nimg: images that the run has seen.
        decay_kimg: first and last of the decay, in thousands of images; None if rates stay as they are.
    """
    if decay_kimg is None:
        return 1
    first, last = (1000 * kimg for kimg in decay_kimg)
    return min(max((last - nimg) / (last - first), 0), 1)
