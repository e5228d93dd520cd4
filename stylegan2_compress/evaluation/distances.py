"""Distances between two sets of feature vectors: arrays in, numbers out."""

import numpy as np
import scipy.linalg
import torch

from stylegan2_compress.distributions import mmd


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Fréchet distance ‖μx − μy‖² + tr(Σx + Σy − 2(ΣxΣy)^½) of Gaussians fitted to two sets (FID, Heusel et al. 2017).

    In float64. The trace of the matrix root is the sum of the roots of the eigenvalues of ΣxΣy, which are real and not
    negative; this avoids the root of a nearly singular matrix.

    Args:
        x, y: features [N, dim], [M, dim].
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    sigma_x, sigma_y = (np.atleast_2d(np.cov(each, rowvar=False)) for each in (x, y))
    eigenvalues = np.real(scipy.linalg.eigvals(sigma_x @ sigma_y)).clip(min=0)
    difference = x.mean(axis=0) - y.mean(axis=0)
    return float(difference @ difference + np.trace(sigma_x) + np.trace(sigma_y) - 2 * np.sqrt(eigenvalues).sum())


def kernel_distance(
    x: np.ndarray, y: np.ndarray, rnd: np.random.Generator, subsets: int = 100, size: int = 1000
) -> float:
    """Unbiased MMD² under the cubic kernel (x·y / dim + 1)³, a mean over random subsets (KID, Bińkowski et al. 2018).

    Args:
        x, y: features [N, dim], [M, dim].
        rnd: draws the subsets.
        subsets: number of subsets.
        size: vectors per subset, at most as many as the smaller set has.

    Returns:
        The distance, which may be slightly below 0 for equal distributions.
    """
    size = min(size, len(x), len(y))
    sets = torch.as_tensor(x, dtype=torch.float64), torch.as_tensor(y, dtype=torch.float64)
    total = 0.0
    for _ in range(subsets):
        mine, theirs = (each[rnd.choice(len(each), size, replace=False)] for each in sets)
        total += mmd.mmd2(mine, theirs, mmd.cubic).item()
    return total / subsets


def density_coverage(
    real: np.ndarray, fake: np.ndarray, neighbours: int = 5, device: torch.device | str = 'cpu', rows: int = 2000
) -> tuple[float, float]:
    """Density and coverage (Naeem et al., ICML 2020): whether fakes are near reals, and whether they cover all reals.

    The ball around a real vector reaches to its k-th nearest real neighbour. Density is the average number of balls
    that a fake is in, divided by k: about 1 if fakes are distributed as reals, more if they cluster. Coverage is the
    share of balls with a fake in them.

    Args:
        real, fake: features [N, dim], [M, dim], N > k.
        neighbours: k.
        device: where distances are computed.
        rows: number of real vectors whose distances are computed at a time.

    Returns:
        Density, coverage.
    """
    centre = np.mean(real, axis=0)  # Does not change distances, and keeps their precision.
    reals, fakes = (torch.as_tensor(each - centre, dtype=torch.float32, device=device) for each in (real, fake))
    inside = covered = 0
    for centres in reals.split(rows):
        # The nearest is the vector itself.
        radii = torch.cdist(centres, reals).kthvalue(neighbours + 1, dim=1, keepdim=True).values
        hits = torch.cdist(centres, fakes) < radii
        inside += hits.sum().item()
        covered += hits.any(dim=1).sum().item()
    return inside / (neighbours * len(fakes)), covered / len(reals)
