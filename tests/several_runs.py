"""A loop that runs others one after the other, so that tests start processes once."""

import torch

from stylegan2_compress.options import import_named
from stylegan2_compress.training_loops import snapshots


def training_loop(rank, num_gpus, run_dir, device, cases):
    """Run `cases`: a loop's arguments, its name as `loop`, whether path lengths get the `same_noise_for_all` images."""
    snapshots.grid_size = lambda _shape: (2, 2)
    for case in cases:
        case = dict(case)
        loop = import_named(case.pop('loop'), '', '', '')
        randn_like = torch.randn_like
        if case.pop('same_noise_for_all', False):  # Of path lengths: rounds of other sizes draw other noise.
            torch.randn_like = lambda x: torch.linspace(-1, 1, x[0].numel()).sin().view(1, *x.shape[1:]).expand_as(x)
        try:
            loop(rank=rank, num_gpus=num_gpus, **dict(case, device=device))
        finally:
            torch.randn_like = randn_like
