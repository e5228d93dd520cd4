"""`--track`: what the trackers' own files have of a run, off line and without an account."""

import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import refused
from tiny_runs import loop_arguments

from stylegan2_compress.runs.directory import RunDirectory
from stylegan2_compress.training_loops import loop, trackers

pytestmark = pytest.mark.usefixtures('small_grids')


@pytest.fixture(scope='module')
def data(tmp_path_factory, make_dataset_zip):
    return make_dataset_zip(tmp_path_factory.mktemp('data'))


@pytest.fixture(autouse=True)
def without_account(tmp_path, monkeypatch):
    """A home without credentials, and no connection to anywhere but this machine."""
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    for name in [name for name in os.environ if name.startswith(('WANDB_', 'HF_'))]:
        monkeypatch.delenv(name)
    connect = socket.socket.connect

    def connect_here(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ('127.0.0.1', 'localhost', '::1'):
            raise AssertionError(f'Something connects to {address}.')
        return connect(self, address)

    monkeypatch.setattr(socket.socket, 'connect', connect_here)


@pytest.fixture(scope='module')
def trackio_directory(tmp_path_factory):
    """Where trackio, which asks when it is imported, keeps its files."""
    directory = tmp_path_factory.mktemp('trackio')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TRACKIO_DIR', str(directory))
        yield directory


def train(run_dir, data, name, kimg):
    """Train to so many thousands of images, in ticks of two steps of 16; from a state, if there is one."""
    loop.train(
        **loop_arguments(run_dir, data, total_kimg=kimg, image_snapshot_ticks=1, network_snapshot_ticks=1, track=name)
    )


# --- What is in the files ---------------------------------------------------------------------------------------------


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records in one of wandb's files: LevelDB's format of logs, after a header of 7 bytes."""
    contents, at, record = path.read_bytes(), 7, b''
    while at + 7 <= len(contents):
        left = 32768 - at % 32768
        if left < 7:  # Blocks are filled up with zeros.
            at += left
            continue
        _checksum, length, kind = struct.unpack('<IHB', contents[at : at + 7])
        record += contents[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # All of it, or the last part.
            yield record
            record = b''


def of_wandb(run_dir: Path) -> tuple[dict, set, set]:
    """Means by name and step, names of images, and ids, of what `wandb sync` would send."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # Its process has written everything.

    scalars, images, ids = {}, set(), set()
    for path in sorted(run_dir.glob('wandb/offline-run-*/*.wandb')):
        for contents in wandb_records(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(contents)
            if record.WhichOneof('record_type') == 'run':
                ids.add(record.run.run_id)
            items = {tuple(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            step = items.get(('_step',))
            for (name, *inner), value in items.items():
                if inner:  # An image, by its size, path, and so on.
                    images.add((name, step))
                elif not name.startswith('_'):
                    steps = scalars.setdefault(name, {})
                    assert step not in steps, 'twice'
                    steps[step] = value
    return scalars, images, ids


def of_trackio(run_dir: Path) -> tuple[dict, set, set]:
    """The same of trackio's data base."""
    from trackio.sqlite_storage import SQLiteStorage

    about = RunDirectory(run_dir).read_tracker()
    title = f'{run_dir.name}-{about["id"]}'
    scalars, images = {}, set()
    for row in SQLiteStorage.get_logs(trackers.PROJECT, title):
        for name, value in row.items():
            if isinstance(value, dict):
                images.add((name, row['step']))
            elif name not in ('step', 'timestamp'):
                steps = scalars.setdefault(name, {})
                assert row['step'] not in steps, 'twice'
                steps[row['step']] = value
    return scalars, images, {about['id']}


def of_tensorboard(run_dir: Path) -> tuple[dict, set]:
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = accumulator.EventAccumulator(str(run_dir)).Reload()
    tags = events.Tags()
    scalars = {name: {event.step: event.value for event in events.Scalars(name)} for name in tags['scalars']}
    return scalars, {(name, event.step) for name in tags['images'] for event in events.Images(name)}


@pytest.mark.parametrize(('name', 'read'), [('wandb', of_wandb), ('trackio', of_trackio)])
def test_a_tracker_gets_what_tensorboard_gets_once(tmp_path, data, trackio_directory, capfd, name, read):
    """Of a run that was continued: the second part goes to the same run there."""
    pytest.importorskip(name)
    run_dir = tmp_path / '00000-tiny'
    train(run_dir, data, name, 0.032)
    first = RunDirectory(run_dir).read_tracker()
    train(run_dir, data, name, 0.08)
    second = RunDirectory(run_dir).read_tracker()
    assert first['id'] == second['id']
    assert (first['nimg'], second['nimg']) == (32, 80)

    scalars, images, ids = read(run_dir)
    expected, expected_images = of_tensorboard(run_dir)
    assert ids == {first['id']}
    assert set(scalars) == set(expected)
    assert {'Loss/G/loss', 'Progress/kimg', 'Timing/sec_per_kimg'} <= set(scalars)
    for tag, steps in expected.items():
        assert set(steps) == set(scalars[tag])
    assert scalars['Loss/G/loss'] == pytest.approx(expected['Loss/G/loss'], nan_ok=True)
    assert images == expected_images
    assert ('Images/fakes', 80) in images
    assert f'Tracked by {name}: ' in capfd.readouterr().out


class Written(trackers.NamedRun):
    """Keeps what is passed on."""

    name = 'written'

    def begin(self):
        self.written = []

    def write_scalars(self, values, cur_nimg):
        self.written.append((cur_nimg, dict(values)))

    def write_image(self, name, pixels, cur_nimg):
        self.written.append((cur_nimg, name))

    def close(self, failed):
        pass


def test_what_a_tracker_has_is_not_passed_on_again(tmp_path):
    """As after a kill: the tracker knows more than the state."""
    directory = RunDirectory(tmp_path)
    tracker = Written.open(directory)
    for nimg in (100, 200, 300):
        tracker.metrics({'fid': 2.0}, nimg)
        tracker.scalars({'Loss/G': {'mean': 1.0}}, nimg)
    continued = Written.open(directory, 200)
    for nimg in (300, 400):
        continued.metrics({'fid': 2.0}, nimg)
        continued.scalars({'Loss/G': {'mean': 1.0}}, nimg)
    assert continued.run_id == tracker.run_id
    assert continued.written == [(400, {'Metrics/fid': 2.0}), (400, {'Loss/G': 1.0})]
    assert Written.open(directory).run_id != tracker.run_id  # A run that starts anew.


def test_metrics_that_are_made_up_for_are_passed_on(tmp_path):
    """A run that was stopped between two metrics of a snapshot, after the tick that ended with it."""
    directory = RunDirectory(tmp_path)
    tracker = Written.open(directory)
    tracker.scalars({'Loss/G': {'mean': 1.0}}, 300)
    tracker.metrics({'fid': 2.0}, 300)
    continued = Written.open(directory, 300)
    for name in ('fid', 'kid'):
        continued.metrics({name: 2.0}, 300)
    assert continued.written == [(300, {'Metrics/kid': 2.0})]


def test_what_is_made_up_for_has_a_step_that_wandb_takes(tmp_path, monkeypatch):
    """A run that is continued on line begins after its last step there, and ignores what is before."""
    pytest.importorskip('wandb')
    from stylegan2_compress.training_loops import wandb_runs

    logged, ended = [], []
    there = SimpleNamespace(
        starting_step=301, log=lambda values, step: logged.append((values, step)), url='there',
        finish=lambda exit_code: ended.append(exit_code),
    )  # fmt: skip
    monkeypatch.setattr(wandb_runs.WandbRun, '_init', lambda _self, _mode: there)
    run = wandb_runs.WandbRun.open(RunDirectory(tmp_path))
    for nimg in (300, 400):
        run.metrics({'fid': 2.0}, nimg)
    assert logged == [({'Metrics/fid': 2.0}, 301), ({'Metrics/fid': 2.0}, 400)]
    run.close(failed=True)
    assert ended == [1]  # There, the run has failed.


def test_with_an_account_but_without_a_connection_wandb_is_off_line(tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_API_KEY', 'a' * 40)
    monkeypatch.setenv('WANDB_BASE_URL', 'http://127.0.0.1:9')
    tracker = trackers.open_named('wandb', RunDirectory(tmp_path), 0)
    tracker.scalars({'Loss/G': {'mean': 1.0}}, 100)
    tracker.close(failed=False)
    assert of_wandb(tmp_path)[0] == {'Loss/G': {100: 1.0}}


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(trackers.TRACKERS, 'broken', f'{__name__}:Nothing')
    assert trackers.open_named('broken', RunDirectory(tmp_path), 0) is None
    assert '--track=broken does not work here, and the run goes on without it: ' in capsys.readouterr().out


class Mortal(trackers.NamedRun):
    """A tracker that is written to twice, and then fails with everything, without a word."""

    name = 'mortal'
    asked = 0

    def begin(self):
        pass

    def ask(self, *_what):
        Mortal.asked += 1
        if Mortal.asked > 2:
            raise ConnectionResetError

    write_scalars = write_image = close = ask


def test_a_tracker_that_fails_later_does_not_end_the_run_either(tmp_path, data, monkeypatch, capsys):
    monkeypatch.setitem(trackers.TRACKERS, 'mortal', f'{__name__}:Mortal')
    monkeypatch.setattr(Mortal, 'asked', 0)
    train(tmp_path / 'run', data, 'mortal', 0.08)
    assert Mortal.asked == 3
    assert 'the run goes on without it: ConnectionResetError\n' in capsys.readouterr().out
    assert len((tmp_path / 'run' / 'stats.jsonl').read_text().splitlines()) == 3


@pytest.mark.parametrize('name', ['wandb', 'trackio'])
def test_without_its_package(tmp_path, monkeypatch, name):
    monkeypatch.setattr('importlib.util.find_spec', lambda _name: None)
    line = ['distill', '--teacher', 't.pkl', '--outdir', tmp_path / 'runs', '--track', name]
    assert (
        refused(*line, unchanged=tmp_path) == f'Error: --track={name} needs the package {name}: pip install {name}.\n'
    )
