"""Two of the host's discriminators in one module: the student's and the teacher's, which train together.

This file's text travels inside every pickle it makes (`torch_utils.persistence`) and runs where only the host is
installed. It therefore imports nothing but the host and torch.
"""

import torch
from torch_utils import persistence
from training import networks


@persistence.persistent_class
class DualDiscriminator(torch.nn.Module):
    """The student's discriminator D_S and the teacher's D_T (NICKEL), in one module so that one optimizer steps both.

    For whoever knows only the host's `Discriminator` this is one: called as that is, it is D_S. Every way of using it
    goes through `forward`, because that is what DistributedDataParallel wraps.

    Args:
        c_dim, img_resolution, img_channels: As in the host's `Discriminator`.
        num_fp16_res, conv_clamp: Likewise, of both discriminators.
        student_kwargs, teacher_kwargs: The host's other arguments of D_S and of D_T; None is no D_T, for training that
            goes on without NICKEL.
        matched_channels: Width of each feature map of the teacher's generator that D_S's is compared with, by the name
            of the block that puts it out: `{'b64': 256}`. D_S's map of the same side is what enters its own block of
            that name. Where the two widths differ, a 1x1 convolution without bias brings D_S's to the teacher's; the
            host's equalised learning rate keeps its output at the input's magnitude from the start.

    Attributes:
        student, teacher: D_S and D_T.
        projected: Names of the blocks whose map a 1x1 convolution, the module `project_NAME`, brings to width.
        started: 0 in a module that was just constructed, 1 once D_T has weights of the teacher's. A buffer, so that
            resuming from a snapshot brings it along; absent without D_T.
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
        """Judge images, or show what D_S sees in them.

        Args:
            img: Images [N, img_channels, img_resolution, img_resolution] in [-1, 1].
            c: Labels [N, c_dim].
            both: Whether to return D_T's logits, too.
            match: Block names. If there are any, D_S runs down to the last of them only, and D_T not at all.
            block_kwargs: The host's arguments of `DiscriminatorBlock.forward`.

        Returns:
            D_S's logits [N, 1]; with `both` a tuple of D_S's and D_T's; with `match` a dictionary of D_S's feature
            maps [N, channels, side, side], projected, by block name.
        """
        if match:
            return self._features(img, match, **block_kwargs)
        logits = self.student(img, c, **block_kwargs)
        if not both:
            return logits
        # Multiplied by zero, the projections are tied into the graph: DistributedDataParallel waits for each parameter.
        unused = sum(getattr(self, f'project_{name}').weight.sum() * 0 for name in self.projected)
        return logits + unused, self.teacher(img, c, **block_kwargs)

    def _features(self, img, names, **block_kwargs):
        x, found = None, {}
        for res in self.student.block_resolutions:
            x, img = getattr(self.student, f'b{res}')(x, img, **block_kwargs)
            name = f'b{res // 2}'  # Of the block that x goes to next.
            if name in names:
                found[name] = getattr(self, f'project_{name}')(x) if name in self.projected else x
            if len(found) == len(names):
                break
        return found
