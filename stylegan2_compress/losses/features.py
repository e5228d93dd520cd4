"""What losses ask of a network beside its output: feature maps by forward hooks on its blocks, a teacher's styles."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from training.networks import Generator

from stylegan2_compress.errors import UserError
from stylegan2_compress.losses.terms import Batch


@contextlib.contextmanager
def block_outputs(network: torch.nn.Module, names: Iterable[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Record what blocks put out while the context is open.

    Args:
        network: a `SynthesisNetwork` or `Discriminator` of the host's, or one with blocks like theirs, which return
            their feature maps and an image.
        names: of blocks, such as 'b64'.

    Yields:
        A dictionary that the forward passes fill: feature maps [N, channels, side, side] by block name.
    """
    maps = {}

    def recorder(name):
        def record(_block, _inputs, outputs):
            maps[name] = outputs[0]

        return record

    hooks = [getattr(network, name).register_forward_hook(recorder(name)) for name in names]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def teacher_ws(G: Generator, batch: Batch) -> torch.Tensor:
    """Styles [N, num_ws, w_dim] of a teacher for the student's latents, mixed in the same way."""
    ws = G.mapping(batch.z, batch.c)
    if batch.mixing is not None:
        ws = batch.mixing.mix(ws, G.mapping(batch.mixing.z, batch.c))
    return ws


def require_same_latents(method: str, teacher: str, G: Generator, args: dict) -> None:
    """Refuse a teacher G whose latents are not those of the generator that a training loop's `args` describe."""
    z_dim = args['G_kwargs'].get('z_dim', G.z_dim)
    if G.z_dim != z_dim:
        raise UserError(
            f'--teacher={teacher} has latents of {G.z_dim} numbers, but the student has {z_dim}; '
            f'{method} needs the same latents for both.'
        )
