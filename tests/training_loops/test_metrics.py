"""Metrics of snapshots that are not the host's, and the best snapshot."""

import copy
import json
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import refused
from tiny_runs import loop_arguments

from stylegan2_compress import pickles
from stylegan2_compress.errors import Stopped
from stylegan2_compress.evaluation import names
from stylegan2_compress.evaluation.evaluate import evaluate
from stylegan2_compress.runs import states
from stylegan2_compress.runs.directory import RunDirectory
from stylegan2_compress.training_loops import loop, metrics
from stylegan2_compress.training_loops.distillation import training_loop

METRIC = 'fd:module:tiny_embeddings:tiny@size=16'
RESULT = 'fd0.02k_module_tiny_embeddings_tiny@size=16'


@pytest.fixture
def data(tmp_path, make_dataset_zip, monkeypatch, small_grids):
    monkeypatch.setenv('STYLEGAN2_COMPRESS_CACHE', str(tmp_path / 'cache'))
    return make_dataset_zip(tmp_path, n=12)


def test_the_numbers_are_those_of_evaluate(tmp_path, data):
    training_loop(**loop_arguments(tmp_path / 'run', data, metrics=[METRIC], metric_samples=20))
    run = RunDirectory(tmp_path / 'run')
    (path,) = run.metrics()
    assert path.name == f'metric-{RESULT}.jsonl'
    in_training = [json.loads(line) for line in path.read_text().splitlines()]
    # Ticks end after 1, 3 and 5 steps. By this, a run knows its own lines, see `RunDirectory.cut_records`.
    assert [line['cur_nimg'] for line in in_training] == [16, 48, 80]
    (measured,) = evaluate([str(run.snapshots()[-1])], str(data), METRIC, samples=20, device='cpu')
    assert in_training[-1]['results'][RESULT] == pytest.approx(measured.values[RESULT][0], rel=1e-6)
    after = json.loads(path.read_text().splitlines()[-1])
    assert 'cur_nimg' not in after
    assert {name: type(value) for name, value in after.items() if name not in ('data', 'sha256')} == {
        name: type(value) for name, value in in_training[-1].items() if name != 'cur_nimg'
    }


@pytest.mark.parametrize(
    ('result', 'values', 'best'),
    [
        ('fd', [3, 2, 5], 1),
        ('dc_coverage', [3, 2, 5], 2),
        ('fd', [float('nan'), 4, 4], 1),
        ('fd', [1, float('nan'), 2], 0),
    ],
)
def test_the_best_snapshot_is_kept(tmp_path, data, monkeypatch, result, values, best):
    seen = []

    def measure(_self, name, G):
        seen.append(copy.deepcopy(G.state_dict()))
        return dict(results={result: np.float64(values[len(seen) - 1])}, metric=name, total_time=1.0, num_gpus=1)

    monkeypatch.setattr(metrics.OwnMetrics, 'measure', measure)
    training_loop(**loop_arguments(tmp_path / 'run', data, metrics=[METRIC]))
    run = RunDirectory(tmp_path / 'run')
    kept = pickles.load(run.best_path)['G_ema'].state_dict()
    assert [all(torch.equal(kept[name], each[name]) for name in kept) for each in seen].index(True) == best
    assert states.load_latest_state(run)['progress']['best'] == (result, values[best])


@pytest.mark.parametrize('at', [1, 2], ids=['in the middle', 'at the end'])
def test_a_signal_ends_metrics_at_once_and_they_are_made_up_for(tmp_path, data, monkeypatch, at):
    run, asked = RunDirectory(tmp_path / 'run'), []
    arguments = loop_arguments(run.path, data, metrics=[METRIC], metric_samples=20)
    measure = metrics.OwnMetrics.measure

    def interrupted(self, name, G):
        if len(asked) == at:
            asked.append(time.monotonic())
            assert states.load_latest_state(run)['progress']['unmeasured']
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        asked.append(None)
        return measure(self, name, G)

    monkeypatch.setattr(metrics.OwnMetrics, 'measure', interrupted)
    with pytest.raises(Stopped, match='measures the last snapshot and continues'):
        training_loop(**arguments)
    assert time.monotonic() - asked[-1] < 30  # It would have been a minute.
    assert not states.load_latest_state(run)['finished']
    monkeypatch.setattr(metrics.OwnMetrics, 'measure', measure)
    training_loop(**arguments)
    assert states.load_latest_state(run)['finished']

    def results(run):
        (path,) = run.metrics()
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [(line['snapshot_pkl'], line['results']) for line in lines]

    whole = RunDirectory(tmp_path / 'whole')
    training_loop(**dict(arguments, run_dir=str(whole.path.mkdir() or whole)))
    assert results(run) == results(whole)
    assert len(results(run)) == 3


def test_a_run_that_was_killed_while_it_measured_measures(tmp_path, data, monkeypatch):
    """And time for metrics is not the next tick's."""
    run = RunDirectory(tmp_path / 'run')
    arguments = loop_arguments(run.path, data, metrics=[METRIC], metric_samples=20)
    measure = metrics.OwnMetrics.measure

    def killed(_self, _name, _G):
        raise KeyboardInterrupt

    monkeypatch.setattr(metrics.OwnMetrics, 'measure', killed)
    with pytest.raises(KeyboardInterrupt):
        training_loop(**arguments)

    def slowly(self, name, G):
        time.sleep(1)
        return measure(self, name, G)

    monkeypatch.setattr(metrics.OwnMetrics, 'measure', slowly)
    training_loop(**arguments)
    assert len(run.metrics()[0].read_text().splitlines()) == 3
    ticks = [json.loads(line) for line in run.stats_path.read_text().splitlines()]
    assert [tick['Timing/maintenance_sec']['mean'] >= 1 for tick in ticks] == [False, True, True]


def test_what_the_hosts_metrics_draw_depends_on_the_place_alone(tmp_path, data, monkeypatch):
    """And on the process: those of a run that goes on have drawn alike before, and would make the same images."""
    drawn = []

    def calc_metric(metric, **_given):
        drawn.append((*torch.randn([3]).tolist(), *np.random.rand(2)))  # noqa: NPY002 (the host draws so)
        return dict(results={metric: 1.0}, metric=metric, total_time=1.0, num_gpus=1)

    monkeypatch.setattr(loop.metric_main, 'calc_metric', calc_metric)
    monitor = SimpleNamespace(report_metric=lambda *_args: None)
    for rank, nimg, state in [(0, 16, 1), (0, 16, 2), (1, 16, 1), (0, 32, 1)]:
        torch.manual_seed(state)
        np.random.seed(state)  # noqa: NPY002
        options = SimpleNamespace(
            metrics=['fid50k'], random_seed=0, rank=rank, num_gpus=2, training_set_kwargs=dict(path=str(data))
        )
        progress = SimpleNamespace(cur_nimg=nimg, best=('fid50k', 0.5))
        run = SimpleNamespace(
            options=options, progress=progress, monitor=monitor, directory=RunDirectory(tmp_path),
            device=torch.device('cpu'), G_ema=None,
        )  # fmt: skip
        loop.evaluate(run)
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def test_which_results_are_better_when_larger():
    more = ['pr50k3_full_precision', 'pr5k3_recall', 'is50k_mean', 'is0.02k_mean', 'dc50k_x_density', 'dc1k_x_coverage']
    less = ['fid50k_full', 'kid50k', 'ppl2_wend', 'is50k_std', 'fd5k_x', 'pr_x', 'Fréchet distance of G, x']
    assert all(map(names.more_is_better, more))
    assert not any(map(names.more_is_better, less))


def test_what_cannot_be_measured_is_refused_before_the_run(tmp_path, data, make_generator, make_discriminator):
    G = make_generator()
    pickles.save(tmp_path / 'teacher.pkl', dict(G=G, D=make_discriminator(), G_ema=G))
    command = ['distill', '--teacher', tmp_path / 'teacher.pkl', '--data', data, '--outdir', tmp_path / 'runs']
    command += ['--loss', 'stylegan2_compress.AdversarialLoss', '--device', 'cpu']
    for name, words in [
        ('agreement', 'compares two networks'),
        ('fd:nothing', 'No embedding is called'),
        ('fd:torchscript:/no/file.pt', '/no/file.pt'),
        ('fid', 'does not exist'),
    ]:
        assert words in refused(*command, '--metrics', name, unchanged=tmp_path)
