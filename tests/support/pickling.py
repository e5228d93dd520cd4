"""Helpers of the pickle tests: snapshots as the host writes them, and pickles that say what one wants them to say."""

import copy
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch_utils import persistence


def snapshot(G, D, augment_pipe=None, **training_set_kwargs) -> dict:
    """The dictionary that the host's training loop pickles."""
    data = {'training_set_kwargs': dict(training_set_kwargs)}
    for name, module in [('G', G), ('D', D), ('G_ema', G), ('augment_pipe', augment_pipe)]:
        data[name] = None if module is None else copy.deepcopy(module).eval().requires_grad_(False).cpu()
    return data


def write(path: Path, data: object, protocol: int = 4) -> Path:
    """Pickle `data` into a file."""
    path.write_bytes(pickle.dumps(data, protocol=protocol))
    return path


class Call:
    """Pickles as a call: `Call(os.system, 'true')` runs it where the pickle is loaded carelessly."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class Recorded(Call):
    """Pickles as the host's persistence records a module, after `edit(path, meta)` has had its way with the record."""

    def __init__(self, module: torch.nn.Module, edit: Callable[[str, dict], None], path: str = ''):
        state = dict(vars(module))
        state['_modules'] = {
            name: Recorded(child, edit, f'{path}.{name}'.strip('.')) for name, child in module._modules.items()
        }
        meta = {
            'type': 'class',
            'version': 6,
            'module_src': module._orig_module_src,
            'class_name': type(module).__name__,
            'state': state,
        }
        edit(path, meta)
        super().__init__(persistence._reconstruct_persistent_obj, meta)


def edited(data: dict, **edits: Callable[[str, dict], None]) -> dict:
    """A snapshot in which the records of the networks named are edited."""
    return {key: Recorded(value, edits[key]) if key in edits else value for key, value in data.items()}


def assert_same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    """Same classes, same tensors bit by bit, same everything else."""
    modules_a, modules_b = dict(a.named_modules()), dict(b.named_modules())
    assert list(modules_a) == list(modules_b)
    for path, module in modules_a.items():
        other = modules_b[path]
        assert type(module).__name__ == type(other).__name__
        for kind in ('_parameters', '_buffers'):
            tensors, others = getattr(module, kind), getattr(other, kind)
            assert list(tensors) == list(others)
            for name, tensor in tensors.items():
                assert_same_tensor(tensor, others[name])
        members = ('_parameters', '_buffers', '_modules')
        plain, other_plain = ({k: v for k, v in vars(m).items() if k not in members} for m in (module, other))
        assert plain == other_plain
        assert {k: type(v) for k, v in plain.items()} == {k: type(v) for k, v in other_plain.items()}


def assert_same_tensor(a: torch.Tensor | None, b: torch.Tensor | None) -> None:
    """Same type, dtype, shape, strides, `requires_grad` and bits (so that NaN equals NaN, and 0 differs from -0)."""
    if a is None or b is None:
        assert a is b
        return
    assert type(a) is type(b)
    assert (a.dtype, a.shape, a.stride(), a.requires_grad) == (b.dtype, b.shape, b.stride(), b.requires_grad)
    assert a.detach().numpy().tobytes() == b.detach().numpy().tobytes()


# --- the TensorFlow era -------------------------------------------------------------------------------------------


class _TFModules:
    """Makes `dnnlib.tflib.network.Network` a name that can be pickled, for the length of a block."""

    def __enter__(self):
        module = types.ModuleType('dnnlib.tflib.network')
        module.Network = type('Network', (), {'__module__': 'dnnlib.tflib.network', '__qualname__': 'Network'})
        self.Network = module.Network
        self.names = {'dnnlib.tflib': types.ModuleType('dnnlib.tflib'), 'dnnlib.tflib.network': module}
        sys.modules.update(self.names)
        return self

    def __exit__(self, *_):
        for name in self.names:
            del sys.modules[name]

    def network(self, static_kwargs: dict, variables: dict[str, np.ndarray], components: dict | None = None):
        """A network with the attributes that TensorFlow pickles have."""
        network = self.Network()
        network.__dict__.update(
            version=4,
            name='network',
            static_kwargs=static_kwargs,
            components=components or {},
            build_module_src='raise SystemExit("This source must not run.")',
            build_func_name='build',
            variables=list(variables.items()),
        )
        return network


def write_tensorflow(path: Path, G: torch.nn.Module, D: torch.nn.Module, **static_kwargs) -> Path:
    """Write the TensorFlow pickle that the host's converter has to turn into G and D (skip and resnet, no labels).

    Only the layout is the converter's; the values go the way back. Affine biases have to survive `b - 1 + 1`.
    """
    with _TFModules() as tf:
        common = {'resolution': G.img_resolution, 'num_channels': G.img_channels, 'label_size': 0, **static_kwargs}
        mapping = tf.network({}, {f'Dense{i}/{kind}': value for i, kind, value in _tf_mapping(G.mapping)})
        synthesis = tf.network({}, dict(_tf_synthesis(G.synthesis)))
        g_kwargs = {'latent_size': G.z_dim, 'dlatent_size': G.w_dim, 'mapping_layers': G.mapping.num_layers, **common}

        def generator():
            variables = {'dlatent_avg': G.mapping.w_avg.numpy(), 'lod': np.float32(0)}
            return tf.network(g_kwargs, variables, {'mapping': copy.copy(mapping), 'synthesis': copy.copy(synthesis)})

        discriminator = tf.network({**common, 'mbstd_group_size': 4}, dict(_tf_discriminator(D)))
        path.write_bytes(pickle.dumps((generator(), discriminator, generator()), protocol=4))
    return path


def _tf_mapping(mapping):
    for i in range(mapping.num_layers):
        layer = getattr(mapping, f'fc{i}')
        yield i, 'weight', layer.weight.numpy().T
        yield i, 'bias', layer.bias.numpy()


def _tf_conv(weight: torch.Tensor) -> np.ndarray:
    return weight.numpy().transpose(2, 3, 1, 0)


def _tf_styled(prefix: str, layer):
    yield f'{prefix}/mod_weight', layer.affine.weight.numpy().T
    yield f'{prefix}/mod_bias', layer.affine.bias.numpy() - 1
    yield f'{prefix}/bias', layer.bias.numpy()


def _tf_synthesis(synthesis):
    yield '4x4/Const/const', synthesis.b4.const.numpy()[None]
    noise = 0
    for res in synthesis.block_resolutions:
        block = getattr(synthesis, f'b{res}')
        names = [('conv1', 'Conv')] if res == 4 else [('conv0', 'Conv0_up'), ('conv1', 'Conv1')]
        for name, tf_name in names:
            layer, prefix = getattr(block, name), f'{res}x{res}/{tf_name}'
            weight = _tf_conv(layer.weight)
            yield f'{prefix}/weight', weight[::-1, ::-1] if name == 'conv0' else weight
            yield f'{prefix}/noise_strength', layer.noise_strength.numpy()
            yield f'noise{noise}', layer.noise_const.numpy()[None, None]
            yield from _tf_styled(prefix, layer)
            noise += 1
        yield f'{res}x{res}/ToRGB/weight', _tf_conv(block.torgb.weight)
        yield from _tf_styled(f'{res}x{res}/ToRGB', block.torgb)


def _tf_discriminator(D):
    def layer(prefix, module, conv=True):
        yield f'{prefix}/weight', _tf_conv(module.weight) if conv else module.weight.numpy().T
        if module.bias is not None:
            yield f'{prefix}/bias', module.bias.numpy()

    for res in D.block_resolutions:
        block, prefix = getattr(D, f'b{res}'), f'{res}x{res}'
        if res == D.img_resolution:
            yield from layer(f'{prefix}/FromRGB', block.fromrgb)
        yield from layer(f'{prefix}/Conv0', block.conv0)
        yield from layer(f'{prefix}/Conv1_down', block.conv1)
        yield from layer(f'{prefix}/Skip', block.skip)
    yield from layer('4x4/Conv', D.b4.conv)
    yield from layer('4x4/Dense0', D.b4.fc, conv=False)
    yield from layer('Output', D.b4.out, conv=False)
