"""Networks of the TensorFlow era, converted by the host's own code; the source code in the file is not run."""

import contextlib
import io
from collections.abc import Callable
from types import SimpleNamespace

import legacy
import torch
from torch_utils import misc

from stylegan2_compress.pickles.contents import Allowance, TFNetwork, plain
from stylegan2_compress.pickles.machine import Malformed
from stylegan2_compress.pickles.rebuild import check_numbers, one_line, without_data

_MAX_MODULES = 1000
_MAX_FILTERS = 1 << 16  # Values of a network that are not among its variables: the resampling filters.


def convert(G: TFNetwork, D: TFNetwork, Gs: TFNetwork, with_data: bool = True) -> dict[str, torch.nn.Module]:
    """The three networks of a TensorFlow pickle as the host's G, D and G_ema.

    Args:
        G, D, Gs: the records; Gs is the moving average of G.
        with_data: without it, tensors have shapes only.

    Raises:
        Malformed: the host's converter does not support them.
    """
    seen: set[TFNetwork] = set()
    allowance = Allowance()
    return {
        'G': _convert(_stub(G, seen, allowance), legacy.convert_tf_generator, with_data),
        'D': _convert(_stub(D, seen, allowance), legacy.convert_tf_discriminator, with_data),
        'G_ema': _convert(_stub(Gs, seen, allowance), legacy.convert_tf_generator, with_data),
    }


def _stub(network: TFNetwork, seen: set[TFNetwork], allowance: Allowance) -> SimpleNamespace:
    """What the converter reads of a `dnnlib.tflib.network.Network`, of which each may be part of only one other."""
    if not isinstance(network, TFNetwork) or network.state is None or network in seen or len(seen) > 100:
        raise Malformed('it has a TensorFlow network that is incomplete or shared')
    seen.add(network)
    variables, components = plain(network.state['variables'], allowance), network.state['components']
    if not (isinstance(variables, list) and isinstance(components, dict)):
        raise Malformed('it has a TensorFlow network that is incomplete or shared')
    return SimpleNamespace(
        version=plain(network.state['version'], allowance),
        static_kwargs=plain(network.state['static_kwargs'], allowance),
        variables=variables,
        components={name: _stub(component, seen, allowance) for name, component in components.items()},
    )


def _convert(stub: SimpleNamespace, converter: Callable, with_data: bool) -> torch.nn.Module:
    check_numbers(stub.static_kwargs)
    try:
        # First without memory for weights, to see how large the arguments would make the network.
        with without_data(_MAX_MODULES), contextlib.redirect_stdout(io.StringIO()):
            skeleton = converter(stub)
        needed = sum(tensor.numel() for tensor in misc.params_and_buffers(skeleton))
        if needed > _num_values(stub) + _MAX_FILTERS:
            raise ValueError('its arguments require more values than it has')
        return converter(stub) if with_data else skeleton
    except Exception as error:  # The converter checks little: anything can be raised for bad arguments.
        raise Malformed(f"the host's TensorFlow converter cannot convert it ({one_line(error)})") from error


def _num_values(stub: SimpleNamespace) -> int:
    own = sum(value.size for _, value in stub.variables)
    return own + sum(_num_values(component) for component in stub.components.values())
