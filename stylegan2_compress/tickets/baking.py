"""From masked generators to the host's and back: masks multiplied in, weights put in."""

from dataclasses import replace

import torch
from training import networks

from stylegan2_compress.host.networks import generator_arguments
from stylegan2_compress.host.precision import Precision
from stylegan2_compress.networks.masked import ScoreMaskedGenerator


@torch.no_grad()
def bake(G: ScoreMaskedGenerator) -> networks.Generator:
    """The host's generator that makes the same images: its weights are weights times masks, and nothing is masked.

    It computes in FP32, too, see `ScoreMaskedSynthesis`.
    """
    G.update_masks()
    arguments = generator_arguments(G)
    replace(Precision.of_generator(arguments), num_fp16_res=0).put_into_generator(arguments)
    dense = networks.Generator(**arguments)
    baked = {name: getattr(layer, leaf) for name, _part, layer, leaf in G.tensors()} | G.masked_weights()
    for name, tensor in [*dense.named_parameters(), *dense.named_buffers()]:
        tensor.copy_(baked[name])
    return dense.train(G.training).requires_grad_(False)


def plain(G: networks.Generator) -> networks.Generator:
    """The generator itself, baked if it is masked."""
    return bake(G) if isinstance(G, ScoreMaskedGenerator) else G


@torch.no_grad()
def put_weights(G: ScoreMaskedGenerator, dense: networks.Generator) -> None:
    """Copy the weights and all other tensors of a dense generator into a masked one, whose scores stay."""
    weights = dict(dense.named_parameters()) | dict(dense.named_buffers())
    for name, _part, layer, leaf in G.tensors():
        getattr(layer, leaf).copy_(weights[name])
        if hasattr(layer, f'{leaf}_start'):
            getattr(layer, f'{leaf}_start').copy_(weights[name])
