"""Two of the host's discriminators in one module: the student's and the teacher's, which train together.

This file's text travels inside every pickle it makes (`torch_utils.persistence`) and runs where only the host is
installed. It therefore imports nothing but the host and torch. Pickles are compared with it when they are read, so a
change of anything but comments and docstrings makes readers of existing pickles warn.
"""

import torch
from torch_utils import persistence
from training import networks


@persistence.persistent_class
class DualDiscriminator(torch.nn.Module):
    """The student's discriminator D_S and the teacher's D_T (NICKEL), in one module so that one optimizer steps both.

    Called like the host's `Discriminator`, it returns D_S's logits. Every use goes through `forward`, which is what
    DistributedDataParallel wraps.

    Args:
        c_dim, img_resolution, img_channels: as in the host's `Discriminator`.
        num_fp16_res, conv_clamp: likewise, of both discriminators.
        student_kwargs, teacher_kwargs: the host's other arguments of D_S and of D_T; with None there is no D_T, for
            training that goes on without NICKEL.
        matched_channels: width of each feature map of the teacher's generator that is compared with one of D_S, by the
            name of the block that outputs it: `{'b64': 256}`. D_S's map of the same side is the input of its own block
            of that name. Where the widths differ, a 1x1 convolution without bias projects D_S's map to the teacher's
            width; under the host's equalised learning rate its output has the input's magnitude from the start.

    Attributes:
        student, teacher: D_S and D_T.
        projected: names of the blocks whose map the 1x1 convolution `project_NAME` projects.
        started: 0 in a module that was just constructed, 1 once D_T has the teacher's weights. A buffer, so that
            snapshots hold it; absent without D_T.
    """

    def __init__(
        self,
        c_dim,
        img_resolution,
        img_channels,
        num_fp16_res=0,
        conv_clamp=None,
        student_kwargs={},
        teacher_kwargs={},
        matched_channels={},
    ):
        super().__init__()
        self.c_dim = c_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        shared = dict(
            c_dim=c_dim,
            img_resolution=img_resolution,
            img_channels=img_channels,
            num_fp16_res=num_fp16_res,
            conv_clamp=conv_clamp,
        )
        self.student = networks.Discriminator(**shared, **student_kwargs)
        self.teacher = None if teacher_kwargs is None else networks.Discriminator(**shared, **teacher_kwargs)
        self.projected = []
        for name, channels in matched_channels.items():
            own_channels = getattr(self.student, name).in_channels
            if own_channels != channels:
                projection = networks.Conv2dLayer(own_channels, channels, kernel_size=1, bias=False)
                setattr(self, f'project_{name}', projection)
                self.projected.append(name)
        if self.teacher is not None:
            self.register_buffer('started', torch.zeros([]))

    def forward(self, img, c, both=False, match=(), **block_kwargs):
        """Logits of images, or D_S's feature maps of them.

        Args:
            img: images [N, img_channels, img_resolution, img_resolution] in [-1, 1].
            c: labels [N, c_dim].
            both: whether to return D_T's logits, too.
            match: block names. If there are any, only D_S runs, and no further than to the last of them.
            block_kwargs: the host's arguments of `DiscriminatorBlock.forward`.

        Returns:
            D_S's logits [N, 1]; with `both` a tuple of D_S's and D_T's; with `match` a dictionary of D_S's feature
            maps [N, channels, side, side], projected, by block name.
        """
        if match:
            return self._features(img, match, **block_kwargs)
        logits = self.student(img, c, **block_kwargs)
        if not both:
            return logits
        # Times zero, projections join the graph: DistributedDataParallel waits for the gradient of every parameter.
        unused = sum(getattr(self, f'project_{name}').weight.sum() * 0 for name in self.projected)
        return logits + unused, self.teacher(img, c, **block_kwargs)  # pyright: ignore[reportOptionalCall]  # `both` is NICKEL's, which has D_T.

    def _features(self, img, names, **block_kwargs):
        x, found = None, {}
        for res in self.student.block_resolutions:
            x, img = getattr(self.student, f'b{res}')(x, img, **block_kwargs)
            name = f'b{res // 2}'  # The block whose input x is.
            if name in names:
                found[name] = getattr(self, f'project_{name}')(x) if name in self.projected else x
            if len(found) == len(names):
                break
        return found
