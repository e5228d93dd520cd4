"""The papers' formulas once more, in the plainest float64, against every gradient of every parameter in every phase.

Written from the methods' description alone: of the code under test nothing computes the reference. What is shared are
the host's layers and the random draws. The host's blocks work in float32 whatever their weights are; for this test the
name `torch.float32` in the host's networks.py means float64.
"""

import copy
import types

import numpy as np
import pytest
import torch
from float64 import Float64Torch, NoFloat32, in_float64
from training import networks

from stylegan2_compress import embeddings, pickles
from stylegan2_compress.distributions import sources, statistics
from stylegan2_compress.losses.dime import DiME, DiMELoss
from stylegan2_compress.losses.nickel import NICKEL, NickelDimeLoss, NICKELLoss
from stylegan2_compress.losses.terms import StyleMixing
from stylegan2_compress.networks.dual import DualDiscriminator

SIDE, BATCH, ROUNDS, GAMMA, PL_WEIGHT = 16, 4, 2, 3.0, 2.0
CUTOFF = 3
EMBEDDING = f'module:{__name__}:embedding@size={SIDE}@preprocess=raw@dtype=fp64'
PHASES = {  # Lazy regularisation multiplies the loss by its interval; without it there is one phase for both.
    'Gmain': 1, 'Greg': 4, 'Gboth': 1, 'Dmain': 1, 'Dreg': 16, 'Dboth': 1,
}  # fmt: skip


def embedding():
    """A network whose features are not linear in the pixels, in its weights' precision."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, stride=2), torch.nn.Tanh(), torch.nn.Conv2d(5, 6, 3))


@pytest.fixture
def run(tmp_path, monkeypatch, make_generator, make_discriminator):
    """A student, a dual discriminator, a teacher, and what a step of training gets."""
    monkeypatch.setenv('STYLEGAN2_COMPRESS_CACHE', str(tmp_path / 'cache'))
    narrow, wide = dict(channel_base=64, channel_max=6), dict(channel_base=128, channel_max=10)
    shape = dict(img_resolution=SIDE, c_dim=2)
    G = make_generator(1, synthesis_kwargs=dict(narrow, use_noise=False), **shape).train()
    teacher = make_generator(2, synthesis_kwargs=dict(wide, use_noise=False), **shape).eval()
    teacher_D = make_discriminator(3, **wide, **shape).eval()
    path = str(tmp_path / 'teacher.pkl')
    pickles.save(path, dict(G=teacher, D=teacher_D, G_ema=teacher, training_set_kwargs=None, augment_pipe=None))
    torch.manual_seed(4)
    D = DualDiscriminator(
        img_channels=3, student_kwargs=narrow, teacher_kwargs=wide, matched_channels={'b8': 10, 'b4': 10}, **shape
    )
    with torch.no_grad():  # Constructors leave biases at zero and affine biases at one; nothing is to be symmetrical.
        for parameter in [*G.parameters(), *D.parameters()]:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    draws = [
        dict(
            real_img=torch.randn(BATCH, 3, SIDE, SIDE, dtype=torch.float64), real_c=torch.eye(2)[[0, 1, 0, 0]].double(),
            gen_z=torch.randn(BATCH, 16, dtype=torch.float64), gen_c=torch.eye(2)[[1, 1, 0, 1]].double(),
        )
        for _ in range(ROUNDS)
    ]  # fmt: skip
    return types.SimpleNamespace(
        path=path, G=G, D=D, teacher=in_float64(teacher), teacher_D=in_float64(teacher_D), draws=draws
    )


def build(loss_class, run, monkeypatch, **given):
    """The loss as a training loop builds it, and then everything in it in float64."""
    arguments = dict(teacher=run.path, style_mixing_prob=0.9, r1_gamma=GAMMA, pl_weight=PL_WEIGHT)
    if DiME in loss_class.methods:
        arguments.update(embeddings=EMBEDDING, weights=[20], **(given or dict(samples=6)))
    if NICKEL in loss_class.methods:
        arguments.update(resolutions=[8, 4])
    D = run.D if NICKEL in loss_class.methods else run.D.student
    loss = loss_class('cpu', G_mapping=run.G.mapping, G_synthesis=run.G.synthesis, D=D, augment_pipe=None, **arguments)
    for module in (run.G, run.D, *(term.teacher.G for term in loss.terms if hasattr(term, 'teacher'))):
        in_float64(module)
    loss.pl_mean = torch.tensor(0.7, dtype=torch.float64)
    loss._draw_mixing = lambda z, num_ws: StyleMixing(z.flip(0) * 0.9, CUTOFF)
    monkeypatch.setattr(networks, 'torch', Float64Torch('torch'))
    return loss, D


# --- The reference ----------------------------------------------------------------------------------------------------


def softplus(x):
    return torch.log1p(torch.exp(x))


def latents(mapping, z, c):
    """Two latents share an image: the second one's styles from layer CUTOFF on."""
    first, second = (mapping(latent, c, skip_w_avg_update=True) for latent in (z, z.flip(0) * 0.9))
    return torch.cat([first[:, :CUTOFF], second[:, CUTOFF:]], dim=1)


def synthesize(synthesis, ws):
    """Images and the maps that each block puts out."""
    maps, x, img, layer = {}, None, None, 0
    for res in synthesis.block_resolutions:
        block = getattr(synthesis, f'b{res}')
        x, img = block(x, img, ws[:, layer : layer + block.num_conv + block.num_torgb], force_fp32=True)
        layer += block.num_conv
        maps[res] = x
    return img, maps


def haar_details(x, levels):
    """Per level the three subbands with at least one difference, from the 2x2 matrix of the one-dimensional filter."""
    bank = torch.tensor([[1, 1], [1, -1]], dtype=torch.float64) / np.sqrt(2)
    for _ in range(levels):
        n, channels, height, width = x.shape
        tiles = x.reshape(n, channels, height // 2, 2, width // 2, 2)
        bands = torch.einsum('ai,bj,nchiwj->abnchw', bank, bank, tiles)
        yield torch.stack([bands[0, 1], bands[1, 0], bands[1, 1]])
        x = bands[0, 0]


def feature_loss(D, teacher, z, c):
    """Σ_maps Σ_j MSE(H_j(F_T), H_j(P F_D)), on the teacher's own image."""
    with torch.no_grad():
        images, wanted = synthesize(teacher.synthesis, latents(teacher.mapping, z, c))
    x, img, total = None, images, 0
    for res in (16, 8):
        x, img = getattr(D.student, f'b{res}')(x, img)
        projection = getattr(D, f'project_b{res // 2}').weight[:, :, 0, 0] / np.sqrt(x.shape[1])
        seen = torch.einsum('oi,nihw->nohw', projection, x)
        levels = int(np.log2(res // 2))
        for mine, theirs in zip(haar_details(seen, levels), haar_details(wanted[res // 2], levels), strict=True):
            total = total + ((mine - theirs) ** 2).mean()
    return total


def moment_distance(features, reference):
    a1, a2 = sum(features) / len(features), sum(f**2 for f in features) / len(features)
    return (a1 - reference.m1).abs().mean() + (a2 - reference.m2).abs().mean()


def mmd2(kernel, x, y):
    """The U-statistic, pair by pair."""
    within = [
        sum(kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j) / (len(z) * (len(z) - 1))
        for z in (x, y)
    ]
    return sum(within) - 2 * sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))


def rbf_mixture(y):
    """Bandwidths s² = m · median |y_i − y_j|²."""
    squared = sorted(float(((a - b) ** 2).sum()) for i, a in enumerate(y) for b in y[:i])
    widths = [multiple * squared[(len(squared) - 1) // 2] for multiple in (0.25, 0.5, 1, 2, 4)]
    return lambda a, b: sum(torch.exp(-((a - b) ** 2).sum() / (2 * s2)) for s2 in widths) / len(widths)


DISTANCES = {
    'moments': moment_distance,
    'linear': lambda x, ref: mmd2(lambda a, b: (a * b).sum(), x, ref.bank.double()),
    'cubic': lambda x, ref: mmd2(lambda a, b: ((a * b).sum() / len(a) + 1) ** 3, x, ref.bank.double()),
    'rbf': lambda x, ref: mmd2(rbf_mixture(ref.bank.double()), x, ref.bank.double()),
}


def dime_loss(images, distance):
    network = embedding().double()
    return 20 * distance(torch.stack([network(image[None])[0].mean(dim=(1, 2)) for image in images]))


def reference(phase, gain, run, discriminators, loss_class, distance):
    """The loss whose gradients the phase is to accumulate, summed over the rounds."""
    G, total, pl_mean = run.G, 0, 0.7
    for draw in run.draws:
        z, c, real, real_c = draw['gen_z'], draw['gen_c'], draw['real_img'], draw['real_c']
        loss = 0
        if phase in ('Gmain', 'Gboth'):
            images, _maps = synthesize(G.synthesis, latents(G.mapping, z, c))
            loss = loss + sum(softplus(-D(images, c)).mean() for D in discriminators)
            if DiME in loss_class.methods:
                loss = loss + dime_loss(images, distance)
        if phase in ('Greg', 'Gboth'):
            half = BATCH // 2
            ws = latents(G.mapping, z[:half], c[:half])
            images, _maps = synthesize(G.synthesis, ws)
            noise = torch.randn(images.shape, dtype=torch.float64) / SIDE
            (jacobian,) = torch.autograd.grad((images * noise).sum(), ws, create_graph=True)
            lengths = ((jacobian**2).sum(dim=2).mean(dim=1)) ** 0.5
            mean = pl_mean + 0.01 * (lengths.mean() - pl_mean)
            pl_mean = float(mean.detach())
            loss = loss + PL_WEIGHT * ((lengths - mean) ** 2).mean()
        if phase in ('Dmain', 'Dboth'):
            with torch.no_grad():
                images, _maps = synthesize(G.synthesis, latents(G.mapping, z, c))
            for D in discriminators:
                loss = loss + softplus(D(images, c)).mean() + softplus(-D(real, real_c)).mean()
            if NICKEL in loss_class.methods:
                loss = loss + 10 * feature_loss(run.D, run.teacher, z, c)
        if phase in ('Dreg', 'Dboth'):
            for D in discriminators:
                x = real.clone().requires_grad_(True)
                (gradient,) = torch.autograd.grad(D(x, real_c).sum(), x, create_graph=True)
                loss = loss + GAMMA / 2 * (gradient**2).sum(dim=(1, 2, 3)).mean()
        total = total + gain * loss
    return total


# --- The comparison ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('phase', PHASES)
@pytest.mark.parametrize('loss_class', [DiMELoss, NICKELLoss, NickelDimeLoss])
def test_every_gradient_is_the_papers(run, monkeypatch, loss_class, phase):
    compare(run, monkeypatch, loss_class, phase, 'moments')


@pytest.mark.parametrize('estimator', ['linear', 'rbf', 'cubic'])
def test_every_gradient_is_that_of_the_kernel(run, monkeypatch, estimator):
    compare(run, monkeypatch, NickelDimeLoss, 'Gboth', estimator, estimator=estimator, bank=7)


def compare(run, monkeypatch, loss_class, phase, distance_name, **given):
    distance = None
    if DiME in loss_class.methods:
        features = embeddings.load(EMBEDDING, 'cpu')(sources.TeacherImages(run.path).draw(0)[0])
        features = features[: given.get('bank', 6)].double()
        m1, m2 = features.mean(dim=0), features.square().mean(dim=0)
        matched = statistics.Statistics(m1, m2, features.float())
        distance = lambda features: DISTANCES[distance_name](features, matched)  # noqa: E731
    loss, D = build(loss_class, run, monkeypatch, **given)
    dual = NICKEL in loss_class.methods
    module = run.G if phase.startswith('G') else D
    twin = copy.copy(run)
    twin.G, twin.D = copy.deepcopy(run.G), copy.deepcopy(run.D)
    if dual:  # D_T starts from the teacher's weights.
        twin.D.teacher = copy.deepcopy(run.teacher_D)

    run.G.requires_grad_(False)
    run.D.requires_grad_(False)
    module.requires_grad_(True)
    torch.manual_seed(11)
    with NoFloat32():
        for index, draw in enumerate(run.draws):
            loss.accumulate_gradients(phase, sync=index == ROUNDS - 1, gain=PHASES[phase], **draw)
    ours = {name: parameter.grad for name, parameter in module.named_parameters()}

    torch.manual_seed(11)
    twin_module = twin.G if phase.startswith('G') else twin.D if dual else twin.D.student
    twin_module.requires_grad_(True)
    discriminators = [twin.D.student, twin.D.teacher] if dual else [twin.D.student]
    total = reference(phase, PHASES[phase], twin, discriminators, loss_class, distance)
    names, parameters = zip(*twin_module.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(total, parameters, allow_unused=True), strict=True))

    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        if gradient is None:  # Path length and R1 leave some parameters alone.
            assert ours[name] is None or not ours[name].any(), name
        else:
            assert ours[name].dtype == torch.float64
            torch.testing.assert_close(ours[name], gradient, rtol=1e-6, atol=1e-9 * float(gradient.abs().max()))
    reached = sum(gradient is not None and bool(gradient.any()) for gradient in expected.values())
    assert reached > len(expected) / 2
