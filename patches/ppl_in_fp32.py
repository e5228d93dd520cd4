"""The perceptual path length can be asked for FP32 like any other metric."""

import torch
from metrics import perceptual_path_length

WHAT = 'ppl metrics: G_kwargs may ask for FP32, as on a CPU they have to'
WHY = (
    'Their sampler passes `force_fp32` itself, beside the G_kwargs; where these have it too, as on a CPU, which cannot '
    'run FP16 layers, it stops: TypeError: got multiple values for keyword argument.'
)
VERSIONS = 'all of them'


class _Sampler(perceptual_path_length.PPLSampler):
    """The host's, for which nobody else chooses the precision."""

    def __init__(self, G: torch.nn.Module, G_kwargs: dict, **kwargs) -> None:
        G_kwargs = {name: value for name, value in G_kwargs.items() if name != 'force_fp32'}
        super().__init__(G=G, G_kwargs=G_kwargs, **kwargs)


class _Generator(torch.nn.Module):
    """As much of one as a sampler needs."""

    z_dim, img_resolution, img_channels = 1, 1, 3

    def mapping(self, z: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return z.unsqueeze(1)

    def synthesis(self, ws: torch.Tensor, noise_mode: str, force_fp32: bool) -> torch.Tensor:
        return torch.zeros([len(ws), 3, 1, 1])


def needed() -> bool:
    """Whether asking for FP32 fails."""
    sampler = perceptual_path_length.PPLSampler(
        G=_Generator(),
        G_kwargs={'force_fp32': True},
        epsilon=1,
        space='w',
        sampling='end',
        crop=False,
        vgg16=lambda img, **_options: img.flatten(1),
    )
    try:
        with torch.random.fork_rng(devices=[]):
            sampler(torch.zeros([1, 0]))
    except TypeError:
        return True
    return False


def apply() -> None:
    """Put the sampler that leaves it out in the place of the host's."""
    perceptual_path_length.PPLSampler = _Sampler
