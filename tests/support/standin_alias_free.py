"""Stands in for stylegan3's `training/networks_stylegan3.py`: the parts by which its generators are known."""

import torch
from torch_utils import persistence
from training import networks


@persistence.persistent_class
class SynthesisInput(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn([channels, channels]))


@persistence.persistent_class
class SynthesisNetwork(torch.nn.Module):
    def __init__(self, channel_max=4, conv_kernel=3, use_radial_filters=False):
        super().__init__()
        self.input = SynthesisInput(channel_max)


@persistence.persistent_class
class Generator(torch.nn.Module):
    def __init__(self, z_dim, c_dim, w_dim, img_resolution, img_channels, mapping_kwargs={}, **synthesis_kwargs):
        super().__init__()
        self.synthesis = SynthesisNetwork(**synthesis_kwargs)
        self.mapping = networks.MappingNetwork(z_dim, c_dim, w_dim, num_ws=16, **mapping_kwargs)
