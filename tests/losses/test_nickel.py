"""NICKEL: the dual discriminator, the exchange of features, and the way into and out of training runs."""

import contextlib
import copy
import json
import os
import subprocess
import sys

import dnnlib
import numpy as np
import pytest
import pywt
import torch
from commands import refused
from host_alone import WITHOUT_OUR_PACKAGE
from plans import compressed
from torch_utils import misc, training_stats
from training import networks
from training.augment import AugmentPipe
from two_processes import in_two_processes

from stylegan2_compress import host, pickles
from stylegan2_compress.compression.distill import distill
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import configurations
from stylegan2_compress.losses.adversarial import AdversarialLoss
from stylegan2_compress.losses.dime import DistributionMatching
from stylegan2_compress.losses.features import TeacherPass
from stylegan2_compress.losses.nickel import (
    NICKEL,
    FeatureExchange,
    NickelDimeLoss,
    NICKELLoss,
    high_frequency_distance,
)
from stylegan2_compress.losses.terms import Batch, StyleMixing
from stylegan2_compress.networks.dual import DualDiscriminator

HOST = host.activate().path
LOSS = 'stylegan2_compress.NICKELLoss'
PHASES = ['Gmain', 'Greg', 'Gboth', 'Dmain', 'Dreg', 'Dboth']
SPEC = 'efficientnet_lite0@size=32'
WIDTHS = dict(channel_base=256, channel_max=16)


pytestmark = pytest.mark.usefixtures('own_cache')


@pytest.fixture
def make_teacher(tmp_path, make_generator, make_discriminator):
    """Writer of teacher pickles; their generator has half of the discriminator's widths."""

    def build(name='teacher.pkl', G={}, D={}, **shape):
        half = dict(synthesis_kwargs=dict(channel_base=128, channel_max=8))
        G = make_generator(5, **{**half, **shape, **G}).eval()
        path = str(tmp_path / name)
        D = make_discriminator(5, **{**shape, **D}).eval()
        pickles.save(path, dict(G=G, D=D, G_ema=G, training_set_kwargs=None, augment_pipe=None))
        return path

    return build


def make_dual(seed=0, **changes):
    kwargs = dict(
        c_dim=0, img_resolution=16, img_channels=3, student_kwargs=WIDTHS, teacher_kwargs=WIDTHS,
        matched_channels={'b4': 8},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DualDiscriminator(**{**kwargs, **changes}).train().requires_grad_(False)


def gradients(loss_class, G, D, phase, *, seed=3, augment=False, **loss_kwargs):
    """Gradients of all parameters by name, of one call under one random state."""
    G, D = copy.deepcopy(G), copy.deepcopy(D)
    pipe = None
    if augment:
        pipe = AugmentPipe(xflip=1, scale=1, brightness=1).train().requires_grad_(False)
        pipe.p.fill_(0.7)
    loss = loss_class(device='cpu', G_mapping=G.mapping, G_synthesis=G.synthesis, D=D, augment_pipe=pipe, **loss_kwargs)
    torch.manual_seed(seed)
    (G if phase.startswith('G') else D).requires_grad_(True)
    c = torch.nn.functional.one_hot(torch.arange(4) % max(G.c_dim, 1), max(G.c_dim, 1)).float()[:, : G.c_dim]
    loss.accumulate_gradients(phase, torch.randn(4, 3, 16, 16), c, torch.randn(4, 16), c, True, 4)
    named = {f'{n}.{p}': v for n, m in [('G', G), ('D', D)] for p, v in m.named_parameters()}
    return {name: parameter.grad for name, parameter in named.items() if parameter.grad is not None}


def below(prefix, found):
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@contextlib.contextmanager
def calls(**modules):
    """Counts forward passes of modules by name."""
    counts = dict.fromkeys(modules, 0)

    def counter(name):
        def count(*_args):
            counts[name] += 1

        return count

    hooks = [module.register_forward_hook(counter(name)) for name, module in modules.items()]
    yield counts
    for hook in hooks:
        hook.remove()


# --- The dual discriminator -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('c_dim', [0, 3])
def test_dual_is_two_of_the_hosts(make_discriminator, c_dim):
    D = make_dual(c_dim=c_dim)
    student, teacher = make_discriminator(1, c_dim=c_dim), make_discriminator(2, c_dim=c_dim)
    misc.copy_params_and_buffers(student, D.student, require_all=True)
    misc.copy_params_and_buffers(teacher, D.teacher, require_all=True)
    images, c = torch.randn(4, 3, 16, 16), torch.eye(4, c_dim)
    assert torch.equal(D(images, c), student(images, c))
    both = D(images, c, both=True, force_fp32=True)
    assert torch.equal(both[0], student(images, c))
    assert torch.equal(both[1], teacher(images, c))
    misc.print_module_summary(D, [images, c])


@pytest.mark.parametrize('architecture', ['resnet', 'skip', 'orig'])
def test_matched_maps_are_the_hosts_and_nothing_else_runs(architecture):
    kwargs = dict(WIDTHS, architecture=architecture)
    D = make_dual(
        img_resolution=32, student_kwargs=kwargs, teacher_kwargs=kwargs, matched_channels={'b16': 16, 'b8': 5}
    )
    images, c = torch.randn(2, 3, 32, 32), torch.zeros(2, 0)
    entering = {}
    for name in ('b16', 'b8'):
        getattr(D.student, name).register_forward_pre_hook(
            lambda _block, inputs, name=name: entering.update({name: inputs[0]})
        )
    D.student(images, c)
    with calls(b32=D.student.b32, b16=D.student.b16, b8=D.student.b8, b4=D.student.b4, teacher=D.teacher) as counts:
        found = D(images, c, match=('b16', 'b8'))
        assert counts == dict(b32=1, b16=1, b8=0, b4=0, teacher=0)
        D(images, c, match=('b16',))
    assert counts == dict(b32=2, b16=1, b8=0, b4=0, teacher=0)
    assert torch.equal(found['b16'], entering['b16'])
    weight = D.project_b8.weight[:, :, 0, 0] / 4  # The host's gain, one over the root of 16 channels.
    projected = torch.einsum('oi,nihw->nohw', weight, entering['b8'])
    torch.testing.assert_close(found['b8'], projected, rtol=1e-4, atol=1e-5)
    assert D.projected == ['b8']


# --- The exchange of features -----------------------------------------------------------------------------------------


def test_distance_is_that_of_pywavelets_subbands():
    x, y = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    expected = 0
    for level_x, level_y in zip(*(pywt.wavedec2(m.double().numpy(), 'haar', level=3)[1:] for m in (x, y)), strict=True):
        expected += np.mean([np.mean((band_x - band_y) ** 2) for band_x, band_y in zip(level_x, level_y, strict=True)])
    assert high_frequency_distance(x, y, 3).item() == pytest.approx(expected, rel=1e-5)


def test_distance_of_half_precision_maps_does_not_overflow():
    x = torch.full([1, 1, 16, 16], 200.0, dtype=torch.float16)
    x[..., ::2] *= -1
    assert torch.isfinite(high_frequency_distance(x, -x, 4))


@pytest.mark.parametrize('mixing', [None, StyleMixing(torch.randn(4, 16), cutoff=2)])
def test_teacher_gets_the_students_latents_labels_and_mixing(make_generator, mixing):
    G = make_generator(c_dim=2, synthesis_kwargs=dict(WIDTHS, use_noise=False)).eval()
    z, c = torch.randn(4, 16), torch.eye(2)[[0, 1, 1, 0]]
    batch = Batch(z, c, mixing, images=None, logits=None)
    taught = FeatureExchange(TeacherPass(G, {}), None, {'b4': 2, 'b8': 2}, 1, {}).teacher(batch)
    images, features = taught.images, taught.maps
    # The host's own loss does the mixing here.
    ws = G.mapping(z, c)
    if mixing:
        ws = torch.cat([ws[:, :2], G.mapping(mixing.z, c)[:, 2:]], dim=1)
    assert torch.equal(images, G.synthesis(ws))
    x, img = G.synthesis.b4(None, None, ws[:, :2])
    assert torch.equal(features['b4'], x)
    assert torch.equal(features['b8'], G.synthesis.b8(x, img, ws[:, 1:4])[0])
    assert not images.requires_grad
    assert not any(block._forward_hooks for block in G.synthesis.children())


@pytest.mark.parametrize('phase', PHASES)
def test_without_exchange_each_discriminator_trains_as_if_alone(make_generator, make_teacher, phase):
    """Bit for bit, under the same random state; the generator gets the sum of what both have to say."""
    teacher = make_teacher()
    G, D = make_generator().train().requires_grad_(False), make_dual()
    misc.copy_params_and_buffers(pickles.load(teacher)['D'], D.teacher)
    D.started.fill_(1)
    both = gradients(NICKELLoss, G, D, phase, teacher=teacher, feature_weight=0, augment=True)
    student = gradients(AdversarialLoss, G, D.student, phase, augment=True)
    theirs = gradients(AdversarialLoss, G, D.teacher, phase, augment=True)
    if phase.startswith('D'):
        assert equal(below('D.student.', both), below('D.', student))
        assert equal(below('D.teacher.', both), below('D.', theirs))
        assert not both['D.project_b4.weight'].any()
    elif phase == 'Greg':
        assert equal(both, student)
    else:
        main = gradients(AdversarialLoss, G, D.student, 'Gmain', augment=True)
        for name, gradient in both.items():
            regularization = student[name] - main[name]
            expected = student[name] + theirs[name] - regularization  # That once, not for each.
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_exchange_trains_the_front_of_the_students_discriminator_only(make_generator, make_teacher):
    teacher = make_teacher()
    G, D = make_generator().train().requires_grad_(False), make_dual()
    # No mixing, hence no difference in random state: the exchange comes before the augmentation of real images.
    on, off = (
        gradients(NICKELLoss, G, D, 'Dmain', teacher=teacher, feature_weight=weight, resolutions=[4], levels=2)
        for weight in (10, 0)
    )
    assert on.keys() == off.keys()
    changed = {name for name in on if not torch.equal(on[name], off[name])}
    front = {name for name in on if name.startswith(('D.student.b16.', 'D.student.b8.', 'D.project_'))}
    assert changed == front


@pytest.mark.parametrize('phase', ['Gmain', 'Greg', 'Dreg'])
def test_exchange_adds_nothing_elsewhere(make_generator, make_teacher, phase):
    teacher = make_teacher()
    G, D = make_generator().train().requires_grad_(False), make_dual()
    on, off = (gradients(NICKELLoss, G, D, phase, teacher=teacher, feature_weight=weight) for weight in (10, 0))
    assert equal(on, off)


def test_no_forward_pass_that_nothing_uses(make_generator, make_teacher):
    G, D = make_generator().train().requires_grad_(False), make_dual()
    loss = NICKELLoss('cpu', G_mapping=G.mapping, G_synthesis=G.synthesis, D=D, teacher=make_teacher())
    (term,) = loss.terms
    modules = dict(
        teacher=term.teacher.G.synthesis,
        image=D.student.b16,
        match=D.student.b8,
        end=D.student.b4,
        dual=D.teacher,
        G=G.synthesis,
    )
    expected = {
        'Gmain': dict(teacher=0, image=1, match=1, end=1, dual=1, G=1),
        'Greg': dict(teacher=0, image=0, match=0, end=0, dual=0, G=1),
        'Dmain': dict(teacher=1, image=3, match=3, end=2, dual=2, G=1),
        'Dreg': dict(teacher=0, image=1, match=1, end=1, dual=1, G=0),
    }
    for phase, counted in expected.items():
        (G if phase.startswith('G') else D).requires_grad_(True)
        with calls(**modules) as counts:
            images, z, c = torch.randn(2, 3, 16, 16), torch.randn(2, 16), torch.zeros(2, 0)
            loss.accumulate_gradients(phase, images, c, z, c, True, 1)
        assert counts == counted, phase
        G.requires_grad_(False)
        D.requires_grad_(False)
    assert all(parameter.grad is None for parameter in term.teacher.G.parameters())


def test_statistics(make_generator, make_teacher):
    collector = training_stats.Collector(regex='Loss/.*', keep_previous=False)
    for phase in PHASES:
        gradients(NICKELLoss, make_generator().requires_grad_(False), make_dual(), phase, teacher=make_teacher())
    collector.update()
    reported = {name for name, stat in collector.as_dict().items() if stat['num']}
    host_names = {'Loss/G/loss', 'Loss/G/reg', 'Loss/pl_penalty', 'Loss/D/loss', 'Loss/D/reg'}
    judged = {f'Loss/{what}/{kind}' for what in ('scores', 'signs') for kind in ('fake', 'real')} | {'Loss/r1_penalty'}
    assert reported == host_names | judged | {f'{name}/teacher' for name in judged} | {'Loss/NICKEL/features'}


# --- Where weights start ----------------------------------------------------------------------------------------------


def weights(module):
    return dict(module.named_parameters()) | dict(module.named_buffers())


@pytest.mark.parametrize('student_d', ['scratch', 'teacher'])
def test_first_weights_and_a_resumed_run(make_generator, make_teacher, student_d):
    teacher = make_teacher()
    teacher_D = pickles.load(teacher)['D']
    G = make_generator().requires_grad_(False)
    modules = dict(device='cpu', G_mapping=G.mapping, G_synthesis=G.synthesis)
    D = make_dual()
    misc.copy_params_and_buffers(teacher_D, D)  # What the host's loop does with a student's pickle.
    before = copy.deepcopy(D.student)
    NICKELLoss(**modules, D=D.requires_grad_(True), teacher=teacher, student_d=student_d)
    assert equal(weights(D.teacher), weights(teacher_D))
    assert equal(weights(D.student), weights(teacher_D if student_d == 'teacher' else before))
    # Trained, saved, resumed: nothing starts again.
    for parameter in D.requires_grad_(False).parameters():
        parameter.add_(1)
    resumed = make_dual(seed=1)
    misc.copy_params_and_buffers(D, resumed)
    NICKELLoss(**modules, D=resumed, teacher=teacher, student_d=student_d)
    assert equal(weights(resumed), weights(D))


def test_the_hosts_discriminator_is_refused(make_generator, make_discriminator, make_teacher):
    G = make_generator()
    with pytest.raises(UserError, match='DualDiscriminator'):
        NICKELLoss('cpu', G_mapping=G.mapping, G_synthesis=G.synthesis, D=make_discriminator(), teacher=make_teacher())


def test_nickel_and_dime_is_both(make_generator, make_teacher):
    G = make_generator()
    loss = NickelDimeLoss(
        'cpu', G_mapping=G.mapping, G_synthesis=G.synthesis, D=make_dual(), teacher=make_teacher(), embeddings=SPEC,
        samples=4, weights=[3], feature_weight=7, r1_gamma=2,
    )  # fmt: skip
    assert [type(term) for term in loss.terms] == [DistributionMatching, FeatureExchange]
    assert loss.terms[1].weight == 7
    assert loss.adversarial.r1_gamma == 2


# --- Feature maps and levels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('img_resolution', 'resolutions', 'levels', 'expected'),
    [
        (256, None, None, {'b64': 4}), (1024, None, None, {'b256': 4}), (16, None, None, {'b4': 2}),
        (8, None, None, {'b4': 2}), (32, [16, 8], None, {'b16': 4, 'b8': 3}), (32, 16, 2, {'b16': 2}),
        (64, [4, 32], 1, {'b4': 1, 'b32': 1}), (64, '16,32', 1, {'b16': 1, 'b32': 1}),
    ],
)  # fmt: skip
def test_levels_by_block(img_resolution, resolutions, levels, expected):
    method = NICKEL(teacher='t.pkl', resolutions=resolutions, levels=levels)
    assert method.levels_by_block(img_resolution) == expected


@pytest.mark.parametrize(
    ('resolutions', 'levels', 'sentence'),
    [
        (16, None, 'resolutions=16 must be one or several of 4, 8'), (6, None, 'resolutions=6'), ([], None, '4, 8'),
        ([4, 4], None, 'resolutions'), ('all', None, 'resolutions=all'), ('8,x', None, 'resolutions=8,x'),
        (2, None, 'resolutions=2'),
        (8, 4, 'levels=4 must be from 1 to 3'), (None, 3, 'from 1 to 2'), ([8, 4], 3, 'from 1 to 2'),
        (8, 0, 'levels=0'), (8, 1.5, 'levels=1.5'), ([[4]], None, 'resolutions'),
    ],
)  # fmt: skip
def test_impossible_maps_and_levels_are_refused(resolutions, levels, sentence):
    with pytest.raises(UserError, match=sentence):
        NICKEL(teacher='t.pkl', resolutions=resolutions, levels=levels).levels_by_block(16)


def test_images_without_a_map_are_refused():
    with pytest.raises(UserError, match='images of 4 pixels have none: take another loss'):
        NICKEL(teacher='t.pkl').levels_by_block(4)


# --- Options ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path, make_dataset_zip):
    return str(make_dataset_zip(tmp_path, n=12, resolution=16, channels=3, labels=3))


def test_a_run_gets_a_dual_discriminator(data, make_teacher):
    teacher = make_teacher(D=dict(architecture='skip', num_fp16_res=1))
    desc, args = compressed(
        *configurations.loop_arguments(data, aug='noaug', freezed=2),
        loss=LOSS,
        teacher=teacher,
        student=teacher,
        device='cpu',
    )
    own = dict(WIDTHS, architecture='skip')
    assert json.loads(json.dumps(args.D_kwargs)) == dict(
        class_name='stylegan2_compress.DualDiscriminator',
        num_fp16_res=0,
        conv_clamp=256,
        student_kwargs=dict(own, block_kwargs={}),
        teacher_kwargs=dict(own, block_kwargs=dict(freeze_layers=2)),
        matched_channels={'b4': 8},
    )
    assert desc.endswith('-NICKELLoss')
    assert args.loss_kwargs == dict(class_name=LOSS, r1_gamma=args.loss_kwargs.r1_gamma, teacher=teacher)
    D = dnnlib.util.construct_class_by_name(**args.D_kwargs, c_dim=0, img_resolution=16, img_channels=3)
    buffers = dict(D.named_buffers())
    assert 'teacher.b16.conv0.weight' in buffers  # Frozen, and still to be filled from the teacher's parameters.
    assert not any(name.startswith('student') and name.endswith('weight') for name in buffers)


def test_a_discriminator_from_the_teacher_has_its_shape_and_frozen_layers(data, make_teacher):
    teacher, student = make_teacher(D=dict(channel_max=8)), make_teacher('student.pkl')
    _desc, args = compressed(
        *configurations.loop_arguments(data, aug='noaug', freezed=1),
        loss=LOSS,
        teacher=teacher,
        student=student,
        loss_args=('student_d=teacher',),
    )
    kwargs = dict(channel_base=256, channel_max=8, block_kwargs=dict(freeze_layers=1))
    assert args.D_kwargs.student_kwargs == args.D_kwargs.teacher_kwargs == kwargs


def refused_runs():
    yield 'resolutions', {'loss-arg': 'resolutions=32'}, 'one or several of 4, 8'
    yield 'levels', {'loss-arg': 'levels=4'}, 'from 1 to 2'
    yield 'student_d', {'loss-arg': 'student_d=both'}, 'scratch, teacher'
    yield 'weight', {'loss-arg': 'feature_weight=-1'}, 'feature_weight=-1'
    yield 'weight is no number', {'loss-arg': 'feature_weight=nan'}, 'feature_weight=nan'
    yield 'image size', {'teacher': 'res8.pkl'}, 'resolution 8'
    yield 'latents', {'student': 'z8.pkl'}, 'latents of 16 numbers, but the student has 8'
    yield 'no D', {'teacher': 'headless.pkl', 'student': 'z8.pkl'}, 'no discriminator'


@pytest.mark.parametrize(
    ('changes', 'sentence'), [case[1:] for case in refused_runs()], ids=[case[0] for case in refused_runs()]
)
def test_refused_before_anything_is_written(tmp_path, monkeypatch, data, make_teacher, changes, sentence):
    monkeypatch.chdir(tmp_path)
    make_teacher()
    make_teacher('res8.pkl', img_resolution=8)
    make_teacher('z8.pkl', G=dict(z_dim=8))
    pickles.save('headless.pkl', dict(pickles.load('teacher.pkl'), D=None))
    given = dict(teacher='teacher.pkl', data=data, outdir='out', loss=LOSS, kimg=1, cond=0) | changes
    arguments = (f'--{key}={value}' for key, value in given.items())
    assert sentence in refused('distill', *arguments, unchanged=tmp_path)


# --- Whole runs -------------------------------------------------------------------------------------------------------


def test_distill_and_go_on(tmp_path, data, make_teacher):
    """Conditional, with ADA and frozen layers; the snapshot is the next run's student, and nothing starts again."""
    teacher = make_teacher(c_dim=3)
    given = dict(
        loss=LOSS, batch=100, kimg=1, aug='ada', freezed=1, device='cpu', workers=0, kimg_per_tick=0.5,
        loss_args=('resolutions=[8, 4]',),
    )  # fmt: skip
    run_dir = distill(teacher, data, str(tmp_path / 'out'), lr=0.002, **given)
    with open(f'{run_dir}/stats.jsonl') as file:
        stats = [json.loads(line) for line in file][-1]
    for name in ('Loss/NICKEL/features', 'Loss/scores/fake/teacher', 'Loss/r1_penalty/teacher', 'Loss/signs/real'):
        assert np.isfinite(stats[name]['mean']), name
    snapshot_pkl = f'{run_dir}/network-snapshot-000001.pkl'
    D, teacher_D = pickles.load(snapshot_pkl)['D'], pickles.load(teacher)['D']
    assert D.started == 1
    frozen, trained = 'b16.fromrgb.weight', 'b16.conv0.weight'
    assert torch.equal(weights(D.teacher)[frozen], weights(teacher_D)[frozen])
    assert not torch.equal(weights(D.teacher)[trained], weights(teacher_D)[trained])
    assert D.projected == ['b8', 'b4']

    again = distill(teacher, data, str(tmp_path / 'out'), student=snapshot_pkl, lr=0, **given)
    resumed = pickles.load(f'{again}/network-snapshot-000001.pkl')['D']
    assert equal(weights(resumed), weights(D))


@pytest.mark.parametrize('loss', [None, 'stylegan2_compress.DiMELoss', 'stylegan2_compress.ImageDistillationLoss'])
@pytest.mark.parametrize('freezed', [None, 1])
def test_going_on_without_nickel_trains_the_students_discriminator_alone(tmp_path, data, make_teacher, loss, freezed):
    """With its weights, without parameters that nothing uses; and NICKEL can take over again."""
    teacher, before = make_teacher(), make_dual(seed=4)
    before.started.fill_(1)
    student = str(tmp_path / 'snapshot.pkl')
    pickles.save(student, dict(pickles.load(teacher), D=before))
    run = configurations.loop_arguments(data, aug='noaug', freezed=freezed)
    given = dict(teacher=teacher, loss_args=(f'embedding{"s" if "DiME" in loss else ""}={SPEC}',)) if loss else {}
    _desc, args = compressed(*run, loss=loss, student=student, device='cpu', **given)
    shape = dict(c_dim=0, img_resolution=16, img_channels=3)
    D = dnnlib.util.construct_class_by_name(**args.D_kwargs, **shape).train().requires_grad_(False)
    misc.copy_params_and_buffers(pickles.load(args.resume_pkl)['D'], D)
    assert equal(weights(D.student), weights(before.student))
    assert set(weights(D)) == {f'student.{name}' for name in weights(before.student)}
    assert ('student.b16.fromrgb.weight' in dict(D.named_buffers())) == (freezed is not None)
    if loss is None:
        G = pickles.load(student)['G'].train().requires_grad_(False)
        found = gradients(AdversarialLoss, G, D, 'Dmain')
        assert below('D.', found).keys() == dict(D.named_parameters()).keys()

    data_then = dict(pickles.load(teacher), D=D)
    pickles.save(tmp_path / 'then.pkl', data_then)
    run = configurations.loop_arguments(data, aug='noaug', freezed=1)
    _desc, args = compressed(*run, loss=loss, student=str(tmp_path / 'then.pkl'), device='cpu', **given)
    third = dnnlib.util.construct_class_by_name(**args.D_kwargs, **shape)
    assert 'student.b16.fromrgb.weight' in dict(third.named_buffers())

    if freezed is not None:  # What was frozen before is not frozen for ever.
        run = configurations.loop_arguments(data, aug='noaug')
        _desc, args = compressed(*run, loss=loss, student=str(tmp_path / 'then.pkl'), device='cpu', **given)
        thawed = dnnlib.util.construct_class_by_name(**args.D_kwargs, **shape)
        assert 'student.b16.fromrgb.weight' in dict(thawed.named_parameters())

    nickel = dict(loss=LOSS, teacher=teacher, student=str(tmp_path / 'then.pkl'))
    _desc, args = compressed(*configurations.loop_arguments(data, aug='noaug'), **nickel)
    again = dnnlib.util.construct_class_by_name(**args.D_kwargs, **shape).requires_grad_(False)
    misc.copy_params_and_buffers(D, again)
    assert again.started == 0  # D_T starts from the teacher's.
    assert equal(weights(again.student), weights(D.student))


def test_the_teachers_discriminator_has_to_divide_the_batch_too(tmp_path, data, make_teacher):
    teacher, student = make_teacher(D=dict(epilogue_kwargs=dict(mbstd_group_size=3))), make_teacher('student.pkl')
    run = configurations.loop_arguments(data, aug='noaug', batch=8)
    with pytest.raises(UserError, match='8 images on a GPU at a time, which D compares in groups of 3'):
        compressed(*run, loss=LOSS, teacher=teacher, student=student)


def test_going_on_with_another_discriminator_is_refused(tmp_path, data, make_teacher):
    teacher, other = make_teacher(), make_teacher('other.pkl', D=dict(channel_max=8))
    data_of_run = dict(pickles.load(teacher), D=make_dual(teacher_kwargs=dict(WIDTHS), student_kwargs=dict(WIDTHS)))
    pickles.save(tmp_path / 'snapshot.pkl', data_of_run)
    run = configurations.loop_arguments(data, aug='noaug', freezed=1)
    student = str(tmp_path / 'snapshot.pkl')
    _desc, args = compressed(*copy.deepcopy(run), loss=LOSS, teacher=teacher, student=student)
    assert args.D_kwargs.teacher_kwargs == dict(WIDTHS, block_kwargs=dict(freeze_layers=1))
    with pytest.raises(UserError, match='by NICKEL before'):
        compressed(*copy.deepcopy(run), loss=LOSS, teacher=other, student=student)
    # As a teacher, such a snapshot has the student's discriminator to give.
    _desc, args = compressed(*run, loss=LOSS, teacher=student, student=teacher)
    assert args.D_kwargs.teacher_kwargs['channel_max'] == 16


HOST_ALONE = (
    WITHOUT_OUR_PACKAGE
    + """
import sys
host, snapshot, logits = sys.argv[1:]
sys.path.insert(0, host)
import legacy
import torch

def load(**kwargs):
    with open(snapshot, 'rb') as f:
        return legacy.load_network_pkl(f, **kwargs)['D']

images, c = torch.randn([2, 3, 16, 16], generator=torch.Generator().manual_seed(1)), torch.eye(2)
D = load()
torch.save([
    D(images, c),
    D.train()(images, c, both=True)[0],
    load(force_fp16=True)(images, c, force_fp32=True),
], logits)
assert not any(name.startswith('stylegan2_compress') for name in sys.modules)
"""
)


def test_host_alone_opens_it(tmp_path, make_generator):
    G = make_generator(c_dim=2)
    D = make_dual(c_dim=2, teacher_kwargs=dict(WIDTHS, block_kwargs=dict(freeze_layers=2))).eval()
    path = tmp_path / 'snapshot.pkl'
    pickles.save(path, dict(G=G, D=D, G_ema=G, training_set_kwargs=None, augment_pipe=None))
    command = [sys.executable, '-W', 'ignore', '-c', HOST_ALONE, str(HOST), str(path), str(tmp_path / 'logits.pt')]
    subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, 'PYTHONPATH': ''})
    images = torch.randn([2, 3, 16, 16], generator=torch.Generator().manual_seed(1))
    for logits in torch.load(tmp_path / 'logits.pt'):
        torch.testing.assert_close(logits, D(images, torch.eye(2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('suffix', ['pkl', 'safetensors'])
def test_files_give_it_back(tmp_path, make_generator, suffix, recwarn):
    D, G = make_dual(teacher_kwargs=dict(WIDTHS, block_kwargs=dict(freeze_layers=2))).eval(), make_generator()
    D.started.fill_(1)
    path = tmp_path / f'snapshot.{suffix}'
    pickles.save(path, dict(G=G, D=D, G_ema=G, training_set_kwargs=None, augment_pipe=None))
    loaded = pickles.load(path)['D']
    assert isinstance(loaded, DualDiscriminator)
    assert equal(weights(loaded), weights(D))
    assert not [warning for warning in recwarn if 'source' in str(warning.message)]


# --- Two processes ----------------------------------------------------------------------------------------------------


def train_some_steps(directory, rank, processes, batch):
    """Three steps with DistributedDataParallel as the host wraps it, on this process's share of eight images a step."""
    torch.set_num_threads(1)
    kwargs = dict(WIDTHS, epilogue_kwargs=dict(mbstd_num_channels=0))  # That layer looks at the local batch only.
    D = make_dual(student_kwargs=kwargs, teacher_kwargs=kwargs)
    shape = dict(z_dim=16, c_dim=0, w_dim=16, img_resolution=16, img_channels=3, mapping_kwargs=dict(num_layers=1))
    torch.manual_seed(1)
    G = networks.Generator(**shape, synthesis_kwargs=dict(WIDTHS, use_noise=False)).train().requires_grad_(False)
    torch.manual_seed(100 + rank)  # The host's processes have nothing in common but the first weights.
    modules = dict(G_mapping=G.mapping, G_synthesis=G.synthesis, D=D)
    if processes > 1:
        for name, module in modules.items():
            module.requires_grad_(True)
            modules[name] = torch.nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)
            module.requires_grad_(False)
    if rank == 0:  # As if it had resumed and not all of that were handed on to the others.
        D.started.fill_(1)
    loss = NICKELLoss(
        device='cpu', augment_pipe=None, teacher=f'{directory}/teacher.pkl', style_mixing_prob=0, r1_gamma=2, **modules
    )
    draws = torch.Generator().manual_seed(2)
    recorded = []
    for step in range(3):
        for phase, module in [('Gmain', G), ('Dmain', D), ('Dreg', D)]:
            real = torch.randn(8, 3, 16, 16, generator=draws)[rank * 8 // processes :][: 8 // processes]
            z = torch.randn(8, 16, generator=draws)[rank * 8 // processes :][: 8 // processes]
            c = torch.zeros(batch, 0)
            module.requires_grad_(True)
            for start in range(0, len(z), batch):  # Gradient accumulation: only the last round synchronises.
                rows = slice(start, start + batch)
                loss.accumulate_gradients(phase, real[rows], c, z[rows], c, start + batch == len(z), 1)
            module.requires_grad_(False)
            for name, parameter in module.named_parameters():
                if parameter.grad is not None:
                    recorded.append((f'{step} {phase} {name}', parameter.grad.clone()))
                    parameter.sub_(parameter.grad, alpha=0.01)
                    parameter.grad = None
    return recorded


def run_process(rank, directory):
    torch.save(train_some_steps(directory, rank, 2, batch=2), f'{directory}/gradients{rank}.pt')


def test_two_processes_are_one_with_twice_the_batch(tmp_path, make_teacher):
    """Every gradient of three steps, in two rounds each."""
    make_teacher(
        G=dict(synthesis_kwargs=dict(channel_base=128, channel_max=8, use_noise=False)),
        D=dict(epilogue_kwargs=dict(mbstd_num_channels=0)),
    )
    in_two_processes(run_process, str(tmp_path))
    first, second = (torch.load(tmp_path / f'gradients{rank}.pt') for rank in range(2))
    alone = dict(train_some_steps(str(tmp_path), 0, 1, batch=4))
    first, second = dict(first), dict(second)
    assert first.keys() == second.keys()
    for name, gradient in alone.items():
        assert torch.equal(first[name], second[name]), name
        scale = float(gradient.abs().max())
        torch.testing.assert_close(first[name], gradient, rtol=1e-3, atol=1e-3 * scale + 1e-7, msg=name)
    assert any(gradient.any() for name, gradient in alone.items() if name == '0 Dmain project_b4.weight')
