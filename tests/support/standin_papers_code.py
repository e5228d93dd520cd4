"""Stands in for the networks of the public code of NICKEL and DiME: the host's with `pruning_ratio`."""

import math

from torch_utils import persistence
from training import networks


@persistence.persistent_class
class SynthesisNetwork(networks.SynthesisNetwork):
    def __init__(self, w_dim, img_resolution, img_channels, pruning_ratio=0.0, num_fp16_res=0, **kwargs):
        super().__init__(w_dim, img_resolution, img_channels, num_fp16_res=num_fp16_res, **kwargs)
        widths = {'channel_base': 32768, 'channel_max': 512} | kwargs
        block_kwargs = {name: value for name, value in kwargs.items() if not name.startswith('channel_')}
        in_channels = 0
        for res in self.block_resolutions:
            dense = getattr(self, f'b{res}')
            width = min(widths['channel_base'] // res, widths['channel_max'])
            out_channels = math.ceil((1 - pruning_ratio) * width)
            block = networks.SynthesisBlock(
                in_channels, out_channels, w_dim=w_dim, resolution=res, img_channels=img_channels,
                is_last=dense.is_last, use_fp16=dense.use_fp16, **block_kwargs,
            )  # fmt: skip
            setattr(self, f'b{res}', block)
            in_channels = out_channels


@persistence.persistent_class
class Generator(networks.Generator):
    def __init__(
        self,
        z_dim,
        c_dim,
        w_dim,
        img_resolution,
        img_channels,
        pruning_ratio=0.0,
        mapping_kwargs={},
        synthesis_kwargs={},
    ):
        super().__init__(
            z_dim, c_dim, w_dim, img_resolution, img_channels, mapping_kwargs=mapping_kwargs,
            synthesis_kwargs=synthesis_kwargs,
        )  # fmt: skip
        self.synthesis = SynthesisNetwork(
            w_dim, img_resolution, img_channels, pruning_ratio=pruning_ratio, **synthesis_kwargs
        )
