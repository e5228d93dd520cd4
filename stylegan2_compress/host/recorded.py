"""A generator as a CUDA graph: its images without the time that Python takes to start its kernels.

And what else is recorded has in common with it.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from training.networks import Generator

from stylegan2_compress.host.devices import precision

WARM_UP = 3  # Times that work is done before it is recorded: in them kernels are chosen and constants made.


@contextlib.contextmanager
def in_turn(stream: torch.cuda.Stream, device: torch.device) -> Iterator[None]:
    """Run on another stream: behind what the current one has to do already, and before what it gets next."""
    current = torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


class RecordedGenerator:
    """`G(z, c)` for batches of one size, recorded as a CUDA graph.

    Weights that are changed in place change its images. Noise, if it is not constant, is drawn anew in each call.

    Args:
        G: a generator in eval mode, on a CUDA device.
        batch: N.
        kwargs: further arguments of `G`, such as `truncation_psi` and `noise_mode`.
    """

    @torch.no_grad()
    def __init__(self, G: Generator, batch: int, **kwargs: Any):
        device = next(G.parameters()).device
        self.z = torch.zeros([batch, G.z_dim], device=device)
        self.c = torch.zeros([batch, G.c_dim], device=device)
        kwargs = precision(device) | kwargs
        stream = torch.cuda.Stream(device)
        with in_turn(stream, device):
            for _ in range(WARM_UP):
                G(self.z, self.c, **kwargs)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream):
            self.images = G(self.z, self.c, **kwargs)

    @torch.no_grad()
    def __call__(self, z: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] in [-1, 1] of z [N, z_dim] and labels c [N, c_dim]. The next call overwrites them."""
        self.z.copy_(z)
        self.c.copy_(c)
        self.graph.replay()
        return self.images
