"""networks/pruned.py: the host's network in other widths, in our process and in ones that do not know our package."""

import json
import subprocess
import sys

import dnnlib
import numpy as np
import PIL.Image
import pytest
import torch
from host_alone import HOST_SCRIPT, WITHOUT_OUR_PACKAGE
from torch_utils import misc

from stylegan2_compress import host, pickles
from stylegan2_compress.networks.pruned import PrunedGenerator

HOST = host.activate().path

CHANNELS = {'b4.const': 5, 'b4.conv1': 7, 'b8.conv0': 3, 'b8.conv1': 6, 'b16.conv0': 4, 'b16.conv1': 2}


def make_pruned(seed=0, **overrides):
    """A generator of uneven widths, all of whose parameters and buffers are at work."""
    kwargs = dict(z_dim=16, c_dim=0, w_dim=16, img_resolution=16, img_channels=3, channels=CHANNELS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        G = PrunedGenerator(**{**kwargs, 'mapping_kwargs': dict(num_layers=2), **overrides})
        G.eval().requires_grad_(False)
        for tensor in [*G.parameters(), G.mapping.w_avg]:
            tensor.add_(torch.randn_like(tensor) * 0.3)
    return G


def save_student(path, G, D):
    pickles.save(path, dict(G=G, D=D, G_ema=G, training_set_kwargs=None, augment_pipe=None))


@pytest.mark.parametrize('architecture', ['skip', 'resnet', 'orig'])
def test_host_widths_give_the_host_network(make_generator, architecture):
    synthesis_kwargs = dict(architecture=architecture, num_fp16_res=1, conv_clamp=256, fp16_channels_last=True)
    dense = make_generator(synthesis_kwargs=dict(channel_base=64, channel_max=16, **synthesis_kwargs))
    channels = {name: 16 if '4.' in name else 8 if 'b8' in name else 4 for name in CHANNELS}
    pruned = make_pruned(channels=channels, synthesis_kwargs=synthesis_kwargs)

    assert [(name, value.shape, value.stride()) for name, value in pruned.state_dict().items()] == [
        (name, value.shape, value.stride()) for name, value in dense.state_dict().items()
    ]
    flags = ('use_fp16', 'channels_last', 'is_last', 'architecture', 'num_conv', 'num_torgb')
    for res in dense.synthesis.block_resolutions:
        ours, theirs = (vars(getattr(G.synthesis, f'b{res}')) for G in (pruned, dense))
        assert [ours[flag] for flag in flags] == [theirs[flag] for flag in flags]


@pytest.mark.parametrize('architecture', ['skip', 'resnet', 'orig'])
def test_uneven_widths_generate_and_train(architecture):
    G = make_pruned(synthesis_kwargs=dict(architecture=architecture)).train().requires_grad_(True)
    image = G(torch.randn(2, 16), None)
    assert image.shape == (2, 3, 16, 16)
    image.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in G.parameters())
    assert G.synthesis.b4.const.shape[0] == 5
    assert [tuple(G.synthesis.b16.conv1.weight.shape[:2]), G.synthesis.b8.conv0.weight.shape[1]] == [(2, 4), 7]


def test_uneven_blocks_have_the_host_options(make_generator):
    """What the host gives the layers of its blocks, ours have as well where they replace them."""
    options = dict(num_fp16_res=1, fp16_channels_last=True, conv_clamp=2.5, resample_filter=[1, 2, 1], kernel_size=5)
    options.update(activation='relu', use_noise=False)
    dense = make_generator(synthesis_kwargs=dict(channel_base=64, channel_max=16, **options))
    uneven = make_pruned(synthesis_kwargs=options)
    for name in ('b4.conv1', 'b8.conv0', 'b8.conv1', 'b16.conv0', 'b16.conv1'):
        ours, theirs = (G.synthesis.get_submodule(name) for G in (uneven, dense))
        for attribute in ('resolution', 'up', 'padding', 'activation', 'act_gain', 'use_noise', 'conv_clamp'):
            assert getattr(ours, attribute) == getattr(theirs, attribute)
        assert torch.equal(ours.resample_filter, theirs.resample_filter)
        formats = {layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in (ours, theirs)}
        assert formats == {'b16' in name}


def test_feature_maps_must_be_named():
    with pytest.raises(ValueError, match=r'b16\.conv1'):
        make_pruned(channels={**CHANNELS, 'b32.conv0': 4})


def test_class_name_and_json_arguments_rebuild_it():
    """What training_options.json says is what the host constructs."""
    G = make_pruned(synthesis_kwargs=dict(architecture='resnet'))
    arguments = json.loads(json.dumps(G.init_kwargs))
    twin = dnnlib.util.construct_class_by_name(class_name='stylegan2_compress.PrunedGenerator', **arguments)
    twin.eval().requires_grad_(False)
    misc.copy_params_and_buffers(G, twin, require_all=True)
    z = torch.randn(2, 16)
    assert torch.equal(twin(z, None, noise_mode='const'), G(z, None, noise_mode='const'))


HOST_ALONE = (
    WITHOUT_OUR_PACKAGE
    + """
import copy, io, pickle, sys
host, student, images = sys.argv[1:]
sys.path.insert(0, host)
import legacy
import torch

def load(**kwargs):
    with open(student, 'rb') as f:
        return legacy.load_network_pkl(f, **kwargs)['G_ema']

G = load()
z, c = torch.randn([2, G.z_dim], generator=torch.Generator().manual_seed(1)), torch.eye(2, G.c_dim)
twice = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(G))))
ws = G.mapping(z, c, truncation_psi=0.5, truncation_cutoff=3)
torch.save({
    'call': G(z, c, noise_mode='const', force_fp32=True),
    'truncated': G(z, c, truncation_psi=0.5, truncation_cutoff=3, noise_mode='const', force_fp32=True),
    'in two steps': G.synthesis(ws, noise_mode='const', force_fp32=True),
    'deepcopy': copy.deepcopy(G)(z, c, noise_mode='const', force_fp32=True),
    're-pickled': twice(z, c, noise_mode='const', force_fp32=True),
    'rebuilt by the host': load(force_fp16=True)(z, c, noise_mode='const', force_fp32=True),
    'training': G.train()(z, c, noise_mode='const', force_fp32=True),
}, images)
assert not any(name.startswith('stylegan2_compress') for name in sys.modules)
"""
)


@pytest.mark.parametrize('architecture', ['skip', 'resnet', 'orig'])
def test_host_alone_opens_it(tmp_path, make_discriminator, architecture):
    G = make_pruned(c_dim=2, synthesis_kwargs=dict(architecture=architecture, num_fp16_res=2, conv_clamp=256))
    save_student(tmp_path / 'student.pkl', G, make_discriminator())
    command = [
        sys.executable,
        '-I',
        '-c',
        HOST_ALONE,
        HOST,
        tmp_path / 'student.pkl',
        tmp_path / 'images.pt',
    ]
    subprocess.run(command, check=True)
    images = torch.load(tmp_path / 'images.pt')

    z, c = torch.randn([2, 16], generator=torch.Generator().manual_seed(1)), torch.eye(2, 2)
    plain = G(z, c, noise_mode='const', force_fp32=True)
    truncated = G(z, c, truncation_psi=0.5, truncation_cutoff=3, noise_mode='const', force_fp32=True)
    assert not torch.allclose(plain, truncated)
    # To rounding: here the host resamples with our repair, there without.
    for name in ('call', 'deepcopy', 're-pickled', 'rebuilt by the host', 'training'):
        torch.testing.assert_close(images[name], plain)
    for name in ('truncated', 'in two steps'):
        torch.testing.assert_close(images[name], truncated)


@pytest.mark.checkout
@pytest.mark.parametrize('script', ['generate.py', 'style_mixing.py'])
def test_host_scripts_use_it(tmp_path, make_discriminator, script):
    G = make_pruned()
    save_student(tmp_path / 'student.pkl', G, make_discriminator())
    options = {
        'generate.py': ['--seeds=3,5'],
        'style_mixing.py': ['--rows=3', '--cols=5', '--styles=0-2'],
    }
    common = [f'--network={tmp_path / "student.pkl"}', f'--outdir={tmp_path}', '--trunc=0.7']
    subprocess.run(
        [sys.executable, '-c', HOST_SCRIPT, HOST / script, *options[script], *common],
        check=True,
        cwd=HOST,
    )

    ws = {}
    for seed in (3, 5):
        z = torch.from_numpy(np.random.RandomState(seed).randn(1, 16))
        ws[seed] = G.mapping(z, None, truncation_psi=0.7)
    expected = {f'seed{seed:04d}.png': ws[seed] for seed in ws}
    if script == 'style_mixing.py':
        mixed = torch.cat([ws[5][:, :3], ws[3][:, 3:]], dim=1)
        expected = {'3-3.png': ws[3], '5-5.png': ws[5], '3-5.png': mixed}
    for name, w in expected.items():
        pixels = np.asarray(PIL.Image.open(tmp_path / name), dtype=np.float32)
        image = G.synthesis(w, noise_mode='const')[0].permute(1, 2, 0) * 127.5 + 128
        assert np.abs(pixels - image.clamp(0, 255).floor().numpy()).max() <= 1  # Batches of one and two may differ.
