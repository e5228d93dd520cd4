"""Runs that are stopped, killed or damaged, and continued: what comes out is what an uninterrupted run leaves."""

import errno
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from metrics import metric_main
from tiny_runs import loop_arguments, start

from stylegan2_compress import distributed, pickles
from stylegan2_compress.errors import Stopped, UserError
from stylegan2_compress.runs import launch, loops, states
from stylegan2_compress.runs.directory import RunDirectory
from stylegan2_compress.runs.plan import Plan
from stylegan2_compress.runs.resume import continue_or_start
from stylegan2_compress.training_loops import data, image_grid
from stylegan2_compress.training_loops.distillation import training_loop
from stylegan2_compress.training_loops.tensorboard import TensorBoard


@pytest.fixture(scope='module', autouse=True)
def small_and_quick():
    """A grid of a few images, and a metric that costs nothing; forked processes have them too."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(image_grid, 'grid_size', lambda _shape: (2, 2))
        mean = lambda options: dict(mean=float(options.G.mapping.w_avg.mean()))  # noqa: E731
        monkeypatch.setitem(metric_main._metric_dict, 'mean', mean)
        monkeypatch.setattr(TensorBoard, 'open', lambda *_where: None)  # Slow to import, and tested elsewhere.
        yield


@pytest.fixture(scope='module')
def arguments(tmp_path_factory, make_dataset_zip):
    """Everything that has state: path lengths, R1, ADA, rounds, an epoch that ends in the middle of a step, metrics.

    And what has none: learning rates that fall.
    """
    training_set = make_dataset_zip(tmp_path_factory.mktemp('data'), n=13, labels=3)
    return lambda run_dir, **changes: loop_arguments(
        run_dir,
        training_set,
        labels=True,
        **dict(
            batch_size=8,
            batch_gpu=4,
            total_kimg=0.08,
            kimg_per_tick=0.016,
            state_kimg=0.024,
            network_snapshot_ticks=2,
            augment_kwargs=dict(class_name='training.augment.AugmentPipe', xflip=1, scale=1, brightness=1),
            augment_p=0.3,
            ada_target=0.1,
            ada_interval=2,
            ada_kimg=0.4,
            D_reg_interval=3,
            metrics=['mean'],
            lr_decay_kimg=[0.03, 0.08],
        )
        | changes,
    )


def outcome(run_dir):
    """All that may not depend on interruptions: networks, statistics but for clocks, metrics, the log's ticks."""
    networks = pickles.load(run_dir / 'network-snapshot-000000.pkl')
    weights = {f'{n}.{k}': v for n in ('G', 'D', 'G_ema', 'augment_pipe') for k, v in networks[n].state_dict().items()}
    stats = [json.loads(line) for line in (run_dir / 'stats.jsonl').read_text().splitlines()]
    metrics = [json.loads(line) for line in (run_dir / 'metric-mean.jsonl').read_text().splitlines()]
    return (
        weights,
        [{k: v for k, v in tick.items() if k.startswith(('Loss/', 'Progress/'))} for tick in stats],
        [(metric['results'], metric['snapshot_pkl']) for metric in metrics],
        re.findall(r'^tick \d+ +kimg [0-9.]+', (run_dir / 'log.txt').read_text(), re.MULTILINE),
    )


def assert_same(run_dir, expected_dir):
    (weights, stats, metrics, log), expected = outcome(run_dir), outcome(expected_dir)
    for name, tensor in expected[0].items():
        assert torch.equal(weights[name], tensor), name
    assert [list(tick) for tick in stats] == [list(tick) for tick in expected[1]]
    for tick, other in zip(stats, expected[1], strict=True):
        for name in tick:
            assert tick[name] == pytest.approx(other[name], nan_ok=True), name
    assert metrics == expected[2]
    assert log == expected[3]


def in_a_fork(function, *args, **kwargs):
    """Start `function` in a process of its own, which has everything imported already."""
    process = multiprocessing.get_context('fork').Process(target=function, args=args, kwargs=kwargs)
    process.start()
    return process


def train(**given):
    process = in_a_fork(start, **given)
    process.join()
    assert process.exitcode == 0


@pytest.fixture(scope='module')
def uninterrupted(arguments, tmp_path_factory):
    """A run's directory."""
    run_dir = tmp_path_factory.mktemp('uninterrupted')
    train(**arguments(run_dir))
    return run_dir


def killed(phase, delay, **given):
    """Train, and be killed so many seconds after the `phase`-th phase of all steps has begun."""

    def draw(*args, phases=[0]):
        phases[0] += 1
        if phases[0] == phase:
            threading.Timer(delay, os.kill, [os.getpid(), signal.SIGKILL]).start()
        return rounds(*args)

    rounds, data.rounds = data.rounds, draw
    start(**given)


def test_killed_at_any_moment(arguments, tmp_path, uninterrupted):
    rnd = random.Random()
    # A run has 27 phases in ten steps. It saves its state before metrics, first after 4 phases, and every three steps:
    # killed before the first, between two, then anywhere.
    moments = [(rnd.randint(1, 3), 0.0), (12, 0.0), *((rnd.randint(1, 16), rnd.uniform(0, 0.3)) for _ in range(3))]
    print('Killed at (phase, seconds after it began):', moments)
    given = arguments(tmp_path / 'killed')
    exitcodes, counts = [], []
    for phase, delay in moments:
        process = in_a_fork(killed, phase, delay, **given)
        process.join()
        exitcodes.append(process.exitcode)
        counts.append(len(RunDirectory(tmp_path / 'killed').states()))
    assert exitcodes[:2] == [-signal.SIGKILL] * 2
    assert counts[0] == 0 < counts[1]
    assert set(exitcodes) <= {0, -signal.SIGKILL}
    train(**given)
    assert_same(tmp_path / 'killed', uninterrupted)
    assert len(RunDirectory(tmp_path / 'killed').states()) == 2


def stopped(number, phase, times=1, **given):
    """Train, with signals that arrive as the `phase`-th phase of all steps begins."""

    def draw(*args, phases=[0]):
        phases[0] += 1
        if phases[0] == phase:
            for _ in range(times):
                signal.raise_signal(number)
        return rounds(*args)

    rounds, data.rounds = data.rounds, draw
    try:
        start(**given)
    except (Stopped, KeyboardInterrupt) as outcome:
        sys.exit(f'{type(outcome).__name__}: {outcome}')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_after_the_step(arguments, tmp_path, capfd, uninterrupted, number):
    process = in_a_fork(stopped, number, phase=5, **arguments(tmp_path / 'stopped'))
    process.join()
    assert len(RunDirectory(tmp_path / 'stopped').states()) == 2  # The other is from before metrics.
    assert re.search(rf'Stopped: Stopped at 0.0\d+ kimg.*--resume={tmp_path}/stopped', capfd.readouterr().err)
    train(**arguments(tmp_path / 'stopped'))
    assert_same(tmp_path / 'stopped', uninterrupted)


def test_an_interrupt_that_ends_who_reads_the_output_ends_the_run_after_the_step(arguments, tmp_path):
    """As of `distill … 2>&1 | tee log`: Ctrl-C is for both. A tick is printed in that step."""

    def read_by_tee():
        theirs, ours = os.pipe()
        for descriptor in (1, 2):
            os.dup2(ours, descriptor)
        os.close(ours)
        sys.stdout, sys.stderr = (os.fdopen(descriptor, 'w') for descriptor in (1, 2))

        def draw(*args, phases=[0]):
            phases[0] += 1
            if phases[0] == 7:
                os.close(theirs)
                signal.raise_signal(signal.SIGINT)
            return rounds(*args)

        rounds, data.rounds = data.rounds, draw
        try:
            start(**arguments(tmp_path / 'deaf'))
        except Stopped as outcome:
            print(outcome, flush=True)
            sys.exit(7)

    process = in_a_fork(read_by_tee)
    process.join()
    assert process.exitcode == 7
    log = (tmp_path / 'deaf' / 'log.txt').read_text()
    assert re.search(r'tick 1 [^\n]*\n[^\n]*\n\nStopped at 0.024 kimg', log), log
    assert states.load_latest_state(RunDirectory(tmp_path / 'deaf'))['progress']['cur_nimg'] == 24


def test_a_signal_that_is_ignored_ends_nothing(arguments, tmp_path, uninterrupted):
    """As under nohup."""

    def ignoring():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        stopped(signal.SIGHUP, phase=5, **arguments(tmp_path / 'ignoring'))

    process = in_a_fork(ignoring)
    process.join()
    assert process.exitcode == 0
    assert_same(tmp_path / 'ignoring', uninterrupted)


def test_a_second_interrupt_ends_it_at_once(arguments, tmp_path, capfd):
    process = in_a_fork(stopped, signal.SIGINT, phase=5, times=2, **arguments(tmp_path / 'stopped'))
    process.join()
    assert 'KeyboardInterrupt' in capfd.readouterr().err
    (before_metrics,) = RunDirectory(tmp_path / 'stopped').states()
    assert before_metrics.name == 'training-state-000000.008.pt'


def damage(path):
    with open(path, 'r+b') as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def truncate(path):
    os.truncate(path, os.path.getsize(path) - 1)


@pytest.mark.parametrize('harm', [damage, truncate])
def test_a_damaged_state_is_told_and_the_one_before_it_used(arguments, tmp_path, capfd, uninterrupted, harm):
    run_dir = shutil.copytree(uninterrupted, tmp_path / 'damaged')
    newest, _before = RunDirectory(run_dir).states()
    harm(newest)
    capfd.readouterr()
    train(**arguments(run_dir))
    assert f'{newest} is damaged: its checksum does not match. The one before it is used.' in capfd.readouterr().out
    assert_same(run_dir, uninterrupted)
    for path in RunDirectory(run_dir).states():
        harm(path)
    with pytest.raises(UserError, match=r'All states in .* are damaged'):
        training_loop(**arguments(run_dir))


def test_a_run_whose_states_are_all_damaged_is_refused_before_anything_is_written(begin, tmp_path):
    run_dir = RunDirectory(begin())
    run_dir.stats_path.write_text(tick(5))
    run_dir.log_path.write_text('a log')
    for cur_nimg in (2000, 5000):
        damage(states.save_state(run_dir, cur_nimg, {}, finished=False))
    before = contents(tmp_path / 'runs')
    for resume in (run_dir, 'latest'):
        with pytest.raises(UserError, match=r'All states in .* are damaged: start a new run in another directory'):
            begin(resume=str(resume), total_kimg=9)
    assert contents(tmp_path / 'runs') == before
    assert begin(total_kimg=9)[-10:] == '00001-name'  # The advice.
    assert begin(resume='latest', total_kimg=9)[-10:] == '00001-name'


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob('*') if path.is_file()}


def test_a_finished_run_goes_on_if_it_is_to_be_longer(arguments, tmp_path, uninterrupted, capfd):
    longer = tmp_path / 'longer'
    for kimg in (0.04, 0.04, 0.08):
        train(**arguments(longer, total_kimg=kimg, network_snapshot_ticks=1))
    printed = capfd.readouterr().out
    assert printed.count('All of it is trained already.') == 1
    assert printed.count('Training for ') == 2
    first, second = outcome(longer), outcome(uninterrupted)
    assert all(torch.equal(first[0][name], second[0][name]) for name in second[0])
    ticks = [tick['Progress/tick']['mean'] for tick in first[1]]
    assert ticks == list(range(len(ticks))) == list(range(len(first[3])))


def test_a_full_disk_leaves_the_last_state(arguments, tmp_path, capfd):
    """A limit on the size of files stands in for the disk."""
    given = arguments(tmp_path / 'full', total_kimg=0.048, metrics=[])
    limit = 5000

    def train_with_little_space():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        saved = states.write_state

        def write_state(file, state):
            if len(RunDirectory(given['run_dir']).states()) == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            saved(file, state)

        states.write_state = write_state
        try:
            training_loop(**given)
        except UserError as error:
            sys.exit(error.message)

    process = in_a_fork(train_with_little_space)
    process.join()
    assert re.search(r'Cannot write .*training-state-000000\.048\.pt: File too large', capfd.readouterr().err)
    (state,) = RunDirectory(tmp_path / 'full').states()
    assert states.read_state(state)['progress']['cur_nimg'] == 24
    assert not list((tmp_path / 'full').glob('.*'))


@pytest.mark.parametrize('device', ['cpu', 'cuda:0'])
@pytest.mark.parametrize('bad', [os.path.join, np.float64(0.5)], ids=['code', 'a number of NumPy'])
def test_a_state_that_could_not_be_read_back_is_refused_when_it_is_saved(tmp_path, monkeypatch, bad, device):
    """And not when the run is to be continued and has no other. No code is in a state."""
    run = RunDirectory(tmp_path)
    monkeypatch.setattr(torch.serialization, 'location_tag', lambda _storage: device)  # Of all tensors.
    before = [states.save_state(run, nimg, {'good': [nimg]}, finished=False) for nimg in (5, 6)]
    with pytest.raises(UserError, match=r'The state of "bad" could not be read back, and the run not be continued'):
        states.save_state(run, 7, {'good': {'a': torch.ones(3)}, 'bad': {'best': ('fid', bad)}}, finished=False)
    assert sorted(run.states()) == before
    assert list(tmp_path.glob('.*')) == []


def test_records_are_on_disk_before_the_state_that_counts_on_them(tmp_path, monkeypatch):
    run, synced = RunDirectory(tmp_path), []
    for path in (run.log_path, run.stats_path, run.metric_path('fid')):
        path.write_text('a line\n')
    names = {os.stat(path).st_ino: path.name for path in tmp_path.iterdir()}
    fsync = os.fsync
    monkeypatch.setattr(os, 'fsync', lambda file: synced.append(names.get(os.fstat(file).st_ino)) or fsync(file))
    states.save_state(run, 5, {}, finished=False)
    assert set(synced[:3]) == {'log.txt', 'stats.jsonl', 'metric-fid.jsonl'}
    assert synced[3:] == [None, None]  # The state, and the directory.


def test_a_state_opens_with_torch_alone(tmp_path):
    """The checksum is the comment of the zip archive."""
    path = states.save_state(RunDirectory(tmp_path), 12345, {'G': {'weight': torch.arange(5.0)}}, finished=True)
    assert path.name == 'training-state-000012.345.pt'
    assert torch.equal(torch.load(path, weights_only=True)['G']['weight'], torch.arange(5.0))
    with zipfile.ZipFile(path) as archive:
        assert archive.comment.startswith(b'sha256:')


# --- Which run is continued -------------------------------------------------------------------------------------------


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """`begin(**changes)` goes through `continue_or_start` with a loop that does nothing, and returns the directory."""
    (tmp_path / 'idle.py').write_text('def training_loop(rank, run_dir, **args):\n    pass\n')
    monkeypatch.syspath_prepend(tmp_path)
    args = dict(
        loop='idle.training_loop', num_gpus=1, total_kimg=5, batch_size=4, loss_kwargs=dict(r1_gamma=1),
        training_set_kwargs=dict(path='data.zip'),
    )  # fmt: skip
    outdir = str(tmp_path / 'runs')
    return lambda resume=None, student=None, student_from={}, choose=None, **changes: continue_or_start(
        Plan('name', args | changes, student=student, student_from=student_from, choose=choose), outdir, resume
    )


def test_latest_is_the_newest_with_the_same_options(begin, tmp_path):
    first = begin(resume='latest')
    second = begin()
    third = begin(batch_size=8)
    assert [path[-10:] for path in (first, second, third)] == ['00000-name', '00001-name', '00002-name']
    assert begin(resume='latest') == second
    assert begin(resume='latest', total_kimg=9, metrics=['fid50k_full'], num_gpus=1) == second
    assert json.loads((tmp_path / 'runs' / '00001-name' / 'training_options.json').read_text())['total_kimg'] == 9
    assert begin(resume='latest', batch_size=8) == third
    assert begin(resume='latest', batch_size=16)[-10:] == '00003-name'


def test_other_options_are_refused_and_listed(begin, tmp_path):
    run_dir = begin()
    before = (tmp_path / 'runs' / '00000-name' / 'training_options.json').read_bytes()
    with pytest.raises(UserError, match=r'batch_size: 4 → 8; ema_kimg: none → 2; loss_kwargs.r1_gamma: 1 → 0.5\.'):
        begin(resume=run_dir, batch_size=8, ema_kimg=2, loss_kwargs=dict(r1_gamma=0.5))
    with pytest.raises(UserError, match='is no run directory'):
        begin(resume=str(tmp_path))
    with pytest.raises(UserError, match=r'ema_kimg: none → 2\. Give those it was started with\.$'):
        begin(resume=run_dir, ema_kimg=2)
    with pytest.raises(
        UserError, match=r'ema_kimg: none → 2\. Give .* with, --kimg=5 among them, because .* from it\.$'
    ):
        begin(resume=run_dir, total_kimg=9, ema_kimg=2)
    assert (tmp_path / 'runs' / '00000-name' / 'training_options.json').read_bytes() == before
    assert begin(resume=run_dir + '/') == run_dir


def test_what_follows_from_the_machine_may_change(begin):
    def on(num_fp16_res, conv_clamp=256, **loss_kwargs):
        precision = dict(num_fp16_res=num_fp16_res, conv_clamp=conv_clamp)
        return dict(G_kwargs=dict(synthesis_kwargs=precision), D_kwargs=precision, loss_kwargs=loss_kwargs)

    run_dir = begin(**on(4, rounds=2), device='cuda', batch_gpu=8)
    assert begin(resume='latest', **on(0), device='cpu', batch_gpu=16) == run_dir
    assert begin(resume=run_dir, **on(4, rounds=4), batch_gpu=4) == run_dir
    with pytest.raises(UserError, match=r'other options: D_kwargs.conv_clamp: 256 → null; G_kwargs\S*: 256 → null\.'):
        begin(resume=run_dir, **on(0, conv_clamp=None))  # --fp32 was not chosen by the machine.


@pytest.fixture
def files(tmp_path, make_dataset_zip, make_generator, monkeypatch):
    """A teacher, a student, data and statistics in the current directory; the loop arguments that name them."""
    monkeypatch.chdir(tmp_path)
    os.mkdir('in')
    make_dataset_zip(tmp_path / 'in', n=2)
    write_generator('in/teacher.pkl', make_generator())
    write_generator('in/student.pkl', make_generator())
    (tmp_path / 'in' / 'statistics.npz').write_bytes(b'moments')
    return lambda place='in': dict(
        training_set_kwargs=dict(path=f'{place}/data.zip'),
        loss_kwargs=dict(teacher=f'{place}/teacher.pkl', statistics=f'{place}/statistics.npz'),
        resume_pkl=f'{place}/student.pkl',
    )


def write_generator(path, G):
    pickles.save(path, dict(G=G, D=None, G_ema=G, training_set_kwargs=None, augment_pipe=None))


def test_what_a_run_reads_may_move(begin, files, tmp_path):
    run_dir = begin(**files())
    assert begin(resume='latest', **files('./in')) == run_dir
    assert begin(resume=run_dir, **files(str(tmp_path / 'in'))) == run_dir
    shutil.copytree('in', 'staged')
    assert begin(resume='latest', **files('staged')) == run_dir
    shutil.rmtree('in')
    assert begin(resume=run_dir, **files('staged')) == run_dir
    assert json.loads(Path(run_dir, 'training_options.json').read_text())['resume_pkl'] == 'staged/student.pkl'


@pytest.mark.parametrize(
    ('name', 'argument'),
    [
        ('teacher.pkl', 'loss_kwargs.teacher'),
        ('student.pkl', 'resume_pkl'),
        ('data.zip', 'training_set_kwargs.path'),
        ('statistics.npz', 'loss_kwargs.statistics'),
    ],
)
def test_what_a_run_reads_may_not_be_replaced(begin, files, make_generator, make_dataset_zip, tmp_path, name, argument):
    run_dir = begin(**files())
    if name == 'data.zip':
        make_dataset_zip(tmp_path / 'in', n=3)
    elif name == 'statistics.npz':
        (tmp_path / 'in' / name).write_bytes(b'others')
    else:
        write_generator(f'in/{name}', make_generator(seed=1))
    before = contents(tmp_path / 'runs')
    with pytest.raises(UserError, match=rf'other options: {argument}: the contents of in/{name} \(\w{{8}}…\) → [^;]*$'):
        begin(resume=run_dir, **files())
    assert contents(tmp_path / 'runs') == before
    assert begin(resume='latest', **files())[-10:] == '00001-name'


def test_a_student_that_was_pruned_in_another_way_is_another_run(begin, make_generator):
    student = dict(G=make_generator(), D=None, G_ema=make_generator(), training_set_kwargs=None, augment_pipe=None)
    run_dir = begin(student=student, student_from={'student.criterion': 'l1'})
    with pytest.raises(UserError, match=r'other options: student\.criterion: l1 → diversity'):
        begin(resume=run_dir, student=student, student_from={'student.criterion': 'diversity'})
    assert begin(resume='latest', student=student, student_from={'student.criterion': 'l1'}) == run_dir


def test_runs_without_digests_on_record_are_compared_by_place(begin, files):
    run_dir = begin(**files())
    os.remove(f'{run_dir}/inputs.json')
    shutil.copytree('in', 'other')
    with pytest.raises(UserError, match=r'loss_kwargs.teacher: "in/teacher.pkl" → "other/teacher.pkl"'):
        begin(resume=run_dir, **files('other'))
    assert begin(resume=run_dir, **files('./in')) == run_dir
    assert begin(resume=run_dir, **files('other')) == run_dir  # Now they are.


def test_a_run_begins_and_ends_with_what_matters(begin, capsys):
    (run_dir, printed) = begin(), capsys.readouterr().out
    assert printed.count('\n') < 20
    for line in (f'Output directory:  {run_dir}', 'Training data:     data.zip', 'Duration:          5 kimg',
                 'Batch:             4, 4 at a time', 'R1 weight:         1'):  # fmt: skip
        assert line in printed.splitlines()
    assert printed.splitlines()[-1] == f'To see how it went:  stylegan2-compress report {run_dir}'
    assert begin(resume='latest') == run_dir
    touched = f'{run_dir}/network-snapshot-000005.pkl'
    open(touched, 'w').close()
    capsys.readouterr()
    begin(resume='latest')
    printed = capsys.readouterr().out
    assert f'Its last snapshot:   {touched}' in printed
    assert f'evaluate {touched} --data data.zip' in printed


def test_latest_says_why_it_starts_a_new_run(begin, capsys):
    run_dir = begin()
    capsys.readouterr()
    begin(resume='latest', batch_size=8)
    lines = capsys.readouterr().out.splitlines()
    assert f'Starting a new run, and not continuing {run_dir} (batch_size: 4 → 8).' in lines


def test_a_shorter_run_is_refused(begin):
    run_dir = begin()
    with pytest.raises(UserError, match=r'--kimg=4 is shorter than .*, whose length is 5'):
        begin(resume=run_dir, total_kimg=4)


@pytest.mark.parametrize('content', ['{"a": 1}', '[]', '{"total_kimg": 5,', '{"total_kimg": "5", "run_dir": "x"}'])
def test_options_that_are_not_ours(begin, tmp_path, content):
    other = tmp_path / 'runs' / '00007-other'
    other.mkdir(parents=True)
    (other / 'training_options.json').write_text(content)
    with pytest.raises(UserError, match='is no run directory'):
        begin(resume=str(other))
    assert begin(resume='latest')[-10:] == '00008-name'
    assert (other / 'training_options.json').read_text() == content


def tick(kimg):
    return json.dumps({'Progress/kimg': {'mean': kimg}}) + '\n'


def test_records_of_a_run_without_states_stay(begin, tmp_path):
    """It had states, which were deleted: to begin it again would overwrite what it made."""
    run_dir = begin(state_kimg=2)
    stats = tmp_path / 'runs' / '00000-name' / 'stats.jsonl'
    stats.write_text(tick(1) + tick(2) + '{"cut')
    before = stats.read_text()
    with pytest.raises(UserError, match=r'cannot be continued: it has no training-state-\*\.pt'):
        begin(resume=run_dir, state_kimg=2)
    assert begin(resume='latest', state_kimg=2)[-10:] == '00001-name'
    assert stats.read_text() == before


def test_a_run_that_was_ended_before_its_first_state_begins_again(begin, tmp_path):
    run_dir = begin(state_kimg=2)
    stats = tmp_path / 'runs' / '00000-name' / 'stats.jsonl'
    stats.write_text(tick(1))
    assert begin(resume='latest', state_kimg=2) == run_dir
    assert stats.read_text() == ''


def test_latest_prefers_a_run_with_a_state_to_a_newer_one_without(begin, capsys):
    first, second = begin(), begin()
    assert begin(resume='latest') == second
    state = states.save_state(RunDirectory(first), 2000, {}, finished=False)
    capsys.readouterr()
    assert begin(resume='latest') == first
    assert f'Continuing {first}, and not the newer {second}, which has no training state;' in capsys.readouterr().out
    damage(state)
    assert begin(resume='latest') == second
    states.save_state(RunDirectory(second), 1000, {}, finished=False)
    states.save_state(RunDirectory(first), 2000, {}, finished=False)
    assert begin(resume='latest') == second


@pytest.fixture
def torchrun(monkeypatch):
    """`torchrun(name, restarts)`: from now on, this is the only process of a torchrun of that `--rdzv-id`."""
    monkeypatch.setattr(distributed, 'torchrun_processes', lambda: 1)
    monkeypatch.setattr(distributed, 'join_torchrun', lambda _device: None)
    monkeypatch.setattr(distributed, 'leave', lambda: None)

    def set_environment(name, restarts=0):
        monkeypatch.setenv('TORCHELASTIC_RUN_ID', name)
        monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', str(restarts))

    return set_environment


def test_what_torchrun_starts_again_is_the_run_that_it_began(begin, torchrun):
    torchrun('last week')
    finished = begin()
    states.save_state(RunDirectory(finished), 5000, {}, finished=True)
    torchrun('today', restarts=1)  # The first time, it failed before it had a directory.
    started = begin()
    assert started != finished
    torchrun('today')  # On several machines, only those count the restart where something failed.
    assert begin() == started
    states.save_state(RunDirectory(started), 1000, {}, finished=False)
    assert begin() == started
    assert begin(batch_size=8) != started
    torchrun('last week', restarts=1)
    assert begin() == finished  # Nothing is left to do.
    torchrun('last week')
    again = begin()  # A new run under an old name.
    assert again not in (finished, started)
    torchrun('none', restarts=1)  # Without a name: the newest that is the same.
    assert begin() == started
    torchrun('none')
    assert begin() not in (finished, started, again)


def hold(how, run_dir, held, done):
    with getattr(RunDirectory(run_dir), how)():
        held.set()
        done.wait(60)


@pytest.mark.parametrize('how', ['claimed', 'written'])
def test_a_run_that_another_process_trains_is_refused(begin, tmp_path, how):
    """Also where that is a child of one that was killed."""
    run_dir = begin()
    options_json = tmp_path / 'runs' / '00000-name' / 'training_options.json'
    before = options_json.read_bytes()
    fork = multiprocessing.get_context('fork')
    held, done = fork.Event(), fork.Event()
    process = in_a_fork(hold, how, run_dir, held, done)
    assert held.wait(60)
    with pytest.raises(UserError, match=r'00000-name is in use: another process is training there\.'):
        begin(resume=run_dir, total_kimg=9)
    assert options_json.read_bytes() == before
    done.set()
    process.join()
    assert begin(resume=run_dir) == run_dir


def test_a_run_keeps_its_own_student(begin, make_generator, tmp_path):
    networks = dict(G=make_generator(), D=None, G_ema=make_generator(), training_set_kwargs=None, augment_pipe=None)
    run_dir = begin(student=networks)
    assert pickles.load(f'{run_dir}/student.pkl')['G_ema'].z_dim == 16
    assert begin(student=networks, resume='latest') == run_dir
    assert begin(resume='latest') != run_dir


def test_channels_are_chosen_once_and_before_anything_is_written(begin, make_generator, tmp_path):
    def fail():
        raise UserError('These scores are none.')

    networks = dict(G=make_generator(), D=None, G_ema=make_generator(), training_set_kwargs=None, augment_pipe=None)
    chosen = dict(G=make_generator(z_dim=8), G_ema=make_generator(z_dim=8))
    with pytest.raises(UserError, match='These scores are none'):
        begin(student=networks, choose=fail)
    assert not (tmp_path / 'runs').exists()
    run_dir = begin(student=networks, choose=lambda: chosen)
    assert pickles.load(f'{run_dir}/student.pkl')['G_ema'].z_dim == 8
    assert begin(student=networks, choose=fail, resume='latest') == run_dir


@pytest.mark.parametrize(('number', 'kind'), [(errno.ENOSPC, UserError), (errno.EACCES, PermissionError)])
def test_a_full_disk_ends_a_run_with_a_sentence(tmp_path, monkeypatch, number, kind):
    def loop(**_arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(loops, 'run_loop', loop)
    with pytest.raises(kind) as raised:
        launch.run_rank(0, dict(run_dir=str(tmp_path)))
    if kind is UserError:
        assert raised.value.message.startswith(f'Cannot write to {tmp_path}: No space left on device; ')
        assert (tmp_path / 'log.txt').read_text().splitlines()[-1] == f'Error: {raised.value.message}'
