"""ONNX Runtime Web: the published npm package of one version, checked and kept in our cache."""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from stylegan2_compress import caches, files
from stylegan2_compress.errors import UserError

VERSION = '1.30.0'
# As the registry publishes it, and lock files have it.
INTEGRITY = 'sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=='
NAME = f'onnxruntime-web-{VERSION}.tgz'
TIMEOUT = 600  # Seconds for 33 MB.

# What a page loads, by its name in the package: with WebAssembly alone, and with WebGPU.
MEMBERS = {
    False: {
        'onnxruntime-web.js': 'package/dist/ort.wasm.bundle.min.mjs',
        'onnxruntime-web.wasm': 'package/dist/ort-wasm-simd-threaded.wasm',
    },
    True: {
        'onnxruntime-web.js': 'package/dist/ort.webgpu.bundle.min.mjs',
        'onnxruntime-web.wasm': 'package/dist/ort-wasm-simd-threaded.asyncify.wasm',
    },
}


def runtime(webgpu: bool = False) -> dict[str, bytes]:
    """The script and the WebAssembly module, by the names that the page loads them by.

    Raises:
        UserError: the package cannot be downloaded, or is not the published one.
    """
    found = {}
    with tarfile.open(tarball()) as archive:
        for name, member in MEMBERS[webgpu].items():
            file = archive.extractfile(member)
            assert file is not None, member
            found[name] = file.read()
    script = found['onnxruntime-web.js']
    found['onnxruntime-web.js'] = script[: script.rindex(b'//# sourceMappingURL=')]  # There is none beside the page.
    return found


def tarball() -> Path:
    """The package in our cache, downloaded by npm if it is not there.

    Raises:
        UserError: npm is not there or fails, or the file is not the published one.
    """
    path = caches.cache_dir('npm', NAME)
    if not path.is_file():
        path = caches.make_ours_writable('npm') / NAME
        with tempfile.TemporaryDirectory() as directory:
            downloaded = download(Path(directory), path)
            require_integrity(downloaded)
            with files.atomic_write(path) as file:
                file.write(downloaded.read_bytes())
    require_integrity(path)
    return path


def download(directory: Path, path: Path) -> Path:
    """The package, fetched by npm into a directory.

    Raises:
        UserError: npm is not there or fails.
    """
    npm = shutil.which('npm')
    way_out = f'put the file {NAME} into {path.parent}'
    if npm is None:
        raise UserError(
            f'--format=web needs onnxruntime-web {VERSION}: install npm, which it is downloaded with, or {way_out}.'
        )
    command = [npm, 'pack', f'onnxruntime-web@{VERSION}', '--silent', '--pack-destination', str(directory)]
    try:
        subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=TIMEOUT)
    except (subprocess.SubprocessError, OSError) as error:
        raise UserError(f'npm cannot download onnxruntime-web {VERSION} for --format=web: {way_out}.') from error
    return directory / NAME


def require_integrity(path: Path) -> None:
    """Refuse a file that is not the published one.

    Raises:
        UserError: it is another.
    """
    with files.opened(path) as (file, _size):
        digest = hashlib.sha512()
        while block := file.read(1 << 20):
            digest.update(block)
    if 'sha512-' + base64.b64encode(digest.digest()).decode() != INTEGRITY:
        raise UserError(f'{path} is not the published onnxruntime-web {VERSION}: delete it, and it is fetched again.')
