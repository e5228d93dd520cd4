"""A small network in the place of the host's detectors, which are downloads."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from metrics import metric_utils

from stylegan2_compress.embeddings.torchscript import INCEPTION, VGG16


class Detector(torch.nn.Module):
    """Answers as both of them do, from one convolution: 6 features, perceptual ones likewise, or 6 probabilities."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 4, stride=4)

    def forward(
        self,
        img: torch.Tensor,
        return_features: bool = False,
        return_lpips: bool = False,
        resize_images: bool = True,
        no_output_bias: bool = False,
    ) -> torch.Tensor:
        x = self.conv(img.to(torch.float32) / 64).tanh().mean([2, 3])
        return x if return_features or return_lpips else x.softmax(dim=1)


def download(cache: Path, url: str) -> Path:
    """Where the host, whose cache is in `cache`, keeps what it has downloaded from a URL."""
    return cache / 'downloads' / f'{hashlib.md5(url.encode()).hexdigest()}_{url.rpartition("/")[2]}'


@contextlib.contextmanager
def in_the_place_of_the_hosts(cache: Path) -> Iterator[Detector]:
    """While it lasts, the host's cache is in `cache`, a new directory, and has the detector that is yielded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = Detector().eval().requires_grad_(False)
    for url in (INCEPTION, VGG16):
        path = download(cache, url)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.jit.script(detector).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('DNNLIB_CACHE_DIR', str(cache))
        patch.setattr(metric_utils, '_feature_detector_cache', {})
        yield detector
