"""Our training loop on the host's own loss: what it leaves behind, and what its randomness depends on."""

import contextlib
import io
import itertools
import json
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace
from typing import ClassVar

import dnnlib
import legacy
import numpy as np
import PIL.Image
import psutil
import pytest
import torch
from tiny_runs import ADAM, EMBEDDING, loop_arguments
from tqdm import tqdm
from training.dataset import ImageFolderDataset
from training.loss import StyleGAN2Loss

from stylegan2_compress import distributed, pickles
from stylegan2_compress.errors import DivergedError, UserError
from stylegan2_compress.host.networks import is_placeholder
from stylegan2_compress.runs import states
from stylegan2_compress.runs.directory import RunDirectory
from stylegan2_compress.training_loops import data, loop, setup, ticket_search
from stylegan2_compress.training_loops.distillation import training_loop
from stylegan2_compress.training_loops.image_grid import ImageGrid
from stylegan2_compress.training_loops.monitor import Monitor
from stylegan2_compress.training_loops.phases import Phase, Stopwatch, build_phases, load_optimizer
from stylegan2_compress.training_loops.run import TensorAttributes
from stylegan2_compress.training_loops.tensorboard import TensorBoard


@pytest.fixture
def arguments(tmp_path, make_dataset_zip):
    """Builder of arguments: `arguments(run, **changes)`."""

    def build(run='run', channels=3, labels=0, **changes):
        data = make_dataset_zip(tmp_path, n=12, channels=channels, labels=labels, name=f'{run}.zip')
        return loop_arguments(tmp_path / run, data, labels > 0, **changes)

    return build


def final_weights(run_dir):
    return pickles.load(f'{run_dir}/network-snapshot-000000.pkl')['G_ema'].state_dict()


@pytest.mark.parametrize(('channels', 'labels'), [(1, 3), (3, 0)])
def test_leaves_what_the_host_leaves(arguments, tmp_path, capsys, channels, labels):
    training_loop(**arguments(channels=channels, labels=labels, image_snapshot_ticks=1))
    run_dir = tmp_path / 'run'
    assert {path.name for path in run_dir.iterdir() if not path.name.startswith('events.')} == {
        'reals.png', 'fakes_init.png', 'fakes000000.png', 'network-snapshot-000000.pkl', 'stats.jsonl',
        'training-state-000000.080.pt',
    }  # fmt: skip
    # The host's grid: 32 columns and 32 rows at this size.
    assert PIL.Image.open(run_dir / 'reals.png').size == (32 * 16, 32 * 16)
    assert PIL.Image.open(run_dir / 'fakes000000.png').mode == ('L' if channels == 1 else 'RGB')
    stats = [json.loads(line) for line in (run_dir / 'stats.jsonl').read_text().splitlines()]
    assert len(stats) == 3  # Ticks end after 1, 3 and 5 steps.
    assert [round(stat['Progress/kimg']['mean'] * 1e3) for stat in stats] == [16, 48, 80]
    for name in ('Loss/G/loss', 'Loss/D/loss', 'Timing/Gmain', 'Timing/Dreg', 'Resources/cpu_mem_gb'):
        assert stats[0][name]['num'] >= 1
    with open(run_dir / 'network-snapshot-000000.pkl', 'rb') as file:  # As the host writes it, for the host to read.
        snapshot = pickle.load(file)
    assert set(snapshot) == {'G', 'D', 'G_ema', 'augment_pipe', 'training_set_kwargs'}
    assert not snapshot['G_ema'].training
    assert not any(parameter.requires_grad for parameter in snapshot['G'].parameters())
    assert 'tick 2     kimg 0.1' in capsys.readouterr().out


@pytest.mark.usefixtures('small_grids')
def test_statistics_are_those_of_the_run_and_of_none_before_it(arguments, tmp_path):
    """In one process, as in a notebook."""
    names = []
    for run, weight in [('one', 2), ('two', 0)]:  # Without path lengths, the second has fewer.
        given = arguments(run)
        training_loop(**dict(given, loss_kwargs=dict(given['loss_kwargs'], pl_weight=weight)))
        lines = [json.loads(line) for line in (tmp_path / run / 'stats.jsonl').read_text().splitlines()]
        names.append(set(lines[-1]))
    assert 'Loss/pl_penalty' in names[0]
    assert names[1] == {name for name in names[0] if not name.startswith('Loss/pl_') and name != 'Loss/G/reg'}


def test_a_continued_run_makes_the_real_images_of_its_grid_no_second_time(arguments, monkeypatch, small_grids):
    training_loop(**arguments())
    monkeypatch.setattr(ImageGrid, 'save_reals', lambda *_: pytest.fail('they are there'))
    looked_at = []
    of_files = ImageFolderDataset.__getitem__
    monkeypatch.setattr(
        ImageFolderDataset, '__getitem__', lambda data, index: looked_at.append(index) or of_files(data, index)
    )
    training_loop(**arguments())
    assert looked_at == []


def test_snapshots_of_the_generator_alone(arguments, tmp_path):
    training_loop(**arguments('all', total_kimg=0.016))
    training_loop(**arguments('alone', total_kimg=0.016, snapshot_only='G_ema'))
    everything, alone = (tmp_path / run / 'network-snapshot-000000.pkl' for run in ('all', 'alone'))
    for name, tensor in final_weights(tmp_path / 'all').items():
        assert torch.equal(final_weights(tmp_path / 'alone')[name], tensor)
    assert is_placeholder(pickles.load(alone)['D'])
    assert not is_placeholder(pickles.load(everything)['D'])
    assert alone.stat().st_size < everything.stat().st_size


def test_a_run_says_how_much_space_its_snapshots_will_take(arguments, monkeypatch, capsys):
    training_loop(**arguments(network_snapshot_ticks=1))  # Ticks end after 1, 3 and 5 steps.
    assert re.search(
        r'A snapshot has 0\.\d MB; 2 more will take 0\.\d MB, and \S+ GB are free\.', capsys.readouterr().out
    )
    monkeypatch.setattr(shutil, 'disk_usage', lambda _path: SimpleNamespace(free=1000))
    training_loop(**arguments('other'))
    assert 'and only 0.0 MB are free: more ticks between them (--snap) take less.' in capsys.readouterr().out


def test_rows_of_the_grid_have_one_label_each(arguments, tmp_path):
    training_loop(**arguments(labels=3, total_kimg=0.016))
    reals = np.array(PIL.Image.open(tmp_path / 'run' / 'reals.png')).reshape(32, 16, 32, 16, 3).swapaxes(1, 2)
    rows = [{cell.tobytes() for cell in row} for row in reals]
    for first in range(3):
        for second in range(3):
            assert rows[first].isdisjoint(rows[second]) == (first != second)
    assert all(len(row) == 4 for row in rows)  # 12 images of 3 classes.


def test_same_seed_same_run_whatever_the_global_state(arguments, tmp_path):
    training_loop(**arguments('first'))
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 (the state that must not matter)
    training_loop(**arguments('second', training_set_kwargs=arguments('unused')['training_set_kwargs']))
    training_loop(**arguments('third', random_seed=1))
    first, second, third = (final_weights(tmp_path / run) for run in ('first', 'second', 'third'))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_randomness_depends_on_seed_and_place_alone(make_dataset_zip, tmp_path):
    """Latents are an image's, whatever the rounds; torch's randomness is the round's."""
    training_set = dnnlib.util.construct_class_by_name(
        class_name='training.dataset.ImageFolderDataset',
        path=str(make_dataset_zip(tmp_path, labels=3)),
        use_labels=True,
    )

    def draw(share, *where):
        real = torch.zeros(0)
        drawn = data.rounds([(real, real)] * share.rounds, training_set, 4, share, *where)
        return [(*each['gen_z'].tolist(), *each['gen_c'].tolist(), torch.randn(1).item()) for each in drawn]

    first, second = draw(data.Share(8, 4), 0, 64, 0)
    assert [first] == draw(data.Share(8, 4, num_gpus=2, rank=0), 0, 64, 0)
    assert [second] == draw(data.Share(8, 4, num_gpus=2, rank=1), 0, 64, 0)
    (whole,) = draw(data.Share(8, 8), 0, 64, 0)
    assert whole[:8] == first[:4] + second[:4]
    assert whole[-1] == first[-1] != second[-1]
    assert len({str(draw(data.Share(8, 4), *where)) for where in [(0, 64, 0), (1, 64, 0), (0, 72, 0), (0, 64, 1)]}) == 4


def test_real_images_come_in_whole_epochs_from_any_start():
    share = data.Share(batch_size=8, batch_gpu=2, num_gpus=2, rank=1)
    everything = list(itertools.islice(data.ShuffledSampler(10, data.Share(1, 1), random_seed=3), 60))
    epochs = [everything[start : start + 10] for start in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 6
    mine = list(itertools.islice(data.ShuffledSampler(10, share, random_seed=3, start=16), 8))
    assert mine == [everything[place] for place in (18, 19, 22, 23, 26, 27, 30, 31)]


def test_training_moves_every_trainable_weight_and_averages_it(arguments, tmp_path):
    training_loop(**arguments(ema_kimg=0.016))  # Half-life of one batch.
    start = arguments('start', total_kimg=0.016, G_opt_kwargs=dict(ADAM, lr=0), D_opt_kwargs=dict(ADAM, lr=0))
    training_loop(**start)
    before = pickles.load(tmp_path / 'start' / 'network-snapshot-000000.pkl')
    after = pickles.load(tmp_path / 'run' / 'network-snapshot-000000.pkl')
    for network in ('G', 'D'):
        old, new = dict(before[network].named_parameters()), dict(after[network].named_parameters())
        assert all(not torch.equal(old[name], new[name]) for name in old), network
    for name, initial in before['G'].named_parameters():
        ema, final = after['G_ema'].get_parameter(name), after['G'].get_parameter(name)
        assert not torch.equal(ema, final), name
        assert not torch.equal(ema, initial), name
    assert torch.equal(after['G_ema'].mapping.w_avg, after['G'].mapping.w_avg)


def test_gradient_accumulation_equals_one_round(arguments, tmp_path):
    """For a loss without batch statistics (no minibatch standard deviation, no mixing), rounds only split the sum."""
    changes = dict(loss_kwargs=dict(class_name='training.loss.StyleGAN2Loss', style_mixing_prob=0, pl_weight=0))
    for run, batch_gpu in [('whole', 16), ('halves', 8)]:
        run_arguments = arguments(run, batch_gpu=batch_gpu, **changes)
        run_arguments['D_kwargs'] |= dict(epilogue_kwargs=dict(mbstd_num_channels=0))
        run_arguments['G_kwargs']['synthesis_kwargs'] |= dict(use_noise=False)
        training_loop(**run_arguments)
    whole, halves = final_weights(tmp_path / 'whole'), final_weights(tmp_path / 'halves')
    for name in whole:
        torch.testing.assert_close(whole[name], halves[name], rtol=1e-3, atol=1e-4)


def test_gradients_are_averaged_over_rounds():
    """Adam hardly tells a sum from an average."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([4.0, -8.0, torch.inf])
    distributed.average_gradients([parameter], rounds=4)
    assert parameter.grad.tolist() == [1, -2, 1e5]


@pytest.mark.parametrize(
    ('cur_nimg', 'rampup', 'share'), [(64, None, 0.5), (16 * 20, 0.05, 0.5), (32 * 20, 0.05, 0.5), (8 * 20, 0.05, 0.75)]
)
def test_the_average_of_weights_has_its_half_life(cur_nimg, rampup, share):
    """A batch of 16 and a half-life of 16, which at the start is a twentieth of the images so far."""
    G, G_ema = (torch.nn.BatchNorm1d(2).requires_grad_(False) for _ in range(2))
    torch.nn.init.constant_(G.weight, 3)
    G.running_mean.fill_(7)
    loop.update_average(G_ema, G, cur_nimg, 16, 0.016, rampup)
    assert G_ema.weight.tolist() == pytest.approx([1 + 2 * share] * 2)
    assert G_ema.running_mean.tolist() == [7, 7]


class Spy(StyleGAN2Loss):
    """The host's loss, which notes what it is asked for."""

    asked: ClassVar[list] = []

    def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, sync, gain):
        self.asked.append((phase, len(real_img), sync, gain))
        super().accumulate_gradients(phase, real_img, real_c, gen_z, gen_c, sync, gain)


def test_the_loss_is_asked_for_what_the_host_asks_for(arguments, monkeypatch):
    """Regularisation in every so many steps, for as many times its weight; the last round alone is in sync."""
    monkeypatch.setattr(Spy, 'asked', [])
    intervals = dict(G_reg_interval=4, D_reg_interval=3)
    training_loop(**arguments(batch_gpu=8, loss_kwargs=dict(class_name=f'{__name__}.Spy'), **intervals))
    phases = [('Gmain', 1), ('Greg', 4), ('Dmain', 1), ('Dreg', 3)]
    steps = [[(name, gain) for name, gain in phases if step % gain == 0] for step in range(5)]
    assert Spy.asked == [(name, 8, sync, gain) for step in steps for name, gain in step for sync in (False, True)]


def test_pictures_are_of_the_same_latents_by_the_average(arguments, tmp_path):
    training_loop(**arguments(image_snapshot_ticks=1, ema_kimg=1000))  # Which hardly moves.
    run_dir = tmp_path / 'run'
    init, later = (np.asarray(PIL.Image.open(run_dir / f'fakes{name}.png')).astype(int) for name in ('_init', '000000'))
    assert abs(init - later).max() <= 8 < init.std()
    G_ema = pickles.load(run_dir / 'network-snapshot-000000.pkl')['G_ema']
    data.seed_everything(0, data.GRID)
    grid = ImageGrid(dnnlib.util.construct_class_by_name(**arguments()['training_set_kwargs']), 16, 16, 'cpu')
    z, c = grid.batches[2]  # The 33rd image is the first of the second row.
    wanted = (G_ema(z, c, noise_mode='const') * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    cells = later.reshape(32, 16, 32, 16, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 16, 16)[32:48]
    assert abs(cells - wanted.numpy().astype(int)).max() <= 1


class Collected(dict):
    """Statistics that nothing is added to."""

    def update(self):
        pass


def test_ada_stays_where_no_step_has_told_it_anything():
    """As after steps that were all left out, whose mean is not a number."""
    p = torch.tensor(0.25)
    options = SimpleNamespace(ada_target=0.6, batch_size=4, ada_interval=1, ada_kimg=0.4)
    for sign, expected in [(np.nan, 0.25), (1.0, 0.26), (np.nan, 0.26), (0.0, 0.25)]:
        loop.adapt_augmentation(p, Collected({'Loss/signs/real': sign}), options)
        assert float(p) == pytest.approx(expected)


def test_ada_strength_follows_the_target(arguments, tmp_path):
    changes = dict(
        augment_kwargs=dict(class_name='training.augment.AugmentPipe', xflip=1), ada_interval=1, ada_kimg=0.4
    )
    training_loop(**arguments('up', ada_target=-2, **changes))
    training_loop(**arguments('down', ada_target=2, augment_p=0.1, **changes))
    up, down = (
        pickles.load(tmp_path / run / 'network-snapshot-000000.pkl')['augment_pipe'].p for run in ('up', 'down')
    )
    assert up.item() == pytest.approx(5 * 16 / 400)  # Five steps of 16 images, one unit per 400 images.
    assert down.item() == 0


def test_resumes_from_a_pickle(arguments, tmp_path):
    training_loop(**arguments('first'))
    path = str(tmp_path / 'first' / 'network-snapshot-000000.pkl')
    frozen = dict(ADAM, lr=0)
    changes = dict(G_opt_kwargs=frozen, D_opt_kwargs=frozen, total_kimg=0.016, resume_pkl=path)
    training_loop(**arguments('second', **changes))
    first, second = pickles.load(path)['G'], pickles.load(tmp_path / 'second' / 'network-snapshot-000000.pkl')['G']
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name)), name


def test_tensors_that_a_loss_of_the_hosts_kind_makes_later_are_in_the_state():
    shared = torch.zeros([])
    saved = SimpleNamespace(pl_mean=torch.tensor(1.0), mean=torch.tensor(2.0, requires_grad=True), bank=torch.ones(3))
    loss = SimpleNamespace(pl_mean=shared, mean=None, bank=torch.zeros(0), rate=0.1)
    state = TensorAttributes(saved, torch.device('cpu')).state_dict()
    TensorAttributes(loss, torch.device('cpu')).load_state_dict(state)
    assert loss.pl_mean is shared
    assert (shared, loss.mean, loss.bank.tolist(), loss.rate) == (1, 2, [1, 1, 1], 0.1)


def test_aborts_and_reports_progress(arguments, tmp_path):
    calls = []
    training_loop(
        **arguments(total_kimg=1, abort_fn=lambda: len(calls) > 1, progress_fn=lambda done, total: calls.append(total))
    )
    assert calls == [1, 1, 1]  # Before training, and after each of two ticks.
    assert (tmp_path / 'run' / 'network-snapshot-000000.pkl').exists()


def test_a_search_for_tickets_trains_no_discriminator(arguments, tmp_path, monkeypatch):
    """With a loss of our own; the host's loader opens the snapshot."""
    (tmp_path / 'brightness.py').write_text(
        'class Loss:\n'
        '    def __init__(self, device, G_mapping, G_synthesis, D, augment_pipe):\n'
        '        assert D is None\n'
        '        self.G = lambda z, c: G_synthesis(G_mapping(z, c), force_fp32=True)\n'
        '    def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, sync, gain):\n'
        '        assert phase == "Gboth"\n'
        '        (self.G(gen_z, gen_c).mean() - 1).square().mul(gain).backward()\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    given = arguments(labels=3, loss_kwargs=dict(class_name='brightness.Loss'), G_reg_interval=None, ema_kimg=0)
    given['G_opt_kwargs'] = dict(ADAM, lr=0.05)
    ticket_search.training_loop(**{**given, 'D_kwargs': None, 'D_opt_kwargs': None})
    with open(tmp_path / 'run' / 'network-snapshot-000000.pkl', 'rb') as file:
        snapshot = legacy.load_network_pkl(file)
    z, c = torch.randn([8, 16]), torch.eye(3)[:1].repeat(8, 1)
    assert snapshot['D'](snapshot['G_ema'](z, c), c).shape == (8, 1)
    assert sum(parameter.numel() for parameter in snapshot['D'].parameters()) < 1000
    untrained = dnnlib.util.construct_class_by_name(**given['G_kwargs'], c_dim=3, img_resolution=16, img_channels=3)
    assert snapshot['G_ema'](z, c).mean() > untrained(z, c).mean() + 0.1


def test_the_average_of_w_moves_in_steps_without_a_gradient(arguments, tmp_path):
    """Those in which a large batch is not due are no steps that are left out. Weights stay, so that it alone moves."""
    averages = []
    for size in (16, 32):
        given = arguments(str(size), G_opt_kwargs=dict(ADAM, lr=0), G_reg_interval=None)
        given['loss_kwargs'] = dict(
            class_name='stylegan2_compress.DistanceLoss', reference='data', embeddings=EMBEDDING, batch_size=16,
            large_batch=size, training_set_kwargs=given['training_set_kwargs'],
        )  # fmt: skip
        ticket_search.training_loop(**{**given, 'D_kwargs': None, 'D_opt_kwargs': None})
        averages.append(final_weights(tmp_path / str(size))['mapping.w_avg'])
    assert averages[0].abs().max() > 0
    torch.testing.assert_close(*averages, rtol=0, atol=0)


def test_a_run_that_diverges_leaves_a_snapshot_without_nan(arguments, tmp_path, monkeypatch):
    """A step whose loss is not finite moves neither weights nor averages; after ten the loss gives up."""
    from stylegan2_compress.losses.adversarial import AdversarialLoss

    judge = AdversarialLoss.judge
    monkeypatch.setattr(
        AdversarialLoss, 'judge', lambda self, *args: {name: x * float('nan') for name, x in judge(self, *args).items()}
    )
    given = arguments(loss_kwargs=dict(class_name='stylegan2_compress.AdversarialLoss'), total_kimg=1)
    closed = []
    monkeypatch.setattr(TensorBoard, 'close', lambda tracker, failed: closed.append(failed))
    met = []
    snapshots = lambda: sorted(path.name for path in (tmp_path / 'run').glob('*.pkl'))  # noqa: E731
    monkeypatch.setattr(distributed, 'any_process', lambda flag, _device: met.append(snapshots()) or flag)
    with pytest.raises(DivergedError):
        training_loop(**given)
    assert met[-1] == ['network-snapshot-000000.pkl']  # Others report the error after rank 0 has written it.
    assert closed == [True]  # Another run of the same process has trackers of its own.
    networks = pickles.load(tmp_path / 'run' / 'network-snapshot-000000.pkl')
    for name in ('G', 'G_ema', 'D'):
        assert all(tensor.isfinite().all() for tensor in networks[name].state_dict().values())


@pytest.mark.slow
@pytest.mark.usefixtures('small_grids')
def test_memory_does_not_grow(arguments, monkeypatch):
    """Resident memory from step 50 to step 300, with the state saved every ten steps."""
    process, resident = psutil.Process(), []

    def look(*args):
        resident.append(process.memory_info().rss)
        return update_average(*args)

    update_average = loop.update_average
    monkeypatch.setattr(loop, 'update_average', look)
    given = arguments(batch_size=2, batch_gpu=2, total_kimg=0.6, state_kimg=0.02, kimg_per_tick=0.1)
    training_loop(**dict(given, network_snapshot_ticks=2, data_loader_kwargs=dict(num_workers=1)))
    assert len(resident) == 300
    assert max(resident[-50:]) - max(resident[:50]) < 5 * 2**20


def test_phases_are_the_hosts():
    """Names, intervals and lazily corrected Adam settings, from StyleGAN2's appendix B."""
    G, D = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    phases = build_phases([('G', G, ADAM, 4), ('D', D, ADAM, None)], torch.device('cpu'))
    assert [(phase.name, phase.interval) for phase in phases] == [('Gmain', 1), ('Greg', 4), ('Dboth', 1)]
    assert phases[0].opt is phases[1].opt
    group = phases[0].opt.param_groups[0]
    assert group['lr'] == pytest.approx(0.002 * 4 / 5)
    assert group['betas'] == pytest.approx((0, 0.99 ** (4 / 5)))
    assert tuple(phases[2].opt.param_groups[0]['betas']) == (0, 0.99)  # A list with torch 2.4.


@pytest.mark.parametrize('begun', [True, None])
def test_optimizers_go_on_as_they_began_fused_or_not(begun):
    """Steps of a run that was begun with one kind of Adam and goes on in a program with the other as its default."""
    weights = []
    for wants_other in (False, True):
        module = torch.nn.Linear(40, 3)
        torch.nn.init.constant_(module.weight, 0.5)
        torch.nn.init.zeros_(module.bias)
        (phase,) = build_phases([('D', module, dict(ADAM, fused=begun), None)], torch.device('cpu'))
        for step in range(6):
            if step == 3 and wants_other:
                state = phase.opt.state_dict()
                (phase,) = build_phases([('D', module, dict(ADAM, fused=not begun), None)], torch.device('cpu'))
                phase.opt.load_state_dict(state)
            phase.begin()
            module(torch.linspace(-1, 1, 40) * (step + 1)).square().sum().backward()
            phase.finish(rounds=1)
        weights.append(module.weight.detach().clone())
    assert torch.equal(*weights)
    default = build_phases([('D', module, ADAM, None)], torch.device('cpu'))[0]
    assert default.opt.param_groups[0]['fused'] is True


def test_optimizers_go_on_in_another_memory_format():
    """Steps with channels last, as FP16 has them on a GPU, and then without, as where there is no FP16."""
    weights = []
    for formats in ([torch.contiguous_format] * 2, [torch.channels_last, torch.contiguous_format]):
        module, state = torch.nn.Conv2d(3, 4, 3, bias=False), None
        rnd = torch.Generator().manual_seed(0)
        torch.nn.init.normal_(module.weight, generator=rnd)
        for memory_format in formats:
            module.to(memory_format=memory_format)
            (phase,) = build_phases([('D', module, ADAM, None)], torch.device('cpu'))
            if state is not None:
                load_optimizer(phase.opt, state)
            for _ in range(3):
                phase.begin()
                module(torch.randn(2, 3, 4, 4, generator=rnd)).square().sum().backward()
                phase.finish(rounds=1)
            state = phase.opt.state_dict()
        weights.append(module.weight.detach().clone())
    torch.testing.assert_close(*weights)


def test_learning_rates_fall_in_a_straight_line(arguments, monkeypatch):
    rates = []
    finish = Phase.finish
    monkeypatch.setattr(
        Phase, 'finish', lambda phase, rounds: rates.append(phase.opt.param_groups[0]['lr']) or finish(phase, rounds)
    )
    training_loop(**arguments(G_reg_interval=None, D_reg_interval=None, lr_decay_kimg=[0.032, 0.08]))
    shares = [1, 1, 1, 2 / 3, 1 / 3]  # Steps begin at 0, 16, 32, 48 and 64 images.
    assert rates == pytest.approx([ADAM['lr'] * share for share in shares for _phase in 'GD'])


def test_a_step_is_the_same_whatever_the_order_of_memory():
    """That of --nhwc is another one than that of the gradients, and fused optimizers take it as it is."""
    weights = []
    for order in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        module = torch.nn.Conv2d(4, 3, 3, bias=False).to(memory_format=order)
        (phase,) = build_phases([('D', module, dict(ADAM, lr=0.1), None)], torch.device('cpu'))
        for _step in range(2):
            phase.begin()
            (module(torch.randn([2, 4, 5, 5])) ** 2).sum().backward()
            phase.finish(rounds=1)
        assert module.weight.is_contiguous(memory_format=order)
        weights.append(module.weight.detach())
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize('side', [1, 3])
def test_gradients_have_the_strides_of_their_parameters(side):
    """Also where a dimension of size 1 has any: fused optimizers of torch 2.4 want the same there."""
    module = torch.nn.Conv2d(8, 3, side, bias=False).to(memory_format=torch.channels_last)
    module(torch.randn([2, 8, 5, 5])).square().sum().backward()
    expected = module.weight.grad.clone()
    distributed.average_gradients(module.parameters(), rounds=1)
    assert module.weight.grad.stride() == module.weight.stride() != torch.empty(3, 8, side, side).stride()
    torch.testing.assert_close(module.weight.grad, expected)


def test_phase_repairs_gradients_that_are_not_finite():
    module = torch.nn.Linear(3, 1, bias=False)
    phase = Phase('Gmain', module, torch.optim.SGD(module.parameters(), lr=1), 1, Stopwatch(torch.device('cpu')))
    before = module.weight.detach().clone()
    phase.begin()
    assert module.weight.requires_grad
    module.weight.grad = torch.tensor([[float('nan'), float('inf'), -float('inf')]])
    phase.finish(rounds=1)
    assert not module.weight.requires_grad
    torch.testing.assert_close(before - module.weight.detach(), torch.tensor([[0, 1e5, -1e5]]))
    assert phase.stopwatch.milliseconds()[0] > 0


@pytest.fixture
def recorded_cuda(monkeypatch):
    """Stand-ins for torch's CUDA events, streams and current device; returns the list of what was done with them."""
    done = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream=None):
            done.append(('record', stream))

        def synchronize(self):
            pass

        def elapsed_time(self, other):
            return 12.0

    @contextlib.contextmanager
    def current(device):
        done.append(('enter', device))
        yield
        done.append(('leave', device))

    monkeypatch.setattr(torch.cuda, 'Event', Event)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device=None: f'stream of {device}')
    monkeypatch.setattr(torch.cuda, 'device', current)
    return done


def test_time_is_measured_on_the_device_of_the_run(recorded_cuda):
    """An event without a stream belongs to the current device, and makes a context on it."""
    stopwatch = Stopwatch(torch.device('cuda:1'))
    assert stopwatch.milliseconds() == []
    stopwatch.start()
    stopwatch.stop()
    assert stopwatch.milliseconds() == [12.0]
    assert recorded_cuda == [('record', 'stream of cuda:1')] * 2


def test_a_run_makes_its_device_the_current_one(recorded_cuda):
    """Pinned memory belongs to the context of the current device."""
    with loop.current_device(torch.device('cuda:1')):
        recorded_cuda.append('training')
    with loop.current_device(torch.device('cpu')):
        pass
    assert recorded_cuda == [('enter', torch.device('cuda:1')), 'training', ('leave', torch.device('cuda:1'))]


def test_a_run_that_fails_ends_although_it_has_workers(arguments):
    """Python waits for a process's children before it ends, and workers do not listen to signals."""
    script = (
        'import json, sys\n'
        'from stylegan2_compress import host\n'
        'host.activate()\n'
        'from stylegan2_compress.training_loops.distillation import training_loop\n'
        'training_loop(**json.loads(sys.argv[1]), abort_fn=lambda: 1 / 0)\n'
    )
    run = arguments(data_loader_kwargs=dict(num_workers=1), image_snapshot_ticks=None, network_snapshot_ticks=None)
    result = subprocess.run(
        [sys.executable, '-c', script, json.dumps(run)], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.stderr.splitlines()[-1] == 'ZeroDivisionError: division by zero'


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='workers are children here')
def test_no_worker_is_left_when_an_image_cannot_be_read(tmp_path, make_dataset_zip):
    """The error's traceback keeps the loader, and with it workers that do not listen to signals."""
    path = make_dataset_zip(tmp_path, n=4)
    training_set = dnnlib.util.construct_class_by_name(
        class_name='training.dataset.ImageFolderDataset', path=str(path), use_labels=False
    )
    training_set._image_fnames[2] = 'missing.png'
    before = multiprocessing.active_children()
    batches = data.real_batches(training_set, data.Share(4, 4), 0, 0, torch.device('cpu'), num_workers=2)
    with pytest.raises(UserError, match='cannot be used') as raised:
        next(batches)
    assert raised.tb is not None
    assert multiprocessing.active_children() == before


@pytest.mark.filterwarnings('error')
def test_the_progress_bar_ends_at_the_end(tmp_path):
    """The last step may be beyond it: tqdm would warn, and show 101 %."""
    monitor = Monitor(RunDirectory(tmp_path), 1, torch.device('cpu'))
    written = io.StringIO()
    monitor.bar = tqdm(total=1, file=written, bar_format='{percentage:3.0f}% |{bar}| {remaining} left', mininterval=0)
    for _ in range(3):
        monitor.advance(400)
    assert monitor.bar.n == 1
    assert '101%' not in written.getvalue()
    assert '-00' not in written.getvalue()


def test_all_processes_continue_from_the_state_that_rank_zero_chose(tmp_path, monkeypatch):
    """This one is rank 1: of two states, one of the same name has other contents for rank 0, one is not to be seen."""
    directory, device = RunDirectory(tmp_path), torch.device('cpu')
    older = states.save_state(directory, 1000, {'of': 'both'}, finished=False)
    newer = states.save_state(directory, 2000, {'of': 'rank 1'}, finished=False)
    monkeypatch.setattr(distributed, 'is_rank_zero', lambda: False)

    def with_choice(choice):
        monkeypatch.setattr(distributed, 'broadcast_object', lambda own, _device: own or choice)
        return setup.load_state(directory, device)

    assert with_choice((older, states.verify(older)))['of'] == 'both'
    assert with_choice(None) is None
    with pytest.raises(UserError, match=r'training-state-000002\.000\.pt is another state here than in process 0'):
        with_choice((newer, states.verify(older)))
    with pytest.raises(UserError, match=r'Cannot read .*training-state-000003\.000\.pt'):
        with_choice((directory.state_path(3000), ''))
