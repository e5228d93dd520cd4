"""Pairs of discriminators: the student's and the teacher's in one `DualDiscriminator`, its arguments and its start."""

from collections.abc import Mapping

import dnnlib
import torch
from torch_utils import misc
from training.networks import Discriminator

from stylegan2_compress import distributed
from stylegan2_compress.errors import UserError
from stylegan2_compress.host.networks import is_placeholder, student_of
from stylegan2_compress.host.precision import Precision
from stylegan2_compress.networks.dual import DualDiscriminator

STARTS = ('scratch', 'teacher')  # Of the student's discriminator.


def has_trained_D(networks: Mapping) -> bool:
    """Whether a pickle has a discriminator of its own, and not the placeholder of one for making images."""
    D = networks['D']
    return D is not None and not is_placeholder(student_of(D))


def pair_arguments(
    D_kwargs: dnnlib.EasyDict, teacher_D: Discriminator, student_d: str, matched: Mapping[str, int]
) -> dnnlib.EasyDict:
    """`D_kwargs` of a `DualDiscriminator`, from those of a run with the host's discriminator or with a dual one.

    Precision is the run's for both. Frozen layers (`--freezed`) are for weights that were learned before: D_T's, and
    D_S's only if they are the teacher's.

    Raises:
        UserError: D is of a class that is neither, or a dual one whose networks are not those asked for.
    """
    if D_kwargs['class_name'].rpartition('.')[2] not in ('Discriminator', 'DualDiscriminator'):
        raise UserError(f"NICKEL needs the host's discriminator, training.networks.Discriminator, and D is a "
                        f'{D_kwargs["class_name"]}.')  # fmt: skip
    student_kwargs = D_kwargs.get('student_kwargs', D_kwargs)
    trained_before = {name: kwargs for name in ('student_kwargs', 'teacher_kwargs') if (kwargs := D_kwargs.get(name))}
    frozen = D_kwargs.get('block_kwargs', {}).get('freeze_layers', 0)
    teacher_kwargs = _own_arguments(teacher_D.init_kwargs, frozen)
    new = type(D_kwargs)(
        class_name='stylegan2_compress.DualDiscriminator',
        student_kwargs=teacher_kwargs if student_d == 'teacher' else _own_arguments(student_kwargs, freeze_layers=0),
        teacher_kwargs=teacher_kwargs,
        matched_channels=dict(matched),
    )
    Precision.of_discriminator(D_kwargs).put_into_discriminator(new)
    for name, kwargs in trained_before.items():
        if _own_arguments(kwargs, 0) != _own_arguments(new[name], 0):
            raise UserError(
                'The student was trained by NICKEL before, with another D than --teacher and --loss-arg student_d '
                f'ask for ({name} are {dict(kwargs)}, not {dict(new[name])}); give what it was trained with.'
            )
    return new


def _own_arguments(kwargs: Mapping, freeze_layers: int) -> dict:
    """Arguments of the host's `Discriminator` without those that both in a `DualDiscriminator` share."""
    shared = ('class_name', 'c_dim', 'img_resolution', 'img_channels', 'num_fp16_res', 'conv_clamp')
    own = {name: value for name, value in kwargs.items() if name not in shared}
    not_own = ('freeze_layers', 'fp16_channels_last')
    own['block_kwargs'] = {name: value for name, value in own.get('block_kwargs', {}).items() if name not in not_own}
    if freeze_layers:
        own['block_kwargs']['freeze_layers'] = freeze_layers
    return own


def start(D: torch.nn.Module | None, teacher_D: Discriminator, student_d: str) -> None:
    """Give D_T, and D_S if it is to start from the teacher's, their first weights.

    This happens here and not in a pickle to resume from, because a run may have none, and because the host's loop
    copies from one by name only. A D that was resumed from a snapshot of such a run says that it has been `started`.

    Args:
        D: `DualDiscriminator`, possibly wrapped in DistributedDataParallel.
        teacher_D: the discriminator in the teacher's pickle.
        student_d: see `NICKEL`.
    """
    pair = distributed.unwrapped(D)
    if not isinstance(pair, DualDiscriminator):
        raise UserError(f'NICKEL needs D_kwargs with class_name stylegan2_compress.DualDiscriminator, not a '
                        f'{type(pair).__name__}; train.py and distill write them.')  # fmt: skip
    # Only rank 0 resumes in the host's loop, and some versions of torch hand on its parameters only.
    distributed.broadcast_from_rank_zero(pair.buffers())
    if pair.started:
        return
    with torch.no_grad():
        misc.copy_params_and_buffers(teacher_D, pair.teacher, require_all=True)
        if student_d == 'teacher':
            misc.copy_params_and_buffers(teacher_D, pair.student, require_all=True)
        pair.started.fill_(1)


def without_teacher(D_kwargs: dnnlib.EasyDict) -> dnnlib.EasyDict:
    """Arguments of a `DualDiscriminator` that holds the student's discriminator only, frozen layers and all."""
    left = type(D_kwargs)(D_kwargs, teacher_kwargs=None)
    left.pop('matched_channels', None)
    block_kwargs = {**left.student_kwargs.get('block_kwargs', {}), **left.pop('block_kwargs', {})}
    left.student_kwargs = {**left.student_kwargs, 'block_kwargs': block_kwargs}
    return left
