"""The perceptual path length can ask NumPy for its percentiles."""

import inspect
from collections.abc import Sequence
from typing import Literal

import numpy as np
from metrics import perceptual_path_length

from stylegan2_compress.patches import With

WHAT = "ppl metrics: numpy.percentile's `interpolation` under its present name, `method`"
WHY = 'The old name is gone: TypeError after all images have been generated.'
VERSIONS = 'NumPy >= 2.4 (deprecated since 1.22)'


def percentile(a: np.ndarray, q: float | Sequence[float], interpolation: Literal['lower', 'higher']) -> np.ndarray:
    """NumPy's, with the name of old."""
    return np.percentile(a, q, method=interpolation)


def needed() -> bool:
    """Whether numpy.percentile has lost the name."""
    return 'interpolation' not in inspect.signature(np.percentile).parameters


def apply() -> None:
    """Change what `np` means to the one module that uses it so."""
    perceptual_path_length.np = With(np, percentile=percentile)
