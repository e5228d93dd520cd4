"""From scores to a smaller generator: widths, masks, and the generator without the channels that are cut."""

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
from training.networks import Generator

from stylegan2_compress.errors import UserError
from stylegan2_compress.host.networks import generator_arguments
from stylegan2_compress.networks.pruned import PrunedGenerator
from stylegan2_compress.pruning import graph


def widths_for_ratio(G: Generator, ratio: float) -> dict[str, int]:
    """ceil((1 − ratio) · c) of the c channels of every feature map, which is at least one.

    Raises:
        UserError: `ratio` is not in [0, 1).
    """
    if not 0 <= ratio < 1:
        raise UserError(f'--ratio={ratio:g} must be at least 0 and less than 1.')
    kept = 1 - Fraction(str(ratio))  # Exact in decimal: in floating point, ceil((1 − 0.7) · 10) is 4.
    return {name: math.ceil(kept * width) for name, width in graph.widths(G).items()}


def widths_from_text(G: Generator, text: str) -> dict[str, int]:
    """Widths from `RES:CHANNELS,RES:CHANNELS,…`, of both feature maps of a block; blocks not named are not pruned.

    Raises:
        UserError: `text` cannot be parsed, or names a resolution or more channels that `G` does not have.
    """
    whole = graph.widths(G)
    result = {}
    for item in text.split(','):
        res, colon, channels = item.partition(':')
        if not colon or not res.strip().isdecimal() or not channels.strip().isdecimal():
            raise UserError(f'Cannot parse {item!r} in the widths {text!r}: write RES:CHANNELS, for example 4:52,8:52.')
        maps = [name for name in whole if name.startswith(f'b{int(res)}.')]
        if not maps:
            known = ', '.join(str(res) for res in G.synthesis.block_resolutions)
            raise UserError(f'The widths {text!r} name the resolution {int(res)}; this generator has {known}.')
        if maps[0] in result:
            raise UserError(f'The widths {text!r} name the resolution {int(res)} twice: leave one out.')
        for name in maps:
            if not 1 <= int(channels) <= whole[name]:
                raise UserError(
                    f'The widths {text!r} ask for {channels} channels of {name}: give a number from 1 to {whole[name]}.'
                )
            result[name] = int(channels)
    return {**whole, **result}


def rounded_up(G: Generator, widths: Mapping[str, int], multiple: int) -> dict[str, int]:
    """Widths rounded up to a multiple of `multiple`, which vector units compute at little or no cost.

    A feature map never gets more channels than it has in `G`.
    """
    whole = graph.widths(G)
    return {name: min(-(-width // multiple) * multiple, whole[name]) for name, width in widths.items()}


def masks_from_scores(scores: Mapping[str, torch.Tensor], widths: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """A boolean mask [c] per feature map that keeps the `widths[name]` channels of highest score, ties by index.

    Raises:
        UserError: a score is not finite, for example because the network's weights are not.
    """
    masks = {}
    for name, score in scores.items():
        if not score.isfinite().all():
            raise UserError(f'The scores of {name} are not finite: the teacher has damaged weights or overflows.')
        best = score.sort(descending=True, stable=True).indices[: widths[name]]
        masks[name] = torch.zeros(len(score), dtype=torch.bool, device=score.device).index_fill_(0, best, True)
    return masks


def prune(G: Generator, masks: Mapping[str, torch.Tensor]) -> PrunedGenerator:
    """The generator without the channels that `masks` leave out; `G` is not changed.

    Its images are those of `G` with all weights that read these channels set to zero. Styled convolutions need nothing
    for that, because of demodulation. `torgb` and `skip` divide by √(input channels) at run time, so their weights are
    multiplied by √(kept / all).

    Args:
        G: a generator of the host's class or a pruned one.
        masks: boolean mask [c] of every feature map, True for the channels to keep.

    Returns:
        A `PrunedGenerator` in eval mode without gradients, on `G`'s device.
    """
    state = G.state_dict()
    masks = {name: mask.to(G.synthesis.b4.const.device) for name, mask in masks.items()}
    state['synthesis.b4.const'] = state['synthesis.b4.const'][masks['b4.const']]
    for layer in graph.layers(G):
        name, source = f'synthesis.{layer.name}', masks[layer.source]
        state[f'{name}.weight'] = state[f'{name}.weight'][:, source]
        if hasattr(layer.module, 'affine'):
            state[f'{name}.affine.weight'] = state[f'{name}.affine.weight'][source]
            state[f'{name}.affine.bias'] = state[f'{name}.affine.bias'][source]
        if hasattr(layer.module, 'weight_gain'):
            state[f'{name}.weight'] = state[f'{name}.weight'] * math.sqrt(int(source.sum()) / len(source))
        if layer.target is not None:
            state[f'{name}.weight'] = state[f'{name}.weight'][masks[layer.target]]
            if layer.module.bias is not None:
                state[f'{name}.bias'] = state[f'{name}.bias'][masks[layer.target]]

    student = PrunedGenerator(**_constructor_arguments(G, {name: int(mask.sum()) for name, mask in masks.items()}))
    student.load_state_dict(state)
    return student.eval().requires_grad_(False).to(G.synthesis.b4.const.device)


def _constructor_arguments(G: Generator, channels: dict[str, int]) -> dict:
    arguments = generator_arguments(G, defaults=False)
    synthesis_kwargs = dict(arguments.get('synthesis_kwargs', {}))
    for name in ('channel_base', 'channel_max'):
        synthesis_kwargs.pop(name, None)
    return {**arguments, 'channels': channels, 'synthesis_kwargs': synthesis_kwargs}
