"""Bad input to every command: status 2, one sentence that says what is wrong, no trace, and nothing written."""

import os
import re
import shlex
from pathlib import Path

import bad_inputs
import pytest
from click.testing import CliRunner

from stylegan2_compress.cli import COMMANDS, main
from stylegan2_compress.runs import launch

TABLE = Path(__file__).with_suffix('.txt').with_name('bad_input.txt')


def cases():
    """Command lines and parts of their sentences."""
    beginning = ''
    for line in TABLE.read_text(encoding='utf-8').splitlines():
        if line.startswith('['):
            beginning = line[1:-1]
        elif line and not line.startswith('#'):
            words, _arrow, sentence = line.rpartition(' -> ')
            yield pytest.param(f'{beginning} {words}'.strip(), sentence, id=words)


CASES = list(cases())


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
    words = shlex.split(line.replace('$TINY', bad_inputs.TINY))
    before = bad_inputs.snapshot(directory)
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == 2, result.output
    assert bad_inputs.snapshot(directory) == before
    assert result.stdout == ''
    usage, _error, said = result.stderr.rpartition('Error: ')
    assert usage == '' or usage.startswith('Usage: '), result.stderr
    assert sentence.replace('$TINY', bad_inputs.TINY) in said
    assert re.fullmatch(r'[^\n]*\n', said), 'one line'
    assert 'Traceback' not in result.stderr


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
