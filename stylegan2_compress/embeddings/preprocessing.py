"""How images reach a network: size, resampling, mean and standard deviation."""

import dataclasses

import torch.nn.functional as F
from torch import Tensor

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CLIP = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
SIGNED = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # [-1, 1] images, as the host's generators make them


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What a network wants to see, for images whose values lie in [0, 1].

    Attributes:
        size: Side to which images are resized, None for the image's own. Nothing is cropped: what the network does
            not see, it cannot teach.
        mean, std: Per colour channel.
        filter: `bicubic` or `bilinear`.
        antialias: Whether the filter widens when it shrinks images, as Pillow's does.
        fixed: Whether `size` is the only one that the network takes.
    """

    size: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    filter: str = 'bicubic'
    antialias: bool = True
    fixed: bool = False

    def raw(self) -> 'Preprocessing':
        """What DiME's published code does with this network: [-1, 1] images, no low-pass filter before shrinking.

        Networks that take any size get the image as it is.
        """
        size = self.size if self.fixed else None
        return dataclasses.replace(self, **SIGNED, size=size, filter='bilinear', antialias=False)

    def resize(self, images: Tensor) -> Tensor:
        """Resize float images [N, C, H, W] to [N, C, size, size]."""
        if self.size is None or tuple(images.shape[2:]) == (self.size, self.size):
            return images
        return F.interpolate(
            images, size=(self.size, self.size), mode=self.filter, align_corners=False, antialias=self.antialias
        )

    def affine(self) -> tuple[list[float], list[float]]:
        """Factors and offsets, per channel, that take [-1, 1] images to what the network wants: x * factor + offset."""
        factors = [0.5 / std for std in self.std]
        offsets = [(0.5 - mean) / std for mean, std in zip(self.mean, self.std, strict=True)]
        return factors, offsets


# Archives and factories do not say what they want; nearly all image classifiers want this.
LIKELY = Preprocessing(size=224, **IMAGENET)
