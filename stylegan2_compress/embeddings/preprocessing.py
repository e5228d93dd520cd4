"""Preparing images for a network: size, resampling, mean and standard deviation."""

import dataclasses
from typing import TypedDict

import torch.nn.functional as F
from torch import Tensor


class Normalization(TypedDict):
    """Mean and standard deviation per colour channel, as keyword arguments of `Preprocessing`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CLIP = Normalization(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
SIGNED = Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # [-1, 1] images, as the host's generators make them.


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The input that a network expects, for images with values in [0, 1].

    Attributes:
        size: side to which images are resized; None for the image's own. Nothing is cropped: the network cannot teach
            what it does not see.
        mean, std: per colour channel.
        filter: `bicubic` or `bilinear`.
        antialias: whether the filter widens when it shrinks images, as Pillow's does.
        fixed: whether the network takes no other size.
    """

    size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    filter: str = 'bicubic'
    antialias: bool = True
    fixed: bool = False

    def raw(self) -> 'Preprocessing':
        """Preprocessing of DiME's published code: [-1, 1] images, without a low-pass filter before shrinking.

        Networks that take any size get images in their own size.
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
        """Factors and offsets by channel that map [-1, 1] images to the network's input: x * factor + offset."""
        factors = [0.5 / std for std in self.std]
        offsets = [(0.5 - mean) / std for mean, std in zip(self.mean, self.std, strict=True)]
        return factors, offsets


# For archives and factories, which do not say what they expect: nearly all image classifiers expect this.
LIKELY = Preprocessing(size=224, **IMAGENET)
