"""Moment matching: the paper's objective written out, references, one process or two, and the loops it runs in."""

import copy
from types import SimpleNamespace

import dnnlib
import numpy as np
import pytest
import torch
from plans import checked
from torch import nn
from two_processes import in_two_processes

import stylegan2_compress
from stylegan2_compress import embeddings, pickles
from stylegan2_compress.compression.distill import plan_distillation
from stylegan2_compress.compression.options import DistillOptions
from stylegan2_compress.distributions import layer_features, sources
from stylegan2_compress.distributions.layer_features import LayerFeatures
from stylegan2_compress.embeddings import vgg
from stylegan2_compress.errors import DivergedError, UserError
from stylegan2_compress.losses.adam_average import AdamAverage
from stylegan2_compress.losses.adversarial import AdversarialLoss
from stylegan2_compress.losses.dime import DistanceLoss
from stylegan2_compress.losses.images import RegressionLoss
from stylegan2_compress.losses.loss_classes import methods_of
from stylegan2_compress.losses.method_loss import combined
from stylegan2_compress.losses.moment_matching import PAPER_RATE, MomentMatching, MomentMatchingLoss
from stylegan2_compress.losses.terms import Batch
from stylegan2_compress.networks.masked import ScoreMaskedGenerator
from stylegan2_compress.runs.plan import Plan
from stylegan2_compress.training_loops.distillation import training_loop

EMBEDDING = 'module:tiny_embeddings:tiny@size=image'


pytestmark = pytest.mark.usefixtures('own_cache')


@pytest.fixture
def teacher(tmp_path, make_generator, make_discriminator):
    G = make_generator(c_dim=3).eval().requires_grad_(False)
    path = str(tmp_path / 'teacher.pkl')
    pickles.save(path, dict(G=G, G_ema=G, D=make_discriminator(c_dim=3), training_set_kwargs=None, augment_pipe=None))
    return path


def masked_generator(c_dim=3, **changes):
    return ScoreMaskedGenerator(
        16, c_dim, 16, 16, 3, {'num_layers': 2}, {'channel_base': 256, 'channel_max': 16}, keep=0.3, **changes
    )


def test_what_may_change_in_a_phase_is_kept_of_it_and_no_other(labelled_data):
    """Of large networks, the state of moment matching takes gigabytes."""
    loss = make_loss(masked_generator(), labelled_data)
    assert [len(list(loss._averages(phase))) for phase in ('Gmain', 'Gboth', 'Greg', 'Dmain')] == [9, 9, 1, 1]


def make_loss(G, labelled_data, **changes):
    defaults = dict(training_set_kwargs=labelled_data, total_kimg=1, embedding=EMBEDDING)
    return MomentMatchingLoss('cpu', G.mapping, G.synthesis, **(defaults | changes))


def batch(count=12, c_dim=3, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(count, 16, generator=draws), torch.eye(max(c_dim, 1))[torch.arange(count) % 3][:, :c_dim]


def step(loss, z, c, phase='Gboth', sync=True, gain=1):
    loss.accumulate_gradients(phase, real_img=None, real_c=None, gen_z=z, gen_c=c, sync=sync, gain=gain)


def reals(labelled_data):
    training_set = sources.DatasetImages(labelled_data).training_set
    images = np.stack([training_set[index][0] for index in range(len(training_set))])
    labels = np.stack([training_set.get_label(index) for index in range(len(training_set))])
    return torch.from_numpy(images).float() / 127.5 - 1, torch.from_numpy(labels)


def features(images):
    network = embeddings.load(EMBEDDING, 'cpu')
    return torch.cat([maps.flatten(1) for maps in network.layers(images)], dim=1)


# --- What adds up the differences -------------------------------------------------------------------------------------


def adam_average(shape):
    return AdamAverage(shape, lr=0.01, device=torch.device('cpu'))


def test_the_average_is_adam_on_the_mean_squared_error_with_the_shares_of_its_rate():
    ours = adam_average([2, 5])
    reference = torch.zeros(2, 5, requires_grad=True)
    adam = torch.optim.Adam([reference], lr=0.01, betas=(0.5, 0.999))
    draws = torch.Generator().manual_seed(0)
    for count in range(20):
        target = torch.randn(2, 5, generator=draws)
        adam.zero_grad()
        (2 * nn.functional.mse_loss(reference, target)).backward()  # The sum of two rows.
        if count >= 10:
            adam.param_groups[0]['lr'] = 0.01 * (1 - count / 20)
            ours.begin(1 - count / 20)
        adam.step()
        torch.testing.assert_close(ours.update(target, torch.tensor([True, True])), reference.detach())


def test_rows_without_a_target_stay_where_they_are():
    both, alone = adam_average([2, 5]), adam_average([2, 5])
    draws = torch.Generator().manual_seed(0)
    for count in range(6):
        target = torch.randn(2, 5, generator=draws)
        if count % 2:
            before = {name: tensor[1].clone() for name, tensor in both.tensors().items()}
            nobody = torch.full_like(target, torch.nan).where(torch.tensor([[False], [True]]), target)
            both.update(nobody, torch.tensor([True, False]))
            assert all(torch.equal(tensor[1], before[name]) for name, tensor in both.tensors().items())
        else:
            both.update(target, torch.tensor([True, True]))
            alone.update(target, torch.tensor([True, True]))
    for name, tensor in both.tensors().items():
        assert torch.equal(tensor[1], alone.tensors()[name][1])


# --- The objective ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('per_class', [False, True])
@pytest.mark.parametrize('normalize', [False, True])
@pytest.mark.parametrize(('penalty', 'power'), [(0, 0), (1.5, 0.5)])
def test_scores_get_the_papers_gradient_and_ours(labelled_data, per_class, normalize, penalty, power):
    """Squared differences are taken here from pairs of different images, whose products are unbiased."""
    G = masked_generator().requires_grad_(True)
    arguments = dict(per_class=per_class, normalize=normalize, moving_average_lr=1e-3)
    loss = make_loss(G, labelled_data, moments_penalty=penalty, side_power=power, **arguments)
    sides = [8] * (4 * 64) + [4] * (6 * 16) + [2] * (8 * 4)
    weights = torch.tensor(sides, dtype=torch.float) ** power
    weights /= weights.mean()
    images, labels = reals(labelled_data)
    groups = [labels[:, k] > 0 for k in range(3)] if per_class else [torch.ones(len(images), dtype=torch.bool)]
    f = features(images).double()
    scale = torch.ones(f.shape[1])
    if normalize:
        variances = torch.stack([f[group].var(0) for group in groups]).mean(0)
        sizes = [4 * 64, 6 * 16, 8 * 4]
        scale = torch.cat([v.mean().rsqrt().expand(len(v)) for v in variances.split(sizes)])
    wanted = [(f[group] * scale).mean(0) for group in groups], [(f[group] * scale).var(0) for group in groups]
    v = [torch.zeros(len(groups), f.shape[1], dtype=torch.float64, requires_grad=True) for _ in range(2)]
    adam = torch.optim.Adam(v, lr=1e-3, betas=(0.5, 0.999))

    for seed in range(3):
        z, c = batch(seed=seed)
        torch.manual_seed(seed)
        expected = copy.deepcopy(G)
        generated = features(expected.synthesis(expected.mapping(z, c))).double() * scale
        rows = [c[:, k] > 0 for k in range(3)] if per_class else [torch.ones(len(z), dtype=torch.bool)]
        got = [generated[row].mean(0) for row in rows], [generated[row].var(0) for row in rows]
        differences = [torch.stack(w) - torch.stack(g) for w, g in zip(wanted, got, strict=True)]
        adam.zero_grad()
        errors = [nn.functional.mse_loss(a, b.detach()) for a, b in zip(v, differences, strict=True)]
        (len(groups) * sum(errors)).backward()  # Of each label its own.
        adam.step()
        objective = sum((weights * a.detach() * b).sum() for a, b in zip(v, differences, strict=True))
        for row, mean in zip(rows, wanted[0], strict=True):
            products = (weights * (mean - generated[row])) @ (mean - generated[row]).T
            pairs = products[~torch.eye(len(products), dtype=torch.bool)]
            objective = objective + penalty * v[0].detach().abs().mean() * pairs.mean()
        objective.mul(2).backward()

        torch.manual_seed(seed)
        G.zero_grad()
        step(loss, z, c, gain=2)
        for (name, mine), theirs in zip(G.named_parameters(), expected.parameters(), strict=True):
            (
                torch.testing.assert_close(
                    mine.grad, theirs.grad, rtol=2e-3, atol=2e-3 * float(theirs.grad.abs().max())
                ),
                name,
            )


def test_training_brings_moments_together(labelled_data, teacher):
    """The reference is what another random generator makes, which masks can come close to."""
    G = masked_generator().requires_grad_(True)
    steps = 150
    loss = make_loss(G, labelled_data, normalize=True, teacher=teacher, samples=96, lr_decay_kimg=[0, 0.03 * steps])
    optimizer = torch.optim.Adam(G.parameters(), betas=(0.5, 0.95))

    def distance():
        z, c = batch(60, seed=99)
        f = features(G.synthesis(G.mapping(z, c, skip_w_avg_update=True))).detach() * loss.terms[0].scale
        return (torch.stack([f[k::3].mean(0) for k in range(3)]) - loss.terms[0].mean).abs().mean()

    before = distance()
    for seed in range(steps):
        optimizer.param_groups[0]['lr'] = 0.001 * (1 - seed / steps)
        optimizer.zero_grad()
        step(loss, *batch(30, seed=seed))
        optimizer.step()
    assert distance() < 0.85 * before, before


def test_other_phases_do_nothing(labelled_data):
    G = masked_generator().requires_grad_(True)
    loss = make_loss(G, labelled_data)
    for phase in ('Greg', 'Dmain', 'Dreg', 'Dboth'):
        step(loss, *batch(), phase=phase)
    assert all(scores.grad is None for scores in G.parameters())
    assert loss.steps.nimg == 0
    with pytest.raises(ValueError, match='Emain'):
        step(loss, *batch(), phase='Emain')


def test_a_label_that_a_batch_lacks_keeps_its_average(labelled_data):
    G = masked_generator().requires_grad_(True)
    loss = make_loss(G, labelled_data)
    step(loss, *batch())
    before = loss.terms[0].v_mean.value.clone(), loss.terms[0].v_variance.value.clone()
    z, _ = batch()
    c = torch.eye(3)[[0] * 11 + [1]]  # One image of the second label: a mean, but no variance.
    step(loss, z, c)
    for after, old, moved in zip(
        (loss.terms[0].v_mean.value, loss.terms[0].v_variance.value),
        before,
        ([True, True, False], [True, False, False]),
        strict=True,
    ):
        assert [not torch.equal(a, b) for a, b in zip(after, old, strict=True)] == moved


def test_a_continued_run_goes_on_as_if_nothing_had_been(labelled_data):
    one, two = masked_generator().requires_grad_(True), masked_generator().requires_grad_(True)
    first, second = make_loss(one, labelled_data), make_loss(two, labelled_data)
    for seed in range(3):
        step(first, *batch(seed=seed))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    one.zero_grad()
    two.mapping.w_avg.copy_(one.mapping.w_avg)
    for _G, loss in ((one, first), (two, second)):
        torch.manual_seed(0)
        step(loss, *batch(seed=9))
    for mine, theirs in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)
    assert second.steps.nimg == 48


def test_v_falls_with_the_learning_rates_of_the_run(labelled_data):
    """Each entry moves by its share of the rate at most; in the first steps, by nearly all of it."""
    loss = make_loss(masked_generator().requires_grad_(True), labelled_data, lr_decay_kimg=[0.012, 0.036])
    v = loss.terms[0].v_mean
    for seed, share in enumerate([1, 1, 0.5, 0, 0]):
        before = v.value.clone()
        step(loss, *batch(seed=seed))
        moved = (v.value - before).abs().max().item()
        assert moved == pytest.approx(0, abs=0) if share == 0 else 0.5 < moved / (share * PAPER_RATE) < 1.5


def test_a_weight_that_falls_takes_the_gradient_with_it(labelled_data):
    """And then the features of the images are not computed any more, nor does v follow."""
    G = masked_generator().requires_grad_(True)
    plain, falling = (make_loss(G, labelled_data, **given) for given in ({}, dict(moments_kimg=0.024)))
    found = {plain: [], falling: []}
    for seed in range(3):
        for loss, gradients in found.items():
            G.zero_grad(set_to_none=True)
            torch.manual_seed(seed)
            step(loss, *batch(seed=seed))
            gradients.append([None if each.grad is None else each.grad.clone() for each in G.parameters()])
    for share, mine, theirs in zip([1, 0.5, 0], found[falling], found[plain], strict=True):
        for one, other in zip(mine, theirs, strict=True):
            if share == 0:
                assert one is None
            elif other is not None:
                torch.testing.assert_close(one, share * other, rtol=1e-5, atol=1e-8)
    assert falling.terms[0].obstacle() == plain.terms[0].obstacle() == ''
    assert not torch.equal(falling.terms[0].v_mean.value, plain.terms[0].v_mean.value)


def test_distill_tells_it_when_learning_rates_fall(labelled_data, teacher, tmp_path):
    given = dict(teacher=teacher, data=labelled_data['path'], outdir=str(tmp_path), kimg=10, device='cpu')
    given.update(loss='stylegan2_compress.MomentMatchingLoss', loss_args=(f'embedding={EMBEDDING}',))
    falling = plan_distillation(DistillOptions(**given, lr_decay=0.25)).args
    assert falling.loss_kwargs.lr_decay_kimg == falling.lr_decay_kimg == [7.5, 10]
    constant = plan_distillation(DistillOptions(**given)).args
    assert 'lr_decay_kimg' not in constant.loss_kwargs


def test_steps_that_are_not_finite_leave_no_trace(labelled_data):
    G = masked_generator().requires_grad_(True)
    loss = make_loss(G, labelled_data)
    step(loss, *batch())
    G.zero_grad()
    before = copy.deepcopy(loss.state_dict()), G.mapping.w_avg.clone()
    z, c = batch()
    for _ in range(9):
        step(loss, z * torch.nan, c)
    assert all(scores.grad is None for scores in G.parameters())
    for name in ('v_mean', 'v_variance'):
        for key, tensor in loss.state_dict()['terms'][0][name].items():
            assert torch.equal(tensor, before[0]['terms'][0][name][key])
    assert torch.equal(G.mapping.w_avg, before[1])
    with pytest.raises(DivergedError, match='moment matching not finite'):
        step(loss, z * torch.nan, c)


# --- Masks over time --------------------------------------------------------------------------------------------------


def test_the_rule_advances_once_per_step_with_the_share_of_images_seen(labelled_data, monkeypatch):
    G = masked_generator(rule='gem-miner').requires_grad_(True)
    loss = make_loss(G, labelled_data, total_kimg=0.096)
    seen = []
    monkeypatch.setattr(loss.terms[1].rule, 'advance', lambda parts, progress: seen.append(progress), raising=False)
    for _ in range(5):
        step(loss, *batch(), sync=False)
        step(loss, *batch(), sync=True)
    assert seen == [0, 0.25, 0.5, 0.75, 1]


def test_gem_miners_penalty_is_in_the_gradient(labelled_data):
    G = masked_generator(rule='gem-miner').requires_grad_(True)
    loss = make_loss(G, labelled_data)
    gradients = []
    for weight in (0, 0.5):
        loss.terms[1].rule = copy.copy(loss.terms[1].rule)
        loss.terms[1].rule.weight = weight
        loss.load_state_dict(make_loss(G, labelled_data).state_dict())
        G.zero_grad()
        torch.manual_seed(0)
        step(loss, *batch())
        gradients.append(G.synthesis.b8.conv1.weight_scores.grad.clone())
    torch.testing.assert_close(gradients[1] - gradients[0], G.synthesis.b8.conv1.weight_scores.detach())


def test_reported_sizes_are_those_of_labels_in_the_batch(labelled_data):
    G = masked_generator()
    both, one = (make_loss(G, labelled_data).terms[0] for _ in range(2))
    images = torch.rand(8, 3, 16, 16) * 2 - 1

    def sizes(term, c):
        return [float(summand.value) for summand in term.generator(Batch(None, c, None, images, None))[:2]]

    found = sizes(both, torch.eye(3)[[0] * 8])
    f, (wanted, variance) = features(images), (one.mean[0], one.variance[0])
    expected = [float((m - got).abs().mean()) for m, got in [(wanted, f.mean(0)), (variance, f.var(0))]]
    assert found == pytest.approx(expected, rel=1e-4)


def test_v_moves_as_far_in_a_step_of_several_rounds(labelled_data):
    """Which have moments of their own, and a run says so."""
    given = dict(training_set_kwargs=labelled_data, embedding=EMBEDDING)
    args = dnnlib.EasyDict(batch_size=12, batch_gpu=3, num_gpus=2, loss_kwargs=SimpleNamespace())
    MomentMatching(**given).adapt(Plan('', args))
    assert args.loss_kwargs.rounds == 2
    (warning,) = checked(MomentMatchingLoss, dict(args, device='cpu'), **given)
    assert warning.startswith('Moments are those of 6 images at a time, not of the batch of 12.')
    loss = make_loss(masked_generator().requires_grad_(True), labelled_data, rounds=2)
    z, c = batch()
    for part, is_last in zip(zip(z.split(6), c.split(6), strict=True), (False, True), strict=True):
        step(loss, *part, sync=is_last)
    assert 0.9 * PAPER_RATE < loss.terms[0].v_mean.value.abs().max() < 1.1 * PAPER_RATE


# --- References -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('classes', [0, 3])
def test_moments_of_a_data_set(labelled_data, classes):
    images, labels = reals(labelled_data)
    f = features(images).double()
    groups = [f[labels[:, k] > 0] for k in range(classes)] or [f]
    layered = LayerFeatures(embeddings.load(EMBEDDING, 'cpu'), (3, 16, 16))
    mean, variance = layer_features.reference_moments(layered, sources.DatasetImages(labelled_data), None, classes)
    torch.testing.assert_close(mean, torch.stack([g.mean(0) for g in groups]).float())
    torch.testing.assert_close(variance, torch.stack([g.var(0) for g in groups]).float(), rtol=1e-4, atol=1e-6)


def test_moments_of_a_teacher_by_label(labelled_data, teacher, capsys):
    loss = make_loss(masked_generator(), labelled_data, teacher=teacher, samples=90)
    said = capsys.readouterr().out
    assert all(f'statistics over 30 images of label {label}...' in said for label in range(3))
    G = pickles.load(teacher)['G_ema']
    source = sources.TeacherImages(teacher, training_set_kwargs=labelled_data)
    for label in range(3):
        images = source.of_class(label, 3).draw(0)[0][:30]
        torch.manual_seed(0)
        torch.testing.assert_close(loss.terms[0].mean[label], features(images).mean(0), rtol=1e-4, atol=1e-5)
        rnd = np.random.default_rng([0, 0])
        z = torch.from_numpy(rnd.standard_normal([32, 16], np.float32))
        again = G(z, torch.eye(3)[[label] * 32], noise_mode='const', force_fp32=True)  # No noise has any strength yet.
        torch.testing.assert_close(images, again[:30])


def test_moments_of_the_data_beside_a_teacher(labelled_data, teacher):
    of_data = make_loss(masked_generator(), labelled_data).terms[0]
    beside = make_loss(masked_generator(), labelled_data, teacher=teacher, reference='data').terms[0]
    of_teacher = make_loss(masked_generator(), labelled_data, teacher=teacher, samples=90).terms[0]
    assert torch.equal(beside.mean, of_data.mean)
    assert torch.equal(beside.variance, of_data.variance)
    assert not torch.equal(of_teacher.mean, of_data.mean)
    with pytest.raises(UserError, match=r'truncation_psi=0\.5 needs --loss-arg reference=teacher'):
        make_loss(masked_generator(), labelled_data, teacher=teacher, reference='data', truncation_psi=0.5)


def test_the_teachers_images_are_truncated_as_everywhere(teacher, labelled_data):
    given = dict(training_set_kwargs=labelled_data, embedding=EMBEDDING, truncation_psi=0.5)
    source, _samples = MomentMatching(teacher=teacher, **given)._source(None, torch.device('cpu'))
    assert source.facts['truncation'] == 0.5
    with pytest.raises(UserError, match=r'truncation_psi=0\.5 needs --loss-arg teacher=PKL'):
        make_loss(masked_generator(), labelled_data, truncation_psi=0.5)


def test_moments_are_computed_once(labelled_data, monkeypatch):
    from stylegan2_compress.distributions import statistics

    first = make_loss(masked_generator(), labelled_data)
    monkeypatch.setattr(statistics, 'compute_statistics', None)
    second = make_loss(masked_generator(), labelled_data)
    assert torch.equal(first.terms[0].variance, second.terms[0].variance)
    with pytest.raises(TypeError):
        make_loss(masked_generator(), labelled_data, layers='1')
    with pytest.raises(TypeError):
        make_loss(masked_generator(), labelled_data, pool=2)


def test_layers_and_pooling():
    network = embeddings.load(EMBEDDING, 'cpu')
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    maps = network.layers(images)
    some = LayerFeatures(network, (3, 16, 16), layers='0,2', pool=2)
    assert some.sizes == [4 * 4, 8 * 4]
    pooled = maps[0].unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean(dim=(3, 5))
    torch.testing.assert_close(some(images), torch.cat([pooled.flatten(1), maps[2].flatten(1)], dim=1))
    assert layer_features.parse_layers('0,4-6, 9') == [0, 4, 5, 6, 9]
    assert layer_features.parse_layers([3, 1]) == [1, 3]


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (dict(embedding='module:tiny_embeddings:no_layers@size=16'), 'exposes no layers'),
        (dict(layers='a-b'), 'layers=a-b'),
        (dict(layers=''), 'layers='),
        (dict(pool=-1), 'pool=-1'),
        (dict(samples=1), 'samples=1'),
        (dict(samples=24), 'samples=24 is more than the 23'),
        (dict(samples=3), 'samples=3 is for the 3 labels together, each of which takes two or more: give 6 or more'),
        (dict(normalize='yes'), 'normalize=yes'),
        (dict(per_class='each'), 'per_class=each'),
        (dict(moving_average_lr=0), 'moving_average_lr=0'),
        (dict(moments_penalty=-1), 'moments_penalty=-1'),
        (dict(side_power=-1), 'side_power=-1'),
        (dict(side_power=9), 'side_power=9'),
    ],
)
def test_arguments_are_refused_before_a_run(labelled_data, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        checked(MomentMatchingLoss, **({'embedding': EMBEDDING, 'training_set_kwargs': labelled_data} | arguments))


def test_layers_that_there_are_not(labelled_data):
    with pytest.raises(UserError, match=r'layers=3 does not exist: .* the layers 0 to 2'):
        make_loss(masked_generator(), labelled_data, layers='1-3')


def test_a_label_with_one_image(tmp_path, make_dataset_zip):
    labelled_data = dict(
        class_name='training.dataset.ImageFolderDataset',
        path=str(make_dataset_zip(tmp_path, n=4, labels=3)),
        use_labels=True,
    )
    with pytest.raises(UserError, match='1 images of label 1'):
        make_loss(masked_generator(), labelled_data)
    plan = Plan('', dnnlib.EasyDict(device='cpu', batch_size=4, batch_gpu=4, num_gpus=1))
    given = dict(training_set_kwargs=labelled_data, embedding=EMBEDDING)
    with pytest.raises(UserError, match=r'has one image of label 1, and .* per_class=false'):
        list(MomentMatching(**given).check(plan))
    for others in (dict(per_class=False), dict(teacher='teacher.pkl')):
        assert list(MomentMatching(**given, **others).check(plan)) == []


def test_a_label_without_images(tmp_path, make_dataset_zip):
    """Is never drawn: the others have their moments, and the scale of a layer is theirs."""
    kwargs = dict(class_name='training.dataset.ImageFolderDataset', use_labels=True)
    with_all = dict(kwargs, path=str(make_dataset_zip(tmp_path, n=6, of_images=[0, 0, 0, 1, 1, 1])))
    without = dict(kwargs, path=str(make_dataset_zip(tmp_path, name='b.zip', n=6, of_images=[0, 0, 0, 2, 2, 2])))
    assert checked(MomentMatchingLoss, embedding=EMBEDDING, training_set_kwargs=without) == []
    terms = [
        make_loss(masked_generator(c_dim), data, normalize=True).terms[0]
        for c_dim, data in [(2, with_all), (3, without)]
    ]
    assert torch.equal(terms[0].scale, terms[1].scale)
    assert torch.equal(terms[0].mean, terms[1].mean[[0, 2]])
    assert terms[1].variance.isfinite().all()


def test_an_argument_that_one_method_uses_is_not_refused_by_another(labelled_data, teacher):
    """Which has it, too, and nothing to do with it."""
    both = combined('both', [RegressionLoss, MomentMatchingLoss], AdversarialLoss)
    given = dict(teacher=teacher, embedding=EMBEDDING, reference='data', truncation_psi=0.5)
    distillation, _masks, matching = methods_of(both, given)
    assert distillation.truncation_psi == 0.5
    assert matching.matched_teacher is None
    distances = combined('both', [DistanceLoss, MomentMatchingLoss], AdversarialLoss)
    methods_of(distances, dict(teacher=teacher, estimator='rbf', samples=50))
    with pytest.raises(UserError, match=r'truncation_psi=0\.5 goes with reference=teacher, not with data'):
        methods_of(distances, dict(teacher=teacher, reference='data', truncation_psi=0.5))


def test_labels_that_are_no_classes(tmp_path, make_dataset_zip, labelled_data):
    """But vectors, which the host takes, too: moments are those of all images together."""
    vectors = dict(labelled_data, path=str(make_dataset_zip(tmp_path, n=23, labels=3, vectors=True, name='v.zip')))
    loss = make_loss(masked_generator(), vectors)
    assert loss.terms[0].classes == 0
    assert len(loss.terms[0].mean) == 1
    assert make_loss(masked_generator(), labelled_data).terms[0].classes == 3
    given = dict(embedding=EMBEDDING, training_set_kwargs=vectors)
    assert checked(MomentMatchingLoss, **given) == []
    with pytest.raises(UserError, match='per_class=true needs labels that are classes'):
        checked(MomentMatchingLoss, **given, per_class=True)
    args = dict(batch_size=4, batch_gpu=4, num_gpus=1, device='cpu', training_set_kwargs=vectors)
    of_data = dict(embeddings=EMBEDDING, reference='data', training_set_kwargs=vectors)
    with pytest.raises(UserError, match='by_label=true needs labels that are classes'):
        checked(DistanceLoss, args, **of_data, by_label=True)
    assert checked(DistanceLoss, args, **of_data) == []


# --- Processes --------------------------------------------------------------------------------------------------------


def train(directory, labelled_data, rank, processes):
    """Three steps of twelve images on this process's share, with DistributedDataParallel as the host wraps it."""
    torch.set_num_threads(1)
    G = masked_generator(rule='global-edge-popup').requires_grad_(True)
    parts = [G.mapping, G.synthesis]
    if processes > 1:
        parts = [nn.parallel.DistributedDataParallel(part, broadcast_buffers=False) for part in parts]
    arguments = dict(training_set_kwargs=labelled_data, total_kimg=1, embedding=EMBEDDING, moments_penalty=1)
    loss = MomentMatchingLoss('cpu', *parts, **arguments)
    optimizer = torch.optim.Adam(G.parameters(), lr=0.01)
    for seed in range(3):
        z, c = batch(seed=seed)
        optimizer.zero_grad()
        step(loss, z[rank::processes], c[rank::processes])
        optimizer.step()
    gradients = [scores.grad for scores in G.parameters()]
    torch.save((gradients, list(G.parameters()), loss.state_dict()), f'{directory}/{processes}-{rank}.pt')


def test_two_processes_are_one_with_twice_the_batch(tmp_path, labelled_data):
    train(tmp_path, labelled_data, 0, 1)
    in_two_processes(lambda rank: train(tmp_path, labelled_data, rank, 2))
    one, first, second = (torch.load(tmp_path / f'{name}.pt') for name in ('1-0', '2-0', '2-1'))
    for mine, theirs in zip(first[0], second[0], strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(first[0], one[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
    assert first[2]['steps']['nimg'] == one[2]['steps']['nimg'] == 36
    mine, theirs = (state['terms'][0]['v_mean'] for state in (first[2], one[2]))
    for key, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[key])


# --- Loops ------------------------------------------------------------------------------------------------------------


def test_with_a_discriminator_the_loop_leaves_it_alone(tmp_path, labelled_data):
    from tiny_runs import loop_arguments

    arguments = loop_arguments(tmp_path / 'run', labelled_data['path'], labels=True)
    arguments['G_kwargs'] = dict(arguments['G_kwargs'], class_name='stylegan2_compress.ScoreMaskedGenerator')
    arguments['loss_kwargs'] = dict(
        class_name='stylegan2_compress.MomentMatchingLoss', training_set_kwargs=labelled_data, total_kimg=0.08,
        embedding=EMBEDDING,
    )  # fmt: skip
    training_loop(**arguments)
    (tmp_path / 'start').mkdir()
    still = dict(arguments['G_opt_kwargs'], lr=0)
    training_loop(**arguments | dict(run_dir=str(tmp_path / 'start'), G_opt_kwargs=still, D_opt_kwargs=still))
    start, end = (pickles.load(tmp_path / run / 'network-snapshot-000000.pkl') for run in ('start', 'run'))
    for (name, mine), theirs in zip(end['D'].named_parameters(), start['D'].parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    assert stylegan2_compress.ScoreMaskedGenerator.__name__ == type(end['G']).__name__
    scores, before = (each['G'].synthesis.b8.conv1.weight_scores for each in (end, start))
    assert not torch.equal(scores, before)


# --- VGG-19 -----------------------------------------------------------------------------------------------------------


def test_vgg19_reads_torchvisions_weights_and_shows_what_follows_each_relu(tmp_path, monkeypatch):
    monkeypatch.setattr(vgg, 'STAGES', ((4, 2), (6, 2), (8, 4)))
    torch.manual_seed(0)
    state = vgg.VGG19().state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            state[name] = torch.rand_like(tensor) - 0.3 * (not name.endswith('var'))
    torch.save(state | {'classifier.0.weight': torch.zeros(3)}, tmp_path / 'vgg.pth')
    network = embeddings.load(f'vgg19_bn@weights={tmp_path}/vgg.pth', 'cpu')
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((images + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    expected, index = [], 0
    for width, convolutions in vgg.STAGES:
        for _ in range(convolutions):
            conv, norm = (
                {k.rpartition('.')[2]: v for k, v in state.items() if k.startswith(f'features.{index + i}.')}
                for i in (0, 1)
            )
            assert len(conv['weight']) == width
            x = nn.functional.conv2d(x, conv['weight'], conv['bias'], padding=1)
            x = nn.functional.batch_norm(x, norm['running_mean'], norm['running_var'], norm['weight'], norm['bias'])
            x = x.relu()
            expected.append(x)
            index += 3
        x = nn.functional.max_pool2d(x, 2)
        index += 1
    for mine, theirs in zip(network.layers(images), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network(images), expected[-1].mean(dim=(2, 3)), rtol=1e-4, atol=1e-4)


def test_vgg19_takes_images_of_16_pixels(tmp_path, monkeypatch):
    """Its last maps are of one pixel then, and nothing is pooled after them."""
    monkeypatch.setattr(vgg, 'STAGES', tuple((4, convolutions) for _, convolutions in vgg.STAGES))
    # Of so few channels, all could be zero otherwise.
    weights = {name: weight.abs() for name, weight in vgg.VGG19().state_dict().items()}
    torch.save(weights, tmp_path / 'vgg.pth')
    embedding = embeddings.load(f'vgg19_bn@weights={tmp_path}/vgg.pth', 'cpu')
    embedding.require_images(16)
    assert embedding.layers(torch.zeros(1, 3, 16, 16))[-1].shape == (1, 4, 1, 1)
    with pytest.raises(UserError, match='cannot process a 8x8 image'):
        embedding.require_images(8)


def test_vgg19_has_torchvisions_shapes():
    assert sum(parameter.numel() for parameter in vgg.VGG19().parameters()) == 20_035_392  # torchvision's `features`.
    layered = [m for m in vgg.VGG19().features if isinstance(m, nn.ReLU)]
    assert len(layered) == 16
