"""A small MNIST classifier that evaluates the quickstart's generators. No run trains with it."""

import functools
import json
from importlib import resources

import numpy as np
import torch
from safetensors.torch import load_file

ASSET = 'mnist_classifier.safetensors'
TRAIN, TEST = slice(0, 4000), slice(4000, 5000)  # Parts of a fixed permutation of the 5,000 digits.


class DigitClassifier(torch.nn.Module):
    """Three convolutions and two linear layers. The input of the last layer are the 64 features."""

    def __init__(self):
        super().__init__()
        layers = []
        for inputs, outputs in [(1, 16), (16, 32), (32, 64)]:
            layers += [
                torch.nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                torch.nn.BatchNorm2d(outputs),
                torch.nn.ReLU(),
                torch.nn.MaxPool2d(2),
            ]
        self.body = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(64 * 4 * 4, 64), torch.nn.ReLU())
        self.head = torch.nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, 10] of images [N, 1, 32, 32] in [-1, 1]."""
        return self.head(self.body(images))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features [N, 64] of images [N, 1, 32, 32] in [-1, 1]."""
        return self.body(images)


def split(images: np.ndarray, labels: np.ndarray, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """A part of the digits: images [N, 1, 32, 32] in [-1, 1] and labels [N].

    Args:
        images, labels: the digits as `mnist.load` returns them.
        part: `TRAIN` or `TEST`.
    """
    order = np.random.RandomState(0).permutation(len(images))[part]
    return torch.from_numpy(images[order]).float() / 127.5 - 1, torch.from_numpy(labels[order])


@functools.cache
def load_classifier() -> DigitClassifier:
    """The classifier that comes with the package, in eval mode without gradients."""
    network = DigitClassifier()
    with resources.as_file(resources.files('stylegan2_compress') / 'assets' / ASSET) as path:
        network.load_state_dict(load_file(path))
    return network.eval().requires_grad_(False)


def classifier_facts() -> dict:
    """How the classifier was trained, and its accuracy on the 1,000 digits of the test part."""
    return json.loads(
        (resources.files('stylegan2_compress') / 'assets' / ASSET.replace('.safetensors', '.json')).read_text()
    )
