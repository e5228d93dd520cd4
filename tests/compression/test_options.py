"""From options to loop arguments: the host's configurations, the compression options, and what they refuse."""

import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import types
import zipfile

import dnnlib
import numpy as np
import PIL.Image
import pytest
import requests
import torch
from commands import refused, run
from plans import compressed

from stylegan2_compress import arguments, pickles
from stylegan2_compress.compression.distill import distill
from stylegan2_compress.compression.options import MethodOptions
from stylegan2_compress.distributions import sources
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation import samples
from stylegan2_compress.evaluation.compare import compare
from stylegan2_compress.host import configurations, datasets, downloads
from stylegan2_compress.host.precision import Precision, discriminator_for, generator_for
from stylegan2_compress.report import reading
from stylegan2_compress.runs.directory import RunDirectory
from stylegan2_compress.runs.loops import HOST_LOOP, OUR_LOOP
from stylegan2_compress.training_loops.data import Share, real_batches

SPEC = 'efficientnet_lite0@size=32'
HOST_LOSS = 'training.loss.StyleGAN2Loss'
DIME = 'stylegan2_compress.DiMELoss'
IMAGES = 'stylegan2_compress.ImageDistillationLoss'


pytestmark = pytest.mark.usefixtures('own_cache')


@pytest.fixture
def data(tmp_path, make_dataset_zip):
    return str(make_dataset_zip(tmp_path, n=12, resolution=16, channels=3, labels=3))


@pytest.fixture
def make_teacher(tmp_path, make_generator, make_discriminator):
    def build(name='teacher.pkl', **overrides):
        G = make_generator(**overrides).eval()
        D = make_discriminator(**{key: overrides[key] for key in overrides if key != 'synthesis_kwargs'}).eval()
        path = str(tmp_path / name)
        pickles.save(path, dict(G=G, D=D, G_ema=G, training_set_kwargs=None, augment_pipe=None))
        return path

    return build


@pytest.fixture
def host_train():
    """The train.py of a real checkout, as a module."""
    spec = importlib.util.spec_from_file_location('host_train', f'{os.environ["STYLEGAN2_ADA_PYTORCH"]}/train.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- The host's configurations --------------------------------------------------------------------------------------

HOST_OPTIONS = [
    dict(),
    dict(cfg='auto', gpus=4),
    *(dict(cfg=cfg, gpus=2) for cfg in configurations.CONFIGURATIONS),
    dict(cond=True, mirror=True, subset=7, seed=5),
    dict(gamma=0.5, kimg=3, batch=8, snap=2, workers=2),
    dict(aug='noaug', fp32=True),
    dict(nhwc=True, allow_tf32=True, nobench=True),
    dict(aug='fixed', p=0.3, augpipe='blit'),
    *(dict(aug='ada', target=0.5, augpipe=augpipe) for augpipe in configurations.AUGPIPES),
    dict(freezed=3, metrics=['fid50k_full', 'kid50k']),
]


@pytest.mark.checkout
@pytest.mark.parametrize('given', HOST_OPTIONS, ids=str)
def test_loop_arguments_equal_the_hosts(host_train, data, given):
    """Against the unpatched train.py of a real checkout, as it would be written to training_options.json."""
    _desc, theirs = host_train.setup_training_loop_kwargs(data=data, **dict(dict(metrics=[]), **given))
    _desc, ours = configurations.loop_arguments(data, **given)
    assert json.loads(json.dumps(ours)) == json.loads(json.dumps(theirs))


@pytest.mark.checkout
@pytest.mark.parametrize(
    'given',
    [
        dict(cond=True), dict(subset=0), dict(subset=99), dict(gamma=-1.0), dict(kimg=0), dict(batch=3, gpus=2),
        dict(snap=0), dict(aug='fixed'), dict(p=0.5), dict(aug='fixed', p=1.5), dict(target=2.0),
        dict(aug='noaug', target=0.5), dict(freezed=-1),
    ],
    ids=str,
)  # fmt: skip
def test_loop_arguments_refuse_what_the_host_refuses(host_train, tmp_path, make_dataset_zip, given):
    data = str(make_dataset_zip(tmp_path, n=12, name='unlabelled.zip'))
    with pytest.raises(host_train.UserError):
        host_train.setup_training_loop_kwargs(data=data, **given)
    with pytest.raises(UserError):
        configurations.loop_arguments(data, **given)


@pytest.mark.parametrize(
    ('resolution', 'channel_base', 'layers', 'architecture', 'cfg'),
    [(256, 16384, 8, None, 'paper256'), (512, 32768, 8, None, 'stylegan2'), (1024, 32768, 8, 'resnet', 'stylegan2'),
     (256, 32768, 8, None, 'auto'), (256, 16384, 2, None, 'auto'), (32, 32768, 2, None, 'auto'),
     (32, 32768, 2, 'resnet', 'auto'), (32, 32768, 2, 'orig', 'cifar')],
)  # fmt: skip
def test_configuration_is_read_off_the_teacher(resolution, channel_base, layers, architecture, cfg):
    G = types.SimpleNamespace(
        img_resolution=resolution,
        init_kwargs=dict(mapping_kwargs=dict(num_layers=layers), synthesis_kwargs=dict(channel_base=channel_base)),
    )
    D = types.SimpleNamespace(init_kwargs={} if architecture is None else dict(architecture=architecture))
    assert configurations.configuration_name(G, D) == cfg
    if architecture is None:
        assert configurations.configuration_name(G, None) == cfg


@pytest.mark.parametrize(('mbstd', 'cfg'), [(8, 'paper512'), (4, 'stylegan2')])
def test_configurations_of_512_pixels_differ_by_the_discriminator(mbstd, cfg):
    G = types.SimpleNamespace(img_resolution=512, init_kwargs={})
    D = types.SimpleNamespace(init_kwargs=dict(epilogue_kwargs=dict(mbstd_group_size=mbstd)))
    assert configurations.configuration_name(G, D) == cfg


@pytest.mark.parametrize(('gpus', 'at_a_time'), [(1, 8), (8, 8), (16, 4), (64, 1)])
def test_more_gpus_than_the_configuration_has_take_fewer_images(data, gpus, at_a_time):
    _name, args = configurations.loop_arguments(data, cfg='paper256', gpus=gpus)
    assert (args.batch_size, args.batch_gpu) == (64, at_a_time)
    Share(args.batch_size, args.batch_gpu, gpus)  # Refuses what it cannot divide.


def test_gpus_that_cannot_share_the_configurations_batch_are_refused(data):
    with pytest.raises(UserError, match='a batch of 64 images, which is not divisible by --gpus=3: give --batch'):
        configurations.loop_arguments(data, cfg='paper256', gpus=3)


# --- compress -------------------------------------------------------------------------------------------------------


@pytest.fixture
def plain(data):
    return configurations.loop_arguments(data, kimg=1, batch=4, aug='noaug')


def with_cuda(monkeypatch, available):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: available)


def test_without_options_and_with_cuda_nothing_changes(monkeypatch, plain):
    with_cuda(monkeypatch, True)
    before = json.dumps(plain)
    assert json.dumps(compressed(*plain)) == before


def test_without_cuda_our_loop_runs_in_fp32(monkeypatch, plain):
    with_cuda(monkeypatch, False)
    _desc, args = compressed(*plain)
    assert args.loop == OUR_LOOP
    assert args.G_kwargs.synthesis_kwargs.num_fp16_res == args.D_kwargs.num_fp16_res == 0
    assert args.data_loader_kwargs.pin_memory is False


def test_student_gives_shapes_and_weights(plain, make_teacher):
    student = make_teacher('student.pkl', synthesis_kwargs=dict(channel_base=128, channel_max=8))
    _desc, args = compressed(*plain, student=student)
    assert args.resume_pkl == student
    assert args.G_kwargs == dict(
        class_name='training.networks.Generator', z_dim=16, w_dim=16, mapping_kwargs=dict(num_layers=2),
        synthesis_kwargs=dict(channel_base=128, channel_max=8, num_fp16_res=0, conv_clamp=256),
    )  # fmt: skip
    assert args.D_kwargs == dict(
        class_name='training.networks.Discriminator', channel_base=256, channel_max=16, num_fp16_res=0, conv_clamp=256,
        block_kwargs={},
    )  # fmt: skip
    assert args.ema_rampup is None
    G = dnnlib.util.construct_class_by_name(**args.G_kwargs, c_dim=0, img_resolution=16, img_channels=3)
    data = pickles.load(student)
    assert {n: p.shape for n, p in G.named_parameters()} == {n: p.shape for n, p in data['G'].named_parameters()}


@pytest.mark.parametrize(('aug', 'kimg'), [('ada', 100), ('noaug', None)])
def test_a_student_is_augmented_as_fast_as_what_the_host_resumes(data, make_teacher, aug, kimg):
    student = make_teacher('student.pkl', synthesis_kwargs=dict(channel_base=128, channel_max=8))
    _desc, args = compressed(*configurations.loop_arguments(data, batch=4, aug=aug), student=student)
    assert args.get('ada_kimg') == kimg


def half(kwargs):
    """The precision that constructor arguments ask for."""
    return kwargs.get('num_fp16_res', 0), kwargs.get('conv_clamp')


@pytest.mark.parametrize(
    'pickle', [{}, dict(num_fp16_res=3, conv_clamp=64, fp16_channels_last=True)], ids=['fp32', 'fp16']
)
@pytest.mark.parametrize('fp32', [True, False])
@pytest.mark.parametrize('loss', ['stylegan2_compress.AdversarialLoss', 'stylegan2_compress.NICKELLoss'])
def test_the_precision_is_the_runs_whatever_the_pickles(data, make_teacher, monkeypatch, pickle, fp32, loss):
    """That of G and of both discriminators, and of the frozen teacher."""
    student = make_teacher('student.pkl', synthesis_kwargs=dict(channel_base=256, channel_max=16, **pickle))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)  # Without CUDA, FP16 is dropped in the end.
    teacher = student if 'NICKEL' in loss else None
    _desc, args = compressed(
        *configurations.loop_arguments(data, aug='noaug', fp32=fp32), student=student, loss=loss, teacher=teacher
    )
    wanted = (0, None) if fp32 else (4, 256)
    assert half(args.G_kwargs.synthesis_kwargs) == half(args.D_kwargs) == wanted
    assert 'fp16_channels_last' not in json.dumps([args.G_kwargs, args.D_kwargs])
    G = dnnlib.util.construct_class_by_name(**args.G_kwargs, c_dim=0, img_resolution=16, img_channels=3)
    of_the_run = Precision.of_synthesis(G.synthesis.init_kwargs), torch.device('cpu')
    networks = pickles.load(student)
    D = discriminator_for(networks['D'], *of_the_run)
    for frozen in (generator_for(networks['G_ema'], *of_the_run), D):
        clamps = {module.conv_clamp for module in frozen.modules() if hasattr(module, 'conv_clamp')}
        assert clamps - {None} == {wanted[1]} - {None}  # A block's way around its convolutions has none.
        assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert D is not networks['D']
    assert all(torch.equal(tensor, networks['D'].state_dict()[name]) for name, tensor in D.state_dict().items())


def test_memory_format_is_the_runs(plain, make_teacher):
    name, args = plain
    args.G_kwargs.synthesis_kwargs.fp16_channels_last = args.D_kwargs.block_kwargs.fp16_channels_last = True  # --nhwc
    teacher = make_teacher()
    _desc, args = compressed(
        name, args, student=teacher, teacher=teacher, loss='stylegan2_compress.NICKELLoss', device='cpu'
    )
    for kwargs in (
        args.G_kwargs.synthesis_kwargs,
        *(args.D_kwargs[f'{who}_kwargs']['block_kwargs'] for who in ('student', 'teacher')),
    ):
        assert kwargs['fp16_channels_last'] is True


def test_freezed_survives_the_students_discriminator(data, make_teacher):
    desc_and_args = configurations.loop_arguments(data, aug='noaug', freezed=2)
    _desc, args = compressed(*desc_and_args, student=make_teacher())
    assert args.D_kwargs.block_kwargs == dict(freeze_layers=2)


def test_loss_and_its_arguments(plain, make_teacher):
    teacher = make_teacher()
    desc, args = compressed(
        *plain, loss=DIME, teacher=teacher, loss_args=(f'embeddings={SPEC}', 'weights=[3]', 'pl_weight=0')
    )
    assert args.loss_kwargs == dict(
        class_name=DIME,
        r1_gamma=args.loss_kwargs.r1_gamma,
        teacher=teacher,
        embeddings=SPEC,
        weights=[3],
        pl_weight=0,
        training_set_kwargs=args.training_set_kwargs,
    )
    assert desc.endswith('-DiMELoss')
    json.dumps(args)


def test_a_run_directory_stands_for_its_last_snapshot(tmp_path):
    """Also of train.py, which has these options alone; what is on record is the file."""
    for kimg in (9, 10):
        (tmp_path / f'network-snapshot-{kimg:06d}.pkl').touch()
    options = MethodOptions(teacher=str(tmp_path), student=str(tmp_path / 'network-snapshot-000009.pkl'))
    assert options.teacher == str(tmp_path / 'network-snapshot-000010.pkl')
    assert options.student == str(tmp_path / 'network-snapshot-000009.pkl')
    assert MethodOptions().teacher is None


def test_a_loss_of_the_users_own(plain, tmp_path, monkeypatch):
    (tmp_path / 'my_losses.py').write_text(
        'class Mine:\n'
        '    def __init__(self, device, G_mapping, G_synthesis, D, augment_pipe=None, *, strength=1):\n'
        '        pass\n'
        '    def accumulate_gradients(self, **kwargs):\n'
        '        pass\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    _desc, args = compressed(*plain, loss='my_losses.Mine', loss_args=('strength=2.5',))
    assert args.loss_kwargs == dict(class_name='my_losses.Mine', strength=2.5)


@pytest.mark.parametrize(
    ('text', 'parsed'),
    [('a=1', 1), ('a=1.5e-3', 1.5e-3), ('a=true', True), ('a=null', None), ('a=[1, 2]', [1, 2]), ('a=x=y', 'x=y'),
     ('a="1"', '1'), ('a=', '')],
)  # fmt: skip
def test_loss_arg_values_are_json_or_text(text, parsed):
    name, value = arguments.split_text('--loss-arg', text)
    assert (name, arguments.parse_freely(value)) == ('a', parsed)


# --- Bad input: exit status 2, one sentence, nothing written ----------------------------------------------------------


def bad_input_cases():
    yield 'no data', dict(data='nowhere.zip'), '--data=nowhere.zip'
    yield 'data is no dataset', dict(data='text.zip'), '--data=text.zip'
    yield 'no teacher', dict(teacher='nowhere.pkl'), 'nowhere.pkl'
    yield 'teacher is no pickle', dict(teacher='text.zip'), 'text.zip'
    yield 'teacher without G_ema', dict(teacher='only_d.pkl'), 'G_ema'
    yield 'student without D', dict(student='only_g.pkl'), 'only_g.pkl has no D'
    yield 'resolution', dict(teacher='res8.pkl'), '--teacher=res8.pkl has images of resolution 8'
    yield 'channels', dict(teacher='grey.pkl'), '--teacher=grey.pkl has channels 1'
    yield 'labels', dict(teacher='labels.pkl', cond='0'), '--teacher=labels.pkl has label dimensions 3'
    yield 'no labels', dict(teacher='labels.pkl', data='plain.zip'), 'needs labels'
    yield 'other student', dict(student='res8.pkl'), '--student=res8.pkl'
    yield 'ratio 1', dict(ratio='1'), 'at least 0 and less than 1'
    yield 'ratio negative', dict(ratio='-0.1'), 'at least 0 and less than 1'
    yield 'ratio nan', dict(ratio='nan'), '--ratio=nan must be a number'
    yield 'ratio and student', dict(ratio='0.5', student='teacher.pkl'), 'exclude'
    yield 'loss', dict(loss='stylegan2_compress.DimLoss'), DIME
    yield 'loss is no loss', dict(loss='json.dumps'), 'not a loss class'
    yield 'loss without dot', dict(loss='DiMELoss'), DIME
    yield 'loss empty', dict(loss=''), DIME
    yield 'loop', dict(loop='training_loops.lopp'), OUR_LOOP
    yield 'loop is no loop', dict(loop=DIME), OUR_LOOP
    yield 'loop is no function of ours', dict(loop='os.getcwd'), OUR_LOOP
    yield 'embedding', {'loss-arg': 'embeddings=efficientnet_lite7'}, 'efficientnet_lite0'
    yield 'loss-arg', {'loss-arg': 'embedings=x'}, 'embeddings'
    yield 'loss-arg form', {'loss-arg': 'embeddings'}, 'KEY=VALUE'
    yield 'embedding is a number', {'loss-arg': 'embeddings=3'}, "No embedding is called '3'"
    yield 'embeddings are numbers', {'loss-arg': 'embeddings=[3]'}, '--loss-arg embeddings=3 must be text'
    yield 'truncation', {'loss-arg': 'truncation_psi=NaN'}, 'truncation_psi=nan'
    yield 'weights', {'loss-arg': 'weights=Infinity'}, 'weights=inf must be a number'
    yield 'style mixing', {'loss-arg': 'style_mixing_prob=7'}, 'style_mixing_prob=7'
    yield 'gamma of the loss', {'loss-arg': 'r1_gamma=big'}, 'r1_gamma=big'
    yield 'path lengths', {'loss-arg': 'pl_weight=-1', 'loss': 'stylegan2_compress.NICKELLoss'}, 'pl_weight=-1'
    yield (
        'path length decay',
        {'loss-arg': 'pl_decay=NaN', 'loss': 'stylegan2_compress.AdversarialLoss'},
        'pl_decay=nan',
    )
    yield 'shrink', {'loss-arg': 'pl_batch_shrink=0', 'loss': IMAGES}, 'pl_batch_shrink=0'
    yield 'embedding of images', {'loss-arg': 'embedding=3', 'loss': IMAGES}, "'3'"
    yield 'outdir', dict(outdir='text.zip/below'), '--outdir=text.zip/below'
    yield 'metric', dict(metrics='fid'), 'fid50k_full'
    yield 'cfg', dict(cfg='paper255'), 'paper256'
    yield 'aug', dict(aug='adda'), 'noaug'
    yield 'augpipe', dict(aug='ada', augpipe='abc'), 'bgc'
    yield 'kimg', dict(kimg='0'), '--kimg=0'
    yield 'batch', dict(batch='0'), '--batch=0'
    yield 'batch in groups', dict(batch='6'), 'groups of 4'
    yield 'rounds in groups', {'batch': '12', 'batch-gpu': '6'}, 'groups of 4'
    yield 'half an image', {'batch': '1', 'loss': HOST_LOSS, 'loss-arg': 'r1_gamma=1'}, '1 image on a GPU at a time'
    yield 'NaN', dict(teacher='nan.pkl'), 'nan.pkl has 1 weights of'
    yield 'student of NaN', dict(student='nan.pkl'), 'nan.pkl has 1 weights of'
    yield 'seed', dict(seed='-1'), '--seed=-1'
    yield 'resume', {'resume': 'nope', 'loss-arg': 'embeddings=efficientnet_lite7'}, '--resume=nope is no run directory'
    yield 'gamma', dict(gamma='inf'), '--gamma=inf'
    yield 'lr', dict(lr='-1'), '--lr=-1'
    yield 'lr infinite', dict(lr='inf'), '--lr=inf'
    yield 'tick', {'kimg-per-tick': 'inf'}, '--kimg-per-tick=inf'
    yield 'device', dict(device='gpu'), '--device=gpu'
    yield 'truncation with data', dict(truncation='0.7'), "--truncation=0.7 is about the teacher's images"
    yield 'labels with data', dict(labels='0'), "--labels=0 is about the teacher's images"
    yield 'truncation of nothing', dict(data=None, truncation='nan'), '--truncation=nan must be a number'
    yield 'mirror without data', dict(data=None, mirror='1'), '--mirror=True is about --data'
    yield 'labels without data', dict(data=None, cond='1'), '--cond=True is about --data'
    yield 'subset without data', dict(data=None, subset='5'), '--subset=5 is about --data'
    yield 'metrics without data', dict(data=None, metrics='fid50k_full'), '--metrics=fid50k_full compares with --data'
    yield 'classes there are not', dict(data=None, teacher='labels.pkl', labels='0,7'), '--labels=0,7 names class 7'
    yield 'reference without data', {'data': None, 'loss-arg': 'reference=data'}, 'reference=data needs --data'
    of_moments = {'data': None, 'loss': 'stylegan2_compress.MomentMatchingLoss', 'loss-arg': 'reference=data'}
    yield 'moments of data without data', of_moments, 'reference=data needs --data'
    yield 'loop of files', dict(data=None, loop=HOST_LOOP), f'--loop={HOST_LOOP} reads its images from files'
    yield 'student of other size', dict(data=None, student='res8.pkl'), '--teacher=teacher.pkl has 16'
    yield 'memory', {'loss-arg': 'memory=2'}, 'memory=2 is less than the batch of'


@pytest.mark.parametrize(
    ('changes', 'sentence'), [case[1:] for case in bad_input_cases()], ids=[c[0] for c in bad_input_cases()]
)
def test_bad_input(tmp_path, monkeypatch, data, make_teacher, make_dataset_zip, changes, sentence):
    monkeypatch.chdir(tmp_path)
    make_dataset_zip(tmp_path, name='plain.zip')
    (tmp_path / 'text.zip').write_text('no zip, no pickle')
    make_teacher()
    make_teacher('res8.pkl', img_resolution=8)
    make_teacher('grey.pkl', img_channels=1)
    make_teacher('labels.pkl', c_dim=3)
    networks = pickles.load('teacher.pkl')
    pickles.save('only_d.pkl', dict(networks, G=None, G_ema=None))
    pickles.save('only_g.pkl', dict(networks, D=None))
    networks['G_ema'].synthesis.b4.const.data[0, 0, 0] = float('nan')
    pickles.save('nan.pkl', networks)
    given = {
        'teacher': 'teacher.pkl',
        'data': data,
        'outdir': 'out',
        'loss-arg': f'embeddings={SPEC}',
        'kimg': '1',
        **changes,
    }
    arguments = (f'--{key}={value}' for key, value in given.items() if value is not None)
    assert sentence in refused('distill', *arguments, unchanged=tmp_path)


def images_and_labels(path, images, dataset_json='{"labels": null}'):
    """A zip of images, PNG files of these arrays, or these bytes."""
    with zipfile.ZipFile(path, 'w') as archive:
        for index, image in enumerate(images):
            png = io.BytesIO(image if isinstance(image, bytes) else b'')
            if not isinstance(image, bytes):
                PIL.Image.fromarray(image).save(png, format='png')
            archive.writestr(f'{index}.png', png.getvalue())
        archive.writestr('dataset.json', dataset_json)
    return str(path)


PLAIN = np.zeros([16, 16, 3], np.uint8)


@pytest.mark.parametrize('labels', ['[1]', '{"labels": [["0.png", 1]]}', *(
    f'{{"labels": [["0.png", {label}], ["1.png", 0]]}}' for label in ('-1', '"cat"', '[1, 2]')
)])  # fmt: skip
def test_a_dataset_json_that_is_no_such_thing(tmp_path, labels):
    path = images_and_labels(tmp_path / 'data.zip', [PLAIN, PLAIN], labels)
    with pytest.raises(UserError, match=r'--data=.*data\.zip has a dataset\.json that cannot be used'):
        datasets.open_training_set(path)


def test_images_of_four_channels(tmp_path):
    path = images_and_labels(tmp_path / 'data.zip', [np.zeros([16, 16, 4], np.uint8)])
    with pytest.raises(UserError, match=r'--data=.*data\.zip has images of 4 channels'):
        datasets.open_training_set(path)


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize(
    ('image', 'reason'),
    [
        (b'no image', 'cannot identify image file'),
        (PLAIN[:8, :8], 'differs from the first'),
        (PLAIN[..., 0], 'differs from the first'),
    ],
    ids=['damaged', 'smaller', 'grey'],
)
def test_an_image_that_is_not_like_the_first_is_named(tmp_path, image, reason, workers):
    path = images_and_labels(tmp_path / 'data.zip', [PLAIN, PLAIN, image, PLAIN])
    training_set, kwargs = datasets.open_training_set(path)
    sentence = rf'The image 2\.png in --data=.*data\.zip cannot be used \(.*{reason}'
    batches = real_batches(training_set, Share(4, 4), 0, 0, torch.device('cpu'), num_workers=workers)
    with pytest.raises(UserError, match=sentence):
        next(batches)
    with pytest.raises(UserError, match=sentence):
        sources.DatasetImages(kwargs).draw(0)
    with pytest.raises(UserError, match=sentence):
        next(samples.reals(training_set))


@pytest.mark.parametrize('side', [2, 20])
def test_images_of_a_size_that_no_generator_makes(tmp_path, side):
    path = images_and_labels(tmp_path / 'data.zip', [np.zeros([side, side, 3], np.uint8)])
    with pytest.raises(UserError, match=f'resolution {side}, which must be a power of 2'):
        configurations.loop_arguments(path)


def test_a_metric_without_its_detector_is_refused_before_the_run(tmp_path, monkeypatch, data, make_teacher):
    def offline(*_args, **_kwargs):
        raise requests.ConnectionError

    teacher = make_teacher()
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))
    monkeypatch.setattr(downloads, '_PAUSE', 0)
    monkeypatch.setattr(requests.Session, 'request', offline)
    with pytest.raises(UserError, match=r'Cannot download .*inception.*leave out --metrics=kid50k_full'):
        distill(teacher, data, str(tmp_path / 'out'), loss_args=(f'embeddings={SPEC}',), metrics='kid50k_full')
    assert not (tmp_path / 'out').exists()


def test_an_error_that_no_image_explains_stays(tmp_path):
    training_set, _kwargs = datasets.open_training_set(images_and_labels(tmp_path / 'data.zip', [PLAIN]))
    with pytest.raises(ZeroDivisionError), datasets.reading(training_set, [0]):
        1 / 0  # noqa: B018


def test_few_images_are_told(tmp_path, data, make_teacher, capsys, monkeypatch):
    given = dict(loss_args=(f'embeddings={SPEC}',), dry_run=True)
    distill(make_teacher(), data, str(tmp_path / 'out'), **given)
    assert '--data has 12 images, few enough' in capsys.readouterr().out
    distill(make_teacher(), data, str(tmp_path / 'out'), aug='ada', subset=9, **given)
    told = capsys.readouterr().out
    assert '--data has 9 images' in told
    assert '--aug' not in told.partition('Training options')[0]
    distill(teacher=make_teacher(), outdir=str(tmp_path / 'out'), **given)
    assert '--data' not in capsys.readouterr().out
    monkeypatch.setattr('stylegan2_compress.compression.distill.FEW_IMAGES', 12)
    distill(make_teacher(), data, str(tmp_path / 'out'), **given)
    assert '--data' not in capsys.readouterr().out


# --- distill --------------------------------------------------------------------------------------------------------


def test_a_run_needs_a_directory(make_teacher):
    with pytest.raises(UserError, match=r'^--outdir= is empty: name a directory'):
        distill(teacher=make_teacher(), dry_run=True)


def test_dry_run_writes_nothing(tmp_path, data, make_teacher, capsys):
    run_dir = distill(make_teacher(), data, str(tmp_path / 'out'), loss_args=(f'embeddings={SPEC}',), dry_run=True)
    assert not (tmp_path / 'out').exists()
    printed = capsys.readouterr().out
    assert f'"resume_pkl": "{run_dir}/student.pkl"' in printed
    assert 'Dry run' in printed


def test_a_generator_alone_is_no_student(tmp_path, data, make_teacher):
    teacher, student = make_teacher(c_dim=3), tmp_path / 'student.pkl'
    run('prune', '--teacher', teacher, '--ratio', 0.5, '--only', 'G_ema', '--out', student)
    assert student.stat().st_size < os.path.getsize(teacher) / 2
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r'student.pkl has a placeholder for D'):
        distill(teacher, data, str(tmp_path / 'out'), student=str(student), loss_args=(f'embeddings={SPEC}',))
    assert sorted(tmp_path.iterdir()) == before


def test_snapshots_of_the_generator_alone_are_asked_of_our_loops(tmp_path, data, make_teacher):
    given = dict(loss_args=(f'embeddings={SPEC}',), only='G_ema', device='cpu')
    assert (
        json.loads(_dry(distill, make_teacher(c_dim=3), data, str(tmp_path / 'out'), **given))['snapshot_only']
        == 'G_ema'
    )
    with pytest.raises(UserError, match='--only=D does not exist; there are G_ema'):
        distill(make_teacher(c_dim=3), data, str(tmp_path / 'out'), **given | dict(only='D'))


def test_distill_from_teacher_to_snapshot(tmp_path, data, make_teacher):
    """The whole way; what ran is what training_options.json says, and the next run gets the next number."""
    teacher, outdir = make_teacher(c_dim=3), str(tmp_path / 'out')
    given = dict(loss_args=(f'embeddings={SPEC}', 'samples=8'), kimg=1, batch=100, device='cpu', workers=0, ratio=0.5)
    args = json.loads(_dry(distill, teacher, data, outdir, **given))
    run_dir = distill(teacher, data, outdir, **given)
    written = json.loads((tmp_path / run_dir / 'training_options.json').read_text())
    assert written['run_dir'] == run_dir
    assert written == args
    assert written['training_set_kwargs']['use_labels'] is True  # Read off the teacher.
    assert written['loss_kwargs']['training_set_kwargs']['path'] == data
    inputs = json.loads((tmp_path / run_dir / 'inputs.json').read_text())
    chosen = {name: value for name, value in inputs.items() if name.startswith('option.')}
    assert chosen == {
        'option.--teacher': teacher, 'option.--data': data, 'option.--kimg': '1', 'option.--batch': '100',
        'option.--device': 'cpu', 'option.--workers': '0', 'option.--ratio': '0.5',
        'option.--loss-arg': f'embeddings={SPEC},samples=8',
    }  # fmt: skip
    student = pickles.load(f'{run_dir}/student.pkl')
    snapshot = pickles.load(f'{run_dir}/network-snapshot-000001.pkl')
    assert student['G'].synthesis.b16.conv1.weight.shape[0] == 8
    assert not torch.equal(snapshot['G'].synthesis.b16.conv1.weight, student['G'].synthesis.b16.conv1.weight)
    assert snapshot['G_ema'](torch.zeros(1, 16), torch.eye(3)[:1]).shape == (1, 3, 16, 16)
    log = (tmp_path / run_dir / 'log.txt').read_text()
    assert 'tick 1' in log
    with open(f'{run_dir}/stats.jsonl') as file:
        stats = json.loads(file.readline())
    assert stats[f'Loss/DiME/{SPEC}']['num'] == 1
    second = distill(teacher, data, outdir, dry_run=True, **given)
    assert [path.rpartition('/')[2][:5] for path in (run_dir, second)] == ['00000', '00001']


def _dry(function, *args, **kwargs) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        function(*args, dry_run=True, **kwargs)
    text = printed.getvalue()
    return text[text.index('{') : text.rindex('}') + 1]


def test_a_student_of_another_teacher_is_another_run(make_teacher, data, tmp_path, monkeypatch, capfd):
    """Also where the loss does not look at the teacher: it is on record, and compared by content."""
    (tmp_path / 'idle.py').write_text('def training_loop(rank, run_dir, **args):\n    pass\n')
    monkeypatch.syspath_prepend(tmp_path)
    first, second = make_teacher('first.pkl'), make_teacher('second.pkl', seed=1)
    given = dict(data=data, outdir=str(tmp_path / 'runs'), loss='stylegan2_compress.AdversarialLoss', kimg=1)
    given.update(loop='idle.training_loop', metrics='none', device='cpu')
    run_dir = distill(teacher=first, **given)
    printed = capfd.readouterr().out
    assert re.search(rf'^Teacher: +{re.escape(first)}$', printed, flags=re.MULTILINE)
    assert reading.read(run_dir).teacher == first
    shutil.copy(RunDirectory(run_dir).student_path, RunDirectory(run_dir).snapshot_path(0))
    (row,) = compare([run_dir])
    assert row['teacher'] == 'first.pkl'
    os.rename(first, tmp_path / 'renamed.pkl')
    assert distill(teacher=str(tmp_path / 'renamed.pkl'), resume='latest', **given) == run_dir
    with pytest.raises(UserError, match=r'other options: student\.teacher: \w{8}… → \w{8}…\. Give those'):
        distill(teacher=second, resume=run_dir, **given)
    assert distill(teacher=second, resume='latest', **given) != run_dir
    assert 'not continuing' in capfd.readouterr().out
