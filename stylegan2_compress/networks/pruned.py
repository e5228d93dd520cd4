"""The host's generator with a width of its own for every feature map of the synthesis network.

This file's text travels inside every pickle it makes (`torch_utils.persistence`) and runs where only the host is
installed. It therefore imports nothing but the host and torch. Pickles are compared with it when they are read, so a
change of anything but comments and docstrings makes readers of existing pickles warn.

The host's constructors do everything except the widths: each class below lets its base class build the network and
then replaces layers by ones of the right widths. Parameter and buffer names are the host's.
"""

import torch
from torch_utils import persistence
from training import networks


@persistence.persistent_class
class PrunedSynthesisBlock(networks.SynthesisBlock):
    """A synthesis block whose two feature maps have widths of their own.

    Args:
        in_channels: channels of the previous block's output; 0 for the first block.
        mid_channels: channels of the first feature map: `conv0`'s output, in the first block the constant.
        out_channels: channels of the second feature map: `conv1`'s output, which `torgb` reads, and `skip`'s output.
        w_dim, resolution, img_channels, is_last, architecture, resample_filter, conv_clamp, use_fp16,
            fp16_channels_last: as in the host's `SynthesisBlock`.
        layer_kwargs: the host's other arguments of `SynthesisLayer`.
    """

    def __init__(
        self,
        in_channels,
        mid_channels,
        out_channels,
        w_dim,
        resolution,
        img_channels,
        is_last,
        architecture='skip',
        resample_filter=[1, 3, 3, 1],
        conv_clamp=None,
        use_fp16=False,
        fp16_channels_last=False,
        **layer_kwargs,
    ):
        super().__init__(
            in_channels,
            out_channels,
            w_dim=w_dim,
            resolution=resolution,
            img_channels=img_channels,
            is_last=is_last,
            architecture=architecture,
            resample_filter=resample_filter,
            conv_clamp=conv_clamp,
            use_fp16=use_fp16,
            fp16_channels_last=fp16_channels_last,
            **layer_kwargs,
        )
        if mid_channels == out_channels:
            return  # The host has built exactly that.
        layer_kwargs.update(w_dim=w_dim, resolution=resolution, conv_clamp=conv_clamp, channels_last=self.channels_last)
        if in_channels == 0:
            self.const = torch.nn.Parameter(torch.randn([mid_channels, resolution, resolution]))
        else:
            self.conv0 = networks.SynthesisLayer(
                in_channels, mid_channels, up=2, resample_filter=resample_filter, **layer_kwargs
            )
        self.conv1 = networks.SynthesisLayer(mid_channels, out_channels, **layer_kwargs)


@persistence.persistent_class
class PrunedSynthesisNetwork(networks.SynthesisNetwork):
    """The host's synthesis network with explicit widths instead of `channel_base` and `channel_max`.

    Args:
        w_dim, img_resolution, img_channels, num_fp16_res: as in the host's `SynthesisNetwork`.
        channels: width of every feature map by its name, see `PrunedGenerator`.
        block_kwargs: the host's other arguments of `SynthesisNetwork`.

    Raises:
        ValueError: `channels` does not name exactly the feature maps of this resolution.
    """

    def __init__(self, w_dim, img_resolution, img_channels, channels, num_fp16_res=0, **block_kwargs):
        super().__init__(w_dim, img_resolution, img_channels, channel_max=1, num_fp16_res=num_fp16_res, **block_kwargs)
        expected = {f'b{res}.{"conv0" if res > 4 else "const"}' for res in self.block_resolutions}
        expected |= {f'b{res}.conv1' for res in self.block_resolutions}
        if set(channels) != expected:
            raise ValueError(f'channels must name {sorted(expected)}, not {sorted(channels)}')
        in_channels = 0
        for res in self.block_resolutions:
            thin = getattr(self, f'b{res}')
            out_channels = channels[f'b{res}.conv1']
            block = PrunedSynthesisBlock(
                in_channels,
                channels[f'b{res}.conv0' if in_channels else f'b{res}.const'],
                out_channels,
                w_dim=w_dim,
                resolution=res,
                img_channels=img_channels,
                is_last=thin.is_last,
                use_fp16=thin.use_fp16,
                **block_kwargs,
            )
            setattr(self, f'b{res}', block)
            in_channels = out_channels


@persistence.persistent_class
class PrunedGenerator(networks.Generator):
    """The host's generator with explicit widths; made by `stylegan2_compress.pruning.prune`.

    Args:
        z_dim, c_dim, w_dim, img_resolution, img_channels, mapping_kwargs: as in the host's `Generator`.
        channels: width (at least 1) of every feature map of the synthesis network, by the name of the layer that
            outputs it: `{'b4.const': 52, 'b4.conv1': 52, 'b8.conv0': 52, 'b8.conv1': 52, ...}`, two per resolution.
        synthesis_kwargs: the host's arguments of `SynthesisNetwork` except `channel_base` and `channel_max`.

    Raises:
        ValueError: `channels` does not name exactly the feature maps of this resolution.
    """

    def __init__(
        self,
        z_dim,
        c_dim,
        w_dim,
        img_resolution,
        img_channels,
        channels,
        mapping_kwargs={},
        synthesis_kwargs={},
    ):
        super().__init__(
            z_dim,
            c_dim,
            w_dim,
            img_resolution,
            img_channels,
            mapping_kwargs=mapping_kwargs,
            synthesis_kwargs=dict(synthesis_kwargs, channel_max=1),
        )
        self.synthesis = PrunedSynthesisNetwork(
            w_dim, img_resolution, img_channels, channels=channels, **synthesis_kwargs
        )
