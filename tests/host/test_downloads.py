"""Downloads: where the host keeps them, continued, verified; published networks by name; the Hugging Face Hub."""

import hashlib
import http.server
import io
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import dnnlib
import huggingface_hub
import pytest
from commands import refused, run
from pickling import snapshot, write

from stylegan2_compress import pickles
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import downloads, teachers

CONTENT = bytes(range(256)) * 400


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` under any path, and `404` under /missing; remembers requests."""

    def __init__(self, content=CONTENT):
        super().__init__(('127.0.0.1', 0), Handler)
        self.content, self.version, self.ranges, self.says_length = content, '"1"', True, True
        self.cut: list[int] = []  # After how many bytes each of the next connections is cut.
        self.status: list[int] = []  # Of each of the next answers.
        self.asked: list[str | None] = []  # For which range.
        self.url = f'http://127.0.0.1:{self.server_port}/some/network.pkl'


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server = self.server
        server.asked.append(self.headers['Range'])
        if 'missing' in self.path or server.status:
            self.send_error(server.status.pop(0) if server.status else 404)
            return
        start = 0
        if server.ranges and self.headers['Range'] and self.headers['If-Range'] == server.version:
            start = int(re.fullmatch(r'bytes=(\d+)-', self.headers['Range'])[1])
        self.send_response(206 if start else 200)
        self.send_header('ETag', server.version)
        if server.says_length:
            self.send_header('Content-Length', str(len(server.content) - start))
        self.end_headers()
        end = start + server.cut.pop(0) if server.cut else len(server.content)
        self.wfile.write(server.content[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, '_PAUSE', 0.01)
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The host's, in a directory of the test's own."""
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'downloads'


def test_a_download_is_kept_where_the_host_looks_for_it(server, cache):
    path = downloads.local_file(server.url)
    assert Path(path).read_bytes() == CONTENT
    assert [file.name for file in cache.iterdir()] == [Path(path).name]
    assert dnnlib.util.open_url(server.url, return_filename=True) == path
    assert downloads.local_file(server.url) == path
    assert len(server.asked) == 1


def test_a_signed_address_may_be_longer_than_names_of_files(server, cache):
    url = f'{server.url}?signature={"a" * 400}&end=b'
    path = downloads.local_file(url)
    assert Path(path).read_bytes() == CONTENT
    assert path.endswith('_end_b')
    assert dnnlib.util.open_url(url, return_filename=True) == downloads.local_file(url) == path
    assert len(server.asked) == 1


def test_what_the_host_downloaded_is_found(server):
    path = dnnlib.util.open_url(server.url, return_filename=True, verbose=False)
    assert downloads.local_file(server.url) == path
    assert len(server.asked) == 1


def test_a_download_that_is_cut_off_goes_on(server):
    server.cut = [32768, 49152]
    assert Path(downloads.local_file(server.url)).read_bytes() == CONTENT
    assert server.asked == [None, 'bytes=32768-', 'bytes=81920-']


def test_a_download_that_is_given_up_goes_on_another_time(server, cache):
    server.cut = [16384] + [0] * 4
    with pytest.raises(UserError, match=r'Cannot download .*5 times'):
        downloads.local_file(server.url)
    assert len(server.asked) == 5
    assert dnnlib.util.open_url(server.url, return_filename=True, verbose=False)  # The host does not take it for whole.
    for file in cache.glob('*_http*'):
        file.unlink()
    assert Path(downloads.local_file(server.url)).read_bytes() == CONTENT
    assert server.asked[-1] == 'bytes=16384-'


def test_other_content_is_not_put_behind_the_first_part(server):
    server.cut = [32768]
    answer = Handler.do_GET

    def change(handler):
        answer(handler)
        server.content, server.version = CONTENT[::-1], '"2"'

    Handler.do_GET = change
    try:
        assert Path(downloads.local_file(server.url)).read_bytes() == CONTENT[::-1]
    finally:
        Handler.do_GET = answer
    assert server.asked == [None, 'bytes=32768-']


def test_a_server_that_does_not_continue_is_asked_for_everything(server):
    server.cut, server.ranges = [32768], False
    assert Path(downloads.local_file(server.url)).read_bytes() == CONTENT


def test_a_server_that_refuses_the_range_is_asked_again(server):
    server.cut, server.status = [32768], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downloads, '_ATTEMPTS', 1)
        with pytest.raises(UserError):
            downloads.local_file(server.url)
    server.status = [416, 503]
    assert Path(downloads.local_file(server.url)).read_bytes() == CONTENT
    assert server.asked == [None, 'bytes=32768-', None, None]


def test_what_is_not_there_is_a_sentence_at_once(server, cache):
    with pytest.raises(
        UserError, match=r'Cannot download http://.*/missing.pkl \(HTTP status 404\): try again, or get'
    ):
        downloads.local_file(server.url.replace('network', 'missing'))
    assert len(server.asked) == 1
    with pytest.raises(UserError, match='Cannot download'):
        downloads.local_file('http://')


def test_without_a_cache_that_can_be_written_a_temporary_one_has_the_download(server, tmp_path, monkeypatch, capsys):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'file'))
    path = Path(downloads.local_file(server.url))
    assert path.read_bytes() == CONTENT
    assert Path(tempfile.gettempdir()) in path.parents
    assert capsys.readouterr().err.count('Cannot write to the cache') == 1
    assert downloads.local_file(server.url) == downloads.cached_file(server.url) == str(path)
    assert len(server.asked) == 1


def test_a_download_that_may_have_been_cut_off_is_told(server, capsys):
    downloads.local_file(server.url)
    assert capsys.readouterr().err == ''
    server.says_length, server.cut = False, [32768]
    path = Path(downloads.local_file(server.url + '2'))
    assert re.search(rf'does not say how long {server.url}2 is, .* delete {path} and', capsys.readouterr().err)
    path.unlink()
    assert Path(downloads.local_file(server.url + '2')).read_bytes() == CONTENT


def test_content_with_another_hash_is_a_sentence_and_not_kept(server, cache):
    with pytest.raises(UserError, match=r'has SHA-256 .*, not the published 00'):
        downloads.download(server.url, '00')
    assert not [file for file in cache.iterdir() if file.stat().st_size]
    assert downloads.download(server.url, hashlib.sha256(CONTENT).hexdigest())


def test_progress_is_shown_on_a_terminal_and_only_there(server, monkeypatch, capsys):
    downloads.local_file(server.url)
    assert capsys.readouterr().err == ''
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, '__stderr__', terminal)
    downloads.local_file(server.url + '2')
    assert 'network.pkl2' in terminal.getvalue()
    assert '102k' in terminal.getvalue()


def fetch(url: str, queue) -> None:
    queue.put(downloads.local_file(url))


def test_processes_that_want_the_same_file_download_it_once(server):
    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    processes = [context.Process(target=fetch, args=[server.url, queue]) for _ in range(3)]
    for process in processes:
        process.start()
    assert len({queue.get(timeout=60) for _ in processes}) == 1
    for process in processes:
        process.join()
    assert len(server.asked) == 1


# --- published networks by name -----------------------------------------------------------------------------------


def test_names_are_taken_wherever_a_file_is(server, make_generator, make_discriminator, tmp_path, monkeypatch):
    path = write(tmp_path / 'a.pkl', snapshot(make_generator(), make_discriminator()))
    server.content = path.read_bytes()
    sha256 = pickles.sha256(path)
    monkeypatch.setitem(teachers.TEACHERS, 'tiny', teachers.Teacher(server.url, 16, 'noise', sha256=sha256))
    assert sha256 in run('inspect', 'tiny')
    run('prune', '--teacher', 'tiny', '--ratio', 0.5, '--out', tmp_path / 'b.pkl')
    assert len(server.asked) == 1


def test_a_file_of_that_name_goes_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert downloads.is_remote('ffhq256')
    Path('ffhq256').write_bytes(b'')
    assert not downloads.is_remote('ffhq256')
    assert downloads.local_file('ffhq256') == 'ffhq256'


def test_a_name_that_does_not_exist_is_told_with_one_that_does():
    assert refused('inspect', 'ffhq257').endswith(
        "ffhq257 is neither a file nor a network of NVIDIA's; did you mean ffhq256?\n"
    )


def test_the_table_is_shown_without_torch():
    code = 'import sys; from stylegan2_compress.cli import main; main(["teachers"], standalone_mode=False)'
    done = subprocess.run(
        [sys.executable, '-c', f'{code}; assert "torch" not in sys.modules'], capture_output=True, text=True, check=True
    )
    for name, teacher in teachers.TEACHERS.items():
        assert re.search(rf'^{name} +{teacher.resolution} .* {re.escape(teacher.url)}$', done.stdout, re.MULTILINE)


@pytest.mark.checkout
def test_names_that_the_host_has_for_a_network_mean_the_same_here():
    text = Path(os.environ['STYLEGAN2_ADA_PYTORCH'], 'train.py').read_text()
    named = dict(re.findall(r"'(\w+)': +'(https://[^']*\.pkl)'", text))
    assert len(named) == 5
    assert {name: teachers.TEACHERS[name].url for name in named} == named


def test_a_file_hides_a_network_of_its_name_and_a_directory_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'cifar10').mkdir()
    (tmp_path / 'ffhq256').write_bytes(b'')
    assert teachers.find('cifar10') is teachers.TEACHERS['cifar10']
    assert teachers.find('ffhq256') is None


def test_every_network_stands_in_the_table_once():
    urls = [teacher.url for teacher in teachers.TEACHERS.values()]
    assert len(set(urls)) == len(urls)
    for teacher in teachers.TEACHERS.values():
        said = re.search(r'(?:-res|x)(\d+)', teacher.url)
        assert said is None or int(said[1]) == teacher.resolution


# --- the Hugging Face Hub -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('hf://org/repo/a.pkl', ('org/repo', 'a.pkl', None)),
        ('hf://org/repo@v1/nets/a.safetensors', ('org/repo', 'nets/a.safetensors', 'v1')),
    ],
)
def test_hub_paths(name, expected, monkeypatch):
    monkeypatch.setattr(
        huggingface_hub, 'hf_hub_download', lambda repo, file, revision: ':'.join(map(str, (repo, file, revision)))
    )
    assert downloads.local_file(name) == ':'.join(map(str, expected))
    assert downloads.is_remote(name)


def test_hub_paths_that_are_none_are_a_sentence():
    for name in ('hf://', 'hf://repo/a.pkl', 'hf://org/repo/', 'hf://org/repo@/a.pkl'):
        assert 'is not of the form hf://OWNER/REPOSITORY/FILE' in refused('inspect', name)


def test_what_the_hub_does_not_have_is_a_sentence(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(*_, **__):
        raise LocalEntryNotFoundError('no connection\nat all')

    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', fail)
    said = refused('inspect', 'hf://org/repo/a.pkl')
    assert (
        'Cannot get hf://org/repo/a.pkl from the Hugging Face Hub (LocalEntryNotFoundError): check the network' in said
    )


def test_without_the_extra_it_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith('huggingface_hub.')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    assert 'pip install huggingface_hub' in refused('inspect', 'hf://org/repo/a.pkl')
