"""The images that generators are judged by."""

import numpy as np
import torch

from stylegan2_compress.images import to_uint8


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
