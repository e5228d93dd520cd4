"""Two gloo processes: the same training as in one, and what happens when one fails or all are asked to stop."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time

import click
import detectors
import pytest
import several_runs
import torch
from tiny_runs import ADAM, loop_arguments

from stylegan2_compress import distributed, host, pickles
from stylegan2_compress.compression import planning
from stylegan2_compress.errors import Stopped, UserError
from stylegan2_compress.evaluation.evaluate import evaluate
from stylegan2_compress.losses.discriminators import pair_arguments
from stylegan2_compress.report import reading
from stylegan2_compress.runs import launch, states
from stylegan2_compress.runs.directory import RunDirectory
from stylegan2_compress.runs.loops import OUR_LOOP
from stylegan2_compress.training_loops.interruption import Interruption

DISTILLATION = OUR_LOOP
TICKETS = 'stylegan2_compress.training_loops.ticket_search.training_loop'
AUGMENT = dict(
    augment_kwargs=dict(class_name='training.augment.AugmentPipe', xflip=1, scale=1, brightness=1, cutout=1),
    augment_p=0.3,
    ada_target=0.1,
    ada_interval=2,
    ada_kimg=0.4,
)
EMBEDDING = 'efficientnet_lite0@size=32'
LAZY = dict(G_reg_interval=2, D_reg_interval=3)


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp('processes')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('STYLEGAN2_COMPRESS_CACHE', str(path / 'cache'))
        yield path


@pytest.fixture(scope='module')
def cases(directory, make_dataset_zip, make_generator, make_discriminator):
    """By name: arguments of a run with two processes, and those that differ with one."""
    data = make_dataset_zip(directory, n=13, labels=3)
    teacher = str(directory / 'teacher.pkl')
    G, D = (
        make_generator(c_dim=3).eval(),
        make_discriminator(c_dim=3, epilogue_kwargs=dict(mbstd_num_channels=0)).eval(),
    )
    pickles.save(teacher, dict(G=G, D=D, G_ema=G, training_set_kwargs=None, augment_pipe=None))

    def case(name, one, loop=DISTILLATION, **changes):
        given = dict(batch_size=16, batch_gpu=4, total_kimg=0.064, network_snapshot_ticks=1000, **LAZY) | changes
        args = loop_arguments(directory / name, data, labels=True, **given)
        return name, (dict(args, loop=loop), one)

    # Noise, mixing and augmentation are a round's: what two processes do, one does in more rounds.
    plain = case('plain', dict(), **AUGMENT)
    ours = dict(class_name='stylegan2_compress.AdversarialLoss', r1_gamma=1, pl_weight=20, pl_decay=0.5)
    adversarial = case('adversarial', dict(), loss_kwargs=ours)
    # Terms that look at a batch see that of all processes: what two do, one does in rounds twice as large. Nothing may
    # be a round's then, nor may the discriminator look at the batch, of which each process has half. Near zero, Adam
    # makes large steps of rounding errors, but for a large epsilon.
    calm = dict(ADAM, eps=1e-3)
    synthesis = dict(channel_base=64, channel_max=8, use_noise=False)
    G_kwargs = dict(z_dim=16, w_dim=16, mapping_kwargs=dict(num_layers=2), synthesis_kwargs=synthesis)
    D_kwargs = dict(channel_base=64, channel_max=8, epilogue_kwargs=dict(mbstd_num_channels=0))
    D_kwargs.update(class_name='training.networks.Discriminator')
    shared = dict(G_opt_kwargs=calm, D_opt_kwargs=calm, same_noise_for_all=True)
    both = dict(r1_gamma=1, style_mixing_prob=0, pl_batch_shrink=1, pl_decay=0, teacher=teacher)
    both.update(embeddings=[EMBEDDING], weights=[1], samples=8)
    dime = case(
        'dime',
        dict(batch_gpu=8),
        loss_kwargs=dict(class_name='stylegan2_compress.DiMELoss', **both),
        G_kwargs=dict(G_kwargs, class_name='training.networks.Generator'),
        D_kwargs=D_kwargs,
        **shared,
    )
    nickel = case(
        'nickel',
        dict(batch_gpu=8),
        loss_kwargs=dict(
            both, class_name='stylegan2_compress.NickelDimeLoss', estimator='squared-moments', weights=[0.02], memory=40
        ),
        G_kwargs=dict(G_kwargs, class_name='training.networks.Generator'),
        D_kwargs=pair_arguments(D_kwargs, D, 'scratch', {'b4': 16}),
        **shared,
    )
    tickets = case(
        'tickets',
        dict(batch_gpu=8),
        loop=TICKETS,
        loss_kwargs=dict(
            class_name='stylegan2_compress.MomentMatchingLoss',
            embedding=EMBEDDING,
            training_set_kwargs=plain[1][0]['training_set_kwargs'],
            total_kimg=0.064,
        ),
        G_kwargs=dict(
            G_kwargs, class_name='stylegan2_compress.ScoreMaskedGenerator', keep=0.5, rule='global-edge-popup'
        ),
        image_snapshot_ticks=1,  # Images need masks, which rank 0 alone then has.
        **(shared | dict(G_reg_interval=None)),
    )
    return dict([plain, adversarial, dime, nickel, tickets])


@pytest.fixture(scope='module')
def weights(directory, cases):
    """By name: the weights that one process and that two processes end with."""

    def run(num_gpus, runs):
        runs = [dict(run, run_dir=f'{run["run_dir"]}-{num_gpus}') for run in runs]
        for each in runs:
            os.makedirs(each['run_dir'])
        args = dict(num_gpus=num_gpus, run_dir=str(directory), device='cpu', cases=runs)
        if num_gpus == 1:
            several_runs.training_loop(rank=0, **args)
        else:
            launch.run(dict(args, loop='several_runs.training_loop'))
        return [weights_in(each['run_dir']) for each in runs]

    one = run(1, [two | different for two, different in cases.values()])
    two = run(2, [two for two, _different in cases.values()])
    return {name: pair for name, *pair in zip(cases, one, two, strict=True)}


def weights_in(run_dir):
    networks = pickles.load(f'{run_dir}/network-snapshot-000000.pkl')
    return {
        f'{name}.{key}': value
        for name in ('G', 'D', 'G_ema', 'augment_pipe')
        if networks[name] is not None
        for key, value in networks[name].state_dict().items()
    }


@pytest.mark.parametrize('name', ['plain', 'adversarial', 'tickets'])
def test_two_processes_train_as_one(weights, name):
    one, two = weights[name]
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['dime', 'nickel'])
def test_two_processes_train_as_one_with_absolute_differences(weights, name):
    """DiME's gradient jumps where moments are equal, and so do the few weights for which rounding decides."""
    one, two = weights[name]
    assert one.keys() == two.keys()
    differences = torch.cat([(one[key] - two[key]).abs().flatten() for key in one])
    assert differences.max() < 1e-3
    assert differences.quantile(0.99) < 1e-5


@pytest.mark.usefixtures('forked_processes')
def test_no_process_calls_a_collective_that_the_other_does_not(directory, cases, tmp_path):
    """Under every loss, with a step that is left out because of one process, with metrics: the same, in one order."""
    base = {name: two | dict(total_kimg=0.032) for name, (two, _one) in cases.items()}
    kernel = dict(base['dime']['loss_kwargs'], estimator='rbf', bank=8, refresh=1)
    del kernel['samples']
    images = dict(
        class_name='stylegan2_compress.ImageDistillationLoss',
        teacher=kernel['teacher'],
        embedding=EMBEDDING,
    )
    ours = dict(class_name='stylegan2_compress.AdversarialLoss')
    runs = [
        *base.values(),
        dict(base['dime'], loss_kwargs=kernel),
        dict(base['dime'], loss_kwargs=images),
        dict(base['plain'], loss_kwargs=ours, spoiled=True),
        dict(base['plain'], loss_kwargs=ours, metrics=['tiny'], network_snapshot_ticks=1),
    ]
    for number, run in enumerate(runs):
        run['run_dir'] = str(tmp_path / f'run{number}')
        os.makedirs(run['run_dir'])
    with detectors.in_the_place_of_the_hosts(tmp_path / 'dnnlib'):
        launch.run(dict(loop='several_runs.recorded', num_gpus=2, run_dir=str(tmp_path), device='cpu', cases=runs))
    first, second = (json.loads((tmp_path / f'collectives-{rank}.json').read_text()) for rank in range(2))
    assert first == second
    assert sum(name == 'case' for name, _size in first) == len(runs) < len(first)
    assert 'tiny' in (tmp_path / f'run{len(runs) - 1}' / 'metric-tiny.jsonl').read_text()


def test_processes_wait_for_rank_zero_in_their_store_as_long_as_in_collectives(monkeypatch):
    """NCCL looks there for what rank 0 writes in its first collective, after it has compiled kernels; gloo does not."""
    joined = []
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda *_args, **kwargs: joined.append(kwargs))
    monkeypatch.setattr(distributed.training_stats, 'init_multiprocessing', lambda **_kwargs: None)
    store, _port = distributed.open_store()
    assert store.timeout < distributed.PATIENCE
    distributed.join('cpu', 0, 1, store)
    assert joined[0]['timeout'] == joined[0]['store'].timeout == distributed.PATIENCE


def test_a_process_that_is_alone_exchanges_nothing():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    assert (distributed.rank(), distributed.world_size(), distributed.is_rank_zero()) == (0, 1, True)
    assert distributed.world() is None
    assert distributed.sum_with_gradient(x, None) is distributed.gather_with_gradient(x, None) is x
    assert distributed.broadcast_object(x) is distributed.max_over_processes(x) is x
    assert distributed.result_of_rank_zero(lambda: x) is x
    distributed.broadcast_from_rank_zero([x])
    distributed.average([x])
    distributed.wait_for_rank_zero()
    assert x.tolist() == [1, -2]


def test_a_module_is_unwrapped():
    module = torch.nn.Linear(1, 1)
    wrapped = torch.nn.parallel.DistributedDataParallel.__new__(torch.nn.parallel.DistributedDataParallel)
    torch.nn.Module.__init__(wrapped)
    wrapped.module = module
    assert distributed.unwrapped(wrapped) is distributed.unwrapped(module) is module


def test_what_two_processes_exchange(tmp_path):
    launch.run(dict(loop='several_runs.exchanging', num_gpus=2, run_dir=str(tmp_path), device='cpu'))
    first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in range(2))
    assert (first.pop('rank'), second.pop('rank')) == ((0, 2, True), (1, 2, False))
    assert [each.pop('object') for each in (first, second)] == ['from 0', 'from 0']
    assert [each.pop('result') for each in (first, second)] == ['called in 0', 'called in 0']
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert first['max'].tolist() == [1, 4]
    assert first['sum'].tolist() == [1, 5]
    assert first['average'].tolist() == [0.5, 2.5]
    assert first['broadcast'].tolist() == first['module'].tolist() == [0, 1]
    assert first['gathered'].tolist() == [[0, 1], [1, 4]]
    assert first['gradient'].tolist() == [6, 30]  # Of (x · w)² / 2 at w = 1, where x = [1, 5] is the sum.
    assert first['flags'] == [False, True]
    assert first['met'] == [True, True]


@pytest.mark.usefixtures('forked_processes')
def test_when_rank_zero_refuses_all_exit_with_its_status(tmp_path):
    with pytest.raises(UserError, match='Refused in 0'):
        launch.run(dict(loop='several_runs.refusing', num_gpus=2, run_dir=str(tmp_path), device='cpu'))
    assert (tmp_path / 'status-1').read_text() == '2'


@pytest.mark.usefixtures('forked_processes')
@pytest.mark.parametrize(
    ('how', 'kind', 'words'),
    [
        (
            'raise',
            click.ClickException,
            r'Process 1 of 2 failed: ArithmeticError: the cause\nTraceback (.*\n)*ArithmeticError.*',
        ),
        ('refuse', UserError, '--option=1 makes no sense: leave it out.'),
        ('kill', click.ClickException, r'Process 1 of 2 was ended from outside \(SIGKILL\).'),
    ],
)
def test_the_first_failure_ends_all_and_is_what_is_told(tmp_path, how, kind, words):
    start = time.time()
    before = set(multiprocessing.active_children())  # Loaders of other tests, which wait for the garbage collection.
    with pytest.raises(kind) as raised:
        launch.run(dict(loop='several_runs.failing', num_gpus=2, run_dir=str(tmp_path), device='cpu', how=how))
    assert re.fullmatch(words + r'\n?', raised.value.message)
    first_line = raised.value.message.splitlines()[0]
    assert reading.read(tmp_path).state.error == f'Error: {first_line}'
    assert time.time() - start < 300  # Rank 0 would wait half an hour.
    assert set(multiprocessing.active_children()) <= before


def test_of_those_that_torchrun_started_each_says_which_it_is(tmp_path, monkeypatch):
    """And torchrun gets to know the cause, for its own summary."""
    for name, value in dict(RANK='1', WORLD_SIZE='2', MASTER_ADDR='x', TORCHELASTIC_ERROR_FILE='error.json').items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    lost = RuntimeError('[pair.cc:534] Connection closed by peer [127.0.0.1]:80')
    log = str(tmp_path / 'log.txt')
    said = '^Process 0 of 2 lost its connection to the others'
    with pytest.raises(launch.Lost, match=said), launch.errors_logged(log), launch.failures_told(0, 2):
        raise lost
    assert not (tmp_path / 'error.json').exists()
    assert reading.read(tmp_path).state.error.startswith('Error: Process 0 of 2 lost its connection')
    said = '^Process 1 of 2 failed: ArithmeticError: the cause\nTraceback'
    with pytest.raises(click.ClickException, match=said), launch.errors_logged(log), launch.failures_told(1, 2):
        raise ArithmeticError('the cause')
    assert 'ArithmeticError: the cause' in (tmp_path / 'error.json').read_text()
    assert reading.read(tmp_path).state.error == 'Error: Process 1 of 2 failed: ArithmeticError: the cause'


def test_a_process_that_stops_is_no_cause_and_what_it_leaves_no_error():
    stopped, lost, killed = Stopped('Stopped.'), launch.Lost('lost'), launch.Killed('killed')
    failed = click.ClickException('failed')
    assert launch.cause([stopped, lost]) is launch.cause([lost, stopped]) is stopped
    assert launch.cause([lost, failed]) is launch.cause([stopped, failed]) is failed
    assert launch.cause([lost, failed, killed]) is killed
    assert launch.cause([None, lost]) is lost


def test_when_rank_zero_has_stopped_the_others_are_not_waited_for():
    """They may hang on a GPU in an exchange with it."""
    receivers, senders = zip(*(multiprocessing.Pipe(duplex=False) for _rank in range(2)), strict=True)
    senders[0].send((Stopped, 'Stopped as asked.'))
    outcome = launch.wait([None, None], list(receivers))
    assert (type(outcome), outcome.message) == (Stopped, 'Stopped as asked.')


def test_when_another_has_stopped_rank_zero_has_some_time(monkeypatch):
    """It may hang in the same way, in an exchange of the host's metrics."""
    monkeypatch.setattr(launch, 'SECONDS_TO_STOP', 2)
    receivers, senders = zip(*(multiprocessing.Pipe(duplex=False) for _rank in range(2)), strict=True)
    senders[1].send((Stopped, 'Stopped as asked.'))
    start = time.monotonic()
    outcome = launch.wait([None, None], list(receivers))
    assert 2 <= time.monotonic() - start < 60
    assert (type(outcome), outcome.message) == (Stopped, 'Stopped as asked.')
    senders[0].send((Stopped, 'All is saved.'))
    senders[1].send((Stopped, 'Stopped as asked.'))
    assert launch.wait([None, None], list(receivers)).message == 'All is saved.'


def test_errors_of_nccl_are_told_unless_others_are_gone():
    """All of them have the same type; these texts have the form that torch gives them."""
    words = 'NCCL error in: /ProcessGroupNCCL.cpp:3699, {}, NCCL version 2.27.5\n{}'
    error = torch.distributed.DistBackendError
    full = error(words.format('unhandled system error', 'Last error:\nNo space left on device'))
    told = launch.failure(full, 0, 2)
    assert not isinstance(told, launch.Lost)
    assert 'No space left on device' in told.message
    gone = error(words.format('remote process exited or there was a network error', 'ncclRemoteError: A call failed'))
    assert isinstance(launch.failure(gone, 0, 2), launch.Lost)


METRIC = 'fd:module:tiny_embeddings:tiny@size=16'


@pytest.mark.usefixtures('forked_processes')
def test_metrics_of_ours_on_two_processes(tmp_path, directory, cases):
    """The numbers are those of `evaluate`, the best snapshot is kept; a signal stops both at once."""
    data = cases['plain'][0]['training_set_kwargs']['path']
    run = RunDirectory(tmp_path / 'run')
    run.path.mkdir()
    args = cases['plain'][0] | dict(run_dir=str(run), metrics=[METRIC], metric_samples=16, network_snapshot_ticks=1)
    slow = dict(loop='several_runs.slowly_measuring', num_gpus=2, run_dir=str(run), device='cpu', args=args)

    def ask():
        while not (run.path / 'measuring').exists():
            time.sleep(0.05)
        asked.append(time.time())
        os.kill(os.getpid(), signal.SIGTERM)

    asked = []
    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(Stopped, match='measures the last snapshot and continues'):
        launch.run(slow)
    assert time.time() - asked[0] < 300  # It would have measured for ten minutes; ending takes long on a busy machine.
    assert states.load_latest_state(run)['progress']['unmeasured']
    assert not run.metrics()
    launch.run(slow)
    (path,) = run.metrics()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(records) == 3
    (measured,) = evaluate([str(run.snapshots()[-1])], data, METRIC, samples=16, device='cpu')
    ((name, values),) = measured.values.items()
    assert records[-1]['results'][name] == pytest.approx(values[0], rel=1e-6)
    best = min(record['results'][name] for record in records)
    assert states.load_latest_state(run)['progress']['best'] == (name, best)
    assert run.best_path.exists()


@pytest.mark.usefixtures('forked_processes')
def test_a_signal_to_the_parent_stops_all_after_a_step(tmp_path):
    """Until they have, nobody else can claim the directory, whatever becomes of the parent."""
    refused = []

    def ask():
        while len(list(tmp_path.glob('ready-*'))) < 2:
            time.sleep(0.1)
        try:
            RunDirectory(tmp_path).claimed().__enter__()
        except UserError as error:
            refused.append(error.message)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(Stopped, match='Stopped as asked'):
        launch.run(dict(loop='several_runs.endless', num_gpus=2, run_dir=str(tmp_path), device='cpu'))
    assert refused == [f'{tmp_path} is in use: another process is training there.']
    with RunDirectory(tmp_path).claimed():
        pass


def test_processes_that_are_done_may_tidy_up(tmp_path):
    """Python complains of leaked semaphores if they are killed before."""
    launch.run(dict(loop='several_runs.tidying', num_gpus=2, run_dir=str(tmp_path), device='cpu'))
    assert sorted(path.name for path in tmp_path.glob('tidied-*')) == ['tidied-0', 'tidied-1']


@pytest.mark.slow
def test_torchrun_starts_again_what_failed_and_the_state_continues(tmp_path, directory, cases):
    """The second process is killed once, in the middle; the run ends as if it had not been."""
    (tmp_path / 'fragile.py').write_text(
        'import os, signal\n'
        'from stylegan2_compress.losses.adversarial import AdversarialLoss\n'
        'class Fragile(AdversarialLoss):\n'
        '    steps_left = 40\n'
        '    def accumulate_gradients(self, **kwargs):\n'
        '        self.steps_left -= 1\n'
        '        who = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]\n'
        '        if self.steps_left < 0 and who == ("1", "0"):\n'
        '            os.kill(os.getpid(), signal.SIGKILL)\n'
        '        super().accumulate_gradients(**kwargs)\n'
    )
    data = cases['plain'][0]['training_set_kwargs']['path']
    command = [
        sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node=2', '--max-restarts=1', '--standalone',
        '-m', 'stylegan2_compress', 'distill', '--teacher', str(directory / 'teacher.pkl'), '--data', data,
        '--outdir', str(tmp_path / 'runs'), '--loss', 'fragile.Fragile', '--kimg', '1', '--batch', '32',
        '--kimg-per-tick', '0.2', '--state-kimg', '0.3', '--workers', '1', '--snap', '1000',
        '--device', 'cpu', '--host', str(host.activate().path),
    ]  # fmt: skip
    environment = dict(os.environ, PYTHONPATH=str(tmp_path))
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    (run_dir,) = (tmp_path / 'runs').iterdir()
    with open(run_dir / 'stats.jsonl') as file:
        assert [json.loads(line)['Progress/tick']['mean'] for line in file] == [0, 1, 2, 3, 4, 5]
    assert 'Training for 1 kimg, from 0.3' in result.stdout
    assert (run_dir / 'network-snapshot-000001.pkl').exists()


@pytest.mark.parametrize('is_child', [True, False])
def test_a_process_of_a_run_that_stops_is_not_ended_by_the_signal_once_more(is_child, monkeypatch):
    """It comes to all processes, and from the one that started them: before this one has told how it ended."""
    monkeypatch.setattr(multiprocessing, 'parent_process', lambda: object() if is_child else None)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.signal == 'SIGTERM'
        after = {number: signal.getsignal(number) for number in before}
        ending = {signal.SIGTERM: signal.SIG_IGN, signal.SIGHUP: signal.SIG_IGN} if is_child else {}
        assert after == before | ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ('gpus', 'device', 'said'),
    [(2, 'cuda:1', 'is one GPU: leave out --gpus and torchrun, or name the device cuda'), (1, 'cuda:1', None)],
)
def test_one_gpu_of_several_is_for_one_process(gpus, device, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    if said is None:
        assert distributed.number_of_processes(gpus, device) == 1
    else:
        with pytest.raises(UserError, match=said):
            distributed.number_of_processes(gpus, device)


@pytest.mark.parametrize(
    ('device', 'machines', 'said'),
    [
        ('cuda:3', 1, "--device=cuda:3 is not for the host's loop, which takes the first GPU"),
        (None, 2, "The host's loop is for one machine: with torchrun on several, add --loop=stylegan2_compress"),
        ('cuda:0', 1, None),
    ],
)
def test_the_hosts_loop_is_for_the_first_gpus_of_a_machine(device, machines, said, monkeypatch):
    monkeypatch.setattr(distributed, 'torchrun_processes', lambda: 8 if machines > 1 else None)
    monkeypatch.setenv('GROUP_WORLD_SIZE', str(machines))
    if said is None:
        planning.require_first_gpu({'device': device})
    else:
        with pytest.raises(UserError, match=said):
            planning.require_first_gpu({'device': device})


@pytest.mark.parametrize(('finished', 'exitcode'), [(True, 0), (False, -signal.SIGKILL)])
def test_processes_that_are_done_may_put_things_away(finished, exitcode):
    """Else multiprocessing warns of leaked semaphores."""
    process = multiprocessing.get_context('fork').Process(target=time.sleep, args=(0.5,))
    process.start()
    launch.end([process], finished)
    assert process.exitcode == exitcode
