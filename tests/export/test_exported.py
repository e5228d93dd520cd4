"""Exports in the place of generators: in `evaluate`, `profile --runtime` and reports."""

import contextlib
import importlib.util
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import detectors
import numpy as np
import pytest
import torch
from commands import refused, run
from pickling import Call

from stylegan2_compress import files, pickles, report
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation import records
from stylegan2_compress.evaluation.compare import compare
from stylegan2_compress.evaluation.evaluate import evaluate, has_noise
from stylegan2_compress.export.exported import SIZES, Exported, is_export, read_record
from stylegan2_compress.export.options import FORMATS
from stylegan2_compress.networks.masked import ScoreMaskedGenerator

METRICS = 'fid50k_full,ppl2_wend,agreement'
pytestmark = [
    pytest.mark.filterwarnings('ignore:This DataLoader will create 3 worker processes'),
    pytest.mark.filterwarnings('ignore::DeprecationWarning'),
]


@pytest.fixture(scope='module')
def place(tmp_path_factory, make_generator, make_discriminator, make_dataset_zip):
    """A directory with a network, an export of it with three images at a time, and data."""
    directory = tmp_path_factory.mktemp('exported')
    make_dataset_zip(directory, n=20, labels=2)
    # Random noise would be drawn between the z of the host's metrics, which an export does not.
    kwargs = dict(channel_base=256, channel_max=16, use_noise=False)
    G = make_generator(c_dim=2, synthesis_kwargs=kwargs).eval().requires_grad_(False)
    D = make_discriminator(c_dim=2)
    pickles.save(directory / 'G.pkl', dict(G=G, D=D, G_ema=G, augment_pipe=None, training_set_kwargs=None))
    run('export', directory / 'G.pkl', '--format', 'torch', '--batch', 3, '--out', directory / 'G-torch')
    return directory


@pytest.mark.parametrize('count', [1, 3, 7])
def test_it_computes_what_the_generator_does(place, count):
    G, export = pickles.load(place / 'G.pkl')['G_ema'], Exported(str(place / 'G-torch'), trust=True)
    assert (export.z_dim, export.c_dim, export.num_ws, export.img_resolution) == (16, 2, G.num_ws, 16)
    z, c = torch.randn([count, 16]), torch.eye(2)[torch.arange(count) % 2]
    for truncation in ({}, dict(truncation_psi=0.5), dict(truncation_psi=0.5, truncation_cutoff=3)):
        assert (export(z, c, noise_mode='random', **truncation) - G(z, c, **truncation)).abs().max() < 1e-4
    assert (export.mapping(z=z, c=c) - G.mapping(z=z, c=c)).abs().max() < 1e-5


def test_evaluate_takes_exports_beside_networks(place):
    """By the host's code and by ours; results are written into the export."""
    with detectors.in_the_place_of_the_hosts(place / 'dnnlib'):
        networks = [str(place / 'G.pkl'), str(place / 'G-torch')]
        network, export = evaluate(networks, str(place / 'data.zip'), METRICS, samples=20, trust=True)
    assert set(network.values) == {'fid0.02k_full', 'ppl2_wend_0.02k'}
    for name, values in network.values.items():
        assert export.values[name] == pytest.approx(values, rel=1e-2)
    (agreement,) = set(export.values) - set(network.values)
    assert export.values[agreement][0] < 1 / 255
    records = sorted((place / 'G-torch').glob('metric-*.jsonl'))
    assert len(records) == 3
    assert {json.loads(path.read_text())['snapshot_pkl'] for path in records} == {'export.json'}


def test_other_noise_than_the_networks_is_told(place, tmp_path, lively, make_generator, capsys):
    """Networks get random noise for some metrics, so that their numbers are not those of their exports."""
    plain = pickles.load(place / 'G.pkl')
    G = lively(make_generator(c_dim=2))
    pickles.save(tmp_path / 'noisy.pkl', {**plain, 'G': G, 'G_ema': G})
    pickles.save(tmp_path / 'plain.pkl', plain)
    export = shutil.copytree(place / 'G-torch', tmp_path / 'export')

    def said(*files, names):
        with detectors.in_the_place_of_the_hosts(tmp_path / 'dnnlib'):
            evaluate(list(map(str, files)), str(place / 'data.zip'), names, samples=20, device='cpu', trust=True)
        return capsys.readouterr().err

    sentence = said(tmp_path / 'noisy.pkl', export, names='is50k,ppl2_wend,agreement')
    assert (
        f'{export} is an export, with its noise built in, and networks get random noise for is0.02k, ppl2_wend_0.02k: '
        in sentence
    )
    assert said(tmp_path / 'plain.pkl', export, names='is50k') == ''
    assert said(tmp_path / 'noisy.pkl', export, names='agreement') == ''
    assert said(tmp_path / 'noisy.pkl', names='is50k') == ''


def test_masked_generators_have_noise_where_it_does_not_train():
    shape = dict(z_dim=4, c_dim=0, w_dim=4, img_resolution=8, img_channels=1)
    G = ScoreMaskedGenerator(**shape, synthesis_kwargs=dict(channel_base=32, channel_max=4))
    assert not has_noise(G)
    G.synthesis.b8.conv1.noise_strength.fill_(0.5)
    assert has_noise(G)


def test_compare_takes_exports_beside_networks(place, tmp_path):
    export = tmp_path / 'export'
    shutil.copytree(place / 'G-torch', export, ignore=shutil.ignore_patterns('metric-*'))
    for file, value in [('export.json', 3.5), ('network-snapshot-000001.pkl', 7.5)]:
        records.append(str(export / file), dict(results=dict(fd=value), metric='fd'))
    network, row = compare([str(place / 'G.pkl'), str(export)])
    assert row == {'run': str(export), 'parameters': network['parameters'], 'MACs': network['MACs'], 'fd': 3.5}
    (export / 'synthesis.pt2').unlink()
    with pytest.raises(UserError, match=r'synthesis\.pt2'):
        compare([str(export)])


def test_damaged_exports_are_refused(place, tmp_path):
    assert is_export(str(place / 'G-torch'))
    assert not is_export(str(place))
    record = (place / 'G-torch' / 'export.json').read_text()
    without = [record.replace(f'"{name}"', '"gone"') for name in ('w_dim', 'mapping', 'inputs', 'noise')]
    for text in ('{', '[]', '{"networks": {}}', record.replace('"torch",', '"abacus",', 1), *without):
        (tmp_path / 'export.json').write_text(text)
        with pytest.raises(UserError, match='export the network again'):
            Exported(str(tmp_path))
    (tmp_path / 'export.json').write_text(record)
    for name in ('mapping.pt2', 'synthesis.pt2'):
        (tmp_path / name).write_bytes(b'other')
    with pytest.raises(UserError, match=r'mapping\.pt2 is not what was exported'):
        Exported(str(tmp_path))
    for name in ('"../mapping.pt2"', '".."', '""', '7', 'null'):
        (tmp_path / 'export.json').write_text(record.replace('"file": "mapping.pt2"', f'"file": {name}'))
        with pytest.raises(UserError, match='export the network again'):
            Exported(str(tmp_path))


@pytest.fixture
def of_openvino(tmp_path):
    """The files of an export to OpenVINO, as far as they are looked at before they are opened."""
    for name in ('mapping.xml', 'mapping.bin', 'synthesis.xml', 'synthesis.bin', 'run.py'):
        (tmp_path / name).write_text(name)
    about = {
        'format': 'openvino',
        'noise': 'const',
        'batch': 1,
        'generator': dict.fromkeys(SIZES, 16),
        'networks': {name: {'file': f'{name}.xml', 'inputs': ['z']} for name in ('mapping', 'synthesis')},
        'files': {path.name: {'sha256': files.sha256(path)} for path in tmp_path.iterdir()},
    }
    (tmp_path / 'export.json').write_text(json.dumps(about))
    return tmp_path


@pytest.mark.parametrize('name', ['mapping.xml', 'mapping.bin', 'synthesis.bin'])
@pytest.mark.parametrize('spoil', [Path.unlink, lambda path: path.write_text('other')], ids=['missing', 'other'])
def test_weights_in_files_of_their_own_are_looked_at(of_openvino, name, spoil):
    (of_openvino / 'run.py').write_text('# Mine.')
    (of_openvino / 'mapping.png').write_text('A picture.')
    assert read_record(str(of_openvino))['format'] == 'openvino'
    spoil(of_openvino / name)
    with pytest.raises(UserError, match=f'{name} is not what was exported'):
        read_record(str(of_openvino))


def test_directories_of_a_network_are_looked_at(of_openvino):
    package, record = of_openvino / 'mapping.mlpackage', of_openvino / 'export.json'
    about = json.loads(record.read_text())
    about['networks']['mapping']['file'] = package.name
    package.mkdir()
    for text in (None, 'weights', 'other'):
        if text is not None:
            (package / 'weights').write_text(text)
        if text == 'weights':
            about['files']['mapping.mlpackage/weights'] = {'sha256': files.sha256(package / 'weights')}
        record.write_text(json.dumps(about))
        if text == 'weights':
            assert read_record(str(of_openvino)) == about
        else:
            with pytest.raises(UserError, match=r'mapping\.mlpackage.* is not what was exported'):
                read_record(str(of_openvino))


def spoilt(export, directory, payload):
    """A copy of an export to torch whose mapping network has other sample inputs, also on record."""
    shutil.copytree(export, directory)
    with zipfile.ZipFile(export / 'mapping.pt2') as good, zipfile.ZipFile(directory / 'mapping.pt2', 'w') as evil:
        for entry in good.infolist():
            is_sample = '/data/sample_inputs/' in entry.filename or 'example_inputs' in entry.filename  # torch < 2.8
            evil.writestr(entry.filename, payload if is_sample else good.read(entry))
    about = json.loads((directory / 'export.json').read_text())
    about['files']['mapping.pt2']['sha256'] = files.sha256(directory / 'mapping.pt2')
    (directory / 'export.json').write_text(json.dumps(about))
    return str(directory)


def test_what_may_run_code_is_opened_with_trust_alone(place, tmp_path):
    canary = tmp_path / 'canary'
    payload = io.BytesIO()
    torch.save(Call(os.system, f'touch {canary}'), payload)
    evil = spoilt(place / 'G-torch', tmp_path / 'evil', payload.getvalue())
    picture = tmp_path / 'x.png'
    for command in (
        ['generate', evil, '--class', 0, '--out', picture],
        ['evaluate', place / 'G.pkl', evil, '--data', place / 'data.zip', '--metrics', 'agreement', '--samples', 10],
        ['evaluate', evil, place / 'G.pkl', '--data', place / 'data.zip', '--metrics', 'agreement', '--samples', 10],
    ):
        said = refused(*command, unchanged=tmp_path)
        assert f'{evil} is an export to torch, which runs code that it finds in such files' in said
        assert 'with --trust' in said
    assert compare([evil])[0]['run'] == evil
    assert not canary.exists()
    with contextlib.suppress(Exception):
        Exported(evil, trust=True)
    assert canary.exists()  # So it would have run.


def test_formats_without_code_are_opened_without_trust():
    assert [name for name, entry in FORMATS.items() if entry.runs_code] == ['torch']


def test_what_an_export_needs_is_said_of_its_directory(place, tmp_path, monkeypatch):
    shutil.copytree(place / 'G-torch', tmp_path / 'G-litert')
    record = (tmp_path / 'G-litert' / 'export.json').read_text()
    (tmp_path / 'G-litert' / 'export.json').write_text(record.replace('"torch",', '"litert",', 1))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'litert_torch' else find(name))
    with pytest.raises(UserError, match=r'G-litert needs the package litert_torch: pip install litert-torch\.$'):
        Exported(str(tmp_path / 'G-litert'))


def test_profile_times_exports(place):
    printed = run('profile', place / 'G.pkl', '--runtime', 'torch', '--batch', 2, '--json')
    (entry,) = json.loads(printed)['profiles']
    assert set(entry['exports']) == {'torch'}
    assert set(entry['exports']['torch']) == {'1', '2'}
    times = {measured['batch']: measured['seconds'] for measured in entry['measurements']}
    gain = entry['against_first']['speedup_in_torch_at_batch_2']
    assert gain == pytest.approx(times[2] / entry['exports']['torch']['2'])
    table = run('profile', place / 'G.pkl', '--runtime', 'torch', '--batch', 1)
    assert 'measured  latency at batch 1, torch' in table
    there = 'mps' if torch.backends.mps.is_available() else 'cuda' if torch.cuda.is_available() else None
    if there is not None:
        sentence = f'--device={there} does not go with --runtime=torch, which is timed on the CPU'
        assert sentence in refused('profile', place / 'G.pkl', '--runtime', 'torch', '--device', there)
    assert '--runtime=torch and --no-measure exclude' in refused(
        'profile', place / 'G.pkl', '--runtime', 'torch', '--no-measure'
    )


def test_reports_link_exports(place, tmp_path):
    run_dir = tmp_path / '00000-run'
    (run_dir / 'student #1-web').mkdir(parents=True)
    (run_dir / 'training_options.json').write_text('{}')
    (run_dir / 'student #1-web' / 'export.json').write_text('{}')
    (run_dir / 'student #1-web' / 'index.html').write_text('')
    (run_dir / 's-onnx').mkdir()
    (run_dir / 's-onnx' / 'export.json').write_text('{}')
    inside = report.write([run_dir], snapshots=0).read_text()
    assert '<a href="s-onnx/export.json">s-onnx</a>' in inside
    assert '<a href="student%20%231-web/index.html">student #1-web</a>' in inside
    outside = report.write([run_dir], out=str(tmp_path / 'other' / 'r.html'), snapshots=0).read_text()
    assert '<a href="../00000-run/s-onnx/export.json">s-onnx</a>' in outside


def test_half_batches_are_filled():
    from stylegan2_compress.export.exported import in_batches

    asked = []

    def double(inputs):
        asked.append(inputs['ws'].shape)
        return inputs['ws'] * inputs['factor']

    rows = np.arange(10, dtype=np.float32).reshape(5, 2)
    result = in_batches(double, {'ws': rows}, {'factor': np.float32([2])}, 3)
    assert torch.equal(result, torch.from_numpy(rows * 2))
    assert asked == [(3, 2), (3, 2)]
