"""A method, a criterion, a rule, an embedding and a metric in one file of a user's own, each used by its name."""

import json
import os
import shutil
import sys
from pathlib import Path

import forked
import pytest
from commands import refused, run

from stylegan2_compress import embeddings, files, pickles
from stylegan2_compress.cli import main

TOYS = """
from dataclasses import dataclass

import torch

from stylegan2_compress.arguments import argument
from stylegan2_compress.evaluation import samples
from stylegan2_compress.evaluation.base import Metric
from stylegan2_compress.losses.adversarial import AdversarialLoss
from stylegan2_compress.losses.method import Method
from stylegan2_compress.losses.terms import Summand, Term
from stylegan2_compress.networks.masked import EdgePopup
from stylegan2_compress.pruning import graph


class DarkTerm(Term):
    def __init__(self, weight, embedding):
        self.weight, self.embedding = weight, embedding

    def generator(self, batch):
        return [Summand('dark', self.embedding(batch.images).square().mean(), self.weight)]


@dataclass(frozen=True)
class Dark(Method):
    darkness: float = argument('How dark.', 1.0, least=0, most=10)
    seen_by: str = argument('Embedding.', 'module:toys:brightness@size=8')

    def check(self, plan):
        yield f'Dark looks at {plan.args["batch_size"]} images.'

    def terms(self, context):
        return [DarkTerm(self.darkness, context.embedding(self.seen_by))]


class DarkLoss(AdversarialLoss):
    methods = (Dark,)


def first_channels(G, options):
    return {name: -torch.arange(width).float() for name, width in graph.widths(G).items()}


class Halves(EdgePopup):
    def mask(self, part, name):
        mask = torch.zeros_like(part.tensor(name), dtype=torch.bool)
        mask.view(-1)[: round(part.keep * mask.numel())] = True
        return mask


class Brightness(torch.nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3))

    def layers(self, x):
        return [x]


def brightness():
    return Brightness()


class MeanMetric(Metric):
    def __init__(self, samples):
        super().__init__(samples)
        self.name = f'mean{samples}'

    @torch.no_grad()
    def measure(self, G, seed):
        c = torch.eye(G.c_dim)[torch.zeros(self.samples, dtype=torch.long)] if G.c_dim else torch.zeros(self.samples, 0)
        images = samples.fakes(G, samples.latents(G, self.samples, seed), c)
        return {self.name: torch.cat(list(images)).mean().item()}
"""


@pytest.fixture
def toys(tmp_path_factory, monkeypatch):
    """The directory of the module `toys`, which is on the path of this process and of those that it starts."""
    directory = tmp_path_factory.mktemp('own')
    (directory / 'toys.py').write_text(TOYS)
    monkeypatch.syspath_prepend(directory)
    monkeypatch.setenv('PYTHONPATH', str(directory))
    monkeypatch.delitem(sys.modules, 'toys', raising=False)
    return directory


@pytest.fixture
def teacher(tmp_path, make_generator, make_discriminator):
    path = str(tmp_path / 'teacher.pkl')
    G, D = make_generator().eval(), make_discriminator().eval()
    pickles.save(path, dict(G=G, D=D, G_ema=G, training_set_kwargs=None, augment_pipe=None))
    return path


@pytest.fixture
def data(tmp_path, make_dataset_zip):
    return str(make_dataset_zip(tmp_path, n=12, resolution=16))


def losses_in(run_dir: Path) -> list[float]:
    lines = (run_dir / 'stats.jsonl').read_text().splitlines()
    return [json.loads(line)['Loss/dark']['mean'] for line in lines]


def test_method_criterion_and_embedding_in_distill(tmp_path, toys, teacher, data, capsys):
    outdir = tmp_path / 'runs'
    main(
        ['distill', '--teacher', teacher, '--data', data, '--outdir', str(outdir), '--criterion', 'toys.first_channels',
         '--ratio', '0.5', '--loss', 'toys.DarkLoss', '--loss-arg', 'darkness=2', '--kimg', '1', '--batch', '500',
         '--snap', '1', '--workers', '0', '--device', 'cpu'],
        standalone_mode=False,
    )  # fmt: skip
    assert 'Dark looks at 500 images.' in capsys.readouterr().out
    (run_dir,) = outdir.iterdir()
    written = json.loads((run_dir / 'training_options.json').read_text())['loss_kwargs']
    assert written['class_name'] == 'toys.DarkLoss'
    assert written['darkness'] == 2
    assert len(losses_in(run_dir)) > 0
    assert all(value > 0 for value in losses_in(run_dir))
    whole, student = (pickles.load(file)['G_ema'] for file in (teacher, run_dir / 'student.pkl'))
    kept = student.synthesis.b4.const.shape[0]
    assert (student.synthesis.b4.const == whole.synthesis.b4.const[:kept]).all()


def test_a_methods_own_argument_is_checked_before_anything_is_written(tmp_path, toys, teacher, data):
    given = ['--teacher', teacher, '--data', data, '--outdir', str(tmp_path / 'runs'), '--loss', 'toys.DarkLoss']
    sentence = refused('distill', *given, '--loss-arg', 'darkness=11', '--device', 'cpu', unchanged=tmp_path)
    assert '--loss-arg darkness=11 must be a number from 0 to 10.' in sentence
    sentence = refused('distill', *given, '--loss-arg', 'light=1', '--device', 'cpu', unchanged=tmp_path)
    assert 'light=… is not an argument of toys.DarkLoss' in sentence
    assert 'darkness' in sentence


def test_criterion_in_prune_and_metric_in_evaluate(tmp_path, toys, teacher, data):
    student = tmp_path / 'student.pkl'
    run('prune', '--teacher', teacher, '--ratio', '0.5', '--criterion', 'toys.first_channels', '--out', student)
    table = run('evaluate', teacher, student, '--data', data, '--samples', '10', '--metrics', 'toys.MeanMetric',
                '--device', 'cpu')  # fmt: skip
    assert 'mean10' in table
    assert (tmp_path / 'metric-mean10.jsonl').exists()


def test_rule_and_embedding_in_find_ticket(tmp_path, toys, data):
    main(
        ['find-ticket', '--data', data, '--outdir', str(tmp_path / 'runs'), '--rule', 'toys.Halves', '--keep', '0.5',
         '--embedding', 'module:toys:brightness@size=8', '--kimg', '1', '--batch', '500', '--snap', '1', '--workers',
         '0', '--device', 'cpu', '--z-dim', '8', '--w-dim', '8', '--channel-base', '64', '--channel-max', '4',
         '--mapping-layers', '1', '--eval-samples', '4'],
        standalone_mode=False,
    )  # fmt: skip
    (run_dir,) = (tmp_path / 'runs').iterdir()
    (snapshot, *_others) = sorted(run_dir.glob('network-snapshot-*.pkl'))
    G = pickles.load(snapshot)['G_ema']
    for mask in G.masks().values():
        assert mask.view(-1)[: round(0.5 * mask.numel())].all()
        assert mask.sum() == round(0.5 * mask.numel())


@pytest.mark.checkout
def test_the_same_through_train_py(tmp_path, toys, teacher, data, monkeypatch):
    checkout = tmp_path / 'checkout'
    shutil.copytree(
        os.environ['STYLEGAN2_ADA_PYTORCH'], checkout, ignore=shutil.ignore_patterns('.git', '__pycache__', 'docs')
    )
    main(['patch', str(checkout)], standalone_mode=False)
    student = str(tmp_path / 'student.pkl')
    run('prune', '--teacher', teacher, '--ratio', '0.5', '--criterion', 'toys.first_channels', '--out', student)
    monkeypatch.delitem(sys.modules, 'toys')  # It is of classes that the script imports anew.
    status, output = forked.run_script(
        checkout, 'train.py', '--outdir=runs', f'--data={data}', f'--teacher={teacher}', f'--student={student}',
        '--loss=toys.DarkLoss', '--loss-arg', 'darkness=3', '--kimg=1', '--batch=500', '--aug=noaug', '--metrics=none',
        '--snap=1', '--workers=1', **os.environ,
    )  # fmt: skip
    assert status == 0, output
    (run_dir,) = (checkout / 'runs').iterdir()
    assert json.loads((run_dir / 'training_options.json').read_text())['loss_kwargs']['darkness'] == 3
    assert all(value > 0 for value in losses_in(run_dir))


def test_a_teacher_is_opened_once_and_an_embedding_loaded_once(tmp_path, toys, teacher, data, monkeypatch):
    """In a run with both methods, planning and training together."""
    opened, loaded = [], []
    open_file, load = files.opened, embeddings.load
    monkeypatch.setattr(files, 'opened', lambda path: opened.append(os.fspath(path)) or open_file(path))
    monkeypatch.setattr(embeddings, 'load', lambda spec, device: loaded.append(str(spec)) or load(spec, device))
    spec = 'module:toys:brightness@size=8'
    main(
        ['distill', '--teacher', teacher, '--data', data, '--outdir', str(tmp_path / 'runs'), '--ratio', '0.5',
         '--loss', 'stylegan2_compress.NickelDimeLoss', '--loss-arg', f'embeddings={spec}', '--loss-arg', 'samples=8',
         '--kimg', '1', '--batch', '500', '--snap', '1', '--workers', '0', '--device', 'cpu'],
        standalone_mode=False,
    )  # fmt: skip
    assert opened.count(teacher) == 1
    assert loaded == [spec]
