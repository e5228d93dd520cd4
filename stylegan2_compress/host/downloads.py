"""Files from the network: published networks by name, URLs and the Hugging Face Hub. Downloaded once.

URLs are kept where the host keeps them and under its names, so that each finds what the other has downloaded. Unlike
the host's, a download shows how far it is, goes on where it was cut off, and is compared with its SHA-256 if that is
known.
"""

import contextlib
import difflib
import glob
import hashlib
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

import dnnlib
import requests
from tqdm import tqdm

from stylegan2_compress import caches, files
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import teachers
from stylegan2_compress.host.progress_bars import progress_bar

CACHE = 'DNNLIB_CACHE_DIR'  # The environment variable that names the host's cache.
DOWNLOADS, STATISTICS = 'downloads', 'gan-metrics'  # Directories in it: for URLs, and for what metrics know of data.

WAY_OUT = 'get the file in another way and give its path'

_ATTEMPTS = 5
_TIMEOUT = 30  # Seconds without an answer or a byte.
_PAUSE = 1.0  # Seconds before the second attempt; twice as long before each further one.
_BLOCK = 1 << 14  # What is lost of a download that is cut off is less than this.


def is_remote(name: str | os.PathLike) -> bool:
    """Whether a network file is named by URL, by Hub path, or by the name of a published network."""
    name = os.fspath(name)
    return bool(re.match('(https?|hf)://', name)) or teachers.find(name) is not None


def local_file(name: str) -> str:
    """The path of a file on this machine, downloaded if it is not here yet.

    Args:
        name: a path; an http(s) URL; `hf://OWNER/REPOSITORY/FILE` or `hf://OWNER/REPOSITORY@REVISION/FILE`; or the
            name of a published network, see `teachers.TEACHERS`.

    Raises:
        UserError: it cannot be downloaded, or is not what was published.
    """
    teacher = teachers.find(name)
    if teacher is not None:
        return download(teacher.url, teacher.sha256)
    if name.startswith('hf://'):
        return _from_hub(name)
    if re.match('https?://', name):
        return download(name)
    if re.fullmatch(r'[\w-]+', name) and files.status(name) is None:
        alike = difflib.get_close_matches(name, teachers.TEACHERS, n=1)
        hint = f'; did you mean {alike[0]}?' if alike else ': `stylegan2-compress teachers` lists those.'
        raise UserError(f"{name} is neither a file nor a network of NVIDIA's{hint}")
    return name


def download(url: str, sha256: str | None = None, way_out: str = WAY_OUT) -> str:
    """The path of a URL's content in the host's cache (`DNNLIB_CACHE_DIR`).

    Args:
        url: to download.
        sha256: of the content, in hexadecimal, if it is known. What is in the cache already is not compared.
        way_out: for the error: what to do where trying again does not help.

    Raises:
        UserError: the download fails, or its content has another hash.
    """
    if (cached := _cached(url)) is not None:
        return cached
    if 'drive.google.com' in url:  # Its pages want what only the host's code does.
        writable_cache()
        return _by_the_host(url, way_out)
    cache = writable_cache()
    partial = cache / f'partial_{_prefix(url)}'  # Not a name that the host takes for a file of its cache.
    with files.locked(f'{partial}.locked', in_use=None):  # The processes of a run download together.
        if (cached := _cached(url)) is not None:
            return cached
        name, is_whole = _download(url, partial, way_out)
        if sha256 is not None and (found := files.sha256(partial)) != sha256:
            _discard(partial)
            raise UserError(f'{url} has SHA-256 {found}, not the published {sha256}: it was changed on its way here.')
        end = re.sub('[^0-9a-zA-Z._-]', '_', name)[-150:]  # A signed address is longer than a file's name may be.
        target = cache / f'{_prefix(url)}_{end}'
        os.replace(partial, target)
        _discard(partial)
        with contextlib.suppress(PermissionError):  # Of Windows, which deletes no open file.
            Path(f'{partial}.locked').unlink()  # Whoever waits for it finds the file now.
    if sha256 is None and not is_whole:
        print(
            f'Warning: the server does not say how long {url} is, so that nobody would notice if it was cut off. If it '
            f'cannot be read, delete {target} and try again.',
            file=sys.stderr,
        )
    return str(target)


def cached_file(name: str) -> str | None:
    """The path of what `name`, for which `is_remote` holds, means in the host's cache; None if it is not there.

    Nothing is downloaded. Of the Hub's own cache nothing is known here.
    """
    teacher = teachers.find(name)
    return _cached(name if teacher is None else teacher.url)


def place_of(url: str) -> Path:
    """Where `download`, and the host, look for what was got in another way."""
    return _cache() / f'{_prefix(url)}_{url.rpartition("/")[2]}'


def _cached(url: str) -> str | None:
    found = glob.glob(f'{glob.escape(str(_cache()))}/{_prefix(url)}_*')
    return found[0] if len(found) == 1 else None


def _cache() -> Path:
    return Path(dnnlib.util.make_cache_dir_path(DOWNLOADS))


def writable_cache(part: str = DOWNLOADS) -> Path:
    """A directory in the host's cache, to write to; a temporary one where it cannot be written.

    Raises:
        UserError: not even a temporary directory can be written.
    """
    caches.or_temporary(CACHE, Path(dnnlib.util.make_cache_dir_path()), part)
    return Path(dnnlib.util.make_cache_dir_path(part))


def _prefix(url: str) -> str:
    """How the host begins the names of files in its cache."""
    return hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()


def _by_the_host(url: str, way_out: str) -> str:
    try:
        return dnnlib.util.open_url(url, return_filename=True)
    except (requests.RequestException, OSError, AssertionError) as error:
        raise UserError(_sentence(url, type(error).__name__, way_out)) from error


def _download(url: str, partial: Path, way_out: str) -> tuple[str, bool]:
    """Bring `partial` to its full length; returns the name that the file is to have, and whether the length is sure."""
    last: Exception | None = None
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE * 2 ** (attempt - 1))
        try:
            return _attempt(url, partial)
        except requests.HTTPError as error:
            status = 0 if error.response is None else error.response.status_code
            if status < 500:
                raise UserError(_sentence(url, f'HTTP status {status}', way_out)) from error
            last = error
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            last = error
        except requests.RequestException as error:  # A URL that is none.
            raise UserError(_sentence(url, type(error).__name__, way_out)) from error
        except OSError as error:
            raise UserError(f'Cannot write {error.filename or partial}: {error.strerror}.') from error
    raise UserError(_sentence(url, f'{type(last).__name__} {_ATTEMPTS} times', way_out)) from last


def _sentence(url: str, reason: str, way_out: str) -> str:
    return f'Cannot download {url} ({reason}): try again, or {way_out}.'


def _attempt(url: str, partial: Path) -> tuple[str, bool]:
    """Download what is missing in `partial`, or everything if the server does not continue the same content.

    See `_download`.
    """
    have = partial.stat().st_size if partial.exists() else 0
    version = _version_file(partial).read_text() if _version_file(partial).exists() else ''
    headers = {'Accept-Encoding': 'identity'}  # Compressed content has another length than the header says.
    if have and version:
        headers |= {'Range': f'bytes={have}-', 'If-Range': version}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if response.status_code == 416:  # Nothing is left to send, or the content has changed: we cannot tell.
            _discard(partial)
            raise requests.ConnectionError('The server does not continue the download.')
        response.raise_for_status()
        if response.status_code != 206:
            have = 0
        # A weak ETag does not promise the same bytes.
        version = response.headers.get('ETag') or response.headers.get('Last-Modified') or ''
        _version_file(partial).write_text('' if version.startswith('W/') else version)
        length = response.headers.get('Content-Length')
        total = have + int(length) if length else None
        has_end = total is not None or response.headers.get('Transfer-Encoding', '').lower() == 'chunked'
        name = re.search('filename="([^"]*)"', response.headers.get('Content-Disposition', ''))
        bar = progress_bar(
            desc=url.rpartition('/')[2], initial=have, total=total, unit='B', unit_scale=True, leave=True
        )
        with open(partial, 'ab' if have else 'wb') as file, bar:
            _copy(response, file, bar)
    if total is not None and partial.stat().st_size != total:
        raise requests.ConnectionError('The connection was closed too early.')
    return name[1] if name else url, has_end


def _copy(response: requests.Response, file: BinaryIO, bar: tqdm) -> None:
    for block in response.iter_content(_BLOCK):
        file.write(block)
        bar.update(len(block))
    file.flush()
    os.fsync(file.fileno())


def _version_file(partial: Path) -> Path:
    """Where the server's mark for the content of a partial file is kept: only the same content can be continued."""
    return partial.with_name(f'{partial.name}.version')


def _discard(partial: Path) -> None:
    for path in (partial, _version_file(partial)):
        path.unlink(missing_ok=True)


def hub(name: str) -> ModuleType:
    """The package huggingface_hub.

    Args:
        name: what it is needed for, for the error.

    Raises:
        UserError: it is not installed.
    """
    caches.make_hugging_faces_writable()
    try:
        import huggingface_hub.utils  # Of the extra `hub`, which need not be installed; and slow to import.
    except ImportError as error:
        raise UserError(f'{name} needs huggingface_hub: pip install huggingface_hub.') from error
    return huggingface_hub


@contextlib.contextmanager
def asking_the_hub(huggingface_hub: ModuleType, purpose: str, permission: str) -> Iterator[None]:
    """A block in which the Hub is asked for something.

    Args:
        huggingface_hub: as `hub` returns it.
        purpose: what cannot be done where it fails.
        permission: what the Hub may want for it.

    Raises:
        UserError: the Hub refuses, or cannot be reached.
    """
    refused = huggingface_hub.utils.HfHubHTTPError
    unreached = refused.__bases__  # Errors of the client for HTTP, which is another one in other versions.
    try:
        yield
    except (refused, *unreached, OSError, ValueError) as error:
        raise UserError(
            f'Cannot {purpose} ({type(error).__name__}): check the network, the name, and {permission}.'
        ) from error


def _from_hub(name: str) -> str:
    match = re.fullmatch(r'hf://(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<file>.+)', name)
    if match is None:
        raise UserError(f'{name} is not of the form hf://OWNER/REPOSITORY/FILE.')
    huggingface_hub = hub(name)
    permission = 'for a private repository, that you are logged in'
    with asking_the_hub(huggingface_hub, f'get {name} from the Hugging Face Hub', permission):
        return huggingface_hub.hf_hub_download(match['repo'], match['file'], revision=match['revision'])
