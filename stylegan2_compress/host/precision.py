"""Mixed precision as the host's networks are constructed with it: which blocks, which clamp, which memory format."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch_utils import misc
from training.networks import Discriminator, Generator

from stylegan2_compress.host.networks import bound_arguments, init_arguments

Network = TypeVar('Network', bound=torch.nn.Module)


@dataclass(frozen=True)
class Precision:
    """The precision that networks are constructed for. It is a run's, not a pickle's: weights are FP32 in any case.

    Attributes:
        num_fp16_res: how many of the highest resolutions compute in FP16; 0 is FP32 throughout.
        conv_clamp: bound of the magnitude of activations, which keeps FP16 from overflowing; None for no bound.
        fp16_channels_last: whether FP16 blocks have the memory format NHWC.
    """

    num_fp16_res: int = 0
    conv_clamp: float | None = None
    fp16_channels_last: bool = False

    @classmethod
    def of_generator(cls, G_kwargs: Mapping) -> 'Precision':
        """From the constructor arguments of a generator."""
        return cls.of_synthesis(G_kwargs.get('synthesis_kwargs', {}))

    @classmethod
    def of_synthesis(cls, kwargs: Mapping) -> 'Precision':
        """From the constructor arguments of a synthesis network."""
        return cls(
            kwargs.get('num_fp16_res', 0), kwargs.get('conv_clamp'), bool(kwargs.get('fp16_channels_last', False))
        )

    @classmethod
    def of_discriminator(cls, D_kwargs: Mapping) -> 'Precision':
        """From the constructor arguments of a discriminator, or of a `DualDiscriminator`."""
        block_kwargs = D_kwargs.get('student_kwargs', D_kwargs).get('block_kwargs', {})
        return cls.of_synthesis({**D_kwargs, **block_kwargs})

    def put_into_generator(self, G_kwargs: dict) -> None:
        """Change the constructor arguments of a generator."""
        synthesis_kwargs = G_kwargs.setdefault('synthesis_kwargs', {})
        synthesis_kwargs.update(num_fp16_res=self.num_fp16_res, conv_clamp=self.conv_clamp)
        _put_memory_format(synthesis_kwargs, self.fp16_channels_last)

    def put_into_discriminator(self, D_kwargs: dict) -> None:
        """Change the constructor arguments of a discriminator, or of both in a `DualDiscriminator`."""
        D_kwargs.update(num_fp16_res=self.num_fp16_res, conv_clamp=self.conv_clamp)
        inner = [kwargs for name in ('student_kwargs', 'teacher_kwargs') if (kwargs := D_kwargs.get(name)) is not None]
        for kwargs in inner or [D_kwargs]:
            _put_memory_format(kwargs.setdefault('block_kwargs', {}), self.fp16_channels_last)

    def on(self, device: torch.device) -> 'Precision':
        """What of it matters on a device: on all but CUDA, blocks compute in FP32 whatever they were built for."""
        return self if device.type == 'cuda' else replace(self, num_fp16_res=0, fp16_channels_last=False)


def _put_memory_format(kwargs: dict, channels_last: bool) -> None:
    """Only where it is not the host's default, so that arguments stay those that the host's train.py writes."""
    kwargs.pop('fp16_channels_last', None)
    if channels_last:
        kwargs['fp16_channels_last'] = True


def generator_for(G: Generator, precision: Precision, device: torch.device) -> Generator:
    """A frozen generator for forward passes of a run: G moved to the device, or a copy if G has another precision.

    Args:
        G: an instance of one of the host's persistent classes.
        precision: the run's.
        device: the run's.
    """
    has = Precision.of_generator(bound_arguments(G))
    return _frozen(G, has.on(device) == precision.on(device), precision.put_into_generator, device)


def discriminator_for(D: Discriminator, precision: Precision, device: torch.device) -> Discriminator:
    """The same for a discriminator, of which it is always a copy: the run may train the other one."""
    has = Precision.of_discriminator(bound_arguments(D))
    as_it_is = has.on(device) == precision.on(device)
    return _frozen(copy.deepcopy(D) if as_it_is else D, as_it_is, precision.put_into_discriminator, device)


def _frozen(
    network: Network, as_it_is: bool, put_precision_into: Callable[[dict], None], device: torch.device
) -> Network:
    """A network, or unless `as_it_is` one with other arguments and the same weights."""
    if not as_it_is:
        args, kwargs = copy.deepcopy(init_arguments(network))
        put_precision_into(kwargs)
        other = type(network)(*args, **kwargs).requires_grad_(False)
        misc.copy_params_and_buffers(network, other, require_all=True)
        network = other
    return network.to(device).eval().requires_grad_(False)
