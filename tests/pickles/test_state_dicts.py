"""State dicts in rosinality's layout: the host's networks and back, with the same images; nothing in a file is run."""

import argparse
import io
import json
import os
import re
import struct
import zipfile
from collections import OrderedDict

import legacy
import numpy as np
import pytest
import standin_rosinality as rosinality
import torch
from click.testing import CliRunner
from commands import refused, run
from mutations import count_refused, nothing_runs
from other_code import run_there
from pickling import Call, snapshot
from training import networks

from stylegan2_compress import pickles
from stylegan2_compress.cli import main
from stylegan2_compress.errors import UserError
from stylegan2_compress.networks.pruned import PrunedGenerator

UNIFORM, PRUNED = [8, 8, 8, 8, 6, 6], [5, 7, 4, 6, 3, 2]


def contents(widths=UNIFORM, **others) -> dict:
    """What a file of that code holds, of a size that its classes cannot have."""
    rnd = torch.Generator().manual_seed(2)
    return {
        'g': rosinality.generator(16, 8, 2, widths, seed=3),
        'd': rosinality.discriminator(16, [6, 8, 8]),
        'g_ema': rosinality.generator(16, 8, 2, widths),
        'latent_avg': torch.randn(8, generator=rnd),
        **others,
    }


def save(path, value, old=False):
    torch.save(value, path, _use_new_zipfile_serialization=not old)
    return path


def z_of(n=3, dim=8) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(0).randn(n, dim)).float()


def images(G, z=None) -> torch.Tensor:
    z = z_of(dim=G.z_dim) if z is None else z
    return G(z, None, truncation_psi=0.7, noise_mode='const')


def assert_close(a, b) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6 * float(b.abs().max()) + 1e-6)


@pytest.fixture(params=['zip', 'old'])
def old(request) -> bool:
    """Whether `torch.save` writes its format before 1.6."""
    return request.param == 'old'


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('widths', 'cls'), [(UNIFORM, networks.Generator), (PRUNED, PrunedGenerator)])
def test_images_and_logits_are_the_same(widths, cls, old, tmp_path):
    data = contents(widths)
    with nothing_runs():
        loaded = pickles.load(save(tmp_path / 'a.pt', data, old))
    for key, state in [('G_ema', data['g_ema']), ('G', data['g'])]:
        assert type(loaded[key]) is cls
        assert_close(images(loaded[key]), rosinality.images(state, z_of(), data['latent_avg'], 0.7))
        assert not loaded[key].training
    x = images(loaded['G_ema'])
    assert_close(loaded['D'](x, None), rosinality.logits(data['d'], x))


def test_widths_are_those_of_the_tensors(tmp_path):
    G = pickles.load(save(tmp_path / 'a.pt', contents(PRUNED)))['G_ema']
    assert list(G._init_kwargs['channels'].items()) == list(
        zip(['b4.const', 'b4.conv1', 'b8.conv0', 'b8.conv1', 'b16.conv0', 'b16.conv1'], PRUNED, strict=True)
    )
    G = pickles.load(save(tmp_path / 'b.pt', contents()))['G_ema']
    assert G._init_kwargs['synthesis_kwargs'] == {'channel_base': 96, 'channel_max': 8}


def test_what_else_a_training_script_keeps_is_ignored(old, tmp_path):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    optimizer.param_groups[0]['params'][0].grad = torch.ones(2)
    optimizer.step()
    more = {'args': argparse.Namespace(size=16, x=[1]), 'g_optim': optimizer.state_dict(), 'ada_aug_p': 0.1}
    state = torch.nn.Linear(2, 2).state_dict()  # An OrderedDict with `_metadata`.
    data = contents(**more)
    data['g_ema'] = OrderedDict(data['g_ema'])
    data['g_ema']._metadata = state._metadata
    assert pickles.load(save(tmp_path / 'a.pth', data, old))['G_ema'].img_resolution == 16


def test_forms_that_exist(tmp_path):
    """The state dict alone, the prefix of DataParallel, one dictionary for two keys, no filters, older shapes."""
    data = contents()
    expected = images(pickles.load(save(tmp_path / 'a.pt', data))['G_ema'])
    state = data['g_ema']
    forms = {
        'prefix': {'g_ema': {f'module.{k}': v for k, v in state.items()}, 'latent_avg': data['latent_avg'][None]},
        'shared': {'g': state, 'g_ema': state, 'latent_avg': data['latent_avg']},
        'without filters': data | {'g_ema': {k: v for k, v in state.items() if 'kernel' not in k}},
        'biases of images': data
        | {'g_ema': {k: v.view(1, -1, 1, 1) if 'activate' in k else v for k, v in state.items()}},
        'half': data | {'latent_avg': data['latent_avg'].double()},
    }
    for name, form in forms.items():
        loaded = pickles.load(save(tmp_path / 'b.pt', form))
        assert torch.equal(images(loaded['G_ema']), expected), name
    alone = pickles.load(save(tmp_path / 'b.pt', state))
    assert alone['D'] is None
    assert alone['G'] is not alone['G_ema']


def test_a_mean_that_is_missing_is_computed(tmp_path):
    data = contents()
    del data['latent_avg']
    loaded = pickles.load(save(tmp_path / 'a.pt', data))['G_ema']
    z = torch.from_numpy(np.random.RandomState(0).randn(10_000, 8)).float()
    torch.testing.assert_close(loaded.mapping.w_avg, rosinality.mapped(data['g_ema'], z).mean(0), rtol=0, atol=1e-4)


def test_noises_that_are_missing_are_drawn_always_the_same(tmp_path):
    data = contents()
    data['g_ema'] = {name: value for name, value in data['g_ema'].items() if 'noises' not in name}
    path = save(tmp_path / 'a.pt', data)
    first, second = (pickles.load(path)['G_ema'] for _ in range(2))
    assert torch.equal(images(first), images(second))
    assert float(first.synthesis.b16.conv1.noise_const.std()) == pytest.approx(1, abs=0.2)


# --- conversion ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('widths', [UNIFORM, PRUNED])
def test_there_and_back_is_exact(widths, tmp_path):
    path = save(tmp_path / 'a.pt', contents(widths))
    run('convert', path, tmp_path / 'b.pkl')
    with open(tmp_path / 'b.pkl', 'rb') as file:
        by_host = legacy.load_network_pkl(file)
    assert torch.equal(images(by_host['G_ema']), images(pickles.load(path)['G_ema']))
    run('convert', tmp_path / 'b.pkl', tmp_path / 'c.pt')
    before, after = (torch.load(p, weights_only=True) for p in (path, tmp_path / 'c.pt'))
    assert before.keys() == after.keys()
    assert torch.equal(before['latent_avg'], torch.randn(8, generator=torch.Generator().manual_seed(2)))
    for key in ('g', 'd', 'g_ema'):
        assert before[key].keys() == after[key].keys()
        for name, tensor in before[key].items():
            assert torch.equal(tensor, after[key][name]), name


def test_what_comes_out_is_compressed_further(tmp_path):
    path = save(tmp_path / 'a.pt', contents())
    run('prune', '--teacher', path, '--ratio', 0.5, '--out', tmp_path / 'b.pkl')
    run('convert', tmp_path / 'b.pkl', tmp_path / 'c.pt')
    assert_close(images(pickles.load(tmp_path / 'c.pt')['G_ema']), images(pickles.load(tmp_path / 'b.pkl')['G_ema']))


def test_a_file_without_discriminator_is_said_to_be_one(tmp_path):
    path = save(tmp_path / 'a.pt', contents()['g_ema'])
    result = CliRunner().invoke(main, ['convert', str(path), str(tmp_path / 'b.pkl')])
    assert result.exit_code == 0
    assert 'has no discriminator' in result.stderr


@pytest.mark.parametrize(
    ('which', 'kwargs', 'sentence'),
    [
        ('G', {'c_dim': 3}, 'it takes labels'),
        ('G', {'img_channels': 1}, 'its images have 1 channels'),
        ('G', {'z_dim': 4}, 'z_dim is 4, not 16'),
        ('G', {'mapping_kwargs': {'num_layers': 2, 'lr_multiplier': 0.1}}, 'bias_gain is 0.1, not 0.01'),
        ('G', {'synthesis_kwargs': {'channel_max': 8, 'architecture': 'resnet'}}, 'skip has no counterpart'),
        ('G', {'synthesis_kwargs': {'channel_max': 8, 'use_noise': False}}, 'use_noise is False'),
        ('G', {'synthesis_kwargs': {'channel_max': 8, 'resample_filter': [1, 2, 2, 1]}}, r'not that of \[1, 3, 3, 1\]'),
        ('G', {'synthesis_kwargs': {'channel_max': 8, 'activation': 'relu'}}, "activation is 'relu'"),
        ('D', {'architecture': 'skip'}, 'it lacks b16.skip'),
        ('D', {'epilogue_kwargs': {'mbstd_group_size': 8}}, 'group_size is 8, not 4'),
        ('D', {'epilogue_kwargs': {'mbstd_num_channels': 0}}, 'mbstd'),
    ],
)
def test_what_the_layout_does_not_have_is_a_sentence(
    which, kwargs, sentence, make_generator, make_discriminator, tmp_path
):
    G = make_generator(**(kwargs if which == 'G' else {}))
    D = make_discriminator(**(kwargs if which == 'D' else {}))
    pickles.save(tmp_path / 'a.pkl', snapshot(G, D))
    said = refused('convert', tmp_path / 'a.pkl', tmp_path / 'b.pt', unchanged=tmp_path)
    assert re.search(f'{which} cannot be stored as a state dict of stylegan2-pytorch: .*{sentence}', said), said


def test_inspect_describes_it(tmp_path):
    report = pickles.inspect(save(tmp_path / 'a.pt', contents(PRUNED)))
    assert report.format == 'state dicts of stylegan2-pytorch'
    assert report.networks['G_ema'].channels == {4: [5, 7], 8: [4, 6], 16: [3, 2]}
    assert report.networks['G_ema'].macs
    assert set(report.networks) == {'G', 'D', 'G_ema'}


# --- files that are something else --------------------------------------------------------------------------------


def spoilt(key: str, change) -> dict:
    data = contents()
    data[key] = dict(data[key])
    change(data[key])
    return data


WRONG = {
    'a list': ([1], 'it holds a list'),
    'no generator': ({'model': {}}, "it has no 'g_ema'"),
    'not a state dict': ({'g_ema': 7}, "its 'g_ema' is not a state dict"),
    'a tensor': (torch.ones(3), 'it holds a Tensor'),
    'no mapping': (spoilt('g_ema', lambda s: s.pop('style.1.weight')), "lacks 'style.1.weight'"),
    'a layer less': (spoilt('g_ema', lambda s: s.pop('convs.1.conv.weight')), "lacks 'convs.1.conv.weight'"),
    'a tensor more': (spoilt('g_ema', lambda s: s.update(x=torch.ones(1))), "has 'x', which"),
    'other shapes': (spoilt('g_ema', lambda s: s.update({'to_rgb1.bias': torch.ones(5)})), "a 'to_rgb1.bias' of"),
    'integers': (
        spoilt('g_ema', lambda s: s.update({'style.1.bias': torch.ones(8, dtype=torch.int64)})),
        "a 'style.1.bias' of",
    ),
    'another filter': (
        spoilt('g_ema', lambda s: s.update({'convs.0.conv.blur.kernel': torch.ones(4, 4)})),
        'a filter other than',
    ),
    'widths that D cannot have': (contents(d=rosinality.discriminator(16, [6, 8, 7])), 'widths that the host'),
    'a mean of another size': (contents(latent_avg=torch.ones(5)), 'latent_avg'),
    'a mean that is none': (contents(latent_avg='x'), "'latent_avg' is not a tensor"),
}


@pytest.mark.parametrize('name', WRONG)
def test_wrong_files_are_a_sentence(name, old, tmp_path):
    value, sentence = WRONG[name]
    path = save(tmp_path / 'a.pt', value, old)
    for read in (pickles.load, pickles.inspect):
        if name == 'a mean of another size' and read is pickles.inspect:
            continue  # It looks at no data.
        with nothing_runs(), pytest.raises(UserError, match=sentence):
            read(path)


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as file:
        for name, data in members.items():
            file.writestr(f'a/{name}', data)
    return buffer.getvalue()


def test_archives_that_torch_did_not_save_are_a_sentence(tmp_path):
    path = tmp_path / 'a.pt'
    scripted = torch.jit.script(torch.nn.Linear(2, 2))
    torch.jit.save(scripted, str(path))
    with pytest.raises(UserError, match='a TorchScript program'):
        pickles.load(path)
    compressed = io.BytesIO()
    with zipfile.ZipFile(compressed, 'w', zipfile.ZIP_DEFLATED) as file:
        file.writestr('a/data.pkl', b'N' * 10**6 + b'.')
    for data, sentence in [
        (b'', 'cut off|an empty file'),
        (b'PK\x03\x04', 'not whole'),
        (b'hello', 'is not a network file'),
        (archive(x=b''), 'torch.save did not write'),
        (archive(**{'data.pkl': b'N.', 'byteorder': b'big'}), 'big-endian'),
        (compressed.getvalue(), 'a compressed archive'),
    ]:
        path.write_bytes(data)
        with pytest.raises(UserError, match=sentence):
            pickles.load(path)


@pytest.mark.parametrize('evil', [Call(os.system, 'true'), Call(eval, '1'), os.getcwd, torch.nn.Linear(1, 1)])
def test_code_is_named_and_not_run(evil, old, tmp_path):
    for value in (evil, contents(args=evil), contents(g_ema=evil)):
        path = save(tmp_path / 'a.pt', value, old)
        with nothing_runs(), pytest.raises(UserError, match=r'which no state dict needs\. Nothing in it was run'):
            pickles.load(path)


def test_a_storage_that_is_larger_than_the_file_is_not_allocated(tmp_path):
    path = save(tmp_path / 'a.pt', {'g_ema': {'input.input': torch.zeros(1234567)}}, old=True)
    text = path.read_bytes()
    number = struct.pack('<i', 1234567)
    assert text.count(number) >= 2
    path.write_bytes(text.replace(number, struct.pack('<i', 2**31 - 1)))
    with pytest.raises(UserError, match=r'cut off|not the one declared'):
        pickles.load(path)


@pytest.mark.parametrize('kind', ['zip', 'old'])
def test_500_mutated_files(kind, tmp_path):
    data = {
        'g_ema': rosinality.generator(8, 2, 1, [2, 2, 2, 2]),
        'd': rosinality.discriminator(8, [2, 2]),
        'latent_avg': torch.ones(2),
    }
    assert 50 < count_refused(save(tmp_path / 'a.pt', data, kind == 'old')) < 500


# --- the original code --------------------------------------------------------------------------------------------

# `op` compiles CUDA extensions: what the models use of it is given here, from the equations. Arguments: the directory,
# and the widths of the generator, or none for a repository that has only full ones.
WRITE_CHECKPOINT = """
import json, sys, types
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F

def activate(x, bias=None, slope=0.2, gain=2 ** 0.5):
    if bias is not None:
        x = x + bias.view(1, -1, *[1] * (x.ndim - 2))
    return F.leaky_relu(x, slope) * gain

class Activation(torch.nn.Module):
    def __init__(self, channels, bias=True):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(channels)) if bias else None
    def forward(self, x):
        return activate(x, self.bias)

def resample(x, kernel, up=1, down=1, pad=(0, 0)):
    n, c, h, w = x.shape
    spread = x.new_zeros(n, c, h * up, w * up)
    spread[:, :, ::up, ::up] = x
    spread = F.pad(spread, [*pad, *pad])
    return F.conv2d(spread, kernel.flip([0, 1]).expand(c, 1, *kernel.shape), groups=c)[:, :, ::down, ::down]

gradfix = types.SimpleNamespace(conv2d=F.conv2d, conv_transpose2d=F.conv_transpose2d)
sys.modules['op'] = op = types.ModuleType('op')
op.FusedLeakyReLU, op.fused_leaky_relu, op.upfirdn2d, op.conv2d_gradfix = Activation, activate, resample, gradfix
import model

directory, widths = Path(sys.argv[1]), json.loads(sys.argv[2])
torch.manual_seed(0)
G = model.Generator(8, 8, 2, **({'generator_net_shape': widths} if widths else {})).eval()
D = model.Discriminator(8).eval()
for parameter in [*G.parameters(), *D.parameters()]:
    parameter.data += torch.randn(parameter.shape) * 0.3
mean = torch.randn(8)
z = torch.from_numpy(np.random.RandomState(0).randn(3, 8)).float()
with torch.no_grad():
    made = G([z], truncation=0.7, truncation_latent=mean, randomize_noise=False)
    images = made[0] if isinstance(made, tuple) else made
    logits = D(images)
state = G.state_dict()
torch.save({'g': state, 'd': D.state_dict(), 'g_ema': state, 'latent_avg': mean}, directory / 'a.pt')
np.savez(directory / 'images.npz', images=images.numpy(), logits=logits.numpy())
"""


@pytest.mark.parametrize(
    ('repository', 'widths'),
    [
        ('stylegan2-pytorch', None),
        ('content-aware-gan-compression', [12, 20, 9, 7]),
        ('StyleKD', [12, 20, 9, 7]),
        ('DCP-GAN', [12, 20, 9, 7]),
    ],
)
def test_the_original_code_makes_the_same_images(repository, widths, tmp_path):
    run_there(repository, WRITE_CHECKPOINT, tmp_path, json.dumps(widths))
    expected = np.load(tmp_path / 'images.npz')
    loaded = pickles.load(tmp_path / 'a.pt')
    assert_close(images(loaded['G_ema']), torch.from_numpy(expected['images']))
    x = torch.from_numpy(expected['images'])
    np.testing.assert_allclose(loaded['D'](x, None), expected['logits'], rtol=1e-4, atol=1e-5)
    assert isinstance(loaded['G_ema'], PrunedGenerator) == (widths is not None)
