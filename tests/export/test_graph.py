"""Generators as plain torch: the host's images, of every kind of generator."""

import pytest
import torch
from other_device import OTHER, OtherDevice

from stylegan2_compress import pruning
from stylegan2_compress.errors import UserError
from stylegan2_compress.export import graph
from stylegan2_compress.networks.masked import ScoreMaskedGenerator

SMALL = {'channel_base': 256, 'channel_max': 16}
KINDS = {
    'colour': dict(),
    'grey, with classes': dict(img_channels=1, c_dim=3),
    'clamps that bite': dict(synthesis_kwargs={**SMALL, 'conv_clamp': 0.5}),
    'without noise, no average of w': dict(
        synthesis_kwargs={**SMALL, 'use_noise': False}, mapping_kwargs=dict(num_layers=2, w_avg_beta=None)
    ),
    'classes alone': dict(z_dim=0, c_dim=3),
    'large': dict(img_resolution=64, mapping_kwargs=dict(num_layers=8, layer_features=24)),
    'smallest': dict(img_resolution=4),
    'odd filter': dict(synthesis_kwargs={**SMALL, 'resample_filter': [1, 2, 1]}),
    'no filter': dict(synthesis_kwargs={**SMALL, 'resample_filter': None}),
    'filter that is no product': dict(synthesis_kwargs={**SMALL, 'resample_filter': [[1, 0], [2, 5]]}),
    'long filter': dict(synthesis_kwargs={**SMALL, 'resample_filter': [1, 2, 3, 4, 5, 6, 7, 8]}),
    'other kernels and activations': dict(
        synthesis_kwargs={**SMALL, 'kernel_size': 5, 'activation': 'swish'},
        mapping_kwargs=dict(num_layers=2, activation='elu'),
    ),
}


@pytest.fixture(scope='module')
def make(make_generator, lively):
    return lambda **overrides: lively(make_generator(**overrides))


def difference(G, noise='const', form=graph.PLAIN, psi=0.6, cutoff=2) -> float:
    """The largest difference of pixels and of ws to the host's, for three z."""
    mapping, synthesis = graph.from_generator(G, noise, form)
    z = torch.randn([3, G.z_dim], generator=torch.Generator().manual_seed(2))
    c = torch.eye(3)[:, : G.c_dim] if G.c_dim else torch.zeros([3, 0])
    inputs = dict(z=z, c=c, psi=torch.tensor([psi]), cutoff=torch.tensor([float(cutoff)]))
    truncation = dict(truncation_psi=psi, truncation_cutoff=cutoff) if 'psi' in mapping.inputs else {}
    with torch.no_grad():
        expected_ws = G.mapping(z, c, **truncation)
        ws = mapping(**{name: inputs[name] for name in mapping.inputs})
        expected = G.synthesis(expected_ws, noise_mode=noise, force_fp32=True)
        assert ws.shape == expected_ws.shape
        images = synthesis(ws)
    assert images.shape == expected.shape
    assert expected.abs().max() > 0.1
    return max((ws - expected_ws).abs().max().item(), (images - expected).abs().max().item())


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
    'form',
    [graph.PLAIN, graph.Form(multiple=6, rgb_as_product=True, styles_as_maps=True), graph.Form(polyphase=True)],
    ids=['plain', 'other', 'polyphase'],
)
def test_images_are_the_hosts(make, kind, form):
    assert difference(make(**KINDS[kind]), form=form) < 1e-4


@pytest.mark.parametrize('noise', ['const', 'none'])
def test_noise_is_there_or_not(make, noise):
    G = make()
    assert difference(G, noise) < 1e-4
    _mapping, with_noise = graph.from_generator(G, 'const')
    _mapping, without = graph.from_generator(G, 'none')
    ws = torch.randn([1, G.num_ws, G.w_dim])
    assert (with_noise(ws) - without(ws)).abs().max() > 0.01


def test_clamps_bite(make):
    G, unclamped = make(synthesis_kwargs={**SMALL, 'conv_clamp': 0.5}), make()
    ws = torch.randn([1, G.num_ws, G.w_dim])
    assert (G.synthesis(ws, noise_mode='const') - unclamped.synthesis(ws, noise_mode='const')).abs().max() > 0.1


@pytest.mark.parametrize(('psi', 'cutoff'), [(1, 0), (0, 100), (0.5, 0), (-1, 3)])
def test_truncation(make, psi, cutoff):
    assert difference(make(c_dim=3), psi=psi, cutoff=cutoff) < 1e-4


def test_without_cutoff_all_ws_are_truncated(make):
    G = make()
    mapping, _synthesis = graph.from_generator(G)
    z = torch.randn([2, G.z_dim])
    expected = G.mapping(z, None, truncation_psi=0.5)
    assert torch.allclose(mapping(z=z, psi=torch.tensor([0.5])), expected, atol=1e-6)


@pytest.mark.parametrize('form', [graph.Form(multiple=8), graph.Form(styles_as_maps=True)], ids=['padded', 'maps'])
def test_pruned(make, lively, form):
    G = make(synthesis_kwargs={**SMALL, 'conv_clamp': 1})
    widths = dict(zip(pruning.widths_for_ratio(G, 0.5), [3, 7, 1, 5, 2, 4], strict=True))
    masks = {name: torch.arange(width) < widths[name] for name, width in pruning.graph.widths(G).items()}
    assert difference(lively(pruning.prune(G, masks)), form=form) < 1e-4


def test_masked_generators_are_baked(lively):
    G = ScoreMaskedGenerator(
        16, 3, 16, 16, 1, synthesis_kwargs=SMALL, mapping_kwargs=dict(num_layers=2), keep=0.1, seed=3
    )
    assert difference(lively(G)) < 1e-4


def test_the_modules_are_on_the_device_of_the_generator(make):
    with OtherDevice():
        G = make().requires_grad_(False).to(OTHER)
        mapping, synthesis = graph.from_generator(G)
        images = synthesis(mapping(torch.randn([2, G.z_dim], device=OTHER)))
        assert images.device == OTHER


def test_the_generator_is_not_changed(make):
    G = make()
    before = {name: tensor.clone() for name, tensor in G.state_dict().items()}
    graph.from_generator(G)[1].round_weights()
    assert all(torch.equal(before[name], tensor) for name, tensor in G.state_dict().items())


def test_rounded_weights_are_half_as_large_and_images_nearly_the_same(make):
    G = make(synthesis_kwargs={'channel_base': 1024, 'channel_max': 64})
    _mapping, synthesis = graph.from_generator(G)
    ws = torch.randn([2, G.num_ws, G.w_dim])
    expected, size = synthesis(ws), sum(tensor.nbytes for tensor in synthesis.buffers())
    images = synthesis.round_weights()(ws)
    assert 0 < (images - expected).abs().max() < 0.02
    assert sum(tensor.nbytes for tensor in synthesis.buffers()) < 0.53 * size


@pytest.mark.parametrize('factor', [1e5, 300, 1 / 300, 1e-4])
def test_weights_that_fp16_does_not_hold_stay_as_they_are(make, factor):
    """Demodulation makes images the same, whatever all weights of a layer are multiplied by."""
    G = make()
    ws = torch.randn([2, G.num_ws, G.w_dim], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, weight in G.synthesis.named_parameters():
            if name.endswith(('conv0.weight', 'conv1.weight')):
                weight.mul_(factor)
                weight[0].mul_(2**-6)  # A filter alone is likewise.
    _mapping, synthesis = graph.from_generator(G)
    expected, size = synthesis(ws), sum(tensor.nbytes for tensor in synthesis.buffers())
    synthesis.round_weights()
    assert all(tensor.isfinite().all() for tensor in synthesis.buffers())
    assert 0 < (synthesis(ws) - expected).abs().max() < 0.02
    assert sum(tensor.nbytes for tensor in synthesis.buffers()) < size


def test_weak_noise_is_stored_as_fp16(make):
    G = make()
    with torch.no_grad():
        for name, strength in G.synthesis.named_parameters():
            if name.endswith('noise_strength'):
                strength.fill_(1e-6)
    _mapping, synthesis = graph.from_generator(G)
    noises = [tensor for name, tensor in synthesis.round_weights().named_buffers() if name.endswith('noise')]
    assert {tensor.dtype for tensor in noises} == {torch.float16}


@pytest.mark.parametrize('architecture', ['orig', 'resnet'])
def test_other_architectures_are_refused(make, architecture):
    G = make(synthesis_kwargs={**SMALL, 'architecture': architecture})
    with pytest.raises(UserError, match=rf'^student\.pkl has the architecture {architecture}: only .*\.$'):
        graph.from_generator(G, file='student.pkl')


def test_filters_that_are_not_square_are_refused(make):
    with pytest.raises(UserError, match='not square'):
        graph.from_generator(make(synthesis_kwargs={**SMALL, 'resample_filter': [[1, 3, 3, 1], [1, 3, 3, 1]]}))


def test_activations_are_all_of_the_hosts():
    from torch_utils.ops import bias_act

    x = torch.linspace(-3, 3, 50)[None]
    for name, host in bias_act.activation_funcs.items():
        function, gain = graph.ACTIVATIONS[name]
        assert gain == pytest.approx(float(host.def_gain))
        assert torch.allclose(function(x) * gain, bias_act.bias_act(x, act=name), atol=1e-6)


def test_inputs_are_those_that_have_an_effect(make):
    assert graph.from_generator(make())[0].inputs == ('z', 'psi', 'cutoff')
    assert graph.from_generator(make(**KINDS['grey, with classes']))[0].inputs == ('z', 'c', 'psi', 'cutoff')
    assert graph.from_generator(make(**KINDS['without noise, no average of w']))[0].inputs == ('z',)
    assert graph.from_generator(make(**KINDS['classes alone']))[0].inputs == ('c', 'psi', 'cutoff')
