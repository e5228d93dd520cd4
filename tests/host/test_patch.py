"""The lines of `train.patch` go into train.py and come out again, and into nothing else."""

import os
import runpy
import shutil
import stat
import subprocess
import sys
import types
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import refused, run
from hypothesis import given, settings
from hypothesis import strategies as st

import stylegan2_compress
from stylegan2_compress import cli
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import patch as patching
from stylegan2_compress.host.patch import State

PATCH = Path(__file__).parents[2] / 'patches' / 'train.patch'

TRAIN = """\
import training_loop

class UserError(Exception): pass

def setup_training_loop_kwargs(): pass

def subprocess_fn(): pass

def main(): pass

if __name__ == "__main__":
    main()

# Something behind it.
"""


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / 'train.py').write_bytes(TRAIN.encode())
    return tmp_path


def inserted(before: bytes, after: bytes) -> list[bytes]:
    """The lines that make `after` of `before`, all in one place."""
    before, after = before.splitlines(keepends=True), after.splitlines(keepends=True)
    start = next(i for i, (old, new) in enumerate(zip(before, after, strict=False)) if old != new)
    added = len(after) - len(before)
    assert after[:start] + after[start + added :] == before
    return after[start : start + added]


@pytest.mark.parametrize('ending', ['\n', '\r\n'])
def test_applied_and_reversed_byte_for_byte(checkout, ending):
    file = checkout / 'train.py'
    before = TRAIN.replace('\n', ending).encode()
    file.write_bytes(before)
    file.chmod(0o754)

    assert patching.state(checkout) is State.UNPATCHED
    assert patching.apply(checkout) is State.UNPATCHED
    after = file.read_bytes()
    lines = inserted(before, after)
    assert all(line.endswith(ending.encode()) for line in lines)
    assert not any(line.endswith(b'\r\n') for line in lines) or ending == '\r\n'
    assert after.splitlines()[after.splitlines().index(b'if __name__ == "__main__":') - 1] == b''

    assert patching.state(checkout) is State.PATCHED
    assert patching.apply(checkout) is State.PATCHED
    assert file.read_bytes() == after

    assert patching.reverse(checkout) is State.PATCHED
    assert file.read_bytes() == before
    assert patching.reverse(checkout) is State.UNPATCHED
    assert file.read_bytes() == before
    assert stat.S_IMODE(file.stat().st_mode) == 0o754
    assert os.listdir(checkout) == ['train.py']


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from(['\n', '\r\n']), min_size=len(TRAIN.splitlines()), max_size=len(TRAIN.splitlines())),
    st.lists(st.sampled_from(['', '# é', 'x = 1', '"""\nif __name__ == "__main__":\n"""', '\f'])),
    st.booleans(),
)
def test_any_train_py_comes_back_as_it_was(tmp_path_factory, endings, extra, final_newline):
    """With mixed line endings, more lines in front, and with or without an end to its last line."""
    text = '\n'.join(extra) + '\n' + ''.join(map(str.__add__, TRAIN.splitlines(), endings))
    before = (text if final_newline else text.rstrip('\r\n')).encode()
    directory = tmp_path_factory.mktemp('checkout')
    (directory / 'train.py').write_bytes(before)
    assert patching.apply(directory) is State.UNPATCHED
    assert len(inserted(before, (directory / 'train.py').read_bytes())) == len(patching._current_lines())
    assert patching.state(directory) is State.PATCHED
    assert patching.reverse(directory) is State.PATCHED
    assert (directory / 'train.py').read_bytes() == before


@pytest.mark.parametrize('run_name', ['__mp_main__', 'train'])
def test_the_module_is_handed_over_complete_also_in_processes_that_are_spawned(checkout, run_name, monkeypatch):
    """A spawned process runs train.py as __mp_main__, where `if __name__ == '__main__':` is not entered."""
    handed_over = []

    def extend_train(module):
        handed_over.append((module.__name__, module.training_loop, callable(module.main)))
        module.training_loop = 'ours'

    monkeypatch.setattr(stylegan2_compress, 'extend_train', extend_train, raising=False)
    loop = types.ModuleType('training_loop')
    monkeypatch.setitem(sys.modules, 'training_loop', loop)

    patching.apply(checkout)
    namespace = runpy.run_path(str(checkout / 'train.py'), run_name=run_name)
    assert handed_over == [(run_name, loop, True)]
    assert namespace['main'].__globals__['training_loop'] == 'ours'  # What its functions will see.


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (TRAIN.replace('def main', 'def run'), 'has no main,'),
        (TRAIN.replace('class UserError', 'class Other'), 'has no UserError,'),
        (TRAIN.replace('import training_loop', 'import loop'), 'has no training_loop,'),
        (TRAIN.replace('def setup_training_loop_kwargs', 'def setup'), 'has no setup_training_loop_kwargs,'),
        (TRAIN.replace('def subprocess_fn', 'def fn'), 'has no subprocess_fn,'),
        (TRAIN.replace('if __name__ == "__main__":', 'if True:'), 'has 0 lines'),
        (TRAIN + '\nif __name__ == "__main__": pass\n', 'has 2 lines'),
        ('if __name__ == "__main__"\n    main()\n', 'not valid Python'),
        (TRAIN.replace('def main', 'import stylegan2_compress\ndef main'), 'already mentions'),
    ],
)
@pytest.mark.parametrize('options', [[], ['--check'], ['--reverse']])
def test_what_it_does_not_fit_is_refused_untouched(checkout, content, reason, options):
    (checkout / 'train.py').write_text(content)
    assert reason in refused('patch', checkout, *options, unchanged=checkout)
    assert (checkout / 'train.py').read_text() == content


def test_lines_changed_by_hand_are_not_reversed(checkout):
    patching.apply(checkout)
    changed = (checkout / 'train.py').read_text().replace('import sys\n', 'import sys, os\n')
    (checkout / 'train.py').write_text(changed)
    with pytest.raises(UserError, match='git checkout'):
        patching.reverse(checkout)
    assert (checkout / 'train.py').read_text() == changed


def test_a_link_stays_a_link(checkout, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp('elsewhere') / 'train.py'
    shutil.move(checkout / 'train.py', elsewhere)
    (checkout / 'train.py').symlink_to(elsewhere)
    patching.apply(checkout)
    assert (checkout / 'train.py').is_symlink()
    assert b'stylegan2_compress' in elsewhere.read_bytes()


def test_patch_command(checkout, tmp_path_factory):
    assert CliRunner().invoke(cli.main, ['patch', str(checkout), '--check']).exit_code == 1
    run('patch', checkout)
    assert 'already' in run('patch', checkout)
    run('patch', checkout, '--check')
    run('patch', checkout, '--reverse')
    assert run('patch', checkout, '--reverse') == f'train.py in {checkout} was not patched.\n'
    refused('patch', checkout, '--check', '--reverse', unchanged=checkout, usage=True)
    (checkout / 'train.py').unlink()
    refused('patch', checkout, unchanged=checkout)


# --- The lines of earlier versions --------------------------------------------------------------------------------

# As the first versions inserted them, written out: checkouts in use have these bytes.
EARLIER = """\
# Inserted by `stylegan2-compress patch`; `stylegan2-compress patch --reverse` takes it out again.
# Adds --loss, --loss-arg, --teacher, --student and --loop, here and in the processes that --gpus starts.
import sys
import stylegan2_compress.options
stylegan2_compress.options.extend_train(sys.modules[__name__])

"""


@pytest.fixture(params=['\n', '\r\n'], ids=['LF', 'CRLF'])
def earlier(request, checkout):
    """A checkout that an earlier version patched, and its train.py before that."""
    before = TRAIN.replace('\n', request.param).encode()
    guard = 'if __name__ == "__main__":'
    text = TRAIN.replace(guard, EARLIER + guard).replace('\n', request.param)
    (checkout / 'train.py').write_bytes(text.encode())
    (checkout / 'train.py').chmod(0o754)
    return checkout, before


def test_lines_of_an_earlier_version_are_replaced_in_one_step(earlier, monkeypatch):
    checkout, before = earlier
    file = checkout / 'train.py'
    replaced, replace = [], os.replace
    monkeypatch.setattr(os, 'replace', lambda *paths: replaced.append(paths) or replace(*paths))
    said = run('patch', checkout)
    assert said == (
        f'train.py in {checkout} had the lines of an earlier version: they were taken out and the new ones put in.\n'
    )
    assert len(replaced) == 1
    after = file.read_bytes()
    assert b'stylegan2_compress.options' not in after
    assert stat.S_IMODE(file.stat().st_mode) == 0o754
    file.write_bytes(before)
    assert patching.apply(checkout) is State.UNPATCHED
    assert file.read_bytes() == after  # What patching the original makes.
    assert patching.state(checkout) is State.PATCHED
    assert os.listdir(checkout) == ['train.py']


def test_lines_of_an_earlier_version_are_told_by_check(earlier):
    checkout, _before = earlier
    text = (checkout / 'train.py').read_bytes()
    result = CliRunner().invoke(cli.main, ['patch', str(checkout), '--check'])
    assert result.exit_code == 1
    assert result.stdout == (
        f'train.py in {checkout} was patched by an earlier version: `stylegan2-compress patch` replaces the lines.\n'
    )
    assert (checkout / 'train.py').read_bytes() == text


def test_lines_of_an_earlier_version_are_reversed_byte_for_byte(earlier):
    checkout, before = earlier
    assert run('patch', checkout, '--reverse') == (
        f'train.py in {checkout} is as it was before the patch, which an earlier version had applied.\n'
    )
    assert (checkout / 'train.py').read_bytes() == before
    assert stat.S_IMODE((checkout / 'train.py').stat().st_mode) == 0o754
    assert patching.reverse(checkout) is State.UNPATCHED


def test_lines_of_an_earlier_version_that_were_changed_by_hand_are_left_alone(earlier):
    checkout, _before = earlier
    changed = (checkout / 'train.py').read_bytes().replace(b'import sys', b'import sys, os')
    (checkout / 'train.py').write_bytes(changed)
    for options in ([], ['--check'], ['--reverse']):
        assert 'git checkout' in refused('patch', checkout, *options, unchanged=checkout)
    assert (checkout / 'train.py').read_bytes() == changed


# --- The patch as a file of its own -------------------------------------------------------------------------------


def test_the_patch_only_adds_lines():
    header, body = PATCH.read_text().splitlines()[:3], PATCH.read_text().splitlines()[3:]
    assert [line.split()[0] for line in header] == ['---', '+++', '@@']
    assert body
    assert all(line.startswith('+') for line in body)


@pytest.mark.checkout
@pytest.mark.parametrize('tool', ['git apply --unidiff-zero', 'patch -p1 -i'])
def test_the_patch_fits_the_hosts_train_py_with_the_usual_tools(tool, tmp_path):
    program = tool.split()[0]
    if shutil.which(program) is None:
        pytest.skip(f'{program} is not installed')
    original = Path(os.environ['STYLEGAN2_ADA_PYTORCH'], 'train.py')
    for name in ('theirs', 'ours'):
        (tmp_path / name).mkdir()
        shutil.copy(original, tmp_path / name)
    subprocess.run([*tool.split(), str(PATCH)], cwd=tmp_path / 'theirs', check=True, capture_output=True)
    assert patching.apply(tmp_path / 'ours') is State.UNPATCHED
    assert (tmp_path / 'theirs' / 'train.py').read_bytes() == (tmp_path / 'ours' / 'train.py').read_bytes()
    added = inserted(original.read_bytes(), (tmp_path / 'ours' / 'train.py').read_bytes())
    assert not {line for line in added if line.strip()} & set(original.read_bytes().splitlines(keepends=True))
    assert patching.reverse(tmp_path / 'theirs') is State.PATCHED
    assert (tmp_path / 'theirs' / 'train.py').read_bytes() == original.read_bytes()
