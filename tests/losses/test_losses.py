"""The adversarial base against the host's loss, and DiME's term against its formula."""

import copy

import numpy as np
import pytest
import torch
from training.augment import AugmentPipe
from training.loss import StyleGAN2Loss

import stylegan2_compress
from stylegan2_compress import pickles
from stylegan2_compress.distributions import statistics
from stylegan2_compress.losses.adversarial import AdversarialLoss
from stylegan2_compress.losses.dime import DiMELoss, DistributionMatching
from stylegan2_compress.losses.estimators import MomentDistance
from stylegan2_compress.losses.space import Space
from stylegan2_compress.losses.terms import Batch, Summand, Term

pytestmark = pytest.mark.usefixtures('own_cache')

PHASES = ['Gmain', 'Greg', 'Gboth', 'Dmain', 'Dreg', 'Dboth']


@pytest.fixture
def networks(make_generator, make_discriminator):
    def build(c_dim=0):
        G = make_generator(c_dim=c_dim).train().requires_grad_(False)
        return G, make_discriminator(c_dim=c_dim).train().requires_grad_(False)

    return build


def gradients(loss_class, G, D, phase, *, seed=3, gain=4, augment=False, **loss_kwargs):
    """Gradients of all parameters, and the buffers afterwards, of one call under one random state."""
    G, D = copy.deepcopy(G), copy.deepcopy(D)
    pipe = None
    if augment:
        pipe = AugmentPipe(xflip=1, scale=1, brightness=1).train().requires_grad_(False)
        pipe.p.fill_(0.7)
    modules = dict(G_mapping=G.mapping, G_synthesis=G.synthesis, D=D, augment_pipe=pipe)
    loss = loss_class(device=torch.device('cpu'), **modules, **loss_kwargs)
    torch.manual_seed(seed)
    (G if phase.startswith('G') else D).requires_grad_(True)
    labels = torch.nn.functional.one_hot(torch.arange(4) % max(G.c_dim, 1), max(G.c_dim, 1)).float()[:, : G.c_dim]
    loss.accumulate_gradients(phase, torch.randn(4, 3, 16, 16), labels, torch.randn(4, 16), labels, True, gain)
    named = {f'{n}.{p}': v for n, m in [('G', G), ('D', D)] for p, v in m.named_parameters()}
    found = {name: parameter.grad for name, parameter in named.items() if parameter.grad is not None}
    assert found
    return found | {f'{n}.{b}': v for n, m in [('G', G), ('D', D)] for b, v in m.named_buffers()}


def assert_identical(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize('phase', PHASES)
@pytest.mark.parametrize('setting', ['plain', 'conditional', 'augmented', 'no mixing', 'fp16 blocks'])
def test_base_equals_host_bit_for_bit(networks, make_generator, make_discriminator, phase, setting):
    G, D = networks(c_dim=3 if setting == 'conditional' else 0)
    if setting == 'fp16 blocks':  # On a CPU we ask for FP32; the host's loss cannot, so its networks have none.
        half = make_generator(synthesis_kwargs=dict(channel_base=256, channel_max=16, num_fp16_res=2)).train()
        half_D = make_discriminator(num_fp16_res=2).train()
        ours = gradients(AdversarialLoss, half.requires_grad_(False), half_D.requires_grad_(False), phase)
        assert_identical(ours, gradients(StyleGAN2Loss, G, D, phase))
        return
    kwargs = dict(augment=setting == 'augmented', r1_gamma=3)
    if setting == 'no mixing':
        kwargs['style_mixing_prob'] = 0
    assert_identical(gradients(AdversarialLoss, G, D, phase, **kwargs), gradients(StyleGAN2Loss, G, D, phase, **kwargs))


def test_same_statistics_as_host(networks):
    from torch_utils import training_stats

    reported = []
    for loss_class in (AdversarialLoss, StyleGAN2Loss):
        collector = training_stats.Collector(regex='Loss/.*', keep_previous=False)
        for phase in PHASES:
            gradients(loss_class, *networks(), phase)
        collector.update()
        reported.append({name: stat for name, stat in collector.as_dict().items() if stat['num']})
    assert reported[0].keys() == reported[1].keys()
    for name, stat in reported[0].items():  # The host's collectors subtract running totals, which rounds.
        assert dict(stat) == pytest.approx(dict(reported[1][name]), rel=1e-9)
    assert len(reported[0]) == 10


def test_unknown_phase_is_refused(networks):
    G, D = networks()
    loss = AdversarialLoss('cpu', G.mapping, G.synthesis, D)
    with pytest.raises(ValueError, match='Gmian'):
        loss.accumulate_gradients('Gmian', *[torch.zeros(1)] * 4, True, 1)


def test_path_lengths_of_a_batch_of_one_are_of_that_image(networks):
    """Of two, the first is used; half of one would be none."""
    G, D = networks()
    found = []
    for size in (1, 2):
        copied, z = (
            copy.deepcopy(G).requires_grad_(True),
            torch.randn([2, 16], generator=torch.Generator().manual_seed(0)),
        )
        loss = AdversarialLoss('cpu', copied.mapping, copied.synthesis, D, style_mixing_prob=0)
        torch.manual_seed(1)
        loss.accumulate_gradients('Greg', None, None, z[:size], torch.zeros([size, 0]), True, 1)
        found.append({name: p.grad for name, p in copied.named_parameters() if p.grad is not None})
    assert any(grad.abs().sum() > 0 for grad in found[0].values())
    assert_identical(*found)


class PixelTerm(Term):
    """Adds 3 · mean(images) for G, and 5 · mean(logits) for D."""

    def generator(self, batch):
        return [Summand('pixels', batch.images.mean(), 3)]

    def discriminator(self, batch):
        assert not batch.images.requires_grad
        return [Summand('logits', batch.logits.mean(), 5)]


@pytest.mark.parametrize('phase', ['Gmain', 'Dmain'])
def test_terms_add_their_gradient(networks, phase):
    G, D = networks()
    with_term = gradients(AdversarialLoss, G, D, phase, terms=[PixelTerm()], gain=2)
    without = gradients(AdversarialLoss, G, D, phase, gain=2)
    # The term's gradient alone, from the same images.
    torch.manual_seed(3)
    images_seen, c = torch.randn(4, 3, 16, 16), torch.zeros(4, 0)
    z = torch.randn(4, 16)
    loss = AdversarialLoss('cpu', G.mapping, G.synthesis, D)
    module, letter = (G, 'G') if phase == 'Gmain' else (D, 'D')
    module.requires_grad_(True)
    images, _ws, _mixing = loss.run_G(z, c, True)
    (3 * images.mean() if phase == 'Gmain' else 5 * D(images, c).mean()).mul(2).backward()
    for name, parameter in module.named_parameters():
        expected = without[f'{letter}.{name}'] + parameter.grad
        torch.testing.assert_close(with_term[f'{letter}.{name}'], expected, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(with_term[name], without[name]) for name in without)
    assert images_seen.shape == images.shape


@pytest.mark.parametrize('phase', ['Greg', 'Dreg'])
def test_terms_are_not_asked_in_regularisation_phases(networks, phase):
    assert_identical(
        gradients(AdversarialLoss, *networks(), phase, terms=[PixelTerm()]),
        gradients(AdversarialLoss, *networks(), phase),
    )


def test_state_dict_round_trip(networks):
    G, D = networks()
    first, second = (AdversarialLoss('cpu', G.mapping, G.synthesis, D) for _ in range(2))
    first.pl_mean.fill_(7.5)
    second.load_state_dict(first.state_dict())
    assert second.pl_mean == 7.5
    with pytest.raises(ValueError, match='PixelTerm'):
        PixelTerm().load_state_dict({'x': 1})


# --- DiME -----------------------------------------------------------------------------------------------------------


class Flattener(torch.nn.Module):
    """An embedding whose features are the pixels."""

    spec, pools_layers = 'pixels', False

    def forward(self, images):
        return images.flatten(1)


def total(summands):
    return sum(summand.weight * summand.value for summand in summands if summand.weight is not None)


def test_moment_matching_is_the_formula():
    """Written out in float64 from DiME's formula."""
    rnd = np.random.RandomState(0)
    images = rnd.randn(6, 3, 2, 2)
    m1, m2 = rnd.randn(12), rnd.rand(12)
    flat = images.reshape(6, 12)
    expected = 20 * (np.abs(flat.mean(0) - m1).mean() + np.abs((flat**2).mean(0) - m2).mean())
    tensor = torch.from_numpy(images).requires_grad_(True)
    moments = statistics.Statistics(torch.from_numpy(m1), torch.from_numpy(m2), bank=None)
    term = DistributionMatching([Space(Flattener(), MomentDistance(moments), 20.0)])
    batch = Batch(None, None, None, tensor, None)
    value = total(term.generator(batch))
    np.testing.assert_allclose(value.item(), expected, rtol=1e-12)
    value.backward()
    a1, a2 = flat.mean(0), (flat**2).mean(0)
    gradient = 20 * (np.sign(a1 - m1) + 2 * flat * np.sign(a2 - m2)) / 6 / 12
    np.testing.assert_allclose(tensor.grad.numpy().reshape(6, 12), gradient, rtol=1e-12)


@pytest.fixture
def teacher_pkl(tmp_path, make_generator, make_discriminator):
    G, D = make_generator(seed=5).eval(), make_discriminator(seed=5).eval()
    path = tmp_path / 'teacher.pkl'
    pickles.save(path, dict(G=G, D=D, G_ema=copy.deepcopy(G), training_set_kwargs=None, augment_pipe=None))
    return str(path)


SPEC = 'efficientnet_lite0@size=32'


def test_dime_adds_to_generator_only(networks, teacher_pkl):
    kwargs = dict(teacher=teacher_pkl, embeddings=SPEC, samples=8)
    for phase in ('Dmain', 'Dreg', 'Greg'):
        assert_identical(
            gradients(DiMELoss, *networks(), phase, **kwargs), gradients(AdversarialLoss, *networks(), phase)
        )
    with_dime = gradients(DiMELoss, *networks(), 'Gmain', **kwargs)
    without = gradients(AdversarialLoss, *networks(), 'Gmain')
    assert with_dime.keys() == without.keys()
    assert any(not torch.equal(with_dime[name], without[name]) for name in without)


def test_dime_matching_makes_the_distance_small(teacher_pkl):
    """A few hundred steps on images alone bring their moments to the teacher's."""
    G = pickles.load(teacher_pkl)['G_ema']
    D = pickles.load(teacher_pkl)['D']
    loss = DiMELoss(
        'cpu', G_mapping=G.mapping, G_synthesis=G.synthesis, D=D, teacher=teacher_pkl, embeddings=SPEC, samples=64
    )
    (term,) = loss.terms
    torch.manual_seed(0)
    images = torch.zeros(8, 3, 16, 16).normal_(0, 0.1).requires_grad_(True)
    batch = Batch(None, None, None, images, None)
    opt = torch.optim.Adam([images], lr=0.05)
    first = total(term.generator(batch)).item()
    for _ in range(40):
        opt.zero_grad()
        value = total(term.generator(batch))
        value.backward()
        opt.step()
    assert value.item() < first / 2


def test_class_is_reachable_by_the_hosts_registry(teacher_pkl, networks):
    import dnnlib

    G, D = networks()
    loss = dnnlib.util.construct_class_by_name(
        class_name='stylegan2_compress.DiMELoss', device='cpu', G_mapping=G.mapping, G_synthesis=G.synthesis, D=D,
        augment_pipe=None, teacher=teacher_pkl, embeddings=SPEC, samples=4, r1_gamma=2,
    )  # fmt: skip
    assert isinstance(loss, stylegan2_compress.DiMELoss)
    assert loss.adversarial.r1_gamma == 2
