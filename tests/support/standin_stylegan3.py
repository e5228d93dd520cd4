"""Stands in for stylegan3's `training/networks_stylegan2.py`: what of it shows in a pickle, over the host's layers.

Flat synthesis arguments, other defaults, and two attributes that the host's classes do not have.
"""

import torch
from torch_utils import persistence
from training import networks


@persistence.persistent_class
class MappingNetwork(networks.MappingNetwork):
    def __init__(self, z_dim, c_dim, w_dim, num_ws, w_avg_beta=0.998, **kwargs):
        super().__init__(z_dim, c_dim, w_dim, num_ws, w_avg_beta=w_avg_beta, **kwargs)


@persistence.persistent_class
class SynthesisNetwork(networks.SynthesisNetwork):
    def __init__(
        self,
        w_dim,
        img_resolution,
        img_channels,
        channel_base=32768,
        channel_max=512,
        num_fp16_res=4,
        conv_clamp=256,
        fused_modconv_default=True,
        **block_kwargs,
    ):
        super().__init__(
            w_dim, img_resolution, img_channels, channel_base, channel_max, num_fp16_res, conv_clamp=conv_clamp,
            **block_kwargs,
        )  # fmt: skip
        self.num_fp16_res = num_fp16_res
        for res in self.block_resolutions:
            getattr(self, f'b{res}').fused_modconv_default = fused_modconv_default


@persistence.persistent_class
class Generator(torch.nn.Module):
    def __init__(self, z_dim, c_dim, w_dim, img_resolution, img_channels, mapping_kwargs={}, **synthesis_kwargs):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.synthesis = SynthesisNetwork(w_dim, img_resolution, img_channels, **synthesis_kwargs)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim=z_dim, c_dim=c_dim, w_dim=w_dim, num_ws=self.num_ws, **mapping_kwargs)

    def forward(self, z, c, truncation_psi=1, truncation_cutoff=None, **synthesis_kwargs):
        ws = self.mapping(z, c, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)
        return self.synthesis(ws, **synthesis_kwargs)


@persistence.persistent_class
class Discriminator(networks.Discriminator):
    def __init__(self, c_dim, img_resolution, img_channels, num_fp16_res=4, conv_clamp=256, **kwargs):
        super().__init__(
            c_dim, img_resolution, img_channels, num_fp16_res=num_fp16_res, conv_clamp=conv_clamp, **kwargs
        )
        self.b4.conv.in_channels = self.b4.conv.weight.shape[1]
