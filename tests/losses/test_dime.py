"""DiME's choices: estimators and their banks, what is matched, statistics from files, and what is refused.

Gradients against the formulas are in test_parity.py, the estimators themselves in test_statistics.py.
"""

import copy
import functools
import json
import os

import commands
import numpy as np
import pytest
import torch
from plans import checked, compressed
from sklearn.metrics import pairwise
from tiny_runs import EMBEDDING

from stylegan2_compress import pickles
from stylegan2_compress.compression.distill import distill
from stylegan2_compress.distributions import mmd, moments, sources, statistics
from stylegan2_compress.embeddings import load
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import configurations, datasets
from stylegan2_compress.losses import estimators
from stylegan2_compress.losses.dime import DiME, DiMELoss, DistributionMatching
from stylegan2_compress.losses.space import Space
from stylegan2_compress.losses.terms import Batch

pytestmark = pytest.mark.usefixtures('own_cache')

DIME = 'stylegan2_compress.DiMELoss'
SPEC = f'module:{__name__}:colours@size=16@preprocess=raw'


class Colours(torch.nn.Module):
    """Its features are means and variances of colours over the quarters of an image."""

    def forward(self, x):
        parts = x.unflatten(2, (2, -1)).unflatten(4, (2, -1))
        return torch.cat([f(parts, dim=(3, 5)).flatten(1) for f in (torch.mean, torch.var)], dim=1)


def colours():
    return Colours()


@pytest.fixture(autouse=True)
def colours_can_be_imported(monkeypatch):
    monkeypatch.setenv('PYTHONPATH', os.path.dirname(__file__))


@pytest.fixture
def make_teacher(tmp_path, make_generator, make_discriminator):
    def build(name='teacher.pkl', seed=5, **shape):
        G, D = make_generator(seed, **shape).eval(), make_discriminator(seed, **shape).eval()
        pickles.save(tmp_path / name, dict(G=G, D=D, G_ema=G, training_set_kwargs=None, augment_pipe=None))
        return str(tmp_path / name)

    return build


@pytest.fixture
def teacher(make_teacher):
    return make_teacher()


@pytest.fixture
def data(tmp_path, make_dataset_zip):
    return str(make_dataset_zip(tmp_path, n=12, resolution=16, channels=3, labels=3))


def training_set(path):
    return dict(class_name='training.dataset.ImageFolderDataset', path=path, use_labels=False)


def build(teacher, embeddings=SPEC, **kwargs):
    data = pickles.load(teacher)
    G, D = data['G'], data['D']
    modules = dict(G_mapping=G.mapping, G_synthesis=G.synthesis, D=D, augment_pipe=None)
    loss = DiMELoss('cpu', teacher=teacher, embeddings=embeddings, **modules, **kwargs)
    return loss, loss.terms[0]


def batch_of(images):
    return Batch(None, None, None, images, None)


# --- Estimators -------------------------------------------------------------------------------------------------------


def scikit_learns(estimator, x, y, reference):
    """The kernel matrix, in float64."""
    if estimator == 'linear':
        return pairwise.linear_kernel(x, y)
    if estimator == 'cubic':
        return pairwise.polynomial_kernel(x, y, degree=3, coef0=1)
    median = np.median(pairwise.euclidean_distances(reference)[np.triu_indices(len(reference), 1)] ** 2)
    return np.mean([pairwise.rbf_kernel(x, y, gamma=1 / (2 * m * median)) for m in (0.25, 0.5, 1, 2, 4)], axis=0)


@pytest.mark.parametrize('estimator', ['linear', 'rbf', 'cubic'])
@pytest.mark.parametrize('unbiased', [True, False])
def test_kernel_estimators_compare_with_the_teachers_first_images(teacher, estimator, unbiased):
    _loss, term = build(teacher, estimator=estimator, unbiased=unbiased, bank=42, weights=3)  # An odd number of pairs.
    images = torch.randn(6, 3, 16, 16)
    summand, _spread = term.generator(batch_of(images))
    assert (summand.name, summand.weight) == (f'DiME/{SPEC}', 3)
    source = sources.TeacherImages(teacher)
    y = colours()(torch.cat([source.draw(0)[0], source.draw(1)[0]])[:42]).double().numpy()
    x = colours()(images).double().numpy()
    within = []
    for z in (x, y):
        k = scikit_learns(estimator, z, z, y)
        within.append((k.sum() - np.trace(k)) / (len(z) * (len(z) - 1)) if unbiased else k.mean())
    expected = sum(within) - 2 * scikit_learns(estimator, x, y, y).mean()
    assert float(summand.value) == pytest.approx(expected, rel=1e-4)


def test_unbiased_unless_told_otherwise(teacher):
    images = torch.randn(3, 3, 16, 16)
    values = [
        float(build(teacher, estimator='rbf', bank=8, **kwargs)[1].generator(batch_of(images))[0].value)
        for kwargs in ({}, dict(unbiased=True), dict(unbiased=False))
    ]
    assert values[0] == values[1] != values[2]


def test_the_gradient_of_accumulated_rounds_is_right_on_average():
    """What the README says against `moments` in small rounds, and for kernels: the mean over rounds of 2 of a batch."""
    torch.manual_seed(0)
    x, y = torch.randn(4000, 3, dtype=torch.float64), torch.randn(500, 3, dtype=torch.float64) + 0.2
    found = statistics.Statistics(*moments.moments(y), bank=y)
    distances = {
        'cubic': estimators.KernelDistance('cubic', True, found), 'moments': estimators.MomentDistance(found),
    }  # fmt: skip
    difference = {}
    for name, distance in distances.items():
        shift = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        (whole,) = torch.autograd.grad(distance(x + shift), shift)
        (rounds,) = torch.autograd.grad(sum(distance(part + shift) for part in x.split(2)) / 2000, shift)
        difference[name] = float((rounds - whole).norm() / whole.norm())
    assert difference['cubic'] < 0.1 < 0.3 < difference['moments']


def test_weights_by_default(teacher):
    def weights(**kwargs):
        signature = dict(teacher=teacher, embeddings=['dino_resnet50@preprocess=raw', 'clip_rn50', SPEC], **kwargs)
        return [weight for _spec, weight in DiME(**signature).embeddings_and_weights()]

    assert weights() == [20, 15, 20]
    for estimator in ('squared-moments', 'rbf', 'linear', 'cubic'):
        assert weights(estimator=estimator) == [estimators.ESTIMATORS[estimator].weight] * 3
    assert weights(weights=[1, 2, 3]) == [1, 2, 3]


# --- The bank is refreshed --------------------------------------------------------------------------------------------


def test_the_oldest_chunk_makes_way(teacher):
    _loss, term = build(teacher, estimator='linear', bank=80, refresh=2)
    source = sources.TeacherImages(teacher)
    chunks = [colours()(source.draw(index)[0]) for index in range(6)]  # Of 32; the bank starts with two and a half.
    first = torch.cat(chunks[:3])[:80]
    distance = term.spaces[0].distance
    within = distance.within.clone()
    torch.testing.assert_close(distance.bank, first)
    term.after_step()
    torch.testing.assert_close(distance.bank, first)
    term.after_step()
    torch.testing.assert_close(distance.bank, torch.cat([chunks[3], first[32:]]))
    torch.testing.assert_close(distance.within, mmd.mean_within(distance.bank, mmd.linear))
    assert not torch.equal(distance.within, within)
    for _ in range(4):
        term.after_step()
    torch.testing.assert_close(distance.bank, torch.cat([chunks[5][16:], chunks[3][16:], chunks[4], chunks[5][:16]]))


def test_a_bank_keeps_its_precision(teacher):
    _loss, term = build(teacher, estimator='rbf', bank=40, refresh=1, embeddings=f'{SPEC}@dtype=fp64')
    before = term.spaces[0].distance.bank.clone()
    term.after_step()
    bank = term.spaces[0].distance.bank
    assert bank.dtype == before.dtype == torch.float32
    assert not torch.equal(bank, before)


def test_a_resumed_run_is_the_same_run(teacher):
    kwargs = dict(estimator='rbf', bank=40, refresh=1)
    loss, term = build(teacher, **kwargs)
    for _ in range(3):
        term.after_step()
    state = copy.deepcopy(loss.state_dict())
    resumed, resumed_term = build(teacher, **kwargs)
    resumed.load_state_dict(state)
    images = torch.randn(4, 3, 16, 16)
    for _ in range(2):
        values = [float(each.generator(batch_of(images))[0].value) for each in (term, resumed_term)]
        assert values[0] == values[1]
        term.after_step(), resumed_term.after_step()
    untouched = build(teacher, **kwargs)[1].generator(batch_of(images))[0].value
    assert float(untouched) != values[0]
    with pytest.raises(UserError, match='refresh'):
        build(teacher, estimator='rbf', bank=40)[0].load_state_dict(state)


def test_a_state_without_memory_is_refused_by_a_run_with_one(teacher):
    with pytest.raises(UserError, match='memory'):
        build(teacher, memory=32)[0].load_state_dict(build(teacher)[0].state_dict())


def test_features_that_are_not_finite_do_not_enter_the_bank(teacher, monkeypatch):
    _loss, term = build(teacher, estimator='linear', bank=32, refresh=1)
    network, distance = term.spaces[0].network, term.spaces[0].distance
    before = distance.bank.clone()
    original = network.network.forward
    broken = lambda x: torch.where(torch.arange(len(x))[:, None] < 3, torch.nan, original(x))  # noqa: E731
    monkeypatch.setattr(network.network, 'forward', broken)
    term.after_step()
    assert torch.equal(distance.bank[:3], before[:3])
    assert not torch.isclose(distance.bank[3:], before[3:]).all(dim=1).any()


def test_a_bank_for_each_of_several_embeddings(teacher):
    networks = [colours(), lambda images: colours()(images).square()]
    source = sources.TeacherImages(teacher)
    bank = colours()(source.draw(0)[0])
    distances = [
        estimators.KernelDistance('linear', True, statistics.Statistics(None, None, each))
        for each in (bank, bank.square())
    ]
    term = DistributionMatching([Space(*each) for each in zip(networks, distances, strict=True)], source, refresh=1)
    term.after_step()
    new = colours()(source.draw(1)[0])
    torch.testing.assert_close(distances[0].bank, new)
    torch.testing.assert_close(distances[1].bank, new.square())


# --- The memory -------------------------------------------------------------------------------------------------------


def steps(loss, first, count, bad=None, rounds=2):
    """The gradients of some steps, each of two rounds of three images; in step `bad` the second is not finite."""
    found = []
    for step in range(first, first + count):
        for network in (loss.G_mapping, loss.G_synthesis):
            network.zero_grad()
            network.requires_grad_(True)
        rnd = torch.Generator().manual_seed(step)
        torch.manual_seed(step)
        for index in range(rounds):
            z = torch.randn(3, 16, generator=rnd) * (torch.nan if (step, index) == (bad, 1) else 1)
            loss.accumulate_gradients('Gmain', None, None, z, torch.zeros(3, 0), index == rounds - 1, 1)
        found.append([parameter.grad for parameter in loss.G_synthesis.parameters()])
    return found


@pytest.mark.parametrize('estimator', ['moments', 'squared-moments', 'rbf'])
def test_a_memory_goes_on_from_a_state(teacher, estimator):
    """A step that was left out, before the state, has left nothing in it."""
    kwargs = dict(estimator=estimator, memory=16, **(dict(bank=8) if estimator == 'rbf' else dict(samples=8)))
    loss, term = build(teacher, **kwargs)
    steps(loss, 0, 3, bad=1)
    assert len(term.memories[0].rows) == 12
    state = copy.deepcopy(loss.state_dict())
    continued, its_term = build(teacher, **kwargs)
    continued.load_state_dict(state)
    torch.testing.assert_close(steps(continued, 3, 2), steps(loss, 3, 2), rtol=0, atol=0)
    assert len(term.memories[0].rows) == 16
    assert torch.equal(term.memories[0].rows, its_term.memories[0].rows)
    assert not torch.allclose(steps(build(teacher, **kwargs)[0], 3, 1)[0][0], steps(loss, 3, 1)[0][0])
    with pytest.raises(UserError, match='had another --loss-arg memory'):
        build(teacher, **dict(kwargs, memory=0))[0].load_state_dict(state)


def test_a_memory_of_the_batch_is_none(teacher):
    plain, remembering = (build(teacher, samples=8, **kwargs)[0] for kwargs in ({}, dict(memory=3)))
    torch.testing.assert_close(steps(remembering, 0, 2, rounds=1), steps(plain, 0, 2, rounds=1), rtol=0, atol=0)


def test_the_spread_is_reported(teacher):
    _loss, term = build(teacher, samples=32)
    images = sources.TeacherImages(teacher).draw(0)[0]
    _distance, reported = term.generator(batch_of(images))
    assert (reported.name, reported.weight) == (f'DiME/spread/{SPEC}', None)
    assert float(reported.value) == pytest.approx((32 / 31) ** 0.5, rel=1e-4)  # The reference's own images.
    assert len(term.generator(batch_of(images[:1]))) == 1  # One image has no spread.


# --- Weights that fall ------------------------------------------------------------------------------------------------


def test_weights_fall_and_nothing_is_embedded_afterwards(teacher, monkeypatch):
    _loss, term = build(teacher, weights=4, samples=8, memory=6, dime_kimg=2)
    images, network = torch.randn(6, 3, 16, 16), term.spaces[0].network
    looked_at = []
    monkeypatch.setattr(network.network, 'forward', lambda x: looked_at.append(len(x)) or Colours().forward(x))
    assert 'not full' in term.obstacle()
    weights = []
    for nimg in (0, 500, 1500, 2000, 3000):
        term.before_step(nimg)
        weights.append([summand.weight for summand in term.generator(batch_of(images))])
        term.after_step()
    spread = None
    assert weights == [[4, spread], [3, spread], [1, spread], [], []]
    assert looked_at == [6, 6, 6]
    assert len(term.memories[0].rows) == 6


def test_a_bank_is_not_refreshed_after_weights_have_fallen(teacher):
    _loss, term = build(teacher, estimator='rbf', bank=40, refresh=1, dime_kimg=2)
    for nimg, is_new in [(0, True), (2000, False)]:
        bank = term.spaces[0].distance.bank.clone()
        term.before_step(nimg)
        term.after_step()
        assert torch.equal(bank, term.spaces[0].distance.bank) != is_new


def test_only_weights_that_fall_are_in_the_way_of_a_recording(teacher):
    _loss, term = build(teacher, samples=8, dime_kimg=2)
    term.before_step(500)
    assert term.obstacle() == 'the weight of DiME falls'
    term.before_step(2000)
    assert term.obstacle() == ''


# --- What is matched --------------------------------------------------------------------------------------------------


def test_data_as_reference_need_no_teacher(teacher, data):
    kwargs = training_set(data)
    networks = pickles.load(teacher)
    modules = dict(G_mapping=networks['G'].mapping, G_synthesis=networks['G'].synthesis, D=networks['D'])
    loss = DiMELoss('cpu', embeddings=SPEC, reference='data', training_set_kwargs=kwargs, **modules)
    mean, _square = loss.terms[0].spaces[0].distance.wanted
    images = torch.cat([sources.DatasetImages(kwargs).draw(0)[0]])[:12]
    torch.testing.assert_close(mean, colours()(images).double().mean(0))
    kernel = DiMELoss(
        'cpu', embeddings=SPEC, reference='data', training_set_kwargs=kwargs, estimator='cubic', **modules
    )
    torch.testing.assert_close(kernel.terms[0].spaces[0].distance.bank, colours()(images))  # All twelve, and no more.


@pytest.mark.parametrize(
    ('kwargs', 'sentence'),
    [
        (dict(embeddings='efficientnet_lite7'), 'efficientnet_lite0'),
        (dict(weights=[1, 2]), 'one number'),
        (dict(weights='much'), 'weights=much must be a number'),
        (dict(weights=float('nan')), 'weights=nan must be a number'),
        (dict(samples=0), 'samples=0 must be a whole number of images, at least 2'),
        (dict(samples='many'), 'at least 2'),
        (
            dict(estimator='gauss'),
            'estimator=gauss does not exist; there are moments, squared-moments, linear, rbf, cubic',
        ),
        (dict(estimator=['rbf']), 'must be text'),
        (dict(reference='discriminator'), 'there are teacher, data'),
        (dict(estimator='rbf', unbiased='maybe'), 'unbiased=maybe must be true or false'),
        (dict(unbiased=True), 'unbiased=true goes with estimator=linear, rbf, cubic, not with moments'),
        (dict(bank=64), 'bank=64 goes with'),
        (dict(refresh=8), 'refresh=8 goes with'),
        (dict(estimator='rbf', bank=1), 'at least 2'),
        (dict(estimator='rbf', refresh=-1), 'refresh=-1 must be a whole number of steps'),
        (dict(estimator='rbf', samples=100), 'samples=100 goes with estimator=moments, squared-moments, not with rbf'),
        (dict(memory=3), 'memory=3 is less than the batch of 4 images'),
        (dict(memory=-1), 'memory=-1 must be a whole number of images, at least 0'),
        (dict(memory='long'), 'memory=long must be a whole number'),
        (dict(reference='data', truncation_psi=0.7), 'truncation_psi=0.7 goes with reference=teacher'),
        (dict(truncation_psi='a'), 'must be a number'),
        (dict(teacher=None), 'needs --teacher, or --loss-arg reference=data'),
        (dict(estimator='rbf', refresh=2, statistics='file.npz'), 'exclude each other'),
        (dict(statistics='file.npz'), 'Cannot read file.npz'),
        (dict(reference='data', samples=13), 'samples=13 is more than the 12 images'),
        (dict(reference='data', estimator='rbf', bank=13), 'bank=13 is more than the 12 images'),
    ],
)
def test_refused(teacher, data, kwargs, sentence):
    with pytest.raises(UserError, match=sentence):
        checked(
            DiMELoss, **{'teacher': teacher, 'embeddings': SPEC, 'training_set_kwargs': training_set(data), **kwargs}
        )


def test_features_that_are_all_the_same_are_refused(teacher):
    with pytest.raises(UserError, match='estimator=rbf has nothing to go by'):
        estimators.KernelDistance('rbf', True, statistics.Statistics(None, None, torch.ones(8, 3)))


def test_rounds_that_are_not_the_batch_are_told(teacher, data, capsys):
    def printed(loss_args=(), **host_options):
        run = configurations.loop_arguments(data, aug='noaug', **host_options)
        compressed(*run, loss=DIME, teacher=teacher, loss_args=(f'embeddings={SPEC}', *loss_args), device='cpu')
        return capsys.readouterr().out

    assert 'moments over 8 images at a time, not over the batch of 32' in printed(batch=32, batch_gpu=8)
    assert printed(['weights=1'], batch=32) == printed(['weights=1', 'memory=32'], batch=32, batch_gpu=8) == ''
    assert printed(['estimator=rbf', 'bank=8'], batch=32, batch_gpu=8) == ''
    with pytest.raises(UserError, match='with one at a time, add unbiased=false'):
        printed(['estimator=rbf', 'bank=8'], batch=4, batch_gpu=1)
    assert printed(['estimator=rbf', 'bank=8', 'unbiased=false'], batch=4, batch_gpu=1) == ''
    for batch_gpu, said in [(0, 'must be a whole number, at least 1'), (5, 'must divide 32'), (64, 'must divide 32')]:
        with pytest.raises(UserError, match=f'--batch-gpu={batch_gpu} {said}'):
            printed(batch=32, batch_gpu=batch_gpu)


@pytest.mark.parametrize(
    ('loss', 'loss_args', 'cond', 'said'),
    [
        (DIME, (), False, 'Choose --loss-arg weights, or let balance=1 make it as hard.'),
        (DIME, ('estimator=cubic', 'bank=8'), False, 'or let balance=1'),
        (
            DIME,
            (),
            True,
            'Choose --loss-arg weights.\n',
        ),  # The next note's `by_label` and `balance` exclude each other.
        (DIME, ('estimator=rbf', 'bank=8'), False, None),
        (DIME, ('estimator=squared-moments',), False, None),
        (DIME, ('weights=20',), False, None),
        (DIME, ('balance=1',), False, None),
        ('stylegan2_compress.DistanceLoss', (), False, None),  # There is nothing that it could outweigh.
    ],
)
def test_a_weight_that_nobody_chose_for_an_embedding_is_told(make_teacher, data, capsys, loss, loss_args, cond, said):
    teacher = make_teacher(c_dim=3 if cond else 0)
    run = configurations.loop_arguments(data, aug='noaug', batch=8, cond=cond)
    compressed(*run, loss=loss, teacher=teacher, loss_args=(f'embeddings={SPEC}', *loss_args), device='cpu')
    told = capsys.readouterr().out
    assert (f'depends on the scale of the features of {SPEC}' in told) == (said is not None)
    assert said is None or said in told


def test_one_image_of_a_label_is_too_few_to_compare(tmp_path, make_dataset_zip):
    """With `by_label`, and before anything is written; a label without images is never drawn."""
    kwargs = dict(class_name='training.dataset.ImageFolderDataset', use_labels=True)
    run = dict(batch_size=4, batch_gpu=4, num_gpus=1, device='cpu', G_kwargs={})
    for name, of_images in [('one.zip', [0, 0, 1, 2, 2]), ('none.zip', [0, 0, 2, 2, 2])]:
        data = dict(kwargs, path=str(make_dataset_zip(tmp_path, name=name, n=5, of_images=of_images)))
        given = dict(reference='data', embeddings=SPEC, weights=1, training_set_kwargs=data)
        args = dict(run, training_set_kwargs=data)
        checked(DiMELoss, args, **given)
        if name == 'none.zip':
            assert checked(DiMELoss, args, **given, by_label=True) == []
        else:
            with pytest.raises(UserError, match=r'has one image of label 1, and moments .* without by_label'):
                checked(DiMELoss, args, **given, by_label=True)


# --- stats, and runs with its files -----------------------------------------------------------------------------------


def test_stats_are_what_a_run_would_compute(tmp_path, make_teacher, data, monkeypatch):
    """Labels, truncation and mirroring included; a run with the file computes nothing."""
    teacher, file = make_teacher(c_dim=3), tmp_path / 'file.npz'
    common = ['--data', data, '--embedding', SPEC, '--samples', 40, '--out', file]
    assert '40 images' in commands.run('stats', '--teacher', teacher, *common, '--truncation', 0.5, '--bank', 10)
    run = dict(
        loss_args=(f'embeddings={SPEC}', 'truncation_psi=0.5'), kimg=1, batch=100, device='cpu', workers=0, mirror=True,
        pl_weight=0, snap=1000,
    )  # fmt: skip
    kwargs = training_set(data) | dict(use_labels=True, xflip=True)
    source = sources.TeacherImages(teacher, truncation_psi=0.5, training_set_kwargs=kwargs)
    embedding = load(SPEC, 'cpu')
    (expected,) = statistics.compute_statistics(source, [embedding], 40, 10)
    found = statistics.read_statistics(file, source, embedding, 40, 10)
    assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in ('m1', 'm2', 'bank'))

    monkeypatch.setattr(sources.TeacherImages, 'draw', lambda *_args: pytest.fail('statistics are there already'))
    run['loss_args'] += (f'statistics={file}',)
    run_dir = distill(teacher, data, str(tmp_path / 'out'), **run)
    assert json.loads((tmp_path / run_dir / 'training_options.json').read_text())['loss_kwargs']['statistics'] == str(
        file
    )
    kernels = dict(run, loss_args=(*run['loss_args'], 'estimator=rbf'))
    distill(teacher, data, str(tmp_path / 'out'), dry_run=True, **kernels)
    _loss, term = build(teacher, statistics=str(file), truncation_psi=0.5, estimator='rbf', training_set_kwargs=kwargs)
    assert torch.equal(term.spaces[0].distance.bank, expected.bank)  # All ten, where nobody says how many.
    for changes, sentence in [
        (dict(loss_args=run['loss_args'] + ('samples=41',)), 'samples 40, not 41'),
        (dict(loss_args=run['loss_args'][:1] + run['loss_args'][2:]), 'truncation 0.5, not 1'),
        (dict(loss_args=run['loss_args'][:1] + run['loss_args'][2:] + ('reference=data',)), 'data none'),
        (dict(kernels, loss_args=(*run['loss_args'], 'estimator=rbf', 'bank=11')), 'bank=11 needs more'),
        (dict(subset=5), 'labels .*: leave it out, as there are no such files of a --subset or of --labels'),
    ]:
        with pytest.raises(UserError, match=sentence):
            distill(teacher, data, str(tmp_path / 'refused'), **(run | changes))
    with pytest.raises(UserError, match=r'labels .*: leave it out, as there are no such files'):
        distill(teacher, None, str(tmp_path / 'refused'), **(run | dict(labels='0,2,2', mirror=None)))
    monkeypatch.undo()
    commands.run('stats', '--teacher', teacher, *common, '--truncation', 0.5, '--force')
    with pytest.raises(UserError, match=r'file.npz has no features of images, .* --bank 2048'):
        distill(teacher, data, str(tmp_path / 'refused'), **kernels)
    assert not (tmp_path / 'refused').exists()


def test_stats_of_a_data_set(tmp_path, teacher, data):
    file = tmp_path / 'file.npz'
    commands.run('stats', '--data', data, '--embedding', SPEC, '--mirror', 1, '--out', file)
    source = sources.DatasetImages(training_set(data) | dict(xflip=True))
    found = statistics.read_statistics(file, source, load(SPEC, 'cpu'), 24)
    images = source.draw(0)[0][:24]
    torch.testing.assert_close(found.m2, colours()(images).double().square().mean(0))
    run = configurations.loop_arguments(data, aug='noaug', mirror=True)
    loss_args = (f'embeddings={SPEC}', 'reference=data', f'statistics={file}')
    _desc, args = compressed(*run, loss=DIME, loss_args=loss_args, device='cpu')
    assert 'teacher' not in args.loss_kwargs
    with pytest.raises(UserError, match='subset or mirroring'):
        compressed(*configurations.loop_arguments(data, aug='noaug'), loss=DIME, loss_args=loss_args, device='cpu')


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ([], 'Say whose images'),
        (['--teacher', 'nowhere.pkl'], 'nowhere.pkl'),
        (['--data', 'nowhere.zip'], '--data=nowhere.zip'),
        (['--data', 'data.zip', '--samples', '13'], '--samples=13 is more than the 12'),
        (['--data', 'data.zip', '--bank', '13'], '--bank=13 is more than the 12'),
        (['--data', 'data.zip', '--embedding', 'efficientnet_lite7'], 'efficientnet_lite0'),
        (['--teacher', 'teacher.pkl', '--data', 'small.zip'], '--teacher=teacher.pkl has images of resolution 16'),
        (['--teacher', 'teacher.pkl', '--device', 'gpu'], '--device=gpu'),
        (['--data', 'data.zip', '--truncation', '0.5'], '--truncation=0.5 goes with --teacher'),
        (['--teacher', 'teacher.pkl', '--mirror', '1'], '--mirror=true goes with --data'),
        (['--teacher', 'teacher.pkl', '--truncation', 'nan'], '--truncation=nan must be a number'),
    ],
)
def test_stats_refuses(tmp_path, monkeypatch, teacher, data, make_dataset_zip, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    make_dataset_zip(tmp_path, resolution=8, name='small.zip')
    arguments = ('stats', '--embedding', SPEC, '--out', 'file.npz', *arguments)
    assert sentence in commands.refused(*arguments, unchanged=tmp_path)


def test_stats_does_not_overwrite(tmp_path, data):
    file = tmp_path / 'file.npz'
    file.write_text('precious')
    command = ['stats', '--data', data, '--embedding', SPEC, '--out', file]
    assert 'file.npz exists' in commands.refused(*command, unchanged=tmp_path)
    assert file.read_text() == 'precious'
    commands.run(*command, '--force')
    assert file.read_bytes()[:2] == b'PK'


# --- A run reads each pickle once -------------------------------------------------------------------------------------


@pytest.mark.parametrize('loss', ['DiMELoss', 'NickelDimeLoss'])
def test_each_pickle_is_read_once_before_training(tmp_path, teacher, data, monkeypatch, loss):
    read = []
    for name in ('load', 'load_with_sha256'):
        original = getattr(pickles, name)
        monkeypatch.setattr(
            pickles, name, functools.partial(lambda load, path: read.append(path) or load(path), original)
        )
    distill(
        teacher, data, str(tmp_path / 'out'), loss=f'stylegan2_compress.{loss}', loss_args=(f'embeddings={SPEC}',),
        cond=False, dry_run=True, device='cpu',
    )  # fmt: skip
    assert read == [teacher]


def test_files_of_the_data_are_read_once_before_training(tmp_path, teacher, data, monkeypatch):
    """To identify them: of a directory, that reads every image."""
    read, original = [], datasets.fingerprint
    monkeypatch.setattr(datasets, 'fingerprint', lambda path: read.append(path) or original(path))
    distill(
        teacher, data, str(tmp_path / 'out'), loss='stylegan2_compress.DiMELoss+MomentMatchingLoss',
        loss_args=(f'embeddings={EMBEDDING}', f'embedding={EMBEDDING}', 'reference=data', 'samples=8'), cond=False,
        dry_run=True, device='cpu',
    )  # fmt: skip
    assert len(read) == 1
