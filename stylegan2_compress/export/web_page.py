"""A page that makes images in a browser, in ONNX Runtime Web: a directory for any server, or one file to open."""

import base64
import contextlib
import gzip
import json
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stylegan2_compress import files
from stylegan2_compress.errors import UserError
from stylegan2_compress.export import checking, onnxruntime_web
from stylegan2_compress.export.onnx_graphs import OnnxExporter
from stylegan2_compress.export.options import ExportOptions

PAGE = Path(__file__).with_name('page')
EXAMPLE = {'seed': 0, 'psi': 0.7}  # The image of each generator by which a browser checks itself.
EXAMPLE_PIXELS = 100


class WebExporter(OnnxExporter):
    """`index.html` with what it loads: our script and style, ONNX Runtime Web, the graphs, and `page.json` on them."""

    batch = 1

    def check(self, generators: Mapping[str, Any]) -> None:
        require_same_inputs(generators)
        onnxruntime_web.tarball()

    @contextlib.contextmanager
    def destination(self, out: str, options: ExportOptions, earlier: Collection[str]) -> Iterator[Path]:
        if not options.single_file:
            with super().destination(out, options, earlier) as directory:
                yield directory
            return
        with tempfile.TemporaryDirectory() as directory:
            yield Path(directory)
            with files.atomic_write(out) as file:
                file.write(one_file(Path(directory)))

    def finish(self, directory: Path, about: dict[str, Any], options: ExportOptions) -> None:
        super().finish(directory, about, options)
        for path in PAGE.iterdir():
            (directory / path.name).write_bytes(path.read_bytes())
        for name, content in onnxruntime_web.runtime(options.webgpu).items():
            (directory / name).write_bytes(content)
        about['made_by']['page'] = f'onnxruntime-web {onnxruntime_web.VERSION} (MIT licence)'
        page = {
            **{name: about[name] for name in ('generator', 'networks', 'licence')},
            'limit': checking.LIMIT,
            'webgpu': options.webgpu,
            'onnxruntime_web': onnxruntime_web.VERSION,
            'example': self.example(directory, about),
        }
        if 'teacher' in about:
            page['teacher'] = {**about['teacher'], 'example': self.example(directory, about['teacher'])}
        (directory / 'page.json').write_text(json.dumps(page), encoding='utf-8')

    def example(self, directory: Path, about: dict[str, Any]) -> dict[str, Any]:
        """Some pixels of an image, as ONNX Runtime computes it outside browsers."""
        generator, networks = about['generator'], about['networks']
        values = {
            'z': np.random.RandomState(EXAMPLE['seed']).randn(1, generator['z_dim']),
            'c': np.eye(1, generator['c_dim']),
            'psi': [EXAMPLE['psi']],
            'cutoff': [generator['num_ws']],
        }
        inputs = {name: np.asarray(values[name], np.float32) for name in networks['mapping']['inputs']}
        with self.open({name: directory / entry['file'] for name, entry in networks.items()}, 1) as runtime:
            image = runtime('synthesis', {'ws': runtime('mapping', inputs)}).ravel()
        positions = np.linspace(0, image.size - 1, EXAMPLE_PIXELS).astype(int)
        return {**EXAMPLE, 'positions': positions.tolist(), 'values': image[positions].tolist()}


def require_same_inputs(generators: Mapping[str, Any]) -> None:
    """Refuse generators that take other latents or labels than the first.

    Raises:
        UserError: one does.
    """
    (file, own), *others = generators.items()
    for other, G in others:
        for name in ('z_dim', 'c_dim', 'num_ws'):
            if getattr(G, name) != getattr(own, name):
                raise UserError(
                    f'--teacher={other} has {name} {getattr(G, name)}, but {file} has {getattr(own, name)}: the '
                    'controls of a page are for both.'
                )


def one_file(directory: Path) -> bytes:
    """The page with all that it loads inside: style and script as they are, everything else as gzip and base64."""
    page = (directory / 'index.html').read_text(encoding='utf-8')
    style, script = ((directory / name).read_text(encoding='utf-8') for name in ('page.css', 'page.js'))
    own = {'index.html', 'page.css', 'page.js', 'run.py', 'export.json'}
    packed = {
        path.name: base64.b64encode(gzip.compress(path.read_bytes(), mtime=0)).decode()
        for path in sorted(directory.iterdir())
        if path.name not in own
    }
    assets = ''.join(f'<script type="text/plain" data-file="{name}">{data}</script>\n' for name, data in packed.items())
    for tag, content in [
        ('<link rel="stylesheet" href="page.css">', f'<style>\n{style}</style>'),
        ('<script type="module" src="page.js"></script>', f'{assets}<script type="module">\n{script}</script>'),
    ]:
        before, found, after = page.partition(tag)
        assert found, tag
        page = before + content + after
    return page.encode()
