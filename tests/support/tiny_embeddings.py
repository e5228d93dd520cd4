"""Embeddings for specs of the form `module:tiny_embeddings:NAME`."""

import torch
from torch import nn


class Tiny(nn.Module):
    """A frozen network of three layers."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, 2, 1) for i, o in [(3, 4), (4, 6), (6, 8)])

    def layers(self, x):
        maps = []
        for conv in self.convs:
            x = torch.relu(conv(x))
            maps.append(x * 10 ** len(maps))
        return maps

    def forward(self, x):
        return self.layers(x)[-1]


def tiny():
    return Tiny()


def no_layers():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
