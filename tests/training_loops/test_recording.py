"""Steps recorded as CUDA graphs: in a simulation of graphs on the CPU; tests/gpu has real ones."""

import json
from collections import Counter

import pytest
import simulated_graphs
import torch
from tiny_runs import compressing, labelled_data, labelled_teacher, loop_arguments

from stylegan2_compress import pickles
from stylegan2_compress.training_loops import distillation, recording

STEPS = 7

pytestmark = pytest.mark.usefixtures('small_grids', 'own_cache')


@pytest.fixture
def data(tmp_path, make_dataset_zip):
    return labelled_data(tmp_path, make_dataset_zip)


@pytest.fixture
def teacher(tmp_path, make_generator, make_discriminator):
    return labelled_teacher(tmp_path, make_generator, make_discriminator)


@pytest.fixture
def graphs(monkeypatch):
    return simulated_graphs.install(monkeypatch)


def train(run_dir, data, teacher, loss, rounds=1, **changes):
    """Seven steps of all phases; returns the averaged weights, and the losses of all ticks."""
    arguments = loop_arguments(run_dir, data, True, **compressing(loss, teacher))
    often = dict(G_reg_interval=1, D_reg_interval=1, batch_gpu=16 // rounds, total_kimg=0.112, kimg_per_tick=0.08)
    arguments |= often
    loss_kwargs = changes.pop('loss_kwargs', {})
    arguments['loss_kwargs'] = arguments['loss_kwargs'] | loss_kwargs
    distillation.training_loop(**arguments | changes)
    stats = [json.loads(line) for line in (run_dir / 'stats.jsonl').read_text().splitlines()]
    losses = {name: [stat[name]['mean'] for stat in stats] for name in stats[0] if name.startswith('Loss/')}
    return pickles.load(str(max(run_dir.glob('network-snapshot-*.pkl'))))['G_ema'].state_dict(), losses


def assert_same(found, expected, tolerance):
    weights, losses = found
    for name, tensor in expected[0].items():
        torch.testing.assert_close(
            weights[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f'{name}: {text}'
        )
    for name, values in expected[1].items():
        assert losses[name] == pytest.approx(values, rel=tolerance, abs=tolerance, nan_ok=True), name


@pytest.mark.parametrize(
    ('loss', 'rounds', 'recorded'),
    [
        ('moments', 1, {'Gmain', 'Greg', 'Dmain', 'Dreg'}),
        ('moments', 2, {'Gmain', 'Greg', 'Dmain', 'Dreg'}),
        ('kernel', 1, {'Greg', 'Dmain', 'Dreg'}),  # Balanced.
        ('images', 1, {'Gmain', 'Greg', 'Dmain', 'Dreg'}),
        ('both', 1, {'Greg', 'Dmain', 'Dreg'}),  # With large batches.
        ('ada', 1, {'Greg'}),
    ],
)
def test_recorded_steps_are_the_same_steps(tmp_path, data, teacher, graphs, monkeypatch, loss, rounds, recorded):
    seen = Counter()
    replay = recording.RecordedRounds._replay

    def counted(self, which, phase, sync, inputs):
        seen[phase.name] += 1
        replay(self, which, phase, sync, inputs)

    monkeypatch.setattr(recording.RecordedRounds, '_replay', counted)
    expected = train(tmp_path / 'plain', data, teacher, loss, rounds)
    assert not seen
    # The gradients of a round that has several backward passes are added in another order to those of other rounds.
    tolerance = 0 if rounds == 1 else 1e-4
    assert_same(train(tmp_path / 'recorded', data, teacher, loss, rounds, cuda_graphs=True), expected, tolerance)
    assert set(seen) == recorded
    assert sum(graph.replays for graph in graphs) == sum(seen.values())
    memory_fills_in = 2 if loss == 'moments' else 0  # Steps, before there is anything to record.
    assert seen['Greg'] == STEPS * rounds - recording.WARM_UP
    assert seen['Gmain'] in (0, (STEPS - memory_fills_in) * rounds - recording.WARM_UP)
