"""Weights that fall to 0 while a run trains."""


class Fading:
    """The share of a weight that is left: it falls from 1 to 0 in a straight line, or stays.

    Args:
        kimg: after how many thousands of images of the run nothing is left; None is never.
    """

    def __init__(self, kimg: float | None = None):
        self.nimg = None if kimg is None else 1000 * kimg
        self.share = 1.0
        self.has_begun = False

    def follow(self, nimg: int) -> None:
        """Go on to where the run has seen so many images."""
        self.has_begun = True
        if self.nimg is not None:
            self.share = max(1 - nimg / self.nimg, 0)

    def obstacle(self, what: str) -> str:
        """Why a term cannot be recorded as a CUDA graph as long as it falls, see `Term.obstacle`."""
        # Before its first step, of which a round alone is not recorded yet, a run that goes on does not know the share.
        falls = self.nimg is not None and self.has_begun and self.share > 0
        return f'the weight of {what} falls' if falls else ''
