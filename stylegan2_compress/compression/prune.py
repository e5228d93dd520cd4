"""`prune`: from a teacher's file to a student's."""

import torch

from stylegan2_compress import pickles, pruning
from stylegan2_compress.compression.convert import images_only
from stylegan2_compress.compression.options import JUDGING, PruneOptions
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import devices, profiling
from stylegan2_compress.host.networks import (
    generator_of,
    is_placeholder,
    require_arguments_of_the_host,
    student_of,
)


def prune(options: PruneOptions, trust: bool = False) -> str:
    """Write the network pickle of a pruned G_ema.

    Args:
        options: which teacher, how, and the file to write.
        trust: run unknown code that the teacher's file contains.

    Returns:
        Parameters and multiply-accumulates before and after, a line each.

    Raises:
        UserError: the teacher cannot be pruned, or not like that.
    """
    device = devices.choose(options.device)
    content_mask = None if options.mask is None else pruning.load_content_mask(options.mask, device)
    criterion_options = pruning.CriterionOptions(**options.given(*JUDGING), content_mask=content_mask, device=device)
    data = pickles.load(options.teacher, trust=trust)
    G_ema = generator_of(options.teacher, data)
    pruning.require_prunable(options.teacher, G_ema)
    if trust:
        require_arguments_of_the_host(options.teacher, G_ema)
    if options.only is None:
        require_discriminator(options.teacher, data['D'])
    if options.widths is None:
        widths = pruning.widths_for_ratio(G_ema, options.ratio)  # pyright: ignore[reportArgumentType]  # One is given.
    else:
        widths = pruning.widths_from_text(G_ema, options.widths)
    widths = pruning.rounded_up(G_ema, widths, options.multiple_of)
    pickles.require_storable(options.out, to_write(options, dict(data, D=student_of(data['D']))))
    with devices.fitting_batch(criterion_options.batch, device):
        student = pruning.make_student(data, widths, options.criterion, criterion_options, options.init)
    pickles.save(options.out, to_write(options, student))
    lines = []
    for what, count in (('parameters', profiling.parameters), ('MACs per image', profiling.macs)):
        before, after = count(G_ema), count(student['G_ema'])
        lines.append(f'{what}: {before:,} -> {after:,} ({after / before - 1:+.2%})')
    return '\n'.join(lines)


def to_write(options: PruneOptions, networks: dict) -> dict:
    """What of the networks goes into the file."""
    return networks if options.only is None else images_only(networks, is_pickle=options.out.endswith('.pkl'))


def require_discriminator(file: str, D: torch.nn.Module | None) -> None:
    """Refuse a teacher from which no student with a trained discriminator can be made.

    Raises:
        UserError: it has none, or a placeholder.
    """
    way_out = 'name one that has, or add --only=G_ema for a file that makes images'
    if D is None:
        raise UserError(f'{file} has no discriminator, without which the host opens no pickle: {way_out}.')
    if is_placeholder(D):
        raise UserError(f'{file} has a placeholder for D, with which no student is trained: {way_out}.')
