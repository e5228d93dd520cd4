"""`convert IN hf://…`: what is uploaded, what the model card says, and what is left alone. The Hub is a stand-in."""

import functools
import json
from typing import ClassVar

import huggingface_hub
import pytest
from click.testing import CliRunner
from commands import refused, run
from pickling import snapshot

from stylegan2_compress import pickles
from stylegan2_compress.cli import main
from stylegan2_compress.evaluation import records
from stylegan2_compress.host import profiling

PLACE = 'hf://org/faces/nets/student.safetensors'


class Hub:
    """What of `HfApi` is used; files by path in its only repository."""

    files: ClassVar[dict[str, bytes]] = {}
    made: ClassVar[list[tuple]] = []

    def create_repo(self, repo, private, exist_ok):
        assert exist_ok
        self.made.append((repo, private))

    def file_exists(self, repo, path):
        return path in self.files

    def create_commit(self, repo, operations, commit_message):
        for operation in operations:
            with operation.as_file() as file:
                self.files[operation.path_in_repo] = file.read()


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(Hub, 'files', {})
    monkeypatch.setattr(Hub, 'made', [])
    monkeypatch.setattr(huggingface_hub, 'HfApi', Hub)
    return Hub


@pytest.fixture
def run_dir(tmp_path, make_generator, make_discriminator):
    """A run's directory with a snapshot, options and results."""
    pkl = tmp_path / 'network-snapshot-000010.pkl'
    training_set_kwargs = {'path': '/home/me/secret/faces/', 'use_labels': False}
    networks = snapshot(make_generator(), make_discriminator())
    pickles.save(pkl, networks | {'training_set_kwargs': training_set_kwargs})
    options = {
        'training_set_kwargs': training_set_kwargs,
        'loss_kwargs': {
            'class_name': 'stylegan2_compress.DiMELoss',
            'teacher': str(pkl),
            'weight': 3.0,
            'training_set_kwargs': training_set_kwargs,
            'embeddings': [
                'torchscript:/home/me/secret/my nets/net.pt@size=64',
                'hf:facebook/dino@weights=/home/me/secret/w.bin',
            ],
            'weights': [20, 15],
            'detector': 'torchscript:https://me:secret@example.org/nets/d.pt?token=a,secret@size=64',
            'stats': 'https://me:secret@example.org/nets/a.npz?token=secret',
        },
        'total_kimg': 10,
        'batch_size': 16,
    }
    (tmp_path / 'training_options.json').write_text(json.dumps(options))
    for value in (9.5, 7.25):
        records.append(str(pkl), {'metric': 'fid50k_full', 'results': {'fid50k_full': value}})
    records.append(str(tmp_path / 'network-snapshot-000001.pkl'), {'metric': 'is50k', 'results': {'is50k': 1}})
    return tmp_path


def test_the_network_and_a_card_are_uploaded(hub, run_dir, tmp_path):
    said = run('convert', run_dir / 'network-snapshot-000010.pkl', PLACE)
    assert hub.made == [('org/faces', True)]
    (tmp_path / 'a.safetensors').write_bytes(hub.files['nets/student.safetensors'])
    networks = pickles.load(tmp_path / 'a.safetensors')
    assert networks['training_set_kwargs'] == {'path': 'faces', 'use_labels': False}
    assert b'secret' not in hub.files['nets/student.safetensors']
    G = networks['G_ema']
    sha256 = pickles.sha256(tmp_path / 'a.safetensors')
    assert sha256 in said
    card = hub.files['README.md'].decode()
    for fact in (
        '# faces',
        f'| parameters | {profiling.parameters(G):,} |',
        f'| multiply-accumulates per image | {profiling.macs(G):,} |',
        '| loss | stylegan2_compress.DiMELoss |',
        '| teacher | network-snapshot-000010.pkl |',
        '| embeddings | torchscript:net.pt@size=64, hf:facebook/dino@weights=w.bin |',
        '| weights | 20, 15 |',
        '| detector | torchscript:https://example.org/nets/d.pt |',
        '| stats | https://example.org/nets/a.npz |',
        '| data | faces |',
        '| total_kimg | 10 |',
        '| fid50k_full | 7.25 |',
        f'stylegan2-compress convert {PLACE} network.pkl',
        sha256,
    ):
        assert fact in card, fact
    assert 'secret' not in card
    assert str(tmp_path) not in card
    assert 'is50k' not in card


def test_results_of_a_file_that_was_replaced_are_not_published(hub, run_dir):
    pkl = str(run_dir / 'network-snapshot-000010.pkl')
    records.append(pkl, {'metric': 'fid50k_full', 'results': {'fid50k_full': 1.5}, 'sha256': '0' * 64})
    result = CliRunner().invoke(main, ['convert', pkl, PLACE])
    assert '| fid50k_full | 7.25 |' in hub.files['README.md'].decode()
    assert result.stderr == f'{pkl}: 1 result is of another file that had this name, and left out.\n'


def test_a_network_without_a_run_has_a_card_without_one(hub, run_dir):
    (run_dir / 'training_options.json').write_text('[')
    for path in run_dir.glob('metric-*'):
        path.unlink()
    run('convert', run_dir / 'network-snapshot-000010.pkl', PLACE)
    card = hub.files['README.md'].decode()
    assert 'Made of' not in card
    assert 'Measured' not in card


def test_of_a_run_and_the_generator_alone(hub, run_dir, tmp_path):
    """As `convert` writes them to a file."""
    run('convert', '--only', 'G_ema', run_dir, PLACE)
    (tmp_path / 'alone.safetensors').write_bytes(hub.files['nets/student.safetensors'])
    networks = pickles.load(tmp_path / 'alone.safetensors')
    assert [name for name, value in networks.items() if value] == ['G_ema', 'training_set_kwargs']
    assert '| loss | stylegan2_compress.DiMELoss |' in hub.files['README.md'].decode()


def test_what_is_there_is_kept(hub, run_dir):
    hub.files |= {'README.md': b'mine', 'nets/student.safetensors': b'old'}
    source = run_dir / 'network-snapshot-000010.pkl'
    assert '--force' in refused('convert', source, PLACE)
    assert hub.files['nets/student.safetensors'] == b'old'
    assert 'README.md that is there was kept' in run('convert', source, PLACE, '--force')
    assert hub.files['README.md'] == b'mine'
    assert hub.files['nets/student.safetensors'] != b'old'


def test_what_cannot_be_published_is_a_sentence(hub, run_dir, monkeypatch):
    source = run_dir / 'network-snapshot-000010.pkl'
    assert 'is not of the form' in refused('convert', source, 'hf://org/student.pkl')
    assert 'must end in .pkl or' in refused('convert', source, 'hf://org/faces/student.onnx')

    def fail(*_, **__):
        raise OSError('no connection\nat all')

    monkeypatch.setattr(hub, 'create_repo', fail)
    assert f'Cannot publish {PLACE} (OSError)' in refused('convert', source, PLACE)
    assert hub.files == {}


def test_without_a_network_it_is_a_sentence(run_dir, monkeypatch):
    """The error is that of the package's own client for HTTP."""
    monkeypatch.setattr(
        huggingface_hub, 'HfApi', functools.partial(huggingface_hub.HfApi, endpoint='http://127.0.0.1:1', token='hf_no')
    )
    said = refused('convert', run_dir / 'network-snapshot-000010.pkl', PLACE)
    assert f'Cannot publish {PLACE} (' in said
    assert 'check the network, the name, and that `hf auth login` was run' in said
