"""The patched train.py of a real checkout. Needs STYLEGAN2_ADA_PYTORCH."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import dnnlib
import forked
import pytest
import torch
from host_alone import WITHOUT_OUR_PACKAGE

from stylegan2_compress import pickles
from stylegan2_compress.cli import main
from stylegan2_compress.compression import planning
from stylegan2_compress.compression.train_py import extend_train
from stylegan2_compress.runs import launch
from stylegan2_compress.runs.directory import RunDirectory
from stylegan2_compress.runs.loops import HOST_LOOP

pytestmark = pytest.mark.checkout

NO_D = ['--loss=stylegan2_compress.RegressionLoss']


@pytest.fixture
def checkout(tmp_path):
    """A copy of the checkout with an unpatched train.py."""
    original = Path(os.environ['STYLEGAN2_ADA_PYTORCH'])
    copy = tmp_path / 'checkout'
    shutil.copytree(original, copy, ignore=shutil.ignore_patterns('.git', '__pycache__', 'docs'))
    return copy


def patch(checkout, *options):
    main(['patch', str(checkout), *options], standalone_mode=False)


def train(checkout, *options, expect=0, run=forked.run_script, **variables):
    environment = {k: v for k, v in os.environ.items() if k != 'STYLEGAN2_ADA_PYTORCH'}
    status, output = run(checkout, 'train.py', *options, **(environment | variables))
    assert status == expect, output
    return output


def options_of(output):
    start = output.index('Training options:')
    return json.loads(output[output.index('{', start) : output.index('Output directory:')])


def start_script(directory, name, *arguments, **variables):
    """As `forked.run_script`, in a process that starts from nothing."""
    command = [sys.executable, name, *arguments]
    result = subprocess.run(command, cwd=directory, env=variables, capture_output=True, text=True, timeout=300)
    return result.returncode, result.stdout + result.stderr


@pytest.fixture
def data(tmp_path, make_dataset_zip):
    return str(make_dataset_zip(tmp_path, n=12, resolution=16, channels=3, labels=3))


@pytest.mark.parametrize('given', [[], ['--cfg=cifar', '--cond=1', '--aug=fixed', '--p=0.2', '--gamma=3']], ids=len)
def test_without_our_options_the_arguments_stay_the_hosts(checkout, data, given):
    command = ['--outdir=runs', f'--data={data}', '--metrics=none', '--dry-run', *given]
    before = options_of(train(checkout, *command))
    patch(checkout)
    after = options_of(train(checkout, *command))
    for_cpu = {'loop': after.pop('loop')}  # The host's loop cannot run on this machine at all.
    assert for_cpu == {'loop': 'stylegan2_compress.training_loops.distillation.training_loop'}
    for loader in (before['data_loader_kwargs'], after['data_loader_kwargs']):
        loader.pop('pin_memory'), loader.pop('num_workers')
    for kwargs in (before, after):
        kwargs['G_kwargs']['synthesis_kwargs'].pop('num_fp16_res'), kwargs['D_kwargs'].pop('num_fp16_res')
    assert after == before


def test_help_shows_the_options_and_an_example(checkout):
    patch(checkout)
    text = train(checkout, '--help')
    for option in ('--loss CLASS', '--loss-arg KEY=VALUE', '--teacher PKL', '--student PKL', '--loop MODULE.FUNCTION'):
        assert option in text
    assert '--loss=stylegan2_compress.DiMELoss' in text


def test_trains_with_dime_and_the_snapshot_needs_nothing_of_ours(tmp_path, checkout, data, teacher):
    untouched = tmp_path / 'untouched'
    shutil.copytree(checkout, untouched)
    unpatched = (checkout / 'train.py').read_bytes()
    patch(checkout)
    student = str(tmp_path / 'student.pkl')
    main(['prune', '--teacher', teacher, '--ratio', '0.5', '--out', student], standalone_mode=False)
    train(
        checkout, '--outdir=runs', f'--data={data}', f'--teacher={teacher}', f'--student={student}',
        '--loss=stylegan2_compress.DiMELoss', '--loss-arg', 'embeddings=efficientnet_lite0@size=32', '--loss-arg',
        'samples=8', '--kimg=1', '--batch=100', '--aug=noaug', '--metrics=none', '--snap=1', '--workers=1',
        run=start_script,
    )  # fmt: skip
    (run_dir,) = (checkout / 'runs').iterdir()
    assert run_dir.name == '00000-data-cond-auto1-kimg1-batch100-noaug-DiMELoss'
    written = json.loads((run_dir / 'training_options.json').read_text())
    assert written['loss_kwargs']['class_name'] == 'stylegan2_compress.DiMELoss'
    assert written['G_kwargs']['class_name'] == 'stylegan2_compress.networks.pruned.PrunedGenerator'
    snapshot = run_dir / 'network-snapshot-000001.pkl'
    assert snapshot.exists()

    script = WITHOUT_OUR_PACKAGE + (
        'import legacy, torch\n'
        f'G = legacy.load_network_pkl(open({str(snapshot)!r}, "rb"))["G_ema"]\n'
        'images = G(torch.randn(2, G.z_dim), torch.eye(3)[:2], truncation_psi=0.7, noise_mode="const")\n'
        'assert images.shape == (2, 3, 16, 16) and images.isfinite().all()\n'
        'assert G.synthesis.b16.conv1.weight.shape[0] == 8\n'
    )
    subprocess.run([sys.executable, '-c', script], cwd=untouched, check=True, timeout=120)

    patch(checkout, '--reverse')
    assert (checkout / 'train.py').read_bytes() == unpatched


@pytest.mark.parametrize(
    ('given', 'sentence'),
    [
        (['--student=nowhere.pkl'], 'nowhere.pkl'),
        (['--loss=stylegan2_compress.NoLoss'], 'stylegan2_compress.DiMELoss'),
        (['--loss=stylegan2_compress.DiMELoss'], '--teacher'),
        (['--loop=training.training_loop.training_loop'], 'CUDA'),
        (['--student=teacher.pkl', '--resume=ffhq256'], '--resume'),
        (['--resume=nowhere.pkl'], 'Cannot read nowhere.pkl'),
        (['--resume=teacher.pkl'], '--resume=teacher.pkl has a G of other shapes'),
        (['--teacher=teacher.pkl', '--cond=0'], 'label dimensions 3'),
        (['--teacher=teacher.pkl'], 'is for a loss that learns from it'),
        (['--teacher=teacher.pkl', *NO_D, '--gamma=7'], '--gamma=7.0 is about the discriminator, and --loss=styleg'),
        (['--teacher=teacher.pkl', *NO_D, '--aug=ada'], '--aug=ada is about the discriminator'),
        (['--cfg=cifar', '--gpus=4'], 'A batch of 64 is no multiple of 32 images on each of 4 GPUs'),
        (['--seed=-1'], '--seed=-1 must be'),
        (['--data=text.zip'], 'dataset.json that cannot be used'),
        (['--data=odd.zip'], 'resolution 12'),
        (['--data=images', '--outdir=images/runs'], '--outdir=images/runs is inside --data=images'),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else '',
)
def test_bad_input(checkout, tmp_path, make_dataset_zip, data, teacher, given, sentence):
    patch(checkout)
    shutil.copy(teacher, checkout)
    make_dataset_zip(checkout, n=2, resolution=12, name='odd.zip')
    shutil.unpack_archive(data, checkout / 'images')
    with zipfile.ZipFile(make_dataset_zip(checkout, n=2, name='text.zip'), 'a') as archive:
        names = [name for name in archive.namelist() if name.endswith('.png')]
        archive.writestr('dataset.json', json.dumps({'labels': [[name, 'cat'] for name in names]}))
    output = train(checkout, '--outdir=runs', f'--data={data}', '--metrics=none', *given, expect=2)
    assert sentence in output[output.index('Error:') :]
    assert 'Traceback' not in output
    assert not (checkout / 'runs').exists()


def test_without_a_discriminator_nothing_is_augmented(checkout, data, teacher):
    patch(checkout)
    shutil.copy(teacher, checkout)
    given = ['--outdir=runs', f'--data={data}', '--metrics=none', '--teacher=teacher.pkl', '--student=teacher.pkl']
    args = options_of(train(checkout, *given, *NO_D, '--dry-run'))
    assert 'augment_kwargs' not in args
    assert not {'ada_target', 'ada_kimg'} & set(args)


def test_a_run_that_began_with_the_hosts_resume_is_continued(tmp_path, data, monkeypatch):
    """The same option names the run then: the network pickle is read off its record. Nothing is trained here."""
    module = train_py(monkeypatch)
    monkeypatch.setattr(launch, 'run', lambda _args: None)
    outdir, start = str(tmp_path / 'runs'), str(tmp_path / 'start.pkl')

    def begin(*more):
        module.main([f'--outdir={outdir}', f'--data={data}', '--metrics=none', *more], standalone_mode=False)
        (*_others, newest) = RunDirectory.numbered(outdir)
        return newest.path.name[:5], newest.read_options()

    plain, args = begin('--aug=noaug')
    shape = dict(c_dim=0, img_resolution=16, img_channels=3)
    G, D = (dnnlib.util.construct_class_by_name(**args[name], **shape).eval() for name in ('G_kwargs', 'D_kwargs'))
    pickles.save(start, dict(G=G, D=D, G_ema=G, training_set_kwargs=None, augment_pipe=None))
    number, begun = begin(f'--resume={start}', '--kimg=2')
    assert (plain, number, begun['resume_pkl'], begun['ada_kimg']) == ('00000', '00001', start, 100)
    for resume in (f'{outdir}/{begun["run_dir"].rpartition("/")[2]}', 'latest'):
        assert begin(f'--resume={resume}', '--kimg=3') == (number, dict(begun, total_kimg=3))
    first = f'{outdir}/00000-data-auto1-noaug'
    assert begin('--resume=latest', '--aug=noaug')[0] == number  # No third one: it continued the first.
    assert 'resume_pkl' not in RunDirectory(first).read_options()
    number, others = begin('--resume=latest', '--gamma=3')  # Of these options, there is none.
    assert (number, others.get('resume_pkl')) == ('00002', None)


def test_a_metric_without_its_detector_is_refused_before_the_run(checkout, tmp_path, data):
    patch(checkout)
    offline = dict(DNNLIB_CACHE_DIR=str(tmp_path / 'empty'), HTTPS_PROXY='http://127.0.0.1:1')
    given = ['--outdir=runs', f'--data={data}', '--metrics=kid50k_full']
    output = train(checkout, *given, expect=2, **offline)
    assert 'leave out --metrics=kid50k_full' in output[output.index('Error:') :]
    assert not (checkout / 'runs').exists()
    train(checkout, *given, '--dry-run', **offline)


def test_distill_writes_the_same_options(checkout, tmp_path, data, teacher, capsys):
    patch(checkout)
    student = str(tmp_path / 'student.pkl')
    main(['prune', '--teacher', teacher, '--ratio', '0.5', '--out', student], standalone_mode=False)
    common = [f'--data={data}', f'--teacher={teacher}', f'--student={student}', '--kimg=2', '--batch=8', '--mirror=1']
    common += ['--loss=stylegan2_compress.DiMELoss', '--loss-arg=embeddings=efficientnet_lite0@size=32', '--dry-run']
    printed = train(checkout, '--outdir=runs', '--metrics=none', '--aug=noaug', *common)
    assert 'depends on the scale of the features of efficientnet_lite0@size=32' in printed
    theirs = options_of(printed)
    capsys.readouterr()
    main(['distill', '--outdir', str(checkout / 'runs'), *common], standalone_mode=False)
    ours = options_of(capsys.readouterr().out)
    assert ours.pop('run_dir').endswith('auto1-kimg2-batch8-noaug-DiMELoss')
    theirs.pop('run_dir')
    assert ours == theirs


def train_py(monkeypatch):
    """The checkout's train.py with our options, in this process."""
    path = Path(os.environ['STYLEGAN2_ADA_PYTORCH']) / 'train.py'
    spec = importlib.util.spec_from_file_location('train_of_this_test', path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    extend_train(module)
    return module


def test_torchrun_starts_the_hosts_loop_in_its_own_processes(tmp_path, data, monkeypatch):
    """On CUDA, where that is the default: the host's command would start as many processes in each of them."""
    module = train_py(monkeypatch)
    for name, value in dict(RANK=1, WORLD_SIZE=4, LOCAL_RANK=1, MASTER_ADDR='127.0.0.1', MASTER_PORT=1).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.setattr(torch.multiprocessing, 'spawn', lambda *_args, **_kwargs: pytest.fail('started by the host'))
    started = []
    monkeypatch.setattr(planning, 'run', lambda plan, *_args: started.append(plan.args))
    options = [f'--outdir={tmp_path / "out"}', f'--data={data}', '--batch=16', '--aug=noaug', '--metrics=none']
    module.main([*options, '--loss=stylegan2_compress.AdversarialLoss'], standalone_mode=False)
    (args,) = started
    assert (args.num_gpus, args.get('loop', HOST_LOOP)) == (4, HOST_LOOP)
    assert not (tmp_path / 'out').exists()
