"""What losses ask of a network beside its output: feature maps by forward hooks on its blocks, a teacher's styles."""

import contextlib
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from training.networks import Generator

from stylegan2_compress.errors import UserError
from stylegan2_compress.losses.terms import Batch
from stylegan2_compress.runs.plan import Plan


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


class _Enough(Exception):
    """Ends a forward pass."""


def maps_alone(
    network: torch.nn.Module, names: Collection[str], *inputs: torch.Tensor, **precision: bool
) -> dict[str, torch.Tensor]:
    """Feature maps of blocks, as `block_outputs` has them, without a pass through the blocks after the last of these.

    Args:
        network: as for `block_outputs`, not wrapped in DistributedDataParallel.
        names: of blocks, each once.
        inputs, precision: of the forward pass.
    """

    def stop(_block, _inputs, _outputs):
        if len(maps) == len(names):
            raise _Enough

    with block_outputs(network, names) as maps:
        hooks = [getattr(network, name).register_forward_hook(stop) for name in names]  # After those that record.
        try:
            network(*inputs, **precision)
        except _Enough:
            return maps
        finally:
            for hook in hooks:
                hook.remove()
    raise AssertionError('not all blocks were reached')


def teacher_ws(G: Generator, batch: Batch, truncation_psi: float) -> torch.Tensor:
    """Styles [N, num_ws, w_dim] of a teacher for the student's latents, mixed in the same way."""
    ws = G.mapping(batch.z, batch.c, truncation_psi=truncation_psi)
    if batch.mixing is not None:
        ws = batch.mixing.mix(ws, G.mapping(batch.mixing.z, batch.c, truncation_psi=truncation_psi))
    return ws


@dataclass(frozen=True)
class Taught:
    """What a teacher makes of the student's latents, without gradient."""

    ws: torch.Tensor  # [N, num_ws, w_dim]
    images: torch.Tensor  # [N, C, H, W]
    maps: Mapping[str, torch.Tensor]  # Feature maps of the blocks that are watched, by name.


class TeacherPass:
    """A teacher's images for the student's latents: one forward pass per batch, however many terms ask.

    Args:
        G: the teacher's generator, frozen and in eval mode.
        precision: arguments of its forward pass.
        truncation_psi: of its images.
    """

    def __init__(self, G: Generator, precision: Mapping[str, bool], truncation_psi: float = 1):
        self.G = G
        self.precision = precision
        self.truncation_psi = truncation_psi
        self._watched: set[str] = set()
        # The last one, by a weak reference: it must not keep the student's activations in memory.
        self._batch: Callable[[], Batch | None] = lambda: None
        self._taught: Taught | None = None

    def watch(self, blocks: Collection[str]) -> None:
        """Have the feature maps of these synthesis blocks in every result from now on."""
        self._watched.update(blocks)

    def __call__(self, batch: Batch) -> Taught:
        if self._taught is None or self._batch() is not batch:
            self._batch = weakref.ref(batch)
            with torch.no_grad(), block_outputs(self.G.synthesis, self._watched) as maps:
                ws = teacher_ws(self.G, batch, self.truncation_psi)
                self._taught = Taught(ws, self.G.synthesis(ws, **self.precision), maps)
        return self._taught


def require_same_latents(method: str, teacher: str, plan: Plan) -> None:
    """Refuse a student that takes other latents than the teacher.

    Raises:
        UserError: that names the method, which needs the same for both.
    """
    G = plan.resources.networks[teacher]['G_ema']
    z_dim = plan.args['G_kwargs'].get('z_dim', G.z_dim)
    if G.z_dim != z_dim:
        raise UserError(
            f'--teacher={teacher} has latents of {G.z_dim} numbers, but the student has {z_dim}; '
            f'{method} needs the same latents for both.'
        )
