"""The quickstart in small, and the networks that ship with the package."""

import importlib.util
import json
import os
import re
import shlex
import signal
from importlib import resources
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from commands import refused

from stylegan2_compress.cli import main
from stylegan2_compress.errors import Stopped
from stylegan2_compress.evaluation import distances, samples
from stylegan2_compress.evaluation.compare import compare
from stylegan2_compress.export.options import FORMATS
from stylegan2_compress.quickstart import digits, mnist
from stylegan2_compress.quickstart import run as quickstart
from stylegan2_compress.report import page, reading
from stylegan2_compress.training_loops import data

pytestmark = pytest.mark.usefixtures('own_cache')


def test_digits_are_the_real_ones(tmp_path):
    images, labels = mnist.load()
    assert images.shape == (5000, 1, 32, 32)
    assert np.bincount(labels).tolist() == [500] * 10
    assert images[:, :, 2:-2, 2:-2].sum() == images.sum() > 0
    mnist.write_zip(str(tmp_path / 'mnist.zip'))
    import dnnlib

    training_set = dnnlib.util.construct_class_by_name(
        class_name='training.dataset.ImageFolderDataset', path=str(tmp_path / 'mnist.zip'), use_labels=True
    )
    for index in (0, 1234, 4999):
        image, label = training_set[index]
        assert np.array_equal(image, images[index])
        assert label.argmax() == labels[index]


def test_shipped_classifier_is_as_good_as_stated():
    images, labels = digits.split(*mnist.load(), digits.TEST)
    with torch.no_grad():
        correct = (digits.load_classifier()(images).argmax(1) == labels).float().mean().item()
    assert correct == pytest.approx(digits.classifier_facts()['test_accuracy'], abs=0.002)
    assert correct > 0.98


def test_training_and_test_digits_are_disjoint():
    images, labels = mnist.load()
    order = [np.random.RandomState(0).permutation(5000)[part] for part in (digits.TRAIN, digits.TEST)]
    assert not set(order[0]) & set(order[1])
    assert torch.equal(digits.split(images, labels, digits.TEST)[1], torch.from_numpy(labels[order[1]]))


def test_shipped_teacher_makes_readable_digits():
    assert (resources.files('stylegan2_compress') / 'assets' / quickstart.TEACHER).stat().st_size <= 4e6
    fakes, labels = samples.generate(quickstart.load_teacher()['G_ema'], 500, seed=7)
    with torch.no_grad():
        read = digits.load_classifier()(fakes).argmax(1)
    assert (read == labels.argmax(1)).float().mean() > 0.95


def test_frechet_distance_of_gaussians():
    """Against the closed form for two normal distributions with commuting covariances."""
    rnd = np.random.RandomState(0)
    x = rnd.randn(200000, 3) * [1, 2, 3]
    y = rnd.randn(200000, 3) * [2, 2, 1] + [1, 0, -2]
    assert distances.frechet_distance(x, y) == pytest.approx(1 + 4 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2, rel=0.02)
    assert distances.frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_is_the_hosts():
    """The formula of the host's metric, with SciPy's matrix square root."""
    import scipy.linalg

    rnd = np.random.RandomState(1)
    x, y = rnd.randn(500, 8) @ rnd.randn(8, 8), rnd.randn(400, 8) @ rnd.randn(8, 8) + 1
    root = scipy.linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
    assert distances.frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)


@pytest.mark.slow
def test_end_to_end_in_small(tmp_path, monkeypatch, capsys):
    """Interrupted on the way, and started again."""
    given = dict(outdir=str(tmp_path / 'out'), ratio=0.7, kimg=1, seed=0, samples=200)

    def interrupted(real_rounds, training_set, z_dim, share, random_seed, cur_nimg, phase):
        if (cur_nimg, phase) == (320, 0):
            signal.raise_signal(signal.SIGINT)
        return rounds(real_rounds, training_set, z_dim, share, random_seed, cur_nimg, phase)

    with monkeypatch.context() as patched:
        rounds = data.rounds
        patched.setattr(data, 'rounds', interrupted)
        with pytest.raises(Stopped, match=r'at 0\.336 kimg'):
            quickstart.quickstart(**given)
    capsys.readouterr()
    run_dir = quickstart.quickstart(**given)
    assert len([name for name in os.listdir(tmp_path / 'out') if name.startswith('0')]) == 1
    with open(f'{run_dir}/stats.jsonl') as file:
        assert [json.loads(line)['Progress/tick']['mean'] for line in file] == [0, 1]
    printed = capsys.readouterr().out
    rows = {
        line.split()[0]: line.split()
        for line in printed.splitlines()
        if line.startswith(('teacher ', 'pruned', 'dist'))
    }
    assert set(rows) == {'teacher', 'pruned', 'distilled'}
    assert rows['pruned'][1:5] == rows['distilled'][1:5]
    distance = {name: float(row[-2]) for name, row in rows.items()}
    assert distance['teacher'] < min(distance['pruned'], distance['distilled'])  # 1 kimg is too short for more.
    with open(f'{run_dir}/metric-digits0.2k.jsonl') as file:
        records = [json.loads(line) for line in file]
    assert [record['snapshot_pkl'] for record in records] == ['student.pkl', 'network-snapshot-000001.pkl']
    assert [f'{record["results"]["digits0.2k_frechet_distance"]:.1f}' for record in records] == [
        f'{distance[name]:.1f}' for name in ('pruned', 'distilled')
    ]
    (shown,) = compare([run_dir])
    assert f'{shown["digits0.2k_readable"]:.1%}' == rows['distilled'][-1]
    assert reading.read(run_dir).start == records[0]['results']  # What the report shows of it.
    teacher = SimpleNamespace(results=reading.results_beside(tmp_path / 'out' / 'teacher.pkl'))
    of_teacher = page._as_measured(teacher, [reading.read(run_dir)])
    assert f'{of_teacher["digits0.2k_frechet_distance"]:.1f}' == f'{distance["teacher"]:.1f}'
    picture = PIL.Image.open(f'{run_dir}/compare.png')
    assert picture.size == (3 * 480 + 4 * 16, 480 + 40 + 16)
    with open(f'{run_dir}/training_options.json') as file:
        loss = json.load(file)['loss_kwargs']['class_name']
    assert loss == 'stylegan2_compress.RegressionLoss+MomentMatchingLoss'
    for name, line in [('onnx/export.json', 'in ONNX Runtime: '), ('page.html', 'to open in a browser: ')]:
        assert os.path.isfile(f'{run_dir}/{name}') == (line in printed)
    if all(importlib.util.find_spec(package) for package in FORMATS['onnx'].packages):
        assert 'in ONNX Runtime: ' in printed
    assert os.path.isfile(re.search(r'How it went.*: +(.*/report\.html)', printed)[1])
    assert printed.count('\n  stylegan2-compress ') == 3
    for line in re.findall(r'\n  stylegan2-compress (.*?) +#', printed):  # What is shown can be typed.
        command, *arguments = shlex.split(line)
        main.get_command(None, command).make_context(command, arguments)
    assert printed.count('Not exported: ') == 2 - printed.count(' in ONNX Runtime: ') - printed.count(' in a browser: ')


def test_a_second_run_replaces_nothing(tmp_path, monkeypatch):
    out = tmp_path / 'out'
    out.mkdir()
    mnist.write_zip(str(out / 'mnist.zip'))
    (out / 'teacher.pkl').write_bytes(b'mine')
    assert 'teacher.pkl' in refused('quickstart', '--outdir', out, unchanged=tmp_path)
    assert (out / 'teacher.pkl').read_bytes() == b'mine'


@pytest.mark.parametrize('given', [['--ratio=1'], ['--kimg=0'], ['--outdir=file/below']], ids=str)
def test_bad_input_writes_nothing(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').write_text('')
    refused('quickstart', *given, unchanged=tmp_path)
