"""From scores to a smaller generator: widths, masks, and the cut itself."""

import inspect
import math
from collections.abc import Mapping
from fractions import Fraction

import torch

from stylegan2_compress.errors import UserError
from stylegan2_compress.networks.pruned import PrunedGenerator
from stylegan2_compress.pruning import graph


def widths_for_ratio(G: torch.nn.Module, ratio: float) -> dict[str, int]:
    """ceil((1 − ratio) · c) channels of every feature map, so at least one.

    Raises:
        UserError: `ratio` is not in [0, 1).
    """
    if not 0 <= ratio < 1:
        raise UserError(f'The pruning ratio must be at least 0 and less than 1, not {ratio}.')
    kept = 1 - Fraction(str(ratio))  # As written: in binary, ceil((1 − 0.7) · 10) is 4.
    return {name: math.ceil(kept * width) for name, width in graph.widths(G).items()}


def widths_from_text(G: torch.nn.Module, text: str) -> dict[str, int]:
    """Widths from `RES:CHANNELS,RES:CHANNELS,…`: both feature maps of a block get them, blocks not named stay whole.

    Raises:
        UserError: `text` cannot be read, or names a resolution or more channels that `G` does not have.
    """
    whole = graph.widths(G)
    result = {}
    for item in text.split(','):
        res, colon, channels = item.partition(':')
        if not colon or not res.strip().isdecimal() or not channels.strip().isdecimal():
            raise UserError(f'Cannot read {item!r} in the widths {text!r}: write RES:CHANNELS, for example 4:52,8:52.')
        maps = [name for name in whole if name.startswith(f'b{int(res)}.')]
        if not maps:
            known = ', '.join(str(res) for res in G.synthesis.block_resolutions)
            raise UserError(f'The widths {text!r} name the resolution {int(res)}; this generator has {known}.')
        if maps[0] in result:
            raise UserError(f'The widths {text!r} name the resolution {int(res)} twice: leave one out.')
        for name in maps:
            if not 1 <= int(channels) <= whole[name]:
                raise UserError(f'The widths {text!r} ask for {channels} channels of {name}: 1 to {whole[name]} work.')
            result[name] = int(channels)
    return {**whole, **result}


def masks_from_scores(scores: Mapping[str, torch.Tensor], widths: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """A boolean mask per feature map that keeps the `widths[name]` channels of highest score, the first ones of equals.

    Raises:
        UserError: A score is not finite, as when the network's weights are not.
    """
    masks = {}
    for name, score in scores.items():
        if not score.isfinite().all():
            raise UserError(f'The scores of {name} are not finite: the teacher has damaged weights or overflows.')
        best = score.sort(descending=True, stable=True).indices[: widths[name]]
        masks[name] = torch.zeros(len(score), dtype=torch.bool, device=score.device).index_fill_(0, best, True)
    return masks


def prune(G: torch.nn.Module, masks: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """The generator without the channels that `masks` (boolean, by feature map) leave out; `G` is unchanged.

    Its images are those of `G` after all weights that read a channel left out were set to zero. Demodulation sees to
    that by itself in the styled convolutions. `torgb` and `skip` divide by √(input channels) at run time, so their
    weights are multiplied by √(kept / all).

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


def _constructor_arguments(G: torch.nn.Module, channels: dict[str, int]) -> dict:
    as_written = type(G).__mro__[1]  # The class before `persistent_class` hid its signature.
    arguments = inspect.signature(as_written).bind(*G.init_args, **G.init_kwargs).arguments
    synthesis_kwargs = dict(arguments.get('synthesis_kwargs', {}))
    for name in ('channel_base', 'channel_max'):
        synthesis_kwargs.pop(name, None)
    return {**arguments, 'channels': channels, 'synthesis_kwargs': synthesis_kwargs}
