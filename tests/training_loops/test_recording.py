"""Steps recorded as CUDA graphs: in a simulation of graphs on the CPU; tests/gpu has real ones."""

import json
from collections import Counter

import pytest
import simulated_graphs
import torch
from tiny_runs import EMBEDDING, compressing, loop_arguments

from stylegan2_compress import pickles
from stylegan2_compress.host.recorded import WARM_UP
from stylegan2_compress.networks import masked
from stylegan2_compress.training_loops import distillation, recording, ticket_search

STEPS = 7

pytestmark = pytest.mark.usefixtures('small_grids', 'own_cache')


@pytest.fixture
def graphs(monkeypatch):
    return simulated_graphs.install(monkeypatch)


def search(run_dir, data, rule, **changes):
    """Seven steps of a search; returns the averaged weights, and the losses of all ticks."""
    arguments = loop_arguments(run_dir, data, True, total_kimg=0.112, kimg_per_tick=0.08, G_reg_interval=None)
    arguments['lr_decay_kimg'] = [0, 0.112]
    arguments['G_kwargs'] |= dict(class_name='stylegan2_compress.ScoreMaskedGenerator', keep=0.5, rule=rule)
    arguments |= dict(D_kwargs=None, D_opt_kwargs=None)
    arguments['loss_kwargs'] = dict(
        class_name='stylegan2_compress.MomentMatchingLoss',
        embedding=EMBEDDING,
        training_set_kwargs=arguments['training_set_kwargs'],
        total_kimg=0.112,
        lr_decay_kimg=[0, 0.112],
    )
    ticket_search.training_loop(**arguments | changes)
    return found_in(run_dir)


def train(run_dir, data, teacher, loss, rounds=1, **changes):
    """Seven steps of all phases; returns the averaged weights, and the losses of all ticks."""
    arguments = loop_arguments(run_dir, data, True, **compressing(loss, teacher))
    arguments |= dict(G_reg_interval=1, D_reg_interval=1, batch_gpu=16 // rounds, total_kimg=0.112, kimg_per_tick=0.08)
    distillation.training_loop(**arguments | changes)
    return found_in(run_dir)


def found_in(run_dir):
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
        # What a tick adds to sums of all of this process, other tests' too: they round it, far below a float's digits.
        rounding = max(tolerance, 1e-9)
        assert losses[name] == pytest.approx(values, rel=rounding, abs=rounding, nan_ok=True), name


@pytest.mark.parametrize(
    ('loss', 'rounds', 'recorded'),
    [
        ('moments', 1, {'Gmain', 'Greg', 'Dmain', 'Dreg'}),
        ('moments', 2, {'Gmain', 'Greg', 'Dmain', 'Dreg'}),
        ('kernel', 1, {'Greg', 'Dmain', 'Dreg'}),  # Balanced.
        ('images', 1, {'Gmain', 'Greg', 'Dmain', 'Dreg'}),
        ('regression', 1, {'Gmain'}),
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
    assert seen['Greg'] == (STEPS * rounds - WARM_UP if 'Greg' in recorded else 0)
    assert seen['Gmain'] in (0, (STEPS - memory_fills_in) * rounds - WARM_UP)


def test_recorded_steps_have_the_weight_of_their_interval(tmp_path, data, teacher, graphs):
    """Regularised in every second step: four of seven, of which the last is replayed."""
    rare = dict(G_reg_interval=2, D_reg_interval=2)
    expected = train(tmp_path / 'plain', data, teacher, 'images', **rare)
    found = train(tmp_path / 'recorded', data, teacher, 'images', cuda_graphs=True, **rare)
    assert_same(found, expected, 0)
    assert sorted(graph.replays for graph in graphs) == [STEPS // 2 + 1 - WARM_UP] * 2 + [STEPS - WARM_UP] * 2


@pytest.fixture
def masks_as_on_cuda(monkeypatch):
    """Masks are found without NumPy and without waiting for a sum, as they are where a graph can be recorded."""

    def threshold_of(flat, count):
        threshold = masked.kth_largest_by_bits(flat, count)
        return threshold, count - (flat > threshold).sum()

    def above(values, threshold, ties):
        equal = (values == threshold) & ((values == threshold).flatten().cumsum(0) <= ties).reshape(values.shape)
        return (values > threshold) | equal

    monkeypatch.setattr(masked, 'threshold_of', threshold_of)
    monkeypatch.setattr(masked, 'above', above)


@pytest.mark.usefixtures('masks_as_on_cuda')
@pytest.mark.parametrize('rule', ['edge-popup', 'global-edge-popup', 'gem-miner'])
def test_a_recorded_search_is_the_same_search(tmp_path, data, graphs, rule):
    expected = search(tmp_path / 'plain', data, rule)
    assert_same(search(tmp_path / 'recorded', data, rule, cuda_graphs=True), expected, 0)
    (graph,) = graphs
    assert graph.replays == STEPS - WARM_UP
