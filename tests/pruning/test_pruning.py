"""pruning/: what is cut is what was asked for, and the image knows nothing but the zeroed channels."""

import copy
import dataclasses
import importlib
import itertools
import json
import math
import sys

import numpy as np
import pytest
import torch
from commands import refused, run

from stylegan2_compress import pickles, pruning
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import profiling
from stylegan2_compress.pruning import graph

ARCHITECTURES = ('skip', 'resnet', 'orig')


@pytest.fixture
def make_lively(make_generator):
    """Builder of generators whose biases, noise strengths and mean latent are not the zeros they are born with."""

    def make(seed=0, **overrides):
        G = make_generator(seed, **overrides).eval().requires_grad_(False)
        rnd = torch.Generator().manual_seed(seed)
        for tensor in [*G.parameters(), G.mapping.w_avg]:
            tensor.add_(torch.randn(tensor.shape, generator=rnd) * 0.3)
        return G

    return make


def random_masks(G, widths, seed=0):
    return pruning.masks_from_scores(pruning.CRITERIA['random'](G, pruning.CriterionOptions(seed=seed)), widths)


def images(G, noise_mode='const', force_fp32=True, **kwargs):
    z = torch.randn([2, G.z_dim], generator=torch.Generator().manual_seed(7))
    c = torch.eye(2, G.c_dim)
    torch.manual_seed(11)  # For noise_mode='random'.
    return G(z, c, noise_mode=noise_mode, force_fp32=force_fp32, **kwargs)


def zero_left_out(G, masks):
    """The dense generator without the channels, by the host's own state dict names: what reads them is zero."""
    G = copy.deepcopy(G)
    for name, parameter in G.synthesis.named_parameters():
        block, layer, *rest = name.split('.')
        if rest != ['weight']:
            continue
        before = f'b{int(block[1:]) // 2}.conv1'
        source = {
            'conv0': before,
            'skip': before,
            'conv1': 'b4.const' if block == 'b4' else f'{block}.conv0',
            'torgb': f'{block}.conv1',
        }[layer]
        parameter[:, ~masks[source]] = 0
    return G


GENERATORS = [
    dict(
        c_dim=c_dim,
        img_channels=img_channels,
        synthesis_kwargs=dict(architecture=architecture, channel_base=256, channel_max=24, **precision),
    )
    for architecture, c_dim, img_channels, precision in itertools.product(
        ARCHITECTURES,
        (0, 3),
        (1, 3),
        ({}, dict(num_fp16_res=2, conv_clamp=256, fp16_channels_last=True)),
    )
] + [
    dict(img_resolution=4, synthesis_kwargs=dict(channel_base=64)),
    dict(img_resolution=8, synthesis_kwargs=dict(channel_base=100, channel_max=17, use_noise=False)),
    dict(img_resolution=32, synthesis_kwargs=dict(channel_base=300, activation='relu', resample_filter=[1, 2, 1])),
    dict(synthesis_kwargs=dict(channel_base=256, conv_clamp=0.5), mapping_kwargs=dict(num_layers=1, w_avg_beta=0.9)),
    dict(w_dim=8, z_dim=5, synthesis_kwargs=dict(channel_base=256, kernel_size=1)),
    dict(img_resolution=1024, synthesis_kwargs=dict(channel_base=3072, channel_max=4, architecture='resnet')),
]


@pytest.mark.parametrize('kwargs', GENERATORS, ids=lambda kwargs: json.dumps(kwargs).replace('"', ''))
class TestExactness:
    def test_ratio_zero_is_the_teacher_bit_for_bit(self, make_lively, kwargs):
        G = make_lively(**kwargs)
        pruned = pruning.prune(G, random_masks(G, pruning.widths_for_ratio(G, 0)))
        for noise_mode in ('const', 'none', 'random') if G.img_resolution < 1024 else ('const',):
            assert torch.equal(images(pruned, noise_mode), images(G, noise_mode))
            assert torch.equal(
                images(pruned, noise_mode, truncation_psi=0.6), images(G, noise_mode, truncation_psi=0.6)
            )

    def test_pruned_is_the_zeroed_teacher(self, make_lively, kwargs):
        G = make_lively(**kwargs)
        masks = random_masks(G, pruning.widths_for_ratio(G, 0.6))
        pruned, zeroed = pruning.prune(G, masks), zero_left_out(G, masks)
        for settings in (dict(), dict(noise_mode='random'), dict(truncation_psi=0.6, truncation_cutoff=2)):
            expected = images(zeroed, **settings)
            assert expected.std() > 0
            torch.testing.assert_close(
                images(pruned, **settings), expected, rtol=1e-4, atol=1e-4 * expected.std().item()
            )
            if G.img_resolution == 1024:
                break


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_fp16_blocks_at_work(make_lively, architecture):
    """In fp16 the host divides styles and weights by their maxima, over all channels: demodulation undoes that."""
    precision = dict(num_fp16_res=2, conv_clamp=256)
    G = make_lively(synthesis_kwargs=dict(architecture=architecture, channel_base=256, channel_max=24, **precision))
    masks = random_masks(G, pruning.widths_for_ratio(G, 0.6))
    try:
        expected = images(zero_left_out(G, masks), force_fp32=False)
    except RuntimeError as error:
        pytest.skip(f'this torch has no fp16 convolution on CPU: {error}')
    pruned = pruning.prune(G, masks)
    assert not torch.equal(images(pruned, force_fp32=False), images(pruned))
    torch.testing.assert_close(images(pruned, force_fp32=False), expected, rtol=0.02, atol=0.02 * expected.std().item())


def test_feature_maps_of_their_own_widths(make_lively):
    """Masks may differ in every feature map; a pruned generator can be pruned again, which is the same as at once."""
    for architecture in ARCHITECTURES:
        G = make_lively(synthesis_kwargs=dict(architecture=architecture, channel_base=256, channel_max=16))
        widths = dict(zip(graph.widths(G), (3, 9, 16, 1, 5, 7), strict=True))
        masks = random_masks(G, widths)
        pruned = pruning.prune(G, masks)
        assert graph.widths(pruned) == widths
        torch.testing.assert_close(images(pruned), images(zero_left_out(G, masks)), rtol=1e-4, atol=1e-4)

        first = {name: mask | (torch.arange(len(mask)) % 3 == 0) for name, mask in masks.items()}
        rest = {name: masks[name][first[name]] for name in masks}
        in_two_steps = pruning.prune(pruning.prune(G, first), rest)
        for name, value in pruned.state_dict().items():
            torch.testing.assert_close(in_two_steps.state_dict()[name], value)


def test_positional_constructor_arguments():
    from training.networks import Generator

    kwargs = dict(mapping_kwargs=dict(num_layers=1), synthesis_kwargs=dict(channel_base=64, num_fp16_res=1))
    G = Generator(8, 0, 8, 8, 1, **kwargs).eval()
    pruned = pruning.prune(G, random_masks(G, pruning.widths_for_ratio(G, 0.5)))
    assert pruned.init_kwargs['synthesis_kwargs'] == dict(num_fp16_res=1)
    assert (pruned.mapping.num_layers, pruned.img_channels, pruned.synthesis.b8.use_fp16) == (1, 1, True)


def test_the_teacher_is_left_alone(make_lively):
    G = make_lively().train()  # As which the host's mapping network would update its mean.
    before = {name: value.clone() for name, value in G.state_dict().items()}
    for criterion in pruning.CRITERIA.values():
        scores = criterion(G, pruning.CriterionOptions(samples=3, batch=2))
        pruning.prune(G, pruning.masks_from_scores(scores, pruning.widths_for_ratio(G, 0.5)))
    assert all(torch.equal(value, before[name]) for name, value in G.state_dict().items())
    assert not any(p.requires_grad for p in G.parameters())


# --- widths and masks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize('ratio', [0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99])
def test_ratio_keeps_the_ceiling(make_generator, ratio):
    hundredths = round(ratio * 100)
    for channels in (1, 2, 10, 16, 100):
        G = make_generator(img_resolution=8, synthesis_kwargs=dict(channel_base=10000, channel_max=channels))
        expected = max(-(-(100 - hundredths) * channels // 100), 1)
        assert set(pruning.widths_for_ratio(G, ratio).values()) == {expected}
    assert pruning.widths_for_ratio(G, np.float64(ratio)) == pruning.widths_for_ratio(G, ratio)


@pytest.mark.parametrize('ratio', [-0.1, 1, 1.5, math.nan, math.inf])
def test_ratio_out_of_range(make_generator, ratio):
    with pytest.raises(UserError, match='ratio'):
        pruning.widths_for_ratio(make_generator(), ratio)


def test_widths_rounded_up(make_generator):
    G = make_generator(synthesis_kwargs={'channel_base': 256, 'channel_max': 20})  # 20, 20 and 16 channels.
    widths = pruning.widths_for_ratio(G, 0.5)
    assert list(widths.values()) == [10, 10, 10, 10, 8, 8]
    assert pruning.rounded_up(G, widths, 1) == widths
    assert list(pruning.rounded_up(G, widths, 8).values()) == [16, 16, 16, 16, 8, 8]
    assert list(pruning.rounded_up(G, widths, 12).values()) == [12, 12, 12, 12, 12, 12]
    assert list(pruning.rounded_up(G, widths, 100).values()) == [20, 20, 20, 20, 16, 16]


def test_widths_from_text(make_generator):
    widths = pruning.widths_from_text(make_generator(), '4:3, 16:2')
    assert widths == {
        'b4.const': 3,
        'b4.conv1': 3,
        'b8.conv0': 16,
        'b8.conv1': 16,
        'b16.conv0': 2,
        'b16.conv1': 2,
    }


@pytest.mark.parametrize(
    'text', ['', '4', '4:', '4:x', '4:-1', '4:0', '4:17', '32:4', '5:4', '4:3,', ':4', '4:3:2', '²:4']
)
def test_unusable_widths(make_generator, text):
    with pytest.raises(UserError, match='widths'):
        pruning.widths_from_text(make_generator(), text)


def test_masks_keep_the_best_and_the_first_of_equals():
    scores = {'a': torch.tensor([0.0, 3.0, 1.0, 2.0]), 'b': torch.tensor([1.0, 1.0, 1.0])}
    masks = pruning.masks_from_scores(scores, {'a': 2, 'b': 2})
    assert masks['a'].tolist() == [False, True, False, True]
    assert masks['b'].tolist() == [True, True, False]


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_scores_must_be_finite(value):
    with pytest.raises(UserError, match='not finite'):
        pruning.masks_from_scores({'a': torch.tensor([0, value])}, {'a': 1})


# --- criteria -----------------------------------------------------------------------------------------------------


def reading_weights(G):
    """Name of the weight that reads each feature map: the next convolution's, at the end toRGB's."""
    last = G.img_resolution
    names = {'b4.const': 'b4.conv1', f'b{last}.conv1': f'b{last}.torgb'}
    for res in G.synthesis.block_resolutions[:-1]:
        names[f'b{res}.conv1'] = f'b{2 * res}.conv0'
        names[f'b{2 * res}.conv0'] = f'b{2 * res}.conv1'
    return {feature_map: G.get_parameter(f'synthesis.{name}.weight') for feature_map, name in names.items()}


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_l1_is_the_magnitude_of_what_reads(make_lively, architecture):
    G = make_lively(synthesis_kwargs=dict(architecture=architecture, channel_base=256, channel_max=16))
    scores = pruning.CRITERIA['l1'](G, pruning.CriterionOptions())
    expected = reading_weights(G)
    assert scores.keys() == expected.keys() == graph.widths(G).keys()
    for name, weight in expected.items():
        for channel in range(weight.shape[1]):
            assert scores[name][channel].item() == pytest.approx(np.abs(weight[:, channel].numpy()).mean(), rel=1e-5)


def test_l1_styled_is_the_magnitude_after_modulation(make_lively):
    """Where all z have one latent, the weights that convolve are known."""
    G = make_lively()
    for layer in (G.mapping.fc0, G.mapping.fc1):
        layer.weight.zero_()
    w = G.mapping(torch.zeros(1, 16), None)[0, 0]
    scores = pruning.CRITERIA['l1-styled'](G, pruning.CriterionOptions())
    for name, weight in reading_weights(G).items():
        affine = next(module for module in G.modules() if getattr(module, 'weight', None) is weight).affine
        style = affine.weight @ w / 16**0.5 + affine.bias
        modulated = weight * style[None, :, None, None]
        torch.testing.assert_close(scores[name], modulated.abs().mean(dim=[0, 2, 3]))


def test_random_depends_on_the_seed_alone(make_lively):
    def draw(seed):
        return torch.cat(list(pruning.CRITERIA['random'](make_lively(), pruning.CriterionOptions(seed=seed)).values()))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert len(draw(1).unique()) == len(draw(1))


@pytest.mark.parametrize('architecture', ARCHITECTURES)
@pytest.mark.parametrize('criterion', ['content-aware', 'diversity'])
def test_dead_channels_score_zero(make_lively, architecture, criterion):
    """A channel that is zero and that nothing reads has no part in any gradient; every other one has."""
    G = make_lively(c_dim=2, synthesis_kwargs=dict(architecture=architecture, channel_base=128, activation='relu'))
    for module in G.modules():
        if module.__class__.__name__ == 'SynthesisLayer':
            module.bias.add_(3)  # Otherwise ReLU kills others as well.
    G.synthesis.b8.conv0.bias[3] = -1e4
    G.synthesis.b8.conv1.weight[:, 3] = 0

    options = pruning.CriterionOptions(samples=5, batch=2, seed=1)
    scores = pruning.CRITERIA[criterion](G, options)
    assert {name: len(score) for name, score in scores.items()} == graph.widths(G)
    for name, score in scores.items():
        dead = (score == 0).nonzero().flatten().tolist()
        assert dead == ([3] if name == 'b8.conv0' else [])
    again = pruning.CRITERIA[criterion](G, options)
    other = pruning.CRITERIA[criterion](G, dataclasses.replace(options, seed=2))
    for name, score in scores.items():
        assert torch.equal(again[name], score)
        assert not torch.equal(other[name], score)


def test_content_aware_in_expectation(make_lively):
    """Where the image exceeds the noise, its distance to the noise falls everywhere alike: the gradient is known.

    All z give one image here. With salt and pepper on 5 % of the pixels, a batch of N has the gradient of 0.05·N times
    the sum of the image's content.
    """
    G = make_lively(img_resolution=8, synthesis_kwargs=dict(channel_base=64))
    for layer in (G.mapping.fc0, G.mapping.fc1):
        layer.weight.zero_()
    for block in (G.synthesis.b4, G.synthesis.b8):
        block.torgb.bias.add_(100)
    left_half = (torch.arange(8) < 4).float().expand(8, 8)
    asked = []

    def content_mask(images):
        asked.append(images)
        return left_half.expand(len(images), 1, 8, 8)

    options = pruning.CriterionOptions(samples=2400, batch=800, content_mask=content_mask)
    scores = pruning.CRITERIA['content-aware'](G, options)

    assert [len(images) for images in asked] == [800, 800, 800]
    assert min(images.min() for images in asked) > 1
    weights = {name: weight.requires_grad_() for name, weight in reading_weights(G).items()}
    content = (images(G) * left_half)[0].sum()
    for name, gradient in zip(weights, torch.autograd.grad(content, weights.values()), strict=True):
        expected = 0.05 * 2400 * gradient.abs().mean(dim=[0, 2, 3])
        torch.testing.assert_close(scores[name], expected, rtol=0.1, atol=0.03 * expected.mean().item())


class TwoWays(torch.nn.Module):
    """A mapping to latents that vary along the first two axes of W only, a little, with variances 2 : 1."""

    def __init__(self, center, num_ws):
        super().__init__()
        self.register_buffer('center', center)
        self.num_ws = num_ws

    def forward(self, z, c, skip_w_avg_update=True):
        w = self.center.repeat(len(z), 1)
        w[:, 0] += z[:, 0] * 2**0.5 * 1e-4
        w[:, 1] += z[:, 1] * 1e-4
        return w.unsqueeze(1).repeat(1, self.num_ws, 1)


def test_diversity_in_expectation(make_lively):
    """Two directions with gradients g1 and g2, drawn 2 : 1: their variance is 2/9 (g1 − g2)², times (10 − 1)/10."""
    G = make_lively(img_resolution=8, synthesis_kwargs=dict(channel_base=64))
    G.mapping = TwoWays(torch.randn(16, generator=torch.Generator().manual_seed(5)), G.num_ws)
    scores = pruning.CRITERIA['diversity'](G, pruning.CriterionOptions(samples=60, batch=1))

    weights = {name: weight.requires_grad_() for name, weight in reading_weights(G).items()}
    ws = G.mapping(torch.zeros(1, 16), None)
    image = G.synthesis(ws, noise_mode='const')

    def gradient(axis, sign):
        step = torch.zeros(16)
        step[axis] = 5 * sign
        distance = (image - G.synthesis(ws + step, noise_mode='const').detach()).abs().mean()
        grads = torch.autograd.grad(distance, weights.values(), retain_graph=True)
        return torch.cat([grad.abs().mean(dim=[0, 2, 3]) for grad in grads])

    measured = torch.cat([scores[name] for name in weights])
    errors = []
    for signs in itertools.product((1, -1), repeat=2):  # Principal components have no sign of their own.
        expected = 60 * 0.9 * 2 / 9 * (gradient(0, signs[0]) - gradient(1, signs[1])).square()
        errors.append((measured - expected).norm() / expected.norm())
    assert min(errors) < 0.1


@pytest.mark.parametrize('shape', [(1, 1, 8, 8), (2, 3, 16, 16), (2, 16, 16)])
def test_content_mask_of_a_wrong_shape(make_lively, shape):
    options = pruning.CriterionOptions(samples=2, content_mask=lambda images: torch.ones(shape))
    with pytest.raises(UserError, match=r'\[2, 1, 16, 16\]'):
        pruning.CRITERIA['content-aware'](make_lively(), options)


def test_content_mask_that_fails(make_lively):
    options = pruning.CriterionOptions(samples=2, content_mask=torch.nn.Conv2d(5, 1, 1))
    with pytest.raises(UserError, match='5 channels'):
        pruning.CRITERIA['content-aware'](make_lively(), options)


def test_content_mask_that_finds_nothing(make_lively):
    options = pruning.CriterionOptions(samples=2, content_mask=lambda images: images[:, :1] * 0)
    with pytest.raises(UserError, match='empty'):
        pruning.CRITERIA['content-aware'](make_lively(), options)


class LeftHalf(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros_like(images[:, :1])
        mask[..., : images.shape[3] // 2] = 1
        return mask


def test_a_criterion_is_given_a_copy_on_the_device_of_the_options(make_lively, monkeypatch):
    seen = []

    def destructive(G, options):
        seen.append((next(G.parameters()).device, options.device))
        scores = pruning.CRITERIA['l1'](G, options)
        torch.nn.init.zeros_(G.synthesis.b4.const)
        return scores

    monkeypatch.setitem(pruning.CRITERIA, 'destructive', destructive)
    G = make_lively()
    before = G.synthesis.b4.const.clone()
    pruning.make_student(dict(G_ema=G), pruning.widths_for_ratio(G, 0.5), 'destructive')
    assert torch.equal(G.synthesis.b4.const, before)
    assert seen == [(torch.device('cpu'), torch.device('cpu'))]


def test_content_mask_file(tmp_path, make_lively):
    torch.jit.script(LeftHalf()).save(tmp_path / 'mask.pt')
    masks = [LeftHalf(), pruning.load_content_mask(tmp_path / 'mask.pt'), None]
    G = make_lively()
    runs = [
        pruning.CRITERIA['content-aware'](G, pruning.CriterionOptions(samples=2, content_mask=mask)) for mask in masks
    ]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not torch.equal(runs[0]['b8.conv0'], runs[2]['b8.conv0'])


# --- initialization -----------------------------------------------------------------------------------------------


def test_svs_takes_square_roots(make_lively):
    G = make_lively(synthesis_kwargs=dict(architecture='resnet', channel_base=64))
    G.synthesis.b8.conv0.bias.zero_()
    scaled = copy.deepcopy(G)
    pruning.INITIALIZATIONS['svs'](scaled)
    after = dict(scaled.named_parameters())
    for name, before in G.named_parameters():
        kind = name.split('.')[-1]
        if name.startswith('mapping') or kind in ('const', 'noise_strength'):
            assert torch.equal(after[name], before)
        elif kind == 'weight':
            matrix = before.double().flatten(1).numpy()
            values, vectors = np.linalg.eigh(matrix @ matrix.T)
            expected = vectors @ (values[:, None] ** -0.25 * (vectors.T @ matrix))  # (A Aᵀ)^(−1/4) A
            np.testing.assert_allclose(after[name].flatten(1), expected, rtol=1e-3, atol=1e-4)
        else:
            norm = before.norm()
            torch.testing.assert_close(after[name], before / norm.sqrt() if norm > 0 else before)
    assert not after['synthesis.b8.conv0.bias'].any()


# --- students and the command -------------------------------------------------------------------------------------


@pytest.fixture
def teacher(make_lively, make_discriminator):
    return dict(
        G=make_lively(1),
        D=make_discriminator().eval().requires_grad_(False),
        G_ema=make_lively(2),
        training_set_kwargs=dict(class_name='training.dataset.ImageFolderDataset', path='data.zip'),
        augment_pipe=None,
    )


def test_student_pickle(teacher):
    """G and G_ema come from the teacher's G_ema and share nothing; the rest is the teacher's."""
    student = pruning.make_student(teacher, pruning.widths_for_ratio(teacher['G_ema'], 0))
    assert torch.equal(images(student['G']), images(teacher['G_ema']))
    assert torch.equal(images(student['G_ema']), images(teacher['G_ema']))
    for key in ('D', 'training_set_kwargs', 'augment_pipe'):
        assert student[key] is teacher[key]
    student['G'].synthesis.b4.const.zero_()
    assert torch.equal(images(student['G_ema']), images(teacher['G_ema']))


def test_make_student_chooses_by_the_criterion(teacher):
    widths = pruning.widths_for_ratio(teacher['G_ema'], 0.5)
    options = pruning.CriterionOptions(samples=2, seed=3)
    for name, criterion in pruning.CRITERIA.items():
        student = pruning.make_student(teacher, widths, name, options)
        masks = pruning.masks_from_scores(criterion(teacher['G_ema'], options), widths)
        assert torch.equal(student['G'].synthesis.b4.const, teacher['G_ema'].synthesis.b4.const[masks['b4.const']])
    scaled = pruning.make_student(teacher, widths, 'l1', options, init='svs')
    plain = pruning.make_student(teacher, widths, 'l1', options)
    pruning.INITIALIZATIONS['svs'](plain['G'])
    assert torch.equal(images(scaled['G_ema']), images(plain['G']))


@pytest.mark.parametrize('kwargs', [dict(criterion='l2'), dict(init='he')])
def test_unknown_names_are_told(teacher, kwargs):
    with pytest.raises(UserError, match=r'(l1, l1-styled|none, svs)'):
        pruning.make_student(teacher, pruning.widths_for_ratio(teacher['G_ema'], 0.5), **kwargs)


@pytest.fixture
def teacher_pkl(teacher, tmp_path):
    pickles.save(tmp_path / 'teacher.pkl', teacher)
    return tmp_path / 'teacher.pkl'


def test_command(teacher, teacher_pkl, tmp_path):
    torch.jit.script(LeftHalf()).save(tmp_path / 'mask.pt')
    out = tmp_path / 'student.pkl'
    text = run('prune', '--teacher', teacher_pkl, '--ratio', 0.6, '--out', out)
    student = pickles.load(out)
    before, after = (profiling.macs(networks['G_ema']) for networks in (teacher, student))
    assert f'MACs per image: {before:,} -> {after:,} ({after / before - 1:+.2%})' in text
    widths = pruning.widths_for_ratio(teacher['G_ema'], 0.6)
    expected = pruning.make_student(teacher, widths)
    assert torch.equal(images(student['G_ema']), images(expected['G_ema']))
    assert student['training_set_kwargs'] == teacher['training_set_kwargs']

    run(
        *('prune', '--teacher', teacher_pkl, '--widths', '4:7,16:3', '--criterion', 'content-aware', '--samples', 3),
        *('--batch', 2, '--seed', 5, '--mask', tmp_path / 'mask.pt', '--init', 'svs', '--out', out, '--force'),
    )
    options = pruning.CriterionOptions(samples=3, batch=2, seed=5, content_mask=LeftHalf())
    widths = pruning.widths_from_text(teacher['G_ema'], '4:7,16:3')
    expected = pruning.make_student(teacher, widths, 'content-aware', options, 'svs')
    assert torch.equal(images(pickles.load(out)['G_ema']), images(expected['G_ema']))

    run('prune', '--teacher', teacher_pkl, '--ratio', 0.6, '--multiple-of', 3, '--out', out, '--force')
    assert graph.widths(pickles.load(out)['G_ema']) == pruning.rounded_up(
        teacher['G_ema'], pruning.widths_for_ratio(teacher['G_ema'], 0.6), 3
    )


OWN_PRUNING = """
import torch
from stylegan2_compress.pruning import graph

asked = []

def last_channels(G, options):
    asked.append(options)
    return {name: torch.arange(width).float() for name, width in graph.widths(G).items()}

def halved(G):
    G.synthesis.b4.const.mul_(0.5)

def only_first(G, options):
    return {'b4.const': torch.ones(16)}

def too_few(G, options):
    return {name: torch.ones(width - (name == 'b8.conv0')) for name, width in graph.widths(G).items()}

def forgets_to_return(G, options):
    l1 = {name: torch.ones(width) for name, width in graph.widths(G).items()}

def of_a_list(G, options):
    return [torch.ones(width) for width in graph.widths(G).values()]

def of_lists(G, options):
    return {name: [1.0] * width for name, width in graph.widths(G).items()}

SEVEN = 7
"""


@pytest.fixture
def own_pruning(tmp_path, monkeypatch):
    """A module of the user's, with criteria and an initialization."""
    (tmp_path / 'modules').mkdir()
    (tmp_path / 'modules' / 'own_pruning.py').write_text(OWN_PRUNING)
    monkeypatch.syspath_prepend(tmp_path / 'modules')
    monkeypatch.delitem(sys.modules, 'own_pruning', raising=False)
    yield importlib.import_module('own_pruning')
    sys.modules.pop('own_pruning')


def test_criteria_and_initializations_of_the_users_own(teacher, teacher_pkl, tmp_path, own_pruning):
    out = tmp_path / 'student.pkl'
    run(
        *('prune', '--teacher', teacher_pkl, '--widths', '4:5', '--criterion', 'own_pruning.last_channels'),
        *('--init', 'own_pruning.halved', '--samples', 3, '--batch', 2, '--seed', 7, '--out', out),
    )
    assert own_pruning.asked == [pruning.CriterionOptions(samples=3, batch=2, seed=7)]
    student = pickles.load(out)['G_ema']
    assert graph.widths(student) == pruning.widths_from_text(teacher['G_ema'], '4:5')
    assert torch.equal(student.synthesis.b4.const, teacher['G_ema'].synthesis.b4.const[-5:] * 0.5)


@pytest.mark.parametrize(
    ('arguments', 'reason'),
    [
        ('--criterion own_pruning.nothing', 'cannot be imported'),
        ('--criterion no_such_module.criterion', 'cannot be imported'),
        ('--criterion own_pruning.SEVEN', '--criterion=own_pruning.SEVEN must be a function, but it is of type int'),
        ('--criterion own_pruning.only_first', 'expected'),
        ('--criterion own_pruning.too_few', 'got b8.conv0: [15], expected [16]'),
        ('--criterion own_pruning.forgets_to_return', 'a tensor of scores for every feature map, and returns None:'),
        ('--criterion own_pruning.of_a_list', 'and returns a list:'),
        ('--criterion own_pruning.of_lists', 'and returns a dictionary with a list:'),
        ('--init own_pruning.nothing', 'cannot be imported'),
        ('--init own_pruning.SEVEN', '--init=own_pruning.SEVEN must be a function, but it is of type int'),
    ],
)
def test_names_of_the_users_that_are_of_no_use(teacher_pkl, tmp_path, own_pruning, arguments, reason):
    arguments = ('--teacher', teacher_pkl, '--ratio', 0.5, '--out', tmp_path / 's.pkl', *arguments.split())
    message = refused('prune', *arguments, unchanged=tmp_path)
    assert reason in message
    assert arguments[-1] in message


@pytest.mark.parametrize(
    'arguments',
    [
        '',
        '--ratio 0.5 --widths 4:2',
        '--ratio 1',
        '--ratio nan',
        '--ratio half',
        '--widths 4:99',
        '--ratio 0.5 --criterion l2',
        '--ratio 0.5 --init he',
        '--ratio 0.5 --mask mask.pt',
        '--ratio 0.5 --criterion content-aware --mask missing.pt',
        '--ratio 0.5 --criterion content-aware --mask teacher.pkl',
        '--ratio 0.5 --device quantum',
        '--ratio 0.5 --device meta',
        '--ratio 0.5 --samples 0',
        '--ratio 0.5 --criterion random --seed 99999999999999999999',
        '--ratio 0.5 --teacher missing.pkl',
        '--ratio 0.5 --out missing/student.pkl',
    ],
)
def test_bad_input_writes_nothing(teacher_pkl, monkeypatch, arguments):
    monkeypatch.chdir(teacher_pkl.parent)
    arguments = ('prune', '--teacher', 'teacher.pkl', '--out', 'student.pkl', *arguments.split())
    refused(*arguments, unchanged=teacher_pkl.parent, usage=True)


@pytest.mark.parametrize(
    ('key', 'sentence'),
    [('G_ema', 'has no StyleGAN2 generator as G_ema'), ('D', 'has no discriminator, without which the host opens')],
)
def test_incomplete_teacher(teacher, tmp_path, key, sentence):
    pickles.save(tmp_path / 'teacher.safetensors', {**teacher, key: None})
    given = ('--teacher', tmp_path / 'teacher.safetensors', '--ratio', 0.5, '--out', tmp_path / 'student.pkl')
    assert sentence in refused('prune', *given, unchanged=tmp_path)


def test_what_a_format_does_not_hold_is_refused_before_channels_are_judged(
    teacher, make_generator, tmp_path, monkeypatch
):
    pickles.save(tmp_path / 'labels.pkl', dict(teacher, G_ema=make_generator(c_dim=3).eval().requires_grad_(False)))
    monkeypatch.setattr(pruning, 'make_student', None)  # Judging takes up to hours.
    given = ('--teacher', tmp_path / 'labels.pkl', '--ratio', 0.5, '--criterion', 'diversity')
    given += ('--out', tmp_path / 'student.pt')
    for more in ((), ('--only', 'G_ema')):
        message = refused('prune', *given, *more, unchanged=tmp_path)
        assert 'G_ema cannot be stored as a state dict of stylegan2-pytorch: it takes labels' in message


def test_existing_files_stay(teacher_pkl, tmp_path):
    existing = tmp_path / 'existing.pkl'
    existing.write_bytes(b'before')
    assert '--force' in refused('prune', '--teacher', teacher_pkl, '--ratio', 0.5, '--out', existing)
    assert existing.read_bytes() == b'before'
