"""Other papers' distillation: every gradient against the formula, what is kept between steps, and several processes."""

import copy
import types

import numpy as np
import pytest
import torch
from float64 import Float64Torch, in_float64
from plans import checked, compressed
from torch.nn import functional as F
from training import networks
from two_processes import in_two_processes

import stylegan2_compress
from stylegan2_compress import pickles
from stylegan2_compress.compression.distill import distill
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import configurations
from stylegan2_compress.losses import energy, features, gcc, itgc, stylekd
from stylegan2_compress.losses.terms import Batch, StyleMixing

SIDE, BATCH = 16, 4
TINY = 'module:tiny_embeddings:tiny@size=16@preprocess=raw@dtype=fp64'
NARROW, WIDE = dict(channel_base=64, channel_max=6), dict(channel_base=128, channel_max=10)
CUTOFF = 3
LOSSES = ('StyleKDLoss', 'ITGCLoss', 'GCCLoss')


@pytest.fixture(autouse=True)
def small_and_clean(tmp_path, monkeypatch):
    monkeypatch.setenv('STYLEGAN2_COMPRESS_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(energy, 'WIDTHS', (4, 6, 8))


@pytest.fixture
def teacher(tmp_path, make_generator, make_discriminator):
    G = make_generator(2, synthesis_kwargs=dict(WIDE, use_noise=False)).eval()
    D = make_discriminator(3, **WIDE).eval()
    path = str(tmp_path / 'teacher.pkl')
    pickles.save(path, dict(G=G, D=D, G_ema=G, training_set_kwargs=None, augment_pipe=None))
    return path


@pytest.fixture
def student(make_generator, make_discriminator):
    """G and D of a run, in nothing symmetrical."""
    G = make_generator(1, synthesis_kwargs=dict(NARROW, use_noise=False)).train()
    D = make_discriminator(4, **NARROW).train().requires_grad_(False)
    with torch.no_grad():
        for parameter in [*G.parameters(), *D.parameters()]:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return types.SimpleNamespace(G=G, D=D)


def build(name, student, teacher, **given):
    G, D = student.G, student.D
    loss_class = getattr(stylegan2_compress, name)
    if 'ITGC' in name:
        given = dict(langevin_steps=2) | given
    if name != 'GCCLoss':
        given['embedding'] = TINY
    return loss_class('cpu', G.mapping, G.synthesis, D, teacher=teacher, pl_weight=0, **given)


# --- The formulas -----------------------------------------------------------------------------------------------------


def perceptual(network, x, y):
    total = 0
    layers = list(zip(network.layers(x), network.layers(y), strict=True))
    for a, b in layers:
        a, b = (maps / (maps.square().sum(dim=1, keepdim=True) + 1e-10).sqrt() for maps in (a, b))
        total = total + (a - b).square().sum(dim=1).mean()
    return total / len(layers)


def maps_and_image(G, ws, name):
    """The feature maps of a block and the image, block by block."""
    x = image = found = None
    place = 0
    for side in G.synthesis.block_resolutions:
        block = getattr(G.synthesis, f'b{side}')
        x, image = block(x, image, ws[:, place : place + block.num_conv + block.num_torgb])
        place += block.num_conv
        if name == f'b{side}':
            found = x
    return found, image


def mixed(G, z):
    ws, second = G.mapping(z, None), G.mapping(z.flip(0) * 0.9, None, skip_w_avg_update=True)
    return torch.cat([ws[:, :CUTOFF], second[:, CUTOFF:]], dim=1)


def cosine(a, b):
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def relations(first, second):
    return torch.stack([torch.stack([cosine(a, b) for b in second]) for a in first])


def stylekd_formula(student, G_T, z, offsets, relation_weight=30, **_weights):
    """λ Σ_i 1/N Σ_j t_ij (log t_ij − log s_ij), with softmax over j of the cosines of maps of 8 pixels."""
    logarithms = []
    for G in (student.G, G_T):
        ws = mixed(G, z)
        a, b = (maps_and_image(G, each, 'b8')[0] for each in (ws, ws + offsets))
        exponentials = relations(a, b).exp()
        logarithms.append((exponentials / exponentials.sum(dim=1, keepdim=True)).log())
    s, t = logarithms
    return relation_weight * (t.exp() * (t - s)).sum() / len(z)


def energy_formula(E, t, s):
    """Written with its weights alone: halves, convolutions with the weight over its norm, blocks, a mean."""

    def apply(norm, x):
        weight = norm.layer.weight
        sigma = norm.u @ weight.flatten(1) @ norm.v
        weight = weight / torch.maximum(sigma, torch.full_like(sigma, norm.least))
        if weight.ndim == 2:
            return x @ weight.T + norm.layer.bias
        return F.conv2d(x, weight, norm.layer.bias, padding=1)

    def leaky(x):
        return torch.where(x > 0, x, 0.01 * x)

    halves = [F.avg_pool2d(each, 3, 2, 1) for each in (t, s)]
    x = leaky(apply(E.from_images, torch.cat(halves, dim=1)))
    for block in E.blocks:
        beside = apply(block.second, leaky(apply(block.first, x)))
        shortcut = x if isinstance(block.shortcut, torch.nn.Identity) else apply(block.shortcut, x)
        x = leaky(F.avg_pool2d(shortcut + beside, 2))
    return apply(E.last, x.clamp_min(0).mean(dim=(2, 3)))[:, 0]


def itgc_formula(E, t, s, drawn, information_weight=0.05, energy_penalty=0.05, **_langevin):
    """λ mean[E(t, s) − E(t̃, s)], and the energy's own loss."""
    plus, minus = energy_formula(E, t, s), energy_formula(E, drawn, s)
    own = (plus - minus).mean() + energy_penalty * (plus**2 + minus**2).mean()
    return information_weight * (plus - minus).mean(), own


def gcc_formula(student, G_T, D_T, convolution, z, content_weight=1, gram_weight=1):
    """Σ over the generators' maps of 8 pixels and the discriminator's of 8: √ mean (a − b)², and of a aᵀ / (C H W)."""
    maps, image = maps_and_image(student.G, mixed(student.G, z), 'b8')
    wanted, shown = (each.detach() for each in maps_and_image(G_T, mixed(G_T, z), 'b8'))
    pairs = [(torch.einsum('oi,nihw->nohw', convolution.weight[:, :, 0, 0], maps), wanted)]
    pairs.append(tuple(D_T.b16(None, each)[0] for each in (image, shown)))
    total = 0
    for a, b in pairs:
        total = total + content_weight * (a - b).square().mean().sqrt()
        a, b = (torch.einsum('nihw,njhw->nij', each, each) / each[0].numel() for each in (a, b))
        total = total + gram_weight * (a - b).square().mean().sqrt()
    return total


OTHER_OPTIONS = {
    'StyleKDLoss': dict(relation_weight=20, pixel_weight=2, perceptual_weight=0.5),
    'ITGCLoss': dict(
        information_weight=0.5, energy_penalty=0.2, langevin_steps=3, langevin_step_size=2.0, langevin_noise=0.3
    ),
    'GCCLoss': dict(content_weight=2, gram_weight=3),
}


@pytest.mark.parametrize(
    ('name', 'given'), [*((name, {}) for name in LOSSES), *OTHER_OPTIONS.items()], ids=[*LOSSES, *OTHER_OPTIONS]
)
def test_the_gradient_is_that_of_the_formula(name, given, student, teacher, monkeypatch):
    """Of every parameter of the generator, in two rounds of one step, and of every parameter of the energy."""
    loss = build(name, student, teacher, **given)
    G_T = loss.terms[0].teacher.G
    for module in (student.G, student.D, G_T):
        in_float64(module)
    loss._draw_mixing = lambda z, num_ws: StyleMixing(z.flip(0) * 0.9, CUTOFF)
    monkeypatch.setattr(networks, 'torch', Float64Torch('torch'))
    term, drawn = loss.terms[-1], []
    if name == 'StyleKDLoss':
        term.directions = term.directions.double()
        original = term.offsets
        term.offsets = lambda images: drawn.append(original(images)) or drawn[-1]
        assert loss.watched == ['b8']
    elif name == 'GCCLoss':
        in_float64(term.D)
        beside = term.trained.network.double()
        term.trained.commit = lambda: None
        drawn = [None, None]
        assert [loss.watched, term.judged] == [['b8'], ['b16']]
    else:
        beside = term.energy.double()
        original = energy.langevin
        chains = [
            given.get(f'langevin_{what}', usual) for what, usual in dict(steps=2, step_size=50, noise=0.005).items()
        ]

        def chain(energies, images, *how):
            assert list(how) == chains
            drawn.append(original(energies, images, *how))
            return drawn[-1]

        monkeypatch.setattr(itgc, 'langevin', chain)
        term.trained.commit = lambda: None  # Keeps the gradients.
    rounds = [torch.randn(BATCH, 16, dtype=torch.float64) for _ in range(2)]
    student.G.requires_grad_(True)
    c = torch.zeros(BATCH, 0)
    for index, z in enumerate(rounds):
        loss.accumulate_gradients('Gmain', None, None, z, c, sync=index == 1, gain=2)

    total = own = 0
    for z, random_part in zip(rounds, drawn, strict=True):
        _maps, image = maps_and_image(student.G, mixed(student.G, z), 'b8')
        wanted = maps_and_image(G_T, mixed(G_T, z), 'b8')[1].detach()
        total = total + torch.log1p((-student.D(image, c)).exp()).mean()
        if name == 'GCCLoss':
            beside.requires_grad_(True)
            total = total + gcc_formula(student, G_T, term.D, beside['b8'], z, **given)
            continue
        total = total + given.get('pixel_weight', 3) * (image - wanted).abs().mean()
        distance = perceptual(loss.terms[0].embedding.network, image, wanted)
        total = total + given.get('perceptual_weight', 3) * distance
        if name == 'StyleKDLoss':
            total = total + stylekd_formula(student, G_T, z, random_part.detach(), **given)
        else:
            total = total + itgc_formula(term.energy, wanted, image, random_part, **given)[0]
            term.energy.requires_grad_(True)
            own = own + itgc_formula(term.energy, wanted, image.detach(), random_part, **given)[1]
            term.energy.requires_grad_(False)
    names, parameters = zip(*student.G.named_parameters(), strict=True)
    expected = torch.autograd.grad(2 * total, parameters, retain_graph=True)
    for each, parameter, gradient in zip(names, parameters, expected, strict=True):
        tolerance = dict(rtol=1e-9, atol=1e-9 * float(gradient.abs().max()))
        torch.testing.assert_close(parameter.grad, gradient, msg=each, **tolerance)
    if name != 'StyleKDLoss':
        names, parameters = zip(*beside.named_parameters(), strict=True)
        beside.requires_grad_(True)
        expected = torch.autograd.grad(own if name == 'ITGCLoss' else 2 * total, parameters)
        for each, parameter, gradient in zip(names, parameters, expected, strict=True):
            assert gradient.any(), each
            tolerance = dict(rtol=1e-9, atol=1e-9 * float(gradient.abs().max()))
            torch.testing.assert_close(parameter.grad, gradient, msg=each, **tolerance)


# --- StyleKD ----------------------------------------------------------------------------------------------------------


def test_directions_are_the_first_right_singular_vectors_of_affine_weights(make_generator):
    G = make_generator(3, img_resolution=16, synthesis_kwargs=WIDE)
    found = stylekd.principal_directions(G, [8, 16], 3)
    assert found.shape == (6, 16)
    for side, directions in zip([8, 16], found.split(3), strict=True):
        block = getattr(G.synthesis, f'b{side}')
        A = np.concatenate([layer.affine.weight.detach().double().numpy() for layer in (block.conv0, block.conv1)])
        A /= np.linalg.norm(A, axis=1, keepdims=True)
        _left, _values, right = np.linalg.svd(A)
        alike = np.abs(directions.double().numpy() @ right[:3].T)  # Up to the sign.
        np.testing.assert_allclose(alike, np.eye(3), atol=1e-5)
    assert len(stylekd.principal_directions(G, [8], 99)) == 16


def test_maps_alone_are_those_of_the_whole_pass_and_take_no_more_than_they_need(make_generator):
    G = make_generator(3, img_resolution=32, synthesis_kwargs=WIDE)
    ws, precision = torch.randn([2, G.num_ws, 16]), dict(noise_mode='const')
    with features.block_outputs(G.synthesis, ['b8', 'b16']) as expected:
        G.synthesis(ws, **precision)
    passed = []
    G.synthesis.b32.register_forward_hook(lambda *_: passed.append('b32'))
    found = features.maps_alone(G.synthesis, ['b16', 'b8'], ws, **precision)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    found['b16'].sum().backward()
    assert G.synthesis.b16.conv1.weight.grad is not None
    assert not passed
    G.synthesis(ws, **precision)
    assert passed == ['b32']  # Nothing is left that stops a pass.


def test_maps_alone_of_a_discriminator_are_its_first(make_discriminator):
    D, passed = make_discriminator(3), []
    images, c = torch.randn([2, 3, 16, 16]), torch.zeros([2, 0])
    with features.block_outputs(D, ['b16', 'b8']) as expected:
        D(images, c)
    D.b4.register_forward_hook(lambda *_: passed.append('b4'))
    found = features.maps_alone(D, ['b8', 'b16'], images, c)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not passed


@pytest.mark.parametrize(
    ('resolution', 'num_fp16_res', 'device', 'is_told'),
    [
        (256, 4, 'cuda', True),
        (512, 4, 'cuda', True),
        (128, 4, 'cuda', False),
        (256, 0, 'cuda', False),
        (256, 4, 'cpu', False),
    ],
)
def test_gcc_says_what_it_loses_in_fp16(resolution, num_fp16_res, device, is_told):
    networks = {
        'teacher.pkl': dict(
            G_ema=types.SimpleNamespace(z_dim=512), D=types.SimpleNamespace(_init_args=(), _init_kwargs={})
        )
    }
    args = dict(G_kwargs=dict(synthesis_kwargs=dict(num_fp16_res=num_fp16_res)), device=device)
    args['training_set_kwargs'] = dict(resolution=resolution)
    plan = types.SimpleNamespace(resources=types.SimpleNamespace(networks=networks), args=args)
    notes = list(gcc.GCC(teacher='teacher.pkl').check(plan))
    assert [note.endswith(': --fp32=1 keeps it.') for note in notes] == [True] * is_told


@pytest.mark.parametrize(
    ('side', 'sides'),
    [(8, [8]), (16, [8]), (32, [16]), (64, [16, 32]), (256, [16, 32, 64, 128]), (1024, [16, 32, 64, 128])],
)
def test_sides_that_are_compared(side, sides):
    assert stylekd.compared_sides(side) == sides


def test_latents_move_along_one_direction_each(student, teacher):
    term = build('StyleKDLoss', student, teacher, direction_length=2.0, directions=2).terms[1]
    assert term.directions.shape == (2, 16)  # Of images of 16 pixels, maps of 8 are compared.
    offsets = term.offsets(torch.zeros(4000, 3, 1, 1))
    assert offsets.shape == (4000, 1, 16)
    lengths = offsets[:, 0] @ term.directions.T
    nearest = lengths.abs().argmax(dim=1)
    torch.testing.assert_close(offsets[:, 0], (lengths.gather(1, nearest[:, None])) * term.directions[nearest])
    assert lengths.gather(1, nearest[:, None]).std() == pytest.approx(2.0, rel=0.05)
    assert nearest.float().mean() == pytest.approx(0.5, abs=0.04)


# --- ITGC -------------------------------------------------------------------------------------------------------------


def test_spectral_norms_become_one_and_small_ones_stay():
    torch.manual_seed(0)
    E = energy.Energy(32, 3)
    assert [len(E.blocks), E.last.layer.weight.shape[1]] == [4, 8]  # Maps of 16, 8, 4, 2 and 1 pixels.
    for _ in range(100):
        E.iterate()
    for block in E.blocks:
        for norm in (block.first, block.second):
            weight = norm.layer.weight.flatten(1)
            sigma = float(torch.linalg.matrix_norm(weight, 2))
            found = norm.u @ weight @ norm.v / max(sigma, norm.least)
            assert float(found) == pytest.approx(1.0 if norm is block.first else sigma, rel=1e-2)
        assert not torch.equal(block.first.layer.weight, block.second.layer.weight)


def test_langevin_goes_down_and_leaves_parameters_alone():
    torch.manual_seed(0)
    E = energy.Energy(16, 3).requires_grad_(False)
    s = torch.randn(2, 3, 16, 16, requires_grad=True)
    drawn = energy.langevin(E, s, 3, 50.0, 0.0)
    assert not drawn.requires_grad
    expected = s.detach()
    for _ in range(3):
        t = expected.clone().requires_grad_()
        expected = expected - 50 * torch.autograd.grad(energy_formula(E, t, s.detach()).sum(), t)[0]
    torch.testing.assert_close(drawn, expected)
    assert E(drawn, s).sum() < E(s, s).sum()
    noisy = energy.langevin(E, s, 1, 50.0, 0.3) - energy.langevin(E, s, 1, 50.0, 0.0)
    assert noisy.std() == pytest.approx(0.3, rel=0.1)


def test_the_energy_learns_to_tell_pairs_apart(student, teacher):
    """Of one batch, teacher's images get a lower energy than those that Langevin dynamics draws."""
    loss = build('ITGCLoss', student, teacher, energy_lr=0.003)
    term = loss.terms[1]
    torch.manual_seed(0)
    z, images = torch.randn(8, 16), torch.rand(8, 3, 16, 16) * 2 - 1
    found = []
    for nimg in range(0, 8 * 30, 8):
        term.before_step(nimg)
        bound, own = term.generator(Batch(z, torch.zeros(8, 0), None, images, None))
        found.append(float(bound.value))
        assert (own.weight, bound.weight) == (None, 0.05)
        term.after_step()
    assert np.mean(found[-5:]) < np.mean(found[:5]) - 0.1


# --- What is kept -----------------------------------------------------------------------------------------------------

ALL = '+'.join(LOSSES)


def train(loss, modules, steps, share=slice(None), rounds=2):
    """Steps of plain gradient descent on the share of batches of 8; the gradients of each."""
    recorded = []
    for step in steps:
        rnd = torch.Generator().manual_seed(step)
        z = torch.randn(8, 16, generator=rnd)[share]
        torch.manual_seed(100 + step)  # As training loops do.
        modules.G.requires_grad_(True)
        parts = z.chunk(rounds)
        for index, part in enumerate(parts):
            c = torch.zeros(len(part), 0)
            loss.accumulate_gradients('Gmain', None, None, part, c, sync=index == len(parts) - 1, gain=1)
        modules.G.requires_grad_(False)
        for parameter in modules.G.parameters():
            recorded.append(parameter.grad.clone())
            parameter.data.sub_(parameter.grad, alpha=0.01)
            parameter.grad = None
    return recorded


def test_a_continued_run_is_the_same_run(student, teacher):
    torch.manual_seed(5)
    loss = build(ALL, student, teacher)
    train(loss, student, range(2))
    state, G = copy.deepcopy(loss.state_dict()), copy.deepcopy(student.G)
    expected = train(loss, student, range(2, 4))
    student.G = G
    torch.manual_seed(6)  # Another energy at first.
    again = build(ALL, student, teacher)
    again.load_state_dict(state)
    found = train(again, student, range(2, 4))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert len(found) > 10
    terms = zip(loss.state_dict()['terms'], state['terms'], strict=True)
    moved = [(term['network'], old['network']) for term, old in terms if term]
    for now, before in moved:
        assert not all(torch.equal(now[name], before[name]) for name in now if 'weight' in name)
    assert len(moved) == 2


def test_a_step_that_is_left_out_changes_no_energy(student, teacher):
    loss = build('ITGCLoss', student, teacher)
    train(loss, student, [0])
    before = copy.deepcopy(loss.state_dict())
    student.G.requires_grad_(True)
    loss.accumulate_gradients('Gmain', None, None, torch.full([4, 16], torch.nan), torch.zeros(4, 0), True, 1)
    after = loss.state_dict()
    assert after['steps']['left_out'] == {'Gmain': 1}
    for name, tensor in before['terms'][1]['network'].items():
        assert torch.equal(after['terms'][1]['network'][name], tensor), name
    train(loss, student, [1])
    changed = loss.state_dict()['terms'][1]['network']
    assert all(tensor.isfinite().all() for tensor in changed.values())
    assert not torch.equal(changed['last.layer.weight'], before['terms'][1]['network']['last.layer.weight'])


# --- Several processes ------------------------------------------------------------------------------------------------


def process(rank, directory, seed=7):
    """Two steps with DistributedDataParallel as the host wraps it."""
    energy.WIDTHS = (4, 6, 8)
    modules = pickles.load(f'{directory}/student.pkl')
    pair = types.SimpleNamespace(G=modules['G'].train().requires_grad_(True), D=modules['D'].train())
    wrap = torch.nn.parallel.DistributedDataParallel
    wrapped = types.SimpleNamespace(
        G=types.SimpleNamespace(
            mapping=wrap(pair.G.mapping, broadcast_buffers=False),
            synthesis=wrap(pair.G.synthesis, broadcast_buffers=False),
        ),
        D=pair.D.requires_grad_(False),
    )
    torch.manual_seed(seed + rank)  # The energies differ at first.
    loss = build(ALL, wrapped, f'{directory}/teacher.pkl', style_mixing_prob=0)
    recorded = train(loss, pair, range(2), share=slice(4 * rank, 4 * rank + 4))
    beside = [loss.terms[-2].energy, loss.terms[-1].trained.network]
    trained = [parameter.clone() for network in beside for parameter in network.parameters()]
    torch.save((recorded, trained), f'{directory}/rank{rank}.pt')


def test_two_processes_agree(tmp_path, student, teacher):
    """On every gradient, the mean of both, and on what is trained beside, although each draws for itself."""
    pickles.save(
        tmp_path / 'student.pkl',
        dict(G=student.G, D=student.D, G_ema=student.G, training_set_kwargs=None, augment_pipe=None),
    )
    in_two_processes(process, str(tmp_path))
    (first, beside_0), (second, beside_1) = (torch.load(tmp_path / f'rank{rank}.pt') for rank in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert all(torch.equal(*pair) for pair in zip(beside_0, beside_1, strict=True))

    alone = []
    for rank in range(2):
        modules = types.SimpleNamespace(G=copy.deepcopy(student.G), D=student.D)
        torch.manual_seed(7)
        loss = build(ALL, modules, teacher, style_mixing_prob=0)
        alone.append(train(loss, modules, [0], share=slice(4 * rank, 4 * rank + 4)))
    for ours, *both in zip(first, *alone, strict=False):
        torch.testing.assert_close(ours, sum(both) / 2, rtol=1e-3, atol=1e-3 * float(ours.abs().max()) + 1e-7)


# --- Runs -------------------------------------------------------------------------------------------------------------


def test_a_run_of_all(teacher, tmp_path, make_dataset_zip, small_grids):
    data = str(make_dataset_zip(tmp_path, n=4))
    run_dir = distill(
        teacher, data, str(tmp_path / 'out'), loss=f'stylegan2_compress.{ALL}', kimg=1, batch=1000, device='cpu',
        loss_args=dict(embedding=TINY.replace('fp64', 'fp32'), langevin_steps=1), workers=0, snap=1000, pl_weight=0,
    )  # fmt: skip
    statistics = (tmp_path / run_dir / 'stats.jsonl').read_text()
    for name in ('images/pixels', 'StyleKD/relations', 'ITGC/information', 'ITGC/energy', 'GCC/content', 'GCC/gram'):
        assert f'Loss/{name}' in statistics


def test_weights_of_zero_take_no_part(student, teacher):
    loss = build('StyleKDLoss+ITGCLoss', student, teacher, relation_weight=0, information_weight=0)
    assert len(loss.terms) == 1
    assert loss.watched == []


@pytest.mark.parametrize(
    ('name', 'given', 'sentence'),
    [
        ('StyleKDLoss', dict(relation_weight=-1), 'relation_weight=-1 must be a number from 0 on'),
        ('StyleKDLoss', dict(direction_length=0), 'direction_length=0 must be a number above 0'),
        ('StyleKDLoss', dict(directions=0), 'directions=0 must be a whole number, at least 1'),
        ('ITGCLoss', dict(langevin_steps=0), 'langevin_steps=0 must be a whole number, at least 1'),
        ('ITGCLoss', dict(energy_lr=0), 'energy_lr=0 must be a number above 0'),
        ('GCCLoss', dict(gram_weight=-1), 'gram_weight=-1 must be a number from 0 on'),
    ],
)
def test_refused_arguments(teacher, name, given, sentence):
    with pytest.raises(UserError, match=sentence):
        checked(getattr(stylegan2_compress, name), teacher=teacher, **given)


def test_gcc_needs_a_discriminator(teacher, tmp_path):
    pickles.save(tmp_path / 'without.pkl', dict(pickles.load(teacher), D=None))
    with pytest.raises(UserError, match='holds no discriminator, whose feature maps GCC compares'):
        checked(stylegan2_compress.GCCLoss, teacher=str(tmp_path / 'without.pkl'))


def test_equal_maps_have_a_finite_gradient():
    x = torch.ones(2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(gcc.root_mean_square(x, torch.ones(2, 3)), x)
    assert not gradient.any()


@pytest.mark.parametrize(('side', 'sides'), [(8, [4]), (16, [8]), (32, [8, 16]), (256, [8, 128])])
def test_sides_of_gcc(side, sides):
    assert gcc.compared_sides(side) == sides


def test_stylekd_compares_several_images(teacher):
    args = dict(batch_size=4, batch_gpu=1, num_gpus=4, device='cpu', G_kwargs={})
    with pytest.raises(UserError, match='there is 1 on a GPU at a time: raise --batch or --batch-gpu'):
        checked(stylegan2_compress.StyleKDLoss, args, teacher=teacher, embedding=TINY)
    assert checked(stylegan2_compress.StyleKDLoss, args, teacher=teacher, embedding=TINY, relation_weight=0) == []


@pytest.mark.parametrize('name', LOSSES)
def test_students_of_other_latents_are_refused(
    name, teacher, tmp_path, make_generator, make_discriminator, make_dataset_zip
):
    G, D = make_generator(1, z_dim=8, synthesis_kwargs=NARROW).eval(), make_discriminator(1, **NARROW).eval()
    pickles.save(tmp_path / 'student.pkl', dict(G=G, D=D, G_ema=G, training_set_kwargs=None, augment_pipe=None))
    run = configurations.loop_arguments(str(make_dataset_zip(tmp_path, n=4)), aug='noaug')
    with pytest.raises(UserError, match='needs the same latents for both'):
        compressed(
            *run, loss=f'stylegan2_compress.{name}', student=str(tmp_path / 'student.pkl'), device='cpu',
            teacher=teacher, loss_args=() if name == 'GCCLoss' else (f'embedding={TINY}',),
        )  # fmt: skip
