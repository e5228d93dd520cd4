"""Files are written whole or not at all, and read with a sentence where that fails."""

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys

import pytest

from stylegan2_compress import files
from stylegan2_compress.errors import UserError


def _names(directory) -> list[str]:
    return sorted(os.listdir(directory))


def test_written_bytes_appear_under_the_name_and_nothing_else_stays(tmp_path):
    path = tmp_path / 'a.pkl'
    path.write_bytes(b'old')
    with files.atomic_write(path) as file:
        file.write(b'new')
        assert path.read_bytes() == b'old'
    assert path.read_bytes() == b'new'
    assert _names(tmp_path) == ['a.pkl']


def test_a_name_may_be_as_long_as_names_can_be(tmp_path):
    path = tmp_path / ('学' * 83 + '.pkl')  # Of 253 bytes.
    with files.atomic_write(path) as file:
        file.write(b'new')
    assert path.read_bytes() == b'new'


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / 'a.pkl'
    path.write_bytes(b'old')
    with pytest.raises(ZeroDivisionError), files.atomic_write(path) as file:
        file.write(b'half' * (1 // 0))
    assert path.read_bytes() == b'old'
    assert _names(tmp_path) == ['a.pkl']


def test_a_full_disk_is_a_sentence_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'a.pkl'
    path.write_bytes(b'old')

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(UserError, match=r'Cannot write .*: No space left on device'), files.atomic_write(path) as file:
        file.write(b'half')
    assert path.read_bytes() == b'old'
    assert _names(tmp_path) == ['a.pkl']


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='this system has no /dev/full')
def test_a_write_that_fails_in_the_block_is_a_sentence(tmp_path, monkeypatch):
    real_open = os.open
    monkeypatch.setattr(os, 'open', lambda path, *args: real_open('/dev/full', os.O_WRONLY))
    monkeypatch.setattr(os, 'unlink', lambda path: None)
    with pytest.raises(UserError, match='No space left on device'), files.atomic_write(tmp_path / 'a.pkl') as file:
        file.write(b'x' * 100_000)
    assert _names(tmp_path) == []


def test_an_error_that_is_not_about_this_file_is_not_disguised(tmp_path):
    with pytest.raises(FileNotFoundError), files.atomic_write(tmp_path / 'a.pkl'):
        open(tmp_path / 'other')  # noqa: SIM115
    assert _names(tmp_path) == []


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    """Between the check of a command and what it writes, hours may pass."""
    path = tmp_path / 'a.pkl'
    files.check_output(str(path), force=False, endings=['.pkl'])

    def write():
        with files.atomic_write(path) as file:
            file.write(b'hours of work')
            path.write_bytes(b'mine')

    with pytest.raises(UserError, match=r'has appeared .* was not replaced: see .*a-\w{8}\.pkl\.'):
        write()
    assert path.read_bytes() == b'mine'
    (other,) = set(_names(tmp_path)) - {'a.pkl'}
    assert (tmp_path / other).read_bytes() == b'hours of work'
    files.check_output(str(path), force=True, endings=['.pkl'])
    with files.atomic_write(path) as file:
        file.write(b'new')
    assert path.read_bytes() == b'new'


def test_a_file_that_appears_meanwhile_stops_a_directory(tmp_path):
    for name in 'ab':
        files.check_output(str(tmp_path / f'{name}.png'), force=False, endings=['.png'])

    def write():
        with files.collected(tmp_path) as directory:
            for name in 'ab':
                (directory / f'{name}.png').write_bytes(b'new')
            (tmp_path / 'b.png').write_bytes(b'mine')

    with pytest.raises(UserError, match=r'b\.png has appeared while this was made: name another directory'):
        write()
    assert _names(tmp_path) == ['b.png']
    assert (tmp_path / 'b.png').read_bytes() == b'mine'


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / 'a.pkl'
    path.write_bytes(b'old')
    script = (
        'import os, signal, sys\n'
        'from stylegan2_compress import files\n'
        'with files.atomic_write(sys.argv[1]) as file:\n'
        '    file.write(b"half" * 100_000)\n'
        '    file.flush()\n'
        '    os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    done = subprocess.run([sys.executable, '-c', script, str(path)])
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b'old'


def test_file_and_directory_are_synced_in_order(tmp_path, monkeypatch):
    calls = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        calls.append('directory' if stat.S_ISDIR(os.fstat(descriptor).st_mode) else 'file')
        real_fsync(descriptor)

    def replace(*args):
        calls.append('rename')
        real_replace(*args)

    monkeypatch.setattr(os, 'fsync', fsync)
    monkeypatch.setattr(os, 'replace', replace)
    with files.atomic_write(tmp_path / 'a.pkl') as file:
        file.write(b'new')
    assert calls == ['file', 'rename', 'directory']


def test_permissions_follow_the_umask_or_the_file_that_was_there(tmp_path):
    old_umask = os.umask(0o027)
    try:
        with files.atomic_write(tmp_path / 'new'):
            pass
    finally:
        os.umask(old_umask)
    (tmp_path / 'old').touch(mode=0o600)
    with files.atomic_write(tmp_path / 'old'):
        pass
    assert stat.S_IMODE((tmp_path / 'new').stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / 'old').stat().st_mode) == 0o600


def test_a_symbolic_link_is_written_through(tmp_path):
    (tmp_path / 'there').mkdir()
    (tmp_path / 'there' / 'a.pkl').write_bytes(b'old')
    (tmp_path / 'link.pkl').symlink_to(tmp_path / 'there' / 'a.pkl')
    with files.atomic_write(tmp_path / 'link.pkl') as file:
        file.write(b'new')
    assert (tmp_path / 'link.pkl').is_symlink()
    assert (tmp_path / 'there' / 'a.pkl').read_bytes() == b'new'


def test_a_directory_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match='nowhere'), files.atomic_write(tmp_path / 'nowhere' / 'a.pkl'):
        pass


def test_a_directory_is_refused_before_any_work_although_it_may_be_replaced(tmp_path):
    with pytest.raises(UserError, match='is a directory'):
        files.check_output(str(tmp_path), force=True, endings=[''])


@pytest.mark.parametrize(
    ('name', 'sentence'),
    [
        ('file/a.pkl', 'Not a directory'),
        ('lost.pkl', 'its directory does not exist or is not writable'),
        ('loop.pkl', 'Too many levels of symbolic links'),
        ('x' * 300 + '.pkl', 'File name too long'),
        ('there.pkl', 'exists: name another file, or add --force'),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(tmp_path, name, sentence):
    (tmp_path / 'file').touch()
    (tmp_path / 'there.pkl').touch()
    (tmp_path / 'lost.pkl').symlink_to('nowhere/a.pkl')
    (tmp_path / 'loop.pkl').symlink_to('loop.pkl')
    with pytest.raises(UserError, match=sentence):
        files.check_output(str(tmp_path / name), force=False, endings=['.pkl'])


def test_a_link_to_what_is_not_there_yet_is_written_through(tmp_path):
    (tmp_path / 'new.pkl').symlink_to('a.pkl')
    (tmp_path / 'new').symlink_to('images')
    files.check_output(str(tmp_path / 'new.pkl'), force=False, endings=['.pkl'])
    files.require_writable_directory('--out', str(tmp_path / 'new'))
    with files.atomic_write(tmp_path / 'new.pkl'), files.collected(tmp_path / 'new') as directory:
        (directory / 'a.png').touch()
    assert (tmp_path / 'a.pkl').exists()
    assert (tmp_path / 'images' / 'a.png').exists()


def test_a_directory_with_others_in_it_takes_the_place_of_an_earlier_one(tmp_path):
    target = tmp_path / 'net'
    for name in ('mapping.mlpackage/Data/weights', 'mapping.mlpackage/Manifest', 'record', 'mine/note'):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text('old')
    earlier = {'mapping.mlpackage/Data/weights', 'mapping.mlpackage/Manifest', 'record'}
    with files.collected(target, earlier) as directory:
        for name in ('synthesis.mlpackage/Data/weights', 'mapping.mlpackage/Manifest', 'record'):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text('new')
    found = {path.relative_to(target).as_posix(): path.read_text() for path in target.rglob('*') if path.is_file()}
    new = dict.fromkeys(['synthesis.mlpackage/Data/weights', 'mapping.mlpackage/Manifest', 'record'], 'new')
    assert found == new | {'mine/note': 'old'}
    assert not (target / 'mapping.mlpackage' / 'Data').exists()


def test_names_of_directories_that_cannot_be_are_refused_before_any_work(tmp_path):
    with pytest.raises(UserError, match='File name too long'):
        files.require_writable_directory('--out', str(tmp_path / ('x' * 300)))
    (tmp_path / 'loop').symlink_to('loop')
    with pytest.raises(UserError, match='Too many levels of symbolic links'):
        files.require_writable_directory('--out', str(tmp_path / 'loop'))


def test_a_drive_that_is_not_there_is_a_sentence(monkeypatch):
    """As `Z:` can be on Windows: none of the directories above a path exists."""
    with monkeypatch.context() as patch:
        patch.setattr(files.os.path, 'exists', lambda _: False)
        patch.setattr(files.os.path, 'isdir', lambda _: False)
        with pytest.raises(UserError, match='--out=/nowhere/a cannot be written to'):
            files.require_writable_directory('--out', '/nowhere/a')
    monkeypatch.setattr(files.os.path, 'exists', lambda _: False)
    with pytest.raises(UserError, match='Cannot write /nowhere/a: No such file'), files.collected('/nowhere/a'):
        pass


def test_a_directory_in_the_way_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match='Cannot write'), files.atomic_write(tmp_path):
        pass
    assert _names(tmp_path.parent).count(tmp_path.name) == 1


@pytest.mark.parametrize(('name', 'sentence'), [('missing', 'No such file'), ('.', 'directory'), ('pipe', 'device')])
def test_reading_what_is_no_file_is_a_sentence(tmp_path, name, sentence):
    os.mkfifo(tmp_path / 'pipe')  # Opening it would wait for ever.
    with pytest.raises(UserError, match=sentence), files.opened(tmp_path / name):
        pass


def test_reading_gives_file_and_size_and_the_digest_is_that_of_the_bytes(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / 'a').write_bytes(data)
    with files.opened(tmp_path / 'a') as (file, size):
        assert file.read() == data
        assert size == len(data)
    assert files.sha256(tmp_path / 'a') == hashlib.sha256(data).hexdigest()


def test_the_digest_of_an_open_file_is_that_of_all_its_bytes_wherever_it_was_read_to(tmp_path):
    (tmp_path / 'a').write_bytes(b'abcdef')
    with files.opened(tmp_path / 'a') as (file, _size):
        file.read(3)
        assert files.sha256_of_open(file) == hashlib.sha256(b'abcdef').hexdigest()
        assert file.read() == b'abcdef'


@pytest.mark.parametrize('fcntl', [files.fcntl, None], ids=['POSIX', 'Windows'])
def test_a_locked_directory_is_for_one_process(tmp_path, monkeypatch, fcntl):
    script = (
        'import sys\n'
        'from stylegan2_compress import errors, files\n'
        'files.fcntl = files.fcntl if sys.argv[2] == "True" else None\n'
        'try:\n'
        '    with files.locked(sys.argv[1] + "/.lock", "in use"):\n'
        '        print("locked")\n'
        'except errors.UserError as error:\n'
        '    print(error.message)\n'
    )

    def lock_elsewhere() -> str:
        command = [sys.executable, '-c', script, str(tmp_path), str(fcntl is not None)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    monkeypatch.setattr(files, 'fcntl', fcntl)
    with files.locked(tmp_path / '.lock', 'in use'):
        assert lock_elsewhere() == 'in use\n'
    assert lock_elsewhere() == 'locked\n'
    (tmp_path / 'directory').mkdir()
    with pytest.raises(UserError, match=r'Cannot write .*directory'), files.locked(tmp_path / 'directory', 'in use'):
        pass


@pytest.mark.parametrize(
    ('place', 'name'),
    [
        ('student.pkl', 'student.pkl'),
        ('/home/me/secret project/student #1?.pkl', 'student #1?.pkl'),
        ('runs/00000/', '00000'),
        ('ffhq256', 'ffhq256'),
        ('https://me:password@example.org/nets/student.pkl?token=abc/def.pkl#part', 'student.pkl'),
        ('hf://me/nets@main/student.safetensors', 'student.safetensors'),
    ],
)
def test_what_is_published_of_a_place_is_its_last_part(place, name):
    assert files.public_name(place) == name
