"""The files of a run: their names, their order, and that only one module knows them."""

import ast
import json
import re
from pathlib import Path

import pytest

import stylegan2_compress
from stylegan2_compress import files, training_loops
from stylegan2_compress.errors import UserError
from stylegan2_compress.runs.directory import RunDirectory, is_snapshot, kimg_of

SOURCES = {
    f'{package.__name__}/{path.relative_to(Path(package.__file__).parent)}': path.read_text()
    for package in (stylegan2_compress, training_loops)
    for path in Path(package.__file__).parent.rglob('*.py')
}


def touch(directory, *names):
    for name in names:
        (directory / name).touch()


def test_names_are_the_hosts(tmp_path):
    run = RunDirectory(tmp_path)
    paths = [
        run.options_path, run.log_path, run.stats_path, run.reals_path, run.fakes_init_path, run.fakes_path(4999),
        run.snapshot_path(25_000_000), run.metric_path('fid50k_full'), run.state_path(12345), run.tickets_path,
        run.ticket_path('best'), Path(run.student_path),
    ]  # fmt: skip
    assert [path.name for path in paths] == [
        'training_options.json', 'log.txt', 'stats.jsonl', 'reals.png', 'fakes_init.png', 'fakes000004.png',
        'network-snapshot-025000.pkl', 'metric-fid50k_full.jsonl', 'training-state-000012.345.pt', 'tickets.jsonl',
        'best.ticket', 'student.pkl',
    ]  # fmt: skip
    assert all(path.parent == tmp_path for path in paths)
    assert list(tmp_path.iterdir()) == []


def test_runs_are_numbered(tmp_path):
    outdir = tmp_path / 'runs'
    assert RunDirectory.numbered(outdir) == []
    assert RunDirectory.next(outdir, 'a').path == outdir / '00000-a'
    for name in ('00009-b', '00010-c', '100000-d', 'notes'):
        (outdir / name).mkdir(parents=True)
    assert [run.path.name for run in RunDirectory.numbered(outdir)] == ['00009-b', '00010-c', '100000-d']
    assert RunDirectory.next(outdir, 'e').path == outdir / '100001-e'


def test_a_path_stays_as_it_was_given():
    """Options contain it, and those of a continued run are compared."""
    run = RunDirectory.next('./nowhere', 'a')
    assert (f'{run}', run.student_path) == ('./nowhere/00000-a', './nowhere/00000-a/student.pkl')


def test_files_are_sorted_by_kimg(tmp_path):
    touch(tmp_path, *(f'network-snapshot-{kimg}.pkl' for kimg in ('1000000', '000025', '000003', 'copy')))
    touch(tmp_path, 'fakes_init.png', 'fakes000003.png', 'fakes1000000.png', 'fakes000025.png')
    run = RunDirectory(tmp_path)
    assert [kimg_of(path) for path in run.snapshots()] == [3, 25, 1000000, None]
    assert [kimg_of(path) for path in run.fakes()] == [3, 25, 1000000, None]


def test_states_are_sorted_from_the_newest_on(tmp_path):
    touch(tmp_path, 'training-state-000002.000.pt', 'training-state-000010.500.pt', 'training-state-old.pt')
    assert [path.name for path in RunDirectory(tmp_path).states()] == [
        'training-state-000010.500.pt',
        'training-state-000002.000.pt',
    ]


def test_a_converted_snapshot_is_one():
    assert is_snapshot('network-snapshot-000025.pkl')
    assert is_snapshot('network-snapshot-000025.safetensors')
    assert not is_snapshot('student.pkl')


def test_records_are_cut_and_other_files_stay(tmp_path):
    run = RunDirectory(tmp_path)
    for path in (run.log_path, run.stats_path, run.metric_path('fid'), run.options_path):
        path.write_text('{"cur_nimg":1}\n{"cur_nimg":2}\n')
    assert run.record_sizes() == {'log.txt': 30, 'stats.jsonl': 30, 'metric-fid.jsonl': 30}
    run.cut_records({'log.txt': 15, 'stats.jsonl': 40})
    assert run.record_sizes() == {'log.txt': 15, 'stats.jsonl': 30, 'metric-fid.jsonl': 0}
    assert run.options_path.stat().st_size == 30


def test_of_a_line_that_a_power_cut_has_cut_off_nothing_stays(tmp_path):
    """The next one would not begin on a line of its own, and be lost as well."""
    run = RunDirectory(tmp_path)
    for path in (run.log_path, run.stats_path, run.metric_path('fid')):
        path.write_text('{"cur_nimg":1}\n{"cur_n')
    run.cut_records(dict.fromkeys(run.record_sizes(), 90))
    assert set(run.record_sizes().values()) == {15}


def test_what_others_measured_stays(tmp_path):
    """`evaluate`, the host's calc_metrics.py, or an editor: of metrics, only what the run wrote is cut."""
    run = RunDirectory(tmp_path)
    before, after = (json.dumps(dict(results=dict(fid=n), cur_nimg=n)) + '\n' for n in (1, 2))
    theirs = '{"results": {"fid": 3}}\n[1]\na note\n'
    run.metric_path('fid').write_text(before + theirs + after + theirs + '{"results": {"f')
    run.metric_path('kid').write_text(theirs + after)
    run.cut_records({'metric-fid.jsonl': len(before)})
    assert run.metric_path('fid').read_text() == before + 2 * theirs
    assert run.metric_path('kid').read_text() == theirs
    run.cut_records({})  # A run that starts from scratch.
    assert run.metric_path('fid').read_text() == 2 * theirs


def test_what_a_kill_left_is_deleted(tmp_path):
    run = RunDirectory(tmp_path)
    written = [
        run.state_path(1000), run.snapshot_path(1000), run.best_path, Path(run.student_path), run.ticket_path('last'),
        run.options_path, run.inputs_path, run.tracker_path,
    ]  # fmt: skip
    left = []
    for path in written:
        with files.atomic_write(path):
            left += [each.name for each in tmp_path.iterdir() if each.name.startswith(f'.{path.name}.')]
    assert len(left) == len(written)
    others = [*(path.name for path in written), '.lock', '.other.tmp']
    touch(tmp_path, *left, *others)
    RunDirectory(tmp_path).delete_temporary_files()
    assert {path.name for path in tmp_path.iterdir()} == set(others)


def test_options_are_read_as_they_were_written(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.read_options() is None
    args = dict(total_kimg=5, run_dir='elsewhere', loss_kwargs=dict(name='ä'))
    run.write_options(args)
    assert run.read_options() == json.loads(run.options_path.read_text()) == args
    for text in ('[]', '{"half', '"text"'):
        run.options_path.write_text(text)
        assert run.read_options() is None


@pytest.mark.parametrize(
    ('ticks', 'states', 'lost'),
    [([], [], False), ([0.016], [], False), ([0.016, 1.5], [], True), ([0.016, 2], ['000002.000'], False)],
)
def test_a_run_that_has_trained_needs_a_state(tmp_path, ticks, states, lost):
    run = RunDirectory(tmp_path)
    touch(tmp_path, *(f'training-state-{state}.pt' for state in states))
    lines = [json.dumps({'Progress/kimg': {'mean': kimg}}) + '\n' for kimg in ticks]
    run.stats_path.write_text(''.join(lines) + '{"cut')
    assert run.has_lost_states() == lost


@pytest.mark.parametrize(
    ('name', 'kimg'),
    [('000000', 0.5), ('000004', 4.02), ('000008', 8), ('000001', 1)],
    ids=['of a short run', 'known more exactly', 'of the last tick', 'of no tick'],
)
def test_how_far_a_run_had_come_by_a_snapshot(tmp_path, name, kimg):
    run = RunDirectory(tmp_path)
    lines = [json.dumps({'Progress/kimg': {'mean': tick}}) + '\n' for tick in (0.016, 0.5, 4.02, 8.0)]
    run.stats_path.write_text(''.join(lines) + '{"cut')
    assert run.kimg_by(f'network-snapshot-{name}.pkl') == kimg
    assert run.kimg_by('student-0.8.pkl') is None


def test_a_claimed_directory_is_created(tmp_path):
    run = RunDirectory(tmp_path / 'outdir' / '00000-new')
    with run.claimed():
        assert [path.name for path in run.path.iterdir()] == ['.lock']
    (tmp_path / 'outdir' / '00000-new' / '.lock').unlink()
    (tmp_path / 'outdir' / '00000-new' / '.lock').mkdir()
    with pytest.raises(UserError, match=r'Cannot write .*\.lock'), run.claimed():
        pass


# --- Who knows the names ----------------------------------------------------------------------------------------------

# The end of a path to one of a run's files, or what such a name begins with. Sentences that mention a file are not.
FILE_NAME = re.compile(
    r'(^|/)(training_options\.json|student\.pkl|log\.txt|(stats|tickets)\.jsonl|reals\.png|fakes\S*\.png|\.lock|'
    r'(metric|training-state|network-snapshot)-\S*)$'
)
MAY_KNOW_THEM = {'stylegan2_compress/runs/directory.py', 'stylegan2_compress/compression/find_ticket.py'}


def strings(source):
    """Strings in a module's code, without docstrings."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_only_the_run_directory_knows_the_names_of_a_runs_files():
    assert 'stylegan2_compress.training_loops/loop.py' in SOURCES
    knowing = {name for name, source in SOURCES.items() if any(map(FILE_NAME.search, strings(source)))}
    assert knowing - MAY_KNOW_THEM == set()


@pytest.mark.parametrize(
    'code',
    ["f'{run_dir}/network-snapshot-*.pkl'", "open(run_dir / 'log.txt')", "f'metric-{name}.jsonl'", "'fakes_init.png'"],
)
def test_names_are_noticed(code):
    assert any(FILE_NAME.search(text) for text in strings(f'"""Writes log.txt"""\n{code}'))


def test_two_runs_that_start_at_the_same_moment_have_two_directories(tmp_path, monkeypatch):
    theirs = RunDirectory.create(tmp_path / 'runs', 'a')
    answers = [theirs, RunDirectory(tmp_path / 'runs' / '00001-a')]  # The first was looked up just before it was made.
    monkeypatch.setattr(RunDirectory, 'next', lambda _outdir, _desc: answers.pop(0))
    ours = RunDirectory.create(tmp_path / 'runs', 'a')
    assert [theirs.path.name, ours.path.name] == ['00000-a', '00001-a']
    assert ours.path.is_dir()


@pytest.mark.parametrize('name', ['log.txt', 'stats.jsonl', 'metric-fid50k.jsonl'])
def test_records_that_cannot_be_written_are_a_sentence(tmp_path, name):
    """As root, who may write everything, only what is no file cannot be."""
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf'Cannot write .*{name}: Is a directory'), RunDirectory(tmp_path).claimed():
        pass
