"""`export`: files that compute in their own runtimes what the network does, and what is refused."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from commands import refused, run
from training import networks

from stylegan2_compress import files, pickles
from stylegan2_compress.errors import UserError
from stylegan2_compress.export import base, export, graph, running
from stylegan2_compress.export.options import FORMATS
from stylegan2_compress.images import to_uint8

FILES = {
    'onnx': {'mapping.onnx', 'synthesis.onnx'},
    'openvino': {'mapping.xml', 'mapping.bin', 'synthesis.xml', 'synthesis.bin'},
    'torch': {'mapping.pt2', 'synthesis.pt2'},
    'executorch': {'mapping.pte', 'synthesis.pte'},
    'litert': {'mapping.tflite', 'synthesis.tflite'},
}


def needs(name):
    missing = [package for package in FORMATS[name].packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f'pip install {" ".join(missing)} to run')


each_format = pytest.mark.parametrize('name', [pytest.param(name, marks=needs(name)) for name in FILES])


@pytest.fixture(scope='module')
def pkl(make_pickle):
    return make_pickle(img_channels=1, c_dim=3, img_resolution=8)


@pytest.fixture(scope='module')
def exported(pkl, tmp_path_factory):
    """A directory with an export of each format by name, made once, and what the command printed."""
    made = {}

    def make(name):
        if name not in made:
            out = tmp_path_factory.mktemp('exports') / name
            made[name] = (out, run('export', pkl, '--format', name, '--out', out))
        return made[name]

    return make


@each_format
def test_it_is_all_there_and_on_record(exported, pkl, name):
    out, printed = exported(name)
    about = json.loads((out / 'export.json').read_text())
    assert {path.name for path in out.iterdir()} == {*FILES[name], 'run.py', 'export.json'}
    assert set(about['files']) == {*FILES[name], 'run.py'}
    for file, entry in about['files'].items():
        assert entry == {'bytes': (out / file).stat().st_size, 'sha256': files.sha256(out / file)}
    assert about['format'] == name
    assert about['generator']['sha256'] == files.sha256(pkl)
    assert about['generator']['file'] == 'G.pkl'
    for file in out.iterdir():  # What is published says nothing of this machine.
        assert os.fsencode(pkl.parent) not in file.read_bytes()
    assert about['generator']['c_dim'] == 3
    batch = base.exporter(name).batch or 'batch'
    assert about['networks']['mapping']['inputs'] == {'z': [batch, 16], 'c': [batch, 3], 'psi': [1], 'cutoff': [1]}
    assert about['networks']['synthesis']['outputs'] == {'image': [batch, 1, 8, 8]}
    assert about['check']['largest_difference'] == about['check']['largest_difference_to_host'] < 1e-4
    assert 'research or evaluation only' in about['licence']
    assert about['check']['runtime'] in printed
    assert 'times as fast (batch 1, 1 thread)' in printed
    assert 'run.py (' in printed


@each_format
def test_run_py_makes_the_hosts_image(exported, pkl, name, tmp_path):
    """In a process of its own, which has neither this package nor the host."""
    out, _printed = exported(name)
    moved = tmp_path / 'elsewhere'
    shutil.copytree(out, moved)
    check = (
        'import runpy, sys\n'
        f'sys.argv[1:] = ["--seed", "5", "--class", "2", "--psi", "0.7", "--out", "image.png"]\n'
        f'runpy.run_path({str(moved / "run.py")!r}, run_name="__main__")\n'
        'assert not {"stylegan2_compress", "training", "dnnlib", "PIL"} & sys.modules.keys()\n'
    )
    subprocess.run([sys.executable, '-c', check], cwd=tmp_path, check=True, capture_output=True)
    G = pickles.load(pkl)['G_ema']
    z = torch.from_numpy(np.random.RandomState(5).randn(1, G.z_dim))  # As in the host's generate.py.
    image = G(z, torch.eye(3)[[2]], truncation_psi=0.7, noise_mode='const', force_fp32=True)
    pixels = np.asarray(PIL.Image.open(tmp_path / 'image.png'))
    assert np.abs(pixels - to_uint8(image)[0, 0].astype(int)).max() <= 1
    assert pixels.std() > 10


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (['--class', '3'], '--class=3 does not exist: there are 3'),
        (['--psi', 'nan'], '--psi=nan must be a number from -10 to 10'),
        (['--out', 'image.jpg'], '--out=image.jpg must end in .png'),
        (['--seed', '-1'], '--seed=-1 must be at least 0 and less than 4294967296'),
        (
            ['--out', 'no/such/directory.png'],
            '--out=no/such/directory.png cannot be written: No such file or directory',
        ),
    ],
)
def test_run_py_refuses_what_cannot_be(exported, tmp_path, arguments, sentence):
    out, _printed = exported('onnx' if needs('onnx').args == (False,) else 'torch')
    command = [sys.executable, out / 'run.py', '--out', 'image.png', *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert not list(tmp_path.iterdir())


def test_run_py_without_an_average_of_w_does_not_truncate(make_pickle, tmp_path):
    file = make_pickle('no_average.pkl', img_resolution=4, mapping_kwargs=dict(num_layers=1, w_avg_beta=None))
    name = 'onnx' if needs('onnx').args == (False,) else 'torch'
    run('export', file, '--format', name, '--out', tmp_path / 'out')
    command = [sys.executable, tmp_path / 'out' / 'run.py', '--out', 'image.png', '--psi', '0.7']
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert '--psi=0.7: this network has no average of w to truncate to' in done.stderr
    assert not (tmp_path / 'image.png').exists()
    subprocess.run([*command[:-2], '--psi', '1'], check=True, capture_output=True, cwd=tmp_path)
    first = (tmp_path / 'image.png').read_bytes()
    again = [*command[:-2], '--seed', '1']
    done = subprocess.run(again, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert '--out=image.png exists: name another file, or add --force' in done.stderr
    assert (tmp_path / 'image.png').read_bytes() == first
    subprocess.run([*again, '--force'], check=True, capture_output=True, cwd=tmp_path)
    assert (tmp_path / 'image.png').read_bytes() != first


@each_format
def test_any_batch(exported, pkl, name):
    """But of those whose default is one image."""
    out, _printed = exported(name)
    chosen = base.exporter(name)
    G = pickles.load(pkl)['G_ema']
    with chosen.open({'synthesis': out / f'synthesis{chosen.suffix}'}) as networks:
        for count in [chosen.batch] if chosen.batch else [1, 2, 5]:
            ws = torch.randn([count, 4, 16])
            expected = G.synthesis(ws, noise_mode='const', force_fp32=True)
            assert np.abs(networks('synthesis', {'ws': ws.numpy()}) - expected.numpy()).max() < 1e-4


@needs('coreml')
@pytest.mark.skipif(sys.platform == 'darwin', reason='is for machines without Core ML')
def test_core_ml_is_converted_and_not_run(exported):
    import coremltools

    out, printed = exported('coreml')
    about = json.loads((out / 'export.json').read_text())
    assert 'converted, not run: this machine cannot have Core ML of coremltools ' in printed
    assert about['check'] is None
    assert {name.split('/')[0] for name in about['files']} == {'mapping.mlpackage', 'synthesis.mlpackage', 'run.py'}
    for name, network in about['networks'].items():
        spec = coremltools.utils.load_spec(str(out / f'{name}.mlpackage')).description
        assert {each.name: list(each.type.multiArrayType.shape) for each in spec.input} == network['inputs']
        assert [each.name for each in spec.output] == list(network['outputs'])


@pytest.mark.parametrize(
    ('name', 'batch'),
    [
        pytest.param('torch', '2'),
        pytest.param('onnx', '2', marks=needs('onnx')),
        pytest.param('openvino', 'dynamic', marks=needs('openvino')),
    ],
)
def test_other_batches_fp16_weights_and_no_noise(pkl, name, batch, tmp_path):
    out = tmp_path / 'out'
    printed = run(
        'export', pkl, '--format', name, '--batch', batch, '--weights', 'fp16', '--noise', 'none', '--out', out
    )
    about = json.loads((out / 'export.json').read_text())
    check = about['check']
    assert about['batch'] == (2 if batch == '2' else 'dynamic')
    assert check['largest_difference'] < 1e-4 < check['largest_difference_to_host'] < 0.05
    assert 'because of FP16 weights from the host' in printed
    expected = graph.from_generator(pickles.load(pkl)['G_ema'], 'none')[1].round_weights()
    with base.exporter(name).open({'synthesis': out / about['networks']['synthesis']['file']}) as networks:
        for count in [2] if batch == '2' else [1, 2, 5]:
            ws = torch.randn([count, 4, 16])
            assert np.abs(networks('synthesis', {'ws': ws.numpy()}) - expected(ws).numpy()).max() < 1e-4


@needs('onnx')
def test_fp16_weights_are_half_as_large_in_the_file(tmp_path):
    layer = networks.FullyConnectedLayer(100, 200)
    sizes = []
    for module in (graph.Linear(layer), graph.Linear(layer).round_weights()):
        signature = base.Signature({'x': [None, 100]}, 'y', [None, 200])
        base.exporter('onnx').write(tmp_path / 'x.onnx', module, signature)
        sizes.append((tmp_path / 'x.onnx').stat().st_size)
    assert sizes[1] < 0.55 * sizes[0]


@needs('onnx')
def test_graphs_have_no_shape_arithmetic_and_no_paths_of_this_machine(exported):
    import onnx

    out, _printed = exported('onnx')
    kinds = {node.op_type for node in onnx.load(out / 'synthesis.onnx').graph.node}
    assert not kinds & {'Shape', 'Size', 'Expand', 'ConstantOfShape', 'Cast', 'Slice', 'Pad', 'Loop', 'If'}
    assert {node.op_type for node in onnx.load(out / 'mapping.onnx').graph.node}.isdisjoint({'Shape', 'Expand', 'Cast'})
    assert os.fsencode(os.path.dirname(graph.__file__)) not in (out / 'synthesis.onnx').read_bytes()


# --- What goes wrong --------------------------------------------------------------------------------------------------


class TestBadInput:
    """Refused in one sentence with exit status 2; nothing is written."""

    @pytest.mark.parametrize(
        ('arguments', 'sentence'),
        [
            (['--format', 'tflite'], '--format=tflite does not exist; there are onnx, openvino, torch, web, exec'),
            (['--format', 'torch', '--batch', '0'], '--batch=0 must be a whole number of images, at least 1, or dynam'),
            (['--format', 'torch', '--batch', 'many'], '--batch=many must be'),
            (['--format', 'torch', '--weights', 'int8'], '--weights=int8 does not exist; there are fp32, fp16'),
            (['--format', 'torch', '--noise', 'random'], '--noise=random does not exist; there are const, none'),
            (['--format', 'torch', '--single-file'], '--single-file goes with --format=web, not with --format=torch'),
            (['--format', 'torch', '--teacher', 't.pkl'], '--teacher goes with --format=web'),
            (['--format', 'web', '--batch', '2'], '--batch=2 does not go with --format=web'),
            (
                ['--format', 'litert', '--batch', 'dynamic'],
                '--batch=dynamic does not go with --format=litert: give a n',
            ),
            (['--format', 'executorch', '--weights', 'fp16'], '--weights=fp16 does not go with --format=executorch'),
            (['--format', 'torch', '--batch', '999999999'], '--batch=999999999 of '),
            (['--format', 'torch', '--out', 'no/such/directory/x'], 'Cannot write no/such/directory/x'),
        ],
    )
    def test_options(self, pkl, tmp_path, monkeypatch, arguments, sentence):
        monkeypatch.chdir(tmp_path)
        shutil.copy(pkl, 'G.pkl')
        assert sentence in refused('export', 'G.pkl', *arguments, unchanged=tmp_path)

    def test_other_architectures(self, make_pickle, tmp_path):
        pkl = make_pickle('resnet.pkl', synthesis_kwargs={'channel_max': 4, 'architecture': 'resnet'})
        printed = refused('export', pkl, '--format', 'torch', '--out', tmp_path / 'x', unchanged=tmp_path)
        assert 'has the architecture resnet' in printed

    def test_a_file_without_a_generator(self, make_discriminator, tmp_path):
        pkl = tmp_path / 'D.pkl'
        pickles.save(pkl, dict(G=None, D=make_discriminator(), G_ema=None, augment_pipe=None))
        printed = refused('export', pkl, '--format', 'torch', unchanged=tmp_path)
        assert 'has no StyleGAN2 generator as G_ema' in printed
        (tmp_path / 'text.pkl').write_text('no pickle')
        refused('export', tmp_path / 'text.pkl', '--format', 'torch', unchanged=tmp_path)

    @pytest.mark.parametrize(
        ('name', 'package', 'command'),
        [
            ('openvino', 'openvino', 'onnx onnxscript onnxruntime openvino'),
            ('executorch', 'executorch', 'executorch'),
            ('litert', 'litert_torch', 'litert-torch'),
            ('coreml', 'coremltools', 'coremltools'),
        ],
    )
    def test_an_extra_that_is_missing(self, pkl, tmp_path, monkeypatch, name, package, command):
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == package else find(name))
        printed = refused('export', pkl, '--format', name, '--out', tmp_path / 'x', unchanged=tmp_path)
        assert f'--format={name} needs the package {package}: pip install {command}.' in printed
        if name != 'coreml':  # That `profile` cannot time.
            printed = refused('profile', pkl, '--runtime', name, unchanged=tmp_path)
            assert f'--runtime={name} needs the package {package}: pip install {command}.' in printed

    def test_what_exists(self, pkl, tmp_path):
        mine = tmp_path / 'mine'
        mine.mkdir()
        (mine / 'thesis.txt').write_text('years of work')
        assert 'add --force' in refused('export', pkl, '--format', 'torch', '--out', mine, unchanged=tmp_path)
        printed = refused('export', pkl, '--format', 'torch', '--out', mine, '--force', unchanged=tmp_path)
        assert 'has no export.json: name another directory' in printed
        printed = refused('export', pkl, '--format', 'torch', '--out', mine / 'thesis.txt', '--force')
        assert 'is a file' in printed
        assert (mine / 'thesis.txt').read_text() == 'years of work'

    def test_force_replaces_an_export(self, pkl, tmp_path):
        out = tmp_path / 'x'
        run('export', pkl, '--format', 'torch', '--out', out)
        (out / 'mapping.pt2').write_text('old')
        assert 'add --force' in refused('export', pkl, '--format', 'torch', '--out', out, unchanged=tmp_path)
        mine = {'metric-fid.jsonl': '{}', 'note.txt': 'mine', 'images/a.png': 'an image'}
        (out / 'images').mkdir()
        for name, content in mine.items():
            (out / name).write_text(content)
        shutil.copy(pkl, out / 'student.pkl')
        printed = refused('export', out / 'student.pkl', '--format', 'torch', '--out', out, '--force', unchanged=out)
        assert f'student.pkl is read, and lies in {out}: name another directory to write.' in printed
        run('export', pkl, '--format', 'torch', '--out', out, '--force')
        assert (out / 'mapping.pt2').stat().st_size > 1000
        for name, content in mine.items():
            assert (out / name).read_text() == content
        assert (out / 'student.pkl').read_bytes() == pkl.read_bytes()
        assert [path.name for path in tmp_path.iterdir()] == ['x']

    def test_force_replaces_nothing_that_is_not_on_record(self, pkl, tmp_path):
        out = tmp_path / 'x'
        (out / 'sub').mkdir(parents=True)
        for name in ('mapping.pt2', 'sub/old.onnx', '../mine'):
            (out / name).write_text('some file')
        (out / 'export.json').write_text('[]')
        printed = refused('export', pkl, '--format', 'torch', '--out', out, '--force', unchanged=tmp_path)
        assert 'export.json is not the record of an export: name another directory' in printed
        names = ['sub/old.onnx', 'gone.onnx', '../mine', str(tmp_path / 'mine'), 'sub', '.', '']
        (out / 'export.json').write_text(json.dumps({'files': {name: {} for name in names}}))
        printed = refused('export', pkl, '--format', 'torch', '--out', out, '--force', unchanged=tmp_path)
        assert 'mapping.pt2 is none of the files that are replaced: move it away.' in printed
        (out / 'mapping.pt2').unlink()
        run('export', pkl, '--format', 'torch', '--out', out, '--force')
        assert sorted(os.listdir(out)) == ['export.json', 'mapping.pt2', 'run.py', 'synthesis.pt2']
        assert (tmp_path / 'mine').read_text() == 'some file'

    @pytest.mark.parametrize('off', [0.002, float('nan')])
    def test_files_that_differ_are_removed(self, pkl, tmp_path, monkeypatch, off):
        run = running.Here.run
        monkeypatch.setattr(running.Here, 'run', lambda *args: (run(*args)[0] + off, 0.0))
        out = tmp_path / 'x'
        printed = refused('export', pkl, '--format', 'torch', '--out', out, unchanged=tmp_path)
        assert 'is not the network: in torch' in printed


def test_names_that_are_not_given(pkl, tmp_path, monkeypatch):
    from stylegan2_compress.export.options import ExportOptions

    options = ExportOptions(format='onnx')
    assert options.out_for('runs/a/student.pkl') == 'runs/a/student-onnx'
    assert options.out_for('https://x.example/y/ffhq.pkl') == 'ffhq-onnx'
    assert options.out_for('hf://owner/repository/student.pkl') == 'student-onnx'
    assert ExportOptions(format='web', single_file=True).out_for('s.pkl') == 's-web.html'
    assert ExportOptions(format='web', out='there/').out_for('s.pkl') == 'there'


def test_memory_that_is_not_there(pkl, monkeypatch):
    G = pickles.load(pkl)['G_ema']
    export.require_memory(G, 1, 'G.pkl')
    with pytest.raises(export.UserError, match=r'^--batch=1000000000 of G\.pkl takes about .* GB, and .* GB are free'):
        export.require_memory(G, 10**9, 'G.pkl')


# --- Runtimes in processes of their own -------------------------------------------------------------------------------

ENDLESS = 'import os, time\ndef load(path, threads): return lambda inputs: time.sleep(600)'
CRASH = 'import os, signal\ndef load(path, threads): return lambda inputs: os.kill(os.getpid(), signal.SIGSEGV)'


def child(tmp_path, text):
    (tmp_path / 'loader.py').write_text(text)
    return running.Child('Abacus 1.0', tmp_path / 'loader.py', {'mapping': tmp_path / 'm', 'synthesis': tmp_path / 's'})


def test_a_process_that_is_not_this_one(tmp_path):
    text = """
import os, sys
print('advertisement')
def load(path, threads):
    assert not {'torch', 'stylegan2_compress'} & sys.modules.keys() and not any('export' in p for p in sys.path[:1])
    return lambda inputs: sum(inputs.values()) + (os.getpid() if path.endswith('m') else 0)
"""
    with child(tmp_path, text) as networks:
        one, two = np.float64([1]), np.float64([2])
        pid = networks('mapping', {'z': one, 'psi': two})[0] - 3
        assert pid == networks.process.pid != os.getpid()
        assert networks('synthesis', {'ws': two}) == two
        assert networks.run(['mapping', 'synthesis'], {'z': one})[0][0] == pid + 1
        assert 0 < networks.seconds({'z': one}) < 1
    assert networks.process.returncode is not None


@pytest.mark.parametrize(
    ('text', 'sentence'),
    [
        (CRASH, 'Abacus 1.0 failed: its process was ended by signal 11.'),
        ('import sys; print("no beads"); sys.exit(3)', 'its process ended with exit status 3 and printed "no beads".'),
        ('import abacus_without_beads', "failed: ModuleNotFoundError: No module named 'abacus_without_beads'"),
        (
            'def load(path, threads): return lambda inputs: 1 / 0',
            'Abacus 1.0 failed: ZeroDivisionError: division by ze',
        ),
    ],
)
def test_what_ends_it_is_said(tmp_path, text, sentence):
    with pytest.raises(UserError) as raised:
        child(tmp_path, text).seconds({'z': np.zeros(1)})
    assert sentence in raised.value.message


def test_it_does_not_outlive_this_one(tmp_path):
    networks = child(tmp_path, ENDLESS)
    process = networks.process
    assert process.poll() is None
    del networks
    assert process.poll() is not None
