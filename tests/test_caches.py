"""Caches that cannot be written: a temporary one takes their place, with a sentence."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from stylegan2_compress import caches
from stylegan2_compress.errors import UserError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Ours, without a directory `statistics` that can be made: there is a file in its place."""
    (tmp_path / 'cache' / 'features').mkdir(parents=True)
    (tmp_path / 'cache' / 'features' / 'a.npz').write_text('computed earlier')
    (tmp_path / 'cache' / 'statistics').write_text('in the place of a directory')
    monkeypatch.setenv('STYLEGAN2_COMPRESS_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


def test_a_temporary_cache_takes_the_place_of_one_that_cannot_be_written(cache, capsys):
    caches.try_to_cache('statistics', 'b.npz', lambda path: path.write_text('b'))
    said = capsys.readouterr().err
    temporary = caches.cache_dir()
    assert temporary != cache
    assert said == (
        f'Cannot write to the cache {cache} (File exists): until this command ends, {temporary} is used; '
        'STYLEGAN2_COMPRESS_CACHE=DIR names another directory, which is kept.\n'
    )
    assert caches.cache_dir('statistics', 'b.npz').read_text() == 'b'
    assert caches.cache_dir('features', 'a.npz').read_text() == 'computed earlier'
    caches.try_to_cache('features', 'c.npz', lambda path: path.write_text('c'))
    assert capsys.readouterr().err == ''
    assert sorted(os.listdir(cache / 'features')) == ['a.npz']


def test_in_place_of_a_cache_whose_directories_are_read_only_there_is_one_that_can_be_written(cache, monkeypatch):
    for directory in (cache / 'features', cache):
        directory.chmod(0o555)
    monkeypatch.setattr(caches, '_why_not_writable', lambda _: 'Permission denied')  # Root can write everywhere.
    caches.or_temporary('STYLEGAN2_COMPRESS_CACHE', cache, 'downloads')
    directories = [path for path in [caches.cache_dir(), *caches.cache_dir().rglob('*')] if path.is_dir()]
    assert {path.name for path in directories} == {caches.cache_dir().name, 'features', 'downloads'}
    assert all(path.stat().st_mode & 0o700 == 0o700 for path in directories)
    assert caches.cache_dir('features', 'a.npz').read_text() == 'computed earlier'
    assert cache.stat().st_mode & 0o777 == 0o555


def test_a_cache_that_can_be_written_is_used_without_a_word(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('STYLEGAN2_COMPRESS_CACHE', str(tmp_path / 'new'))
    caches.try_to_cache('statistics', 'b.npz', lambda path: path.write_text('b'))
    assert (tmp_path / 'new' / 'statistics' / 'b.npz').read_text() == 'b'
    assert capsys.readouterr().err == ''


def test_a_user_without_a_home_has_a_cache_for_now(monkeypatch):
    def nowhere():
        raise RuntimeError('Could not determine home directory.')

    for variable in ('STYLEGAN2_COMPRESS_CACHE', 'XDG_CACHE_HOME', 'LOCALAPPDATA'):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, 'home', nowhere)
    assert caches.cache_dir('statistics').is_relative_to(tempfile.gettempdir())


def test_on_a_full_disk_what_was_computed_is_used(tmp_path, monkeypatch, capsys):
    def full(path):
        raise UserError(f'Cannot write {path}: No space left on device.')

    monkeypatch.setenv('STYLEGAN2_COMPRESS_CACHE', str(tmp_path))
    caches.try_to_cache('statistics', 'b.npz', full)
    said = f'Cannot write {tmp_path}/statistics/b.npz: No space left on device. What was computed is used, but not kept'
    assert capsys.readouterr().err.startswith(said)
    with pytest.raises(ZeroDivisionError):
        caches.try_to_cache('statistics', 'b.npz', lambda _path: 1 / 0)


def test_without_any_place_to_write_to_there_is_a_sentence(cache, monkeypatch):
    def nowhere(prefix):
        raise FileNotFoundError(2, 'No usable temporary directory found')

    monkeypatch.setattr(caches.tempfile, 'mkdtemp', nowhere)
    with pytest.raises(UserError, match=r'nor to a temporary one .*: STYLEGAN2_COMPRESS_CACHE=DIR names another'):
        caches.make_ours_writable('statistics')


def test_hugging_faces_libraries_find_the_temporary_one_and_it_ends_with_the_process(tmp_path):
    """In a process that has not imported them yet."""
    pytest.importorskip('huggingface_hub')
    (tmp_path / 'home').write_text('a file where there should be a home')
    script = (
        'from stylegan2_compress import caches\n'
        'caches.make_hugging_faces_writable()\n'
        'from huggingface_hub import constants\n'
        'print(constants.HF_HUB_CACHE)\n'
    )
    named = ('HF_HOME', 'HF_HUB_CACHE', 'HUGGINGFACE_HUB_CACHE')
    environment = {name: value for name, value in os.environ.items() if name not in named}
    environment['XDG_CACHE_HOME'] = str(tmp_path / 'home' / '.cache')
    done = subprocess.run([sys.executable, '-c', script], env=environment, capture_output=True, text=True, check=True)
    assert 'stylegan2-compress-cache-' in done.stdout
    assert 'HF_HOME=DIR names another directory' in done.stderr
    assert not Path(done.stdout.strip()).exists()
