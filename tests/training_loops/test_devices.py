"""Whole runs on a device that is not the CPU, on machines that have none: see `other_device`."""

import json
import shutil
from collections import Counter

import pytest
import torch
from other_device import OTHER, MixedDevices, NoFloat64, OtherDevice
from tiny_runs import EMBEDDING, compressing, loop_arguments
from torch_utils import training_stats

from stylegan2_compress.compression.best_ticket import keep_tickets
from stylegan2_compress.evaluation.evaluate import evaluate
from stylegan2_compress.host import devices
from stylegan2_compress.host.recorded import WARM_UP
from stylegan2_compress.losses.adversarial import AdversarialLoss
from stylegan2_compress.losses.generator_loss import GeneratorLoss
from stylegan2_compress.patches import statistics_in_single_precision
from stylegan2_compress.runs import states
from stylegan2_compress.training_loops import distillation, loop, ticket_search

# The places where Python waits for the device in a step, and why.
IN_A_STEP = {
    'stylegan2_compress/losses/steps.py:_not_finite': 'once per phase: may its gradients be used?',
}
IN_STEPS_OF = {
    'ada': {
        'training_loops/loop.py:adapt_augmentation': "every fourth step: the host's statistics are of the CPU",
        'stylegan2_compress/losses/adversarial.py:run_D': "the host's augmentation, which pads by numbers it draws",
    },
    'gem-miner': {'stylegan2_compress/networks/masked.py:leave_alive': 'does this step mask anything?'},
    'imp': {'stylegan2_compress/networks/masked.py:leave_alive': 'does this step mask anything?'},
}


@pytest.fixture(autouse=True)
def states_that_are_not_read(monkeypatch):
    """Tensors of the simulated device are of a class that no state may have."""
    monkeypatch.setattr(states, '_opens', lambda _path: True)


@pytest.fixture
def waits_in_steps(monkeypatch):
    """How often Python waited for the device within the steps of a loop, by place; filled while `other` is open."""

    def count(other):
        waits, step = Counter(), loop.step

        def counted(run):
            before = other.waits.copy()
            step(run)
            waits.update(other.waits - before)

        monkeypatch.setattr(loop, 'step', counted)
        return waits

    return count


def test_mixed_devices_are_refused_and_waiting_is_seen():
    with OtherDevice() as other:
        x = torch.arange(4.0).to(OTHER)
        assert x.device == OTHER
        with pytest.raises(MixedDevices):
            x + torch.zeros(4)
        with pytest.raises(MixedDevices):
            torch.cat([x, torch.zeros(1)])
        y = (x * torch.tensor(2.0)).requires_grad_()  # A scalar of the CPU may join, as with CUDA.
        y.square().sum().backward()
        assert y.grad.device == OTHER
        assert not other.waits
        assert y.grad.tolist() == [0, 4, 8, 12]
        assert sum(other.waits.values()) == 1
        assert not y.grad.isfinite().logical_not().any()
        assert sum(other.waits.values()) == 2


@pytest.fixture
def like_mps(monkeypatch):
    """The other device has no double precision, and what needs to know of MPS takes it for that."""
    monkeypatch.setattr(devices, 'WITHOUT_FLOAT64', (OTHER.type,))
    monkeypatch.setattr(statistics_in_single_precision, 'DEVICES', (OTHER.type,))
    monkeypatch.setattr(training_stats, 'report', training_stats.report)
    for counters in training_stats._counters.values():
        counters.pop(OTHER, None)  # Of tests with double precision.
    statistics_in_single_precision.apply()


def test_double_precision_is_refused_where_there_is_none():
    with OtherDevice(float64=False):
        torch.zeros(3).to(OTHER)
        for make in (
            lambda: torch.zeros(3, dtype=torch.float64, device=OTHER),
            lambda: torch.zeros(3).double().to(OTHER),
            lambda: torch.zeros(3).to(OTHER).double(),
        ):
            with pytest.raises(NoFloat64):
                make()


@pytest.mark.usefixtures('small_grids')
@pytest.mark.parametrize('name', ['kernel', 'both'])
def test_distillation_in_single_precision(tmp_path, data, teacher, monkeypatch, like_mps, name):
    """As on MPS: nothing is in float64 there. What is recorded is what a CPU records."""
    monkeypatch.setenv('STYLEGAN2_COMPRESS_CACHE', str(tmp_path / 'cache'))
    arguments = loop_arguments(tmp_path / 'run', data, True, total_kimg=0.032, **compressing(name, teacher))
    with OtherDevice(float64=False):
        distillation.training_loop(**dict(arguments, device=str(OTHER)))
    (tmp_path / 'cpu').mkdir()
    distillation.training_loop(**dict(arguments, run_dir=str(tmp_path / 'cpu'), device='cpu'))
    first, second = (
        json.loads((tmp_path / name / 'stats.jsonl').read_text().splitlines()[0]) for name in ('run', 'cpu')
    )
    assert first.keys() == second.keys()
    for statistic in first:
        if statistic.startswith('Loss/'):
            expected = pytest.approx(second[statistic]['mean'], rel=1e-3, abs=1e-5, nan_ok=True)
            assert first[statistic]['mean'] == expected, statistic


@pytest.fixture
def recordable(monkeypatch):
    """Checks that `compute` does nothing that CUDA refuses to capture: waiting for the device, and copying to it.

    Called with a loss class and an `OtherDevice`, it returns a counter of the rounds that will be checked, by phase:
    those after the first ones, in which constants are made, and without an obstacle.
    """

    def check(loss_class, other):
        rounds, checked, compute = Counter(), Counter(), loss_class.compute

        def watched(self, phase, *args, **kwargs):
            before = other.waits + other.copies
            compute(self, phase, *args, **kwargs)
            rounds[phase] += 1
            if rounds[phase] > WARM_UP and not self.obstacle(phase):
                checked[phase] += 1
                refused = (other.waits + other.copies) - before
                assert not refused, refused

        monkeypatch.setattr(loss_class, 'compute', watched)
        return checked

    return check


@pytest.mark.slow
@pytest.mark.usefixtures('small_grids', 'own_cache')
@pytest.mark.parametrize(
    ('name', 'recorded'),
    [
        ('ada', {'Greg'}),
        ('moments', {'Gmain', 'Greg', 'Dmain', 'Dreg'}),
        ('kernel', {'Greg', 'Dmain', 'Dreg'}),
        ('images', {'Gmain', 'Greg', 'Dmain', 'Dreg'}),
        ('both', {'Greg', 'Dmain', 'Dreg'}),
    ],
)
def test_distillation(tmp_path, data, teacher, waits_in_steps, recordable, name, recorded):
    """It waits once per phase, and what CUDA graphs hold does not wait at all."""
    arguments = loop_arguments(tmp_path / 'run', data, True, device=str(OTHER), total_kimg=0.064, kimg_per_tick=1)
    arguments |= dict(G_reg_interval=1, D_reg_interval=1, **compressing(name, teacher))
    with OtherDevice() as other:
        waits, checked = waits_in_steps(other), recordable(AdversarialLoss, other)
        distillation.training_loop(**arguments)
    allowed = IN_A_STEP | IN_STEPS_OF.get(name, {})
    assert set(waits) <= set(allowed), waits
    assert waits['stylegan2_compress/losses/steps.py:_not_finite'] == 4 * 4  # In each step all phases.
    assert set(checked) == recorded


@pytest.mark.usefixtures('small_grids')
@pytest.mark.parametrize('rule', ['edge-popup', 'global-edge-popup', 'gem-miner', 'imp'])
def test_ticket_search_and_what_it_keeps(tmp_path, data, waits_in_steps, recordable, monkeypatch, like_mps, rule):
    """In single precision, which MPS has alone. Its steps can be recorded."""
    monkeypatch.setenv('STYLEGAN2_COMPRESS_CACHE', str(tmp_path / 'cache'))
    arguments = loop_arguments(tmp_path / 'run', data, True, device=str(OTHER), total_kimg=0.064, G_reg_interval=None)
    arguments['G_kwargs'] |= dict(class_name='stylegan2_compress.ScoreMaskedGenerator', keep=0.5, rule=rule)
    arguments['loss_kwargs'] = dict(
        class_name='stylegan2_compress.MomentMatchingLoss',
        embedding=EMBEDDING,
        training_set_kwargs=arguments['training_set_kwargs'],
        total_kimg=0.064,
    )
    with OtherDevice(float64=False) as other:
        waits, checked = waits_in_steps(other), recordable(GeneratorLoss, other)
        ticket_search.training_loop(**arguments)
        assert set(waits) <= set(IN_A_STEP | IN_STEPS_OF.get(rule, {})), waits
        assert checked['Gboth'] == 1
        (tmp_path / 'run' / 'training_options.json').write_text(
            f'{{"training_set_kwargs": {{"class_name": "training.dataset.ImageFolderDataset", "path": "{data}", '
            '"use_labels": true}}'
        )
        keep_tickets(str(tmp_path / 'run'), EMBEDDING, 8, OTHER)
    assert (tmp_path / 'run' / 'best.ticket').exists() == (rule != 'imp')


def test_evaluation_in_single_precision(tmp_path, data, teacher, monkeypatch, like_mps):
    monkeypatch.setenv('STYLEGAN2_COMPRESS_CACHE', str(tmp_path / 'cache'))
    choose = devices.choose
    monkeypatch.setattr(devices, 'choose', lambda name=None: OTHER if name == 'other' else choose(name))
    metrics = ','.join(f'{name}:{EMBEDDING}' for name in ('fd', 'kd', 'dc', 'agreement'))
    networks = [teacher, shutil.copy(teacher, tmp_path / 'student.pkl')]
    with OtherDevice(float64=False):
        measured = evaluate(networks, str(data), metrics, samples=16, device='other')
    on_cpu = evaluate(networks, str(data), metrics, samples=16, device='cpu')
    for one, other in zip(measured, on_cpu, strict=True):
        assert one.values.keys() == other.values.keys()
        for name, values in other.values.items():
            assert one.values[name] == pytest.approx(values, rel=1e-4), name
