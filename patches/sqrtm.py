"""The Frechet distance can ask SciPy for its matrix square root."""

from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import scipy  # Its `linalg`, which is slow to import, comes with the first use.

WHAT = 'fid metrics: scipy.linalg.sqrtm without its `disp` argument'
WHY = 'The argument goes away, and with it the error estimate that the host unpacks and ignores: TypeError.'
VERSIONS = 'SciPy >= 1.18, by its own announcement'


def needed() -> bool:
    """Whether SciPy has announced to have no such argument; asking its version does not import it."""
    return tuple(int(part) for part in version('scipy').split('.')[:2]) >= (1, 18)


def apply() -> None:
    """Change what `scipy` means to the one module that uses it so."""
    # Only here, because it imports scipy.linalg, which is slow to import.
    from metrics import frechet_inception_distance

    frechet_inception_distance.scipy = SimpleNamespace(linalg=SimpleNamespace(sqrtm=_sqrtm))


def _sqrtm(A: np.ndarray, disp: bool) -> tuple[np.ndarray, float]:
    """Return the square root, and in place of its error estimate a NaN that nobody reads."""
    return scipy.linalg.sqrtm(A), float('nan')  # pyright: ignore[reportReturnType]  # A tuple only with `disp`.
