"""Bad input to every command: status 2, one sentence that says what is wrong, no trace, and nothing written."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import bad_inputs
import pytest
from click.testing import CliRunner

from stylegan2_compress import host
from stylegan2_compress.cli import COMMANDS, main
from stylegan2_compress.runs import launch

NAMES = {'$TINY': bad_inputs.TINY, '$LONG': 'x' * 300}
TABLE = Path(__file__).with_name('bad_input.txt')
NOT_PERMITTED = Path(__file__).with_name('not_permitted.txt')


def cases(table: Path):
    """Command lines and parts of their sentences."""
    beginning = ''
    for line in table.read_text(encoding='utf-8').splitlines():
        if line.startswith('['):
            beginning = line[1:-1]
        elif line and not line.startswith('#'):
            words, _arrow, sentence = line.rpartition(' -> ')
            yield pytest.param(named(f'{beginning} {words}'.strip()), named(sentence), id=words)


def named(text: str) -> str:
    """A text with what its names mean."""
    for name, meaning in NAMES.items():
        text = text.replace(name, meaning)
    return text


CASES = list(cases(TABLE))


@pytest.fixture(scope='module')
def directory(tmp_path_factory, make_generator, make_discriminator, make_dataset_zip):
    """Everything that the command lines name; caches are elsewhere."""
    place = tmp_path_factory.mktemp('bad')
    with pytest.MonkeyPatch.context() as patch:
        for variable in ('STYLEGAN2_COMPRESS_CACHE', 'DNNLIB_CACHE_DIR'):
            patch.setenv(variable, str(tmp_path_factory.mktemp('cache')))
        bad_inputs.write_all(place, make_generator, make_discriminator, make_dataset_zip)
        patch.chdir(place)
        yield place


@pytest.fixture(autouse=True)
def no_runs(monkeypatch):
    """What is accepted by mistake ends here, and trains nothing."""

    def refuse(_args):
        raise AssertionError('It would have been run.')

    monkeypatch.setattr(launch, 'run', refuse)


@pytest.mark.filterwarnings('ignore')  # Of libraries, on what is refused a moment later.
@pytest.mark.parametrize(('line', 'sentence'), CASES)
def test_bad_input(directory, line, sentence):
    words = shlex.split(line)
    before = bad_inputs.snapshot(directory)
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == 2, result.output
    assert bad_inputs.snapshot(directory) == before
    assert result.stdout == ''
    usage, _error, said = result.stderr.rpartition('Error: ')
    assert usage == '' or usage.startswith('Usage: '), result.stderr
    assert sentence in said
    assert re.fullmatch(r'[^\n]*\n', said), 'one line'
    assert 'Traceback' not in result.stderr


UNPRIVILEGED = """
import json, os, sys, unprivileged
unprivileged.become()
if os.access('locked', os.X_OK):
    sys.exit('permitted')
from click.testing import CliRunner
from stylegan2_compress.cli import main
results = [CliRunner().invoke(main, line) for line in json.load(sys.stdin)]
print(json.dumps([(result.exit_code, result.output) for result in results]))
"""


def test_what_is_not_permitted(directory):
    """In one process, which is not root."""
    lines, sentences = zip(*(case.values for case in cases(NOT_PERMITTED)), strict=True)
    support = str(Path(__file__).parents[1] / 'support')
    environment = dict(os.environ, PYTHONPATH=support, STYLEGAN2_ADA_PYTORCH=str(host.activate().path))
    (directory / 'locked').mkdir(mode=0)
    (directory / 'closed.jsonl').touch(mode=0o444)
    try:
        done = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', UNPRIVILEGED],
            input=json.dumps([shlex.split(line) for line in lines]),
            env=environment,
            cwd=directory,
            capture_output=True,
            text=True,
        )
    finally:
        (directory / 'locked').rmdir()
        (directory / 'closed.jsonl').unlink()
    if done.stderr == 'permitted\n':
        pytest.skip('this system does not let the process give up its rights')
    assert done.returncode == 0, done.stderr
    for line, sentence, (status, output) in zip(lines, sentences, json.loads(done.stdout), strict=True):
        assert status == 2, (line, output)
        assert sentence in output.splitlines()[-1], line


def test_there_are_many_and_of_every_command():
    assert len(CASES) >= 300
    assert {case.values[0].split()[0] for case in CASES} >= set(COMMANDS)
    assert len({case.values[0] for case in CASES}) == len(CASES)


def test_the_files_are_good_where_they_are_to_be(directory, tmp_path):
    """Else every line would be refused for them."""
    lines = [
        'convert teacher.pkl {}/a.safetensors',
        'convert teacher.safetensors {}/a.pkl',
        'prune --teacher teacher2.pkl --ratio 0.5 --out {}/b.pkl',
        'prune --teacher alone.pkl --ratio 0.5 --only G_ema --out {}/d.pkl',
        'prune --teacher badmetrics --ratio 0.5 --out {}/e.pkl',
        'inspect student.pkl',
        'inspect badmetrics',
        'profile --no-measure labels.pkl res8.pkl grey.pkl loud.pkl masked.pkl',
        'ticket save masked.pkl {}/a.ticket',
        'ticket bake a.ticket {}/c.pkl',
        'compare badmetrics',
        f'stats --data classes.zip --embedding {bad_inputs.TINY} --out {{}}/s.npz',
        'distill --teacher teacher.pkl --student student.pkl --data data.zip --outdir {}/runs --dry-run '
        f'--loss-arg embeddings={bad_inputs.TINY} --loss-arg statistics=statistics.npz',
        f'find-ticket --data data.zip --embedding {bad_inputs.TINY} --outdir {{}}/runs --dry-run',
        f'find-ticket --teacher badmetrics --data data.zip --embedding {bad_inputs.TINY} --outdir {{}}/runs --dry-run',
    ]
    for line in lines:
        result = CliRunner().invoke(main, line.format(tmp_path).split(), catch_exceptions=False)
        assert result.exit_code == 0, result.output
    written = ['a.pkl', 'a.safetensors', 'a.ticket', 'b.pkl', 'c.pkl', 'd.pkl', 'e.pkl', 's.npz']
    assert sorted(os.listdir(tmp_path)) == written
