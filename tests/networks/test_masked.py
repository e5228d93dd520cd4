"""Score-masked networks: random weights from their specification, exact masks, gradients that reach all scores."""

import copy
import hashlib
import importlib
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import scipy.special
import torch
from host_alone import WITHOUT_OUR_PACKAGE
from hypothesis import given, settings
from hypothesis import strategies as st
from pickling import assert_same, edited, snapshot, write
from training import networks

from stylegan2_compress import host, pickles
from stylegan2_compress.errors import UserError
from stylegan2_compress.losses.features import block_outputs
from stylegan2_compress.networks import masked
from stylegan2_compress.networks.masked import Rule, ScoreMasked, ScoreMaskedGenerator, kth_largest_by_bits, rule_of
from stylegan2_compress.tickets import baking

HOST = host.activate().path
SHAPE = dict(
    z_dim=16,
    c_dim=3,
    w_dim=16,
    img_resolution=16,
    img_channels=3,
    mapping_kwargs={'num_layers': 2},
    synthesis_kwargs={'channel_base': 256, 'channel_max': 16},
)
GLOBAL = 'global-edge-popup'


def make(**changes):
    return ScoreMaskedGenerator(**{**SHAPE, **changes})


def latents(count=2):
    draws = torch.Generator().manual_seed(0)
    return torch.randn(count, 16, generator=draws), torch.eye(3)[torch.arange(count) % 3]


def all_masks(G):
    return {f'{id(part)}.{name}': mask for part in G.parts for name, mask in part.masks().items()}


# --- Random numbers ---------------------------------------------------------------------------------------------------


def philox(key, counter):
    """Philox-4x64-10 (Salmon et al. 2011) in whole numbers: four words."""
    size = 2**64
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * a, size)
        high1, low1 = divmod(0xCA5A826395121157 * c, size)
        a, b, c, d = high1 ^ b ^ k0, low1, high0 ^ d ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) % size, (k1 + 0xBB67AE8584CAA73B) % size
    return [a, b, c, d]


def test_the_stream_is_philox_with_the_documented_key():
    seed, name = 2**64 - 3, 'synthesis.b8.conv1.weight'
    key = (seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], 'little'))
    words = [word for count in (1, 2) for word in philox(key, (count, 0, 0, 0))]  # NumPy counts before it draws.
    assert masked.stream(seed, name).random_raw(8).tolist() == words


def test_numbers_come_from_the_bits_as_documented():
    raw = masked.stream(5, 'w').random_raw(300)
    signs = masked.random_signs(masked.stream(5, 'w'), 130)
    assert signs.tolist() == [1.0 if int(raw[i // 64]) >> (i % 64) & 1 else -1.0 for i in range(130)]
    uniforms = masked.random_uniforms(masked.stream(5, 'w'), 300)
    assert uniforms.tolist() == [(int(word) >> 40) / 2**24 for word in raw]
    normals = masked.random_normals(masked.stream(5, 'w'), 300)
    quantiles = scipy.special.ndtri([((int(word) >> 12) + 0.5) / 2**52 for word in raw])
    np.testing.assert_allclose(normals, quantiles, rtol=2e-7)


def test_normals_in_the_far_tails():
    class Extremes:
        def random_raw(self, count):
            return np.array([0, 2**64 - 1, 1 << 12, 1 << 40], np.uint64)

    extremes = masked.random_normals(Extremes(), 4)
    p = np.array([0.5, 2**52 - 0.5, 1.5, 2**28 + 0.5]) / 2**52
    np.testing.assert_allclose(extremes[[0, 2, 3]], scipy.special.ndtri(p[[0, 2, 3]]), rtol=2e-7)
    assert extremes[1] == -extremes[0]


def test_weights_of_a_seed_never_change():
    """Of these two digests depends whether tickets that were made once can be opened; they are not to be updated."""
    digests = {}
    for init in ('signed-constant', 'kaiming-normal'):
        G = make(seed=7, weight_init=init)
        names = {name: getattr(layer, leaf) for name, _, layer, leaf in G.tensors() if leaf != 'resample_filter'}
        bits = b''.join(names[name].numpy().astype('<f4').tobytes() for name in sorted(names))
        digests[init] = hashlib.sha256(bits).hexdigest()
    assert digests == {
        'signed-constant': 'a411216edaa6115459a7aedb3a607405583a95d3c90983c99a1588096bf204ac',
        'kaiming-normal': '95b7476e12b5455dca53a19a5ccbaded0cdb4b1418a0f51c1d51750c99d67d0c',
    }


def test_nothing_depends_on_torchs_random_state():
    torch.manual_seed(1)
    one = make(seed=3)
    torch.manual_seed(2)
    two, other = make(seed=3), make(seed=4)
    assert_same(one, two)
    assert not torch.equal(one.synthesis.b4.const, other.synthesis.b4.const)


# --- Initialisation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('rule', 'factor'), [('edge-popup', 10**0.5), ('gem-miner', 1)])
def test_constants_come_out_right_after_the_run_time_gain(rule, factor):
    """What a layer does to unit vectors is ± gain / √(fan-in): √2 before its lrelu, which the layer's own gain is."""
    G = make(keep=0.1, rule=rule)
    linear = G.synthesis.b8.conv1.affine  # lr_multiplier 1
    torch.testing.assert_close(
        (linear(torch.eye(16)) - linear(torch.zeros(1, 16))).abs(), torch.full([16, 16], factor / 16**0.5)
    )
    rectified = G.mapping.fc1  # lr_multiplier 0.01
    positive = rectified(torch.eye(16)).clamp(min=0)
    torch.testing.assert_close(positive[positive > 0].unique(), torch.tensor([2**0.5 * factor / 16**0.5]))
    rgb = G.synthesis.b8.torgb.weight * G.synthesis.b8.torgb.weight_gain
    torch.testing.assert_close(rgb.abs(), torch.full_like(rgb, factor / 16**0.5))


def test_signals_keep_their_scale_through_a_masked_mapping_network():
    """With fan-in scaled by k; without, each of the eight layers takes √k off."""
    deep = dict(z_dim=256, w_dim=256, c_dim=0, mapping_kwargs={'num_layers': 8}, keep=0.1)
    z = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    scaled, plain = (make(**deep, scale_fan=scale).mapping(z, None).std() for scale in (True, False))
    assert 0.3 < scaled < 3
    torch.testing.assert_close(plain / scaled, torch.tensor(0.1**4), rtol=1e-3, atol=0)


@pytest.mark.parametrize('rule', ['gem-miner', 'imp'])
def test_signals_keep_their_scale_as_weights_get_fewer(rule):
    """Eight layers of a tenth of the weights would leave a ten-thousandth, and one image for all z."""
    deep = dict(z_dim=256, w_dim=256, c_dim=0, mapping_kwargs={'num_layers': 8}, keep=0.1, rule=rule)
    z = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    G = make(**deep, weight_init='kaiming-normal').requires_grad_(False)
    before = G.mapping(z, None).std()
    for progress in np.linspace(0, 1, 101):
        masked.RULES[rule].advance(G.parts, progress)
    assert sum(int(mask.sum()) for mask in G.masks().values()) < 0.11 * sum(m.numel() for m in G.masks().values())
    assert 0.3 < G.mapping(z, None).std() / before < 3


@pytest.mark.parametrize('rule', masked.RULES)
def test_a_teachers_mapping_network_keeps_its_scale(rule):
    deep = dict(z_dim=256, w_dim=256, c_dim=0, mapping_kwargs={'num_layers': 8})
    teacher = networks.Generator(img_resolution=16, img_channels=3, synthesis_kwargs=SHAPE['synthesis_kwargs'], **deep)
    z = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    expected = teacher.mapping(z, None).std(dim=0).mean()
    G = make(**deep, keep=0.1, rule=rule, weight_init=None).requires_grad_(False)
    baking.put_weights(G, teacher)
    for progress in np.linspace(0, 1, 101):
        masked.RULES[rule].advance(G.parts, progress)
    assert 0.3 < G.mapping(z, None).std(dim=0).mean() / expected < 3
    name = 'b8.conv1.weight'  # What is demodulated takes any scale, and stays as it is.
    assert torch.equal(G.synthesis.masked_weights()[name], G.synthesis.tensor(name) * G.synthesis.masks()[name])


def test_initialisations_by_name():
    shape, count = (64, 32, 3, 3), 64 * 32 * 9
    for name, init in masked.WEIGHT_INITS.items():
        values = init(masked.stream(0, name), count, torch.nn.Identity(), 288)
        assert values.dtype == np.float32
        np.testing.assert_allclose(values.std(), 288**-0.5, rtol=0.02)
        assert abs(values.mean()) < 3 * values.std() / count**0.5
    for name, largest in {'kaiming-uniform': 288**-0.5, 'uniform': 0.1, 'unit': 1}.items():
        values = masked.SCORE_INITS[name](masked.stream(0, name), count, masked.fan_in(shape))
        assert values.min() >= 0
        np.testing.assert_allclose([values.max(), values.mean()], [largest, largest / 2], rtol=0.02)


# --- Masks ------------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=40), st.floats(0, 1))
def test_masks_keep_the_largest_and_of_equals_the_first(values, fraction):
    count = round(fraction * len(values))
    order = sorted(range(len(values)), key=lambda index: (-values[index], index))
    expected = [index in order[:count] for index in range(len(values))]
    assert masked.largest(torch.tensor(values), count).tolist() == expected


@pytest.mark.parametrize('keep', [1e-6, 0.1, 1 / 3, 0.5, 1])
def test_edge_popup_keeps_exactly_k_of_each_layer(keep):
    for mask in all_masks(make(keep=keep)).values():
        assert int(mask.sum()) == round(keep * mask.numel())


@pytest.mark.parametrize('keep', [1e-6, 0.1, 1 / 3, 1])
@pytest.mark.parametrize('equal', [False, True])
def test_global_edge_popup_keeps_exactly_k_of_all(keep, equal):
    G = make(keep=keep, rule=GLOBAL)
    if equal:
        for name, scores in G.named_parameters():
            scores.data.fill_(-0.5 if 'b8' in name else 0.5)  # Only magnitudes count.
        G.update_masks()
    masks = all_masks(G).values()
    total = sum(mask.numel() for mask in masks)
    assert sum(int(mask.sum()) for mask in masks) == round(keep * total)
    if not equal:
        scores = torch.cat([scores.abs().flatten() for scores in G.parameters()])
        kept = [part.tensor(name, '_scores')[mask] for part in G.parts for name, mask in part.masks().items()]
        assert torch.equal(torch.cat(kept).sort().values, scores.sort().values[total - round(keep * total) :])


def test_the_global_threshold_follows_scores_when_the_generator_is_called():
    G = make(keep=0.2, rule=GLOBAL).eval()
    before = G(*latents())
    with torch.no_grad():
        for index, scores in enumerate(G.parameters()):
            scores.copy_(scores.flip(0) * (1 + index))
    after = G(*latents())
    masks = all_masks(G).values()
    assert not torch.equal(before, after)
    assert sum(int(mask.sum()) for mask in masks) == round(0.2 * sum(mask.numel() for mask in masks))


def test_all_weights_kept_are_the_dense_generator_bit_for_bit():
    dense = networks.Generator(**SHAPE)
    for rule in ('edge-popup', GLOBAL):
        G = make(keep=1, rule=rule, weight_init=None)
        weights = dict(dense.named_parameters()) | dict(dense.named_buffers())
        with torch.no_grad():
            for name, _part, layer, leaf in G.tensors():
                getattr(layer, leaf).copy_(weights[name])
        for mode in (True, False):
            for network in (G, dense):
                network.train(mode)
            z, c = latents()
            assert torch.equal(G(z, c, noise_mode='const'), dense(z, c, noise_mode='const'))
            assert torch.equal(G.mapping.w_avg, dense.mapping.w_avg)


def test_dropped_weights_do_not_matter_and_kept_ones_do():
    G = make(keep=0.3).eval()
    z, c = latents()
    before = G(z, c, noise_mode='const')
    mask = G.synthesis.masks()['b8.conv1.weight']
    weight = G.synthesis.b8.conv1.weight
    weight[~mask] = 100
    assert torch.equal(G(z, c, noise_mode='const'), before)
    weight[mask] *= torch.linspace(1, 2, int(mask.sum()))
    assert not torch.equal(G(z, c, noise_mode='const'), before)


# --- Shares of layers -------------------------------------------------------------------------------------------------


SHAPES = {'tiny': (1, 4, 1, 1), 'flat': (8, 16), 'large': (16, 16, 3, 3), 'bias': (16,)}


def test_small_layers_keep_more_by_their_sides_over_their_product():
    shares = masked.erdos_renyi_kernel({name: torch.Size(shape) for name, shape in SHAPES.items()}, 0.1)
    # Of 4 + 128 + 2304 weights a tenth stays: all 4 of `tiny`, the others in proportion to 24 / 128 and 38 / 2304.
    scale = (0.1 * 2436 - 4) / (24 + 38)
    assert shares == pytest.approx(dict(tiny=1, flat=scale * 24 / 128, large=scale * 38 / 2304, bias=0.1))


@given(st.lists(st.lists(st.integers(1, 40), min_size=2, max_size=4), min_size=1, max_size=6), st.floats(1e-3, 1))
def test_shares_are_at_most_one_and_keep_k_together(sides, keep):
    shapes = {str(index): torch.Size(shape) for index, shape in enumerate(sides)}
    shares = masked.erdos_renyi_kernel(shapes, keep)
    assert all(0 < share <= 1 for share in shares.values())
    kept = sum(shares[name] * shape.numel() for name, shape in shapes.items())
    assert kept == pytest.approx(keep * sum(shape.numel() for shape in shapes.values()))


@given(st.lists(st.lists(st.integers(1, 40), min_size=2, max_size=4), min_size=1, max_size=6), st.floats(1e-3, 0.999))
def test_by_odds_no_layer_keeps_all_and_all_keep_k_together(sides, keep):
    shapes = {str(index): torch.Size(shape) for index, shape in enumerate(sides)}
    shares = masked.erdos_renyi_odds(shapes, keep)
    assert all(0 < share < 1 for share in shares.values())
    kept = sum(shares[name] * shape.numel() for name, shape in shapes.items())
    assert kept == pytest.approx(keep * sum(shape.numel() for shape in shapes.values()))
    scales = [shares[name] / (1 - shares[name]) / (sum(shape) / math.prod(shape)) for name, shape in shapes.items()]
    assert scales == pytest.approx([scales[0]] * len(scales), rel=1e-6)


def test_by_odds_vectors_keep_their_share_and_all_may_be_kept():
    shapes = {name: torch.Size(shape) for name, shape in SHAPES.items()}
    assert masked.erdos_renyi_odds(shapes, 0.2)['bias'] == 0.2
    assert masked.erdos_renyi_odds(shapes, 1.0) == masked.uniform(shapes, 1.0)
    assert masked.erdos_renyi_odds({'bias': (16,)}, 0.2) == {'bias': 0.2}


@pytest.mark.parametrize('rule', ['edge-popup', 'signed-edge-popup'])
def test_masks_and_constants_go_by_the_share_of_their_layer(rule):
    G = make(keep=0.1, rule=rule, density='erk')
    shares = {name: share for part in G.parts for name in part.names for share in [part.share(name)]}
    masks = {name: mask for part in G.parts for name, mask in part.masks().items()}
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        name: round(shares[name] * mask.numel()) for name, mask in masks.items()
    }
    assert masks['b8.torgb.weight'].all()
    assert shares['b8.conv1.weight'] < 0.1 < shares['b8.conv1.affine.weight'] < 1
    total = sum(mask.numel() for mask in masks.values())
    assert abs(sum(int(mask.sum()) for mask in masks.values()) - 0.1 * total) <= len(masks) / 2
    linear = G.synthesis.b8.conv1.affine
    kept = (linear(torch.eye(16)) - linear(torch.zeros(1, 16))).abs()
    torch.testing.assert_close(kept, torch.full_like(kept, (16 * shares['b8.conv1.affine.weight']) ** -0.5))


@pytest.mark.parametrize('rule', [GLOBAL, 'gem-miner', 'imp'])
def test_rules_that_compare_all_layers_take_no_density(rule):
    with pytest.raises(ValueError, match=f'{rule} compares all weights together'):
        make(rule=rule, density='erk')


# --- Rules by importable name -----------------------------------------------------------------------------------------


class AboveAverage(Rule):
    """The weights whose scores are above the average of all layers."""

    scheduled = True
    usual_scores = 'unit'

    def prepare(self, part):
        part.register_buffer('average', torch.zeros([]))

    def mask(self, part, name):
        return part.tensor(name, '_scores') > part.average

    def update(self, parts):
        scores = [part.tensor(name, '_scores').flatten() for part in parts for name in part.names]
        for part in parts:
            part.average.copy_(torch.cat(scores).mean())


ABOVE_AVERAGE = AboveAverage()


@pytest.mark.parametrize('rule', ['test_masked.AboveAverage', 'test_masked.ABOVE_AVERAGE'])
def test_a_rule_may_come_from_any_module(tmp_path, make_discriminator, rule):
    G = make(rule=rule, seed=4).eval()
    average = torch.cat([scores.flatten() for scores in G.parameters()]).mean()
    assert torch.equal(G.mapping.average, average)
    for name, mask in G.synthesis.masks().items():
        assert torch.equal(mask, G.synthesis.tensor(name, '_scores') > average)
        assert torch.equal(G.masks()[f'synthesis.{name}'], mask)
    unscaled = make(rule='gem-miner', seed=4)  # Neither scales fan-in, and scores of both start in (0, 1).
    assert torch.equal(G.synthesis.b8.conv1.weight, unscaled.synthesis.b8.conv1.weight)
    assert torch.equal(G.synthesis.b8.conv1.weight_scores, unscaled.synthesis.b8.conv1.weight_scores)

    z, c = latents()
    assert torch.equal(baking.bake(G)(z, c, noise_mode='const'), G(z, c, noise_mode='const'))
    loaded = pickles.load(write(tmp_path / 'snapshot.pkl', snapshot(G, make_discriminator(c_dim=3))))['G_ema']
    assert torch.equal(loaded(z, c, noise_mode='const'), G(z, c, noise_mode='const'))

    with torch.no_grad():
        G.synthesis.b8.conv1.weight_scores.add_(10)
        rule_of(rule).advance(G.parts, 0.5)  # By default an update.
    assert G.mapping.average > average
    assert rule_of(rule).penalty(G.parts) is None


@pytest.mark.parametrize(
    ('rule', 'problem'),
    [
        ('magic', "'magic' does not exist: there are edge-popup, .*, gem-miner, imp, and"),
        (3, '3 does not exist'),
        (['edge-popup'], 'does not exist'),
        ('no_such_module.Rule', 'cannot be imported'),
        ('test_masked.NoSuchRule', 'cannot be imported'),
        ('math.pi', "'math.pi' is not a rule, because it has no advance, alive, by_layer, fewer, mask"),
        ('torch.nn.Linear', 'is not a rule'),
    ],
)
def test_rules_that_do_not_exist(rule, problem):
    for construct in (make, lambda rule: ScoreMasked(torch.nn.Linear(2, 2), rule=rule)):
        with pytest.raises(ValueError, match=problem):
            construct(rule=rule)


@pytest.fixture
def unknown_rules(tmp_path, monkeypatch):
    """A module on Python's path that is not imported."""
    source = 'from stylegan2_compress.networks.masked import EdgePopup\nclass Mine(EdgePopup): pass\n'
    (tmp_path / 'unknown_rules.py').write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield 'unknown_rules'
    sys.modules.pop('unknown_rules', None)


@pytest.mark.parametrize('suffix', ['pkl', 'safetensors'])
def test_a_file_does_not_get_a_rule_imported(tmp_path, make_discriminator, unknown_rules, suffix):
    G = make(rule='unknown_rules.Mine').eval()
    expected = G(*latents(), noise_mode='const')
    assert torch.equal(make().eval()(*latents(), noise_mode='const'), expected)
    data = snapshot(G, make_discriminator(c_dim=3))
    pickles.save(tmp_path / f'a.{suffix}', data)
    del sys.modules[unknown_rules]
    with pytest.raises(
        UserError,
        match=r"the mask rule 'unknown_rules\.Mine' of a module that is not imported: `import unknown_rules` first",
    ):
        pickles.load(tmp_path / f'a.{suffix}')
    assert unknown_rules not in sys.modules
    importlib.import_module(unknown_rules)
    assert torch.equal(pickles.load(tmp_path / f'a.{suffix}')['G_ema'](*latents(), noise_mode='const'), expected)


def test_an_attribute_does_not_get_a_rule_imported(tmp_path, make_discriminator, unknown_rules):
    def edit(path, meta):
        if path == 'mapping':
            meta['state']['rule'] = 'unknown_rules.Mine'

    data = edited(snapshot(make(), make_discriminator(c_dim=3)), G_ema=edit)
    with pytest.raises(UserError, match='names the mask rule'):
        pickles.load(write(tmp_path / 'a.pkl', data))
    assert unknown_rules not in sys.modules


# --- Gradients and training -------------------------------------------------------------------------------------------


def times(G, factor):
    """The host's generator with the tensors of a masked one, masked weights times `factor(part, name)`."""
    dense = networks.Generator(**SHAPE)
    for name, tensor in [*dense.named_parameters(), *dense.named_buffers()]:
        part_name, _, rest = name.partition('.')
        part = getattr(G, part_name)
        tensor.data.copy_(part.tensor(rest) * (factor(part, rest) if rest in part.names else 1))
    return dense


def test_scores_get_weight_times_the_gradient_kept_and_dropped_alike():
    G = make(keep=0.3)
    flipped = G.synthesis.b8.conv1.weight_scores
    with torch.no_grad():
        flipped.view(-1)[::2] *= -1
        G.synthesis.b8.conv0.weight_scores.mul_(G.synthesis.masks()['b8.conv0.weight'])  # Dropped ones at zero.
    z, c = latents(4)
    target = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    (G(z, c, noise_mode='const') * target).sum().backward()

    dense = times(G, lambda part, name: part.masks()[name])
    (dense(z, c, noise_mode='const') * target).sum().backward()
    for part_name in ('mapping', 'synthesis'):
        part, plain = getattr(G, part_name), getattr(dense, part_name)
        for name in part.names:
            scores = part.tensor(name, '_scores')
            expected = part.tensor(name) * plain.get_parameter(name).grad * torch.where(scores < 0, -1, 1)
            torch.testing.assert_close(scores.grad, expected, rtol=1e-4, atol=1e-5)
            assert (scores.grad != 0)[~part.masks()[name]].any()


def test_a_negative_score_turns_the_sign_of_a_signed_rules_weight():
    """Gradients of scores are those of weight · score, whatever the score's sign."""
    G = make(keep=0.3, rule='signed-edge-popup')
    with torch.no_grad():
        for scores in G.parameters():
            scores.mul_(torch.where(torch.rand(scores.shape, generator=torch.Generator().manual_seed(1)) < 0.5, -1, 1))
    z, c = latents(4)
    target = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    (G(z, c, noise_mode='const') * target).sum().backward()
    dense = times(G, lambda part, name: part.masks()[name] * part.tensor(name, '_scores').sign())
    (dense(z, c, noise_mode='const') * target).sum().backward()
    for part_name in ('mapping', 'synthesis'):
        part, plain = getattr(G, part_name), getattr(dense, part_name)
        for name in part.names:
            kept = part.masks()[name]
            assert int(kept.sum()) == round(0.3 * kept.numel())
            assert torch.equal(part.turned()[name], kept & (part.tensor(name, '_scores') < 0))
            expected = part.tensor(name) * plain.get_parameter(name).grad
            torch.testing.assert_close(part.tensor(name, '_scores').grad, expected, rtol=1e-4, atol=1e-5)


def test_training_moves_scores_and_no_weight():
    for rule in ('edge-popup', 'signed-edge-popup', GLOBAL, 'gem-miner'):
        G = make(keep=0.3, rule=rule)
        before = copy.deepcopy(G)
        assert all(name.endswith('_scores') for name, _ in G.named_parameters())
        optimizer = torch.optim.Adam(G.parameters(), lr=0.1)
        for _ in range(3):
            G(*latents(4)).square().mean().backward()
            optimizer.step()
        assert not torch.equal(G.synthesis.b8.conv1.weight_scores, before.synthesis.b8.conv1.weight_scores)
        for (name, _, layer, leaf), (_, _, old, _) in zip(G.tensors(), before.tensors(), strict=True):
            if leaf != 'w_avg':
                assert torch.equal(getattr(layer, leaf), getattr(old, leaf)), name
        for part in G.parts:
            for name, mask in part.masks().items():
                assert rule != 'edge-popup' or int(mask.sum()) == round(0.3 * mask.numel()), name


def test_imp_trains_weights_that_are_alive():
    G = make(rule='imp')
    dead = G.synthesis.b8.conv1.weight_alive
    dead.view(-1)[::2] = False
    G(*latents(4)).square().mean().backward()
    grad = G.synthesis.b8.conv1.weight.grad
    assert (grad[~dead] == 0).all()
    assert (grad[dead] != 0).any()
    assert not any(name.endswith('_scores') for name, _ in G.named_parameters())


def test_second_derivatives_pass_the_mask():
    """Path length regularisation differentiates a gradient by the scores."""
    G = make(keep=0.5)
    ws = G.mapping(*latents(2)).detach().requires_grad_(True)
    (grad,) = torch.autograd.grad(G.synthesis(ws, noise_mode='const').sum(), ws, create_graph=True)
    grad.square().sum().backward()
    assert G.synthesis.b8.conv1.weight_scores.grad.abs().sum() > 0


# --- Wrapping ---------------------------------------------------------------------------------------------------------


class Outer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(4, 8)
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self.norm = torch.nn.BatchNorm1d(8)
        self.width = 8

    def forward(self, x, *, shift=0.0):
        return self.norm(self.first(x) * self.scale) + shift


def test_any_module_can_be_masked():
    torch.manual_seed(0)
    module = ScoreMasked(Outer(), names=['first.weight', 'first.bias'], keep=0.5)
    assert module.width == 8
    assert module.first.in_features == 4
    with pytest.raises(AttributeError, match='nothing_such'):
        module.nothing_such  # noqa: B018
    assert [name for name, _ in module.named_parameters()] == ['dense.first.weight_scores', 'dense.first.bias_scores']
    with torch.no_grad():
        module.first.weight_scores[4:] = 0
        module.first.bias_scores[:4] = 0
    x = torch.randn(6, 4)
    linear = torch.cat([x @ module.first.weight[:4].T, module.first.bias[4:].expand(6, 4)], dim=1) * 2
    expected = torch.nn.functional.batch_norm(linear, None, None, training=True) + 3
    torch.testing.assert_close(module(x, shift=3.0), expected)
    assert module.norm.num_batches_tracked == 1  # State that the module keeps is its own, not a copy's.
    with pytest.raises(ValueError, match=r'second\.weight'):
        ScoreMasked(Outer(), names=['second.weight'])


def test_it_goes_where_modules_go():
    torch.manual_seed(0)
    module = ScoreMasked(Outer(), keep=0.5).eval()
    assert module.names == ['first.weight', 'norm.weight']
    with torch.no_grad():
        module.first.weight_scores.uniform_()
    x = torch.randn(6, 4)
    expected = module(x)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), expected)
    fresh = ScoreMasked(Outer(), keep=0.5).eval()
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh(x), expected)
    torch.testing.assert_close(module.double()(x.double()), expected.double(), rtol=1e-5, atol=1e-5)


def test_hooks_and_attributes_of_the_hosts_networks():
    G = make().eval()
    assert (G.num_ws, G.synthesis.num_ws, G.synthesis.block_resolutions) == (6, 6, [4, 8, 16])
    with block_outputs(G.synthesis, ['b8']) as found:
        G.synthesis(G.mapping(*latents(), truncation_psi=0.5), force_fp32=True)
    assert found['b8'].shape == (2, 16, 8, 8)


def test_never_masked_by_default():
    G = make()
    assert all(name.endswith('weight') for part in G.parts for name in part.names)
    assert {'b4.const', 'b8.conv1.noise_strength', 'b8.conv1.bias'} <= {n for n, _ in G.synthesis.dense.named_buffers()}
    biased = make(masked=['*weight', '*bias'], unmasked=['*.affine.bias', 'mapping.*'])
    assert not biased.mapping.names
    assert 'b8.conv1.bias' in biased.synthesis.names
    assert (biased.synthesis.b8.conv1.bias != 0).all()
    assert (biased.synthesis.b8.conv1.affine.bias == 1).all()


@pytest.mark.parametrize(
    'patterns', [dict(masked=['*wieght']), dict(unmasked=['encoder.*']), dict(masked=['*bias'], unmasked=['*bias'])]
)
def test_patterns_that_match_nothing(patterns):
    with pytest.raises(ValueError, match='no weight'):
        make(**patterns)


# --- Pickles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('rule', masked.RULES)
def test_snapshots_are_read_without_running_them(tmp_path, make_discriminator, rule):
    G = make(rule=rule, seed=2**64 - 1, unmasked=['*torgb*'])
    G(*latents())  # Moves the average of W.
    data = snapshot(G, make_discriminator(c_dim=3))
    loaded = pickles.load(write(tmp_path / 'snapshot.pkl', data))
    assert_same(loaded['G_ema'], data['G_ema'])
    z, c = latents()
    assert torch.equal(loaded['G_ema'](z, c, noise_mode='const'), data['G_ema'](z, c, noise_mode='const'))


@pytest.mark.parametrize(
    ('rule', 'parameters', 'buffers', 'own'),
    [
        ('edge-popup', ['weight_scores'], ['weight'], []),
        ('signed-edge-popup', ['weight_scores'], ['weight'], []),
        (GLOBAL, ['weight_scores'], ['weight'], ['threshold', 'ties']),
        ('gem-miner', ['weight_scores'], ['weight', 'weight_alive'], []),
        ('imp', ['weight'], ['weight_start', 'weight_alive'], []),
    ],
)
def test_names_in_pickles_never_change(rule, parameters, buffers, own):
    """Pickles that exist are compared with these names when they are read; they are not to be updated."""
    G = make(rule=rule)
    layer = G.synthesis.dense.b8.conv1
    assert list(layer._parameters) == parameters
    unmasked = ['resample_filter', 'noise_const', 'noise_strength', 'bias']
    assert sorted(layer._buffers) == sorted([*unmasked, *buffers])
    for part in G.parts:
        assert list(part._parameters) == []
        assert list(part._buffers) == own
        since = {'rescale'} if masked.RULES[rule].fewer else set()  # Came later: earlier pickles have none.
        expected = {'training', 'names', 'keep', 'rule'} | since
        assert {name for name in vars(part) if not name.startswith('_')} == expected
        assert list(part._modules) == ['dense']
    assert [type(part).__name__ for part in G.parts] == ['ScoreMaskedMapping', 'ScoreMaskedSynthesis']


@pytest.mark.parametrize('rule', masked.RULES)
def test_pickles_of_another_version_are_read(tmp_path, make_discriminator, rule):
    """Earlier versions had the same constructors, tensors and attributes, and other source text."""

    def edit(path, meta):
        if meta['class_name'].startswith('ScoreMasked'):
            meta['module_src'] = meta['module_src'].replace('class Rule', 'class EarlierRule')

    data = snapshot(make(rule=rule, seed=3), make_discriminator(c_dim=3))
    path = write(tmp_path / 'snapshot.pkl', edited(data, G_ema=edit))
    with pytest.warns(UserWarning, match='other source code of ScoreMasked.*, ScoreMasked.*, ScoreMasked'):
        loaded = pickles.load(path)['G_ema']
    assert_same(loaded, data['G_ema'])
    z, c = latents()
    assert torch.equal(loaded(z, c, noise_mode='const'), data['G_ema'](z, c, noise_mode='const'))


def test_snapshots_open_where_only_the_host_is(tmp_path, make_discriminator):
    G = make(seed=5).eval()
    write(tmp_path / 'snapshot.pkl', snapshot(G, make_discriminator(c_dim=3)))
    script = WITHOUT_OUR_PACKAGE + (
        'import legacy, torch\n'
        "G = legacy.load_network_pkl(open('snapshot.pkl', 'rb'))['G_ema']\n"
        "torch.save(G(*torch.load('latents.pt'), noise_mode='const'), 'images.pt')\n"
    )
    torch.save(latents(), tmp_path / 'latents.pt')
    script = f'import sys; sys.path.insert(0, {str(HOST)!r})\n' + script
    subprocess.run([sys.executable, '-c', script], check=True, cwd=tmp_path)
    # The host without our repairs resamples in another order of operations.
    torch.testing.assert_close(torch.load(tmp_path / 'images.pt'), G(*latents(), noise_mode='const').detach())


def test_an_empty_filter_puts_out_nothing_and_all_is_fp32():
    """Asked for FP16, too, in which the host would divide such a filter by its largest weight, 0."""
    half = dict(channel_base=64, channel_max=8, num_fp16_res=2, conv_clamp=256)
    G = ScoreMaskedGenerator(
        z_dim=8, c_dim=0, w_dim=8, img_resolution=8, img_channels=3, synthesis_kwargs=half, keep=0.5
    )
    assert not any(G.synthesis.get_submodule(f'dense.b{res}').use_fp16 for res in (4, 8))
    layer = G.synthesis.dense.b8.conv1
    with torch.no_grad():
        layer.weight_scores[2] = 0
    assert not G.masks()['synthesis.b8.conv1.weight'][2].any()
    seen = {}
    layer.register_forward_hook(lambda _layer, _inputs, output: seen.update(output=output))
    images = G.synthesis(torch.randn(2, G.num_ws, 8), noise_mode='none')
    assert not seen['output'][:, 2].any()
    assert seen['output'][:, 1].any()
    images.square().sum().backward()
    assert images.isfinite().all()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in G.parameters())
    baked = baking.bake(G)
    assert not any(getattr(baked.synthesis, f'b{res}').use_fp16 for res in (4, 8))


@pytest.mark.parametrize('count', [1, 7, 500, 999, 1000])
def test_both_ways_to_find_a_threshold_agree(count):
    """The one for CUDA runs anywhere."""
    values = torch.randn(1000, generator=torch.Generator().manual_seed(count)).abs().round(decimals=1)
    expected = values.kthvalue(1000 - count + 1).values
    assert torch.equal(kth_largest_by_bits(values, count), expected)
    dead = torch.cat([values, torch.full([50], -1.0)])
    assert torch.equal(kth_largest_by_bits(dead, count), expected)
