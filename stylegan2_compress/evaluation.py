"""Measuring generators: the Fréchet distance between two sets of features."""

import numpy as np
import scipy.linalg
import torch

from stylegan2_compress.images import to_uint8


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """‖μx − μy‖² + tr(Σx + Σy − 2(ΣxΣy)^½) of two sets of feature vectors [N, dim] (Heusel et al. 2017).

    Computed in float64 through the eigenvalues of ΣxΣy, which are real and not negative: their roots are those of the
    matrix root, and it takes no root of a nearly singular matrix.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    sigma_x, sigma_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    eigenvalues = scipy.linalg.eigvals(sigma_x @ sigma_y).real.clip(min=0)
    difference = x.mean(axis=0) - y.mean(axis=0)
    return float(difference @ difference + np.trace(sigma_x) + np.trace(sigma_y) - 2 * np.sqrt(eigenvalues).sum())


@torch.no_grad()
def generate(G, count: int, seed: int, batch: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [count, C, H, W] in [-1, 1], quantised to 8 bits as files are, and their labels [count, c_dim].

    Runs on the CPU. The same seed gives the same z to every generator of equal dimensions; labels go round the classes.
    """
    rnd = np.random.RandomState(seed)
    z = torch.from_numpy(rnd.standard_normal([count, G.z_dim])).float()
    c = torch.zeros([count, G.c_dim])
    if G.c_dim:
        c[torch.arange(count), torch.arange(count) % G.c_dim] = 1
    images = [G(a, b, noise_mode='const', force_fp32=True) for a, b in zip(z.split(batch), c.split(batch), strict=True)]
    return torch.from_numpy(to_uint8(torch.cat(images))).float() / 127.5 - 1, c
