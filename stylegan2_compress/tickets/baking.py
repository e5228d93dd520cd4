"""Between masked generators and the host's: masks multiplied out, weights put in."""

import inspect

import torch
from training import networks

from stylegan2_compress.networks.masked import ScoreMaskedGenerator

HOST_ARGUMENTS = tuple(inspect.signature(networks.Generator.__mro__[1].__init__).parameters)[1:]


def arguments(G: torch.nn.Module) -> dict:
    """All constructor arguments of a persistent network by name, defaults included."""
    signature = inspect.signature(type(G).__mro__[1].__init__)  # Below it stands the host's decorator.
    bound = signature.bind(None, *G.init_args, **G.init_kwargs)
    bound.apply_defaults()
    return {name: value for name, value in bound.arguments.items() if name != 'self'}


@torch.no_grad()
def bake(G: ScoreMaskedGenerator) -> torch.nn.Module:
    """The host's generator with the same images: weights times masks, and nothing of us."""
    G.update_masks()
    dense = networks.Generator(**{name: value for name, value in arguments(G).items() if name in HOST_ARGUMENTS})
    baked = {name: getattr(layer, leaf) for name, _part, layer, leaf in G.tensors()}
    for part_name, part in zip(('mapping', 'synthesis'), G.parts, strict=True):
        baked |= {f'{part_name}.{name}': weight for name, weight in part.masked_weights().items()}
    for name, tensor in [*dense.named_parameters(), *dense.named_buffers()]:
        tensor.copy_(baked[name])
    return dense.train(G.training).requires_grad_(False)


def plain(G: torch.nn.Module) -> torch.nn.Module:
    """The generator itself, baked if it is masked."""
    return bake(G) if isinstance(G, ScoreMaskedGenerator) else G


@torch.no_grad()
def put_weights(G: ScoreMaskedGenerator, dense: torch.nn.Module) -> None:
    """Give a masked generator the weights and everything else of a dense one. Its scores stay."""
    weights = dict(dense.named_parameters()) | dict(dense.named_buffers())
    for name, _part, layer, leaf in G.tensors():
        getattr(layer, leaf).copy_(weights[name])
        if hasattr(layer, f'{leaf}_start'):
            getattr(layer, f'{leaf}_start').copy_(weights[name])
