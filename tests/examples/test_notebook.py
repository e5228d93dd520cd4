"""The notebook runs from top to bottom, on the quickstart's teacher, with fewer images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import tiny_embeddings

NOTEBOOK = Path(__file__).parents[2] / 'examples' / 'compress_a_stylegan2.ipynb'
SMALL = dict(
    TEACHER='no-network-of-this-name',
    OUTDIR='out',
    RATIO=0.9,
    KIMG=1,
    BATCH=64,
    EMBEDDING='module:tiny_embeddings:tiny@size=16',
    SAMPLES=20,
)
# Grids of snapshots have 4 images: the host's have 1,024 of small ones.
SMALL_GRIDS = """
from stylegan2_compress.training_loops import image_grid

image_grid.grid_size = lambda _shape: (2, 2)
"""


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    """There is no network of the name, as without a connection, so the cells take the quickstart's."""
    pytest.importorskip('nbmake')
    notebook = json.loads(NOTEBOOK.read_text())
    (cell,) = (cell for cell in notebook['cells'] if 'parameters' in cell['metadata'].get('tags', ()))
    lines = ''.join(cell['source']).splitlines()
    assert set(SMALL) <= {line.partition(' = ')[0] for line in lines}
    cell['source'] = '\n'.join([*lines, *(f'{name} = {value!r}' for name, value in SMALL.items())])
    (cell,) = (cell for cell in notebook['cells'] if 'host.activate()' in ''.join(cell['source']))
    cell['source'] = [*cell['source'], SMALL_GRIDS]
    (tmp_path / 'notebook.ipynb').write_text(json.dumps(notebook))
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '--color=no', 'notebook.ipynb']
    cache, modules = str(tmp_path / 'cache'), str(Path(tiny_embeddings.__file__).parent)
    environment = {**os.environ, 'STYLEGAN2_COMPRESS_CACHE': cache, 'PYTHONPATH': modules}
    result = subprocess.run(
        [*command, '--nbmake', '--nbmake-timeout=600', '--overwrite'],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    out = tmp_path / 'out'
    width, height = PIL.Image.open(out / 'compare.png').size
    assert width >= 10 * 32 + 16
    assert height == 3 * (32 + 24) + 8
    assert PIL.Image.open(out / 'walk.gif').n_frames == 4 * 8
    assert (out / 'onnx' / 'export.json').is_file()
    cells = json.loads((tmp_path / 'notebook.ipynb').read_text())['cells']
    shown = [output['data'] for cell in cells for output in cell.get('outputs', ()) if 'data' in output]
    assert [set(data) & {'image/png', 'image/gif'} for data in shown] == [{'image/png'}, {'image/gif'}]
    said = ''.join(''.join(output.get('text', '')) for cell in cells for output in cell.get('outputs', ()))
    assert 'So the teacher is the one of digits.' in said
    assert 'agreement' in said


def test_it_is_committed_without_outputs():
    for cell in json.loads(NOTEBOOK.read_text())['cells']:
        assert not cell.get('outputs')
        assert cell.get('execution_count') is None
