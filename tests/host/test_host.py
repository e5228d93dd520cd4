"""Where the host is found, how it is fetched, and that what PyPI has of it behaves as the real one does."""

import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from commands import refused, run

from stylegan2_compress import patches
from stylegan2_compress.caches import cache_dir
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import checkout as host
from stylegan2_compress.host import download as host_download

REAL = host.activate().path


def make_host(path: Path) -> Path:
    """A directory that looks like a host; nothing in it can be imported."""
    for name in host._LANDMARKS:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text('raise ImportError\n')
    return path


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No host active, in the environment, in the current directory or in the cache."""
    monkeypatch.setattr(host, '_active', None)
    monkeypatch.delenv('STYLEGAN2_ADA_PYTORCH', raising=False)
    monkeypatch.setenv('STYLEGAN2_COMPRESS_CACHE', str(tmp_path / 'cache'))
    (tmp_path / 'cwd').mkdir()
    monkeypatch.chdir(tmp_path / 'cwd')
    return tmp_path


@pytest.fixture
def downloads(monkeypatch):
    """Both downloads replaced by ones that work at once; the list says which were asked."""
    asked = []

    def download(name):
        def fake(path):
            asked.append(name)
            make_host(path)
            return f'{name}: a test'

        return fake

    monkeypatch.setattr(host_download, 'clone', download('git'))
    monkeypatch.setattr(host_download, 'unpack_wheels', download('pypi'))
    return asked


# --- find ---------------------------------------------------------------------------------------------------------


def test_find_looks_in_four_places_in_order(nowhere, monkeypatch, downloads):
    with pytest.raises(UserError, match='stylegan2-compress host'):
        host.find()
    cached = host.fetch()
    assert host.find() == cached == host.Host(cache_dir('host').resolve(), 'cached copy')
    make_host(nowhere / 'cwd')
    assert host.find() == host.Host((nowhere / 'cwd').resolve(), 'current directory')
    monkeypatch.setenv('STYLEGAN2_ADA_PYTORCH', str(make_host(nowhere / 'env')))
    assert host.find() == host.Host((nowhere / 'env').resolve(), 'STYLEGAN2_ADA_PYTORCH')
    assert host.find(make_host(nowhere / 'named')) == host.Host((nowhere / 'named').resolve(), '--host')


@pytest.mark.parametrize('missing', host._LANDMARKS)
def test_a_named_directory_that_is_no_host_is_never_skipped(missing, nowhere, monkeypatch):
    make_host(nowhere / 'cwd')  # Would do, but is not asked for.
    (make_host(nowhere / 'other') / missing).unlink()
    with pytest.raises(UserError, match=f'--host=.*other.*{missing}'):
        host.find(nowhere / 'other')
    monkeypatch.setenv('STYLEGAN2_ADA_PYTORCH', str(nowhere / 'other'))
    with pytest.raises(UserError, match=f'STYLEGAN2_ADA_PYTORCH=.*other.*{missing}'):
        host.find()


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv('STYLEGAN2_COMPRESS_CACHE', raising=False)
    monkeypatch.setenv('LOCALAPPDATA' if os.name == 'nt' else 'XDG_CACHE_HOME', str(tmp_path))
    assert cache_dir('a', 'b') == tmp_path / 'stylegan2-compress' / 'a' / 'b'
    monkeypatch.setenv('STYLEGAN2_COMPRESS_CACHE', str(tmp_path / 'own'))
    assert cache_dir('a') == tmp_path / 'own' / 'a'


# --- activate -----------------------------------------------------------------------------------------------------


def test_activate_again_is_the_same_host_without_looking_or_repairing_again(monkeypatch):
    active, before = host.activate(), list(sys.path)
    for name in ('find', '_already_imported', '_refuse_foreign_modules'):
        monkeypatch.delattr(host, name)
    monkeypatch.delattr(patches, 'apply_needed')
    assert host.activate() is host.activate(REAL) is host.find_or_fetch() is active
    assert sys.path == before


def test_activate_refuses_a_second_host(tmp_path):
    with pytest.raises(UserError, match=f'--host=.*too late.*{REAL}'):
        host.activate(make_host(tmp_path))


def test_activate_in_a_new_process(tmp_path):
    """It puts the host before what else is on the path, and repairs it."""
    decoy = tmp_path / 'decoy' / 'training'
    decoy.mkdir(parents=True)
    (decoy / '__init__.py').write_text('raise ImportError("the wrong one")')
    printed = run_python(
        'from stylegan2_compress import host\n'
        f'print(host.activate({str(REAL)!r}).source)\n'
        'import sys, training.networks, torch_utils.misc\n'
        'torch_utils.misc.InfiniteSampler([0])\n'
        'print(sys.path[0], training.networks.__file__)',
        PYTHONPATH=os.pathsep.join([str(tmp_path / 'decoy'), os.environ.get('PYTHONPATH', '')]),
    )
    assert printed.split() == ['--host', str(REAL), str(REAL / 'training' / 'networks.py')]


def test_activate_in_a_process_that_has_the_host_already(nowhere):
    """As the patched train.py does: another one in the environment is not looked at."""
    printed = run_python(
        f'import sys; sys.path.insert(0, {str(REAL)!r}); import dnnlib\n'
        'from stylegan2_compress import host\n'
        'print(host.activate())',
        STYLEGAN2_ADA_PYTORCH=str(make_host(nowhere / 'another')),
    )
    assert printed.strip() == repr(host.Host(REAL, 'already imported'))


@pytest.mark.parametrize('name', ['training', 'metrics', 'legacy', 'torch_utils'])
def test_activate_names_a_foreign_module(name, tmp_path, monkeypatch):
    foreign = types.ModuleType(name)
    foreign.__file__ = str(tmp_path / f'{name}.py')
    monkeypatch.setitem(sys.modules, name, foreign)
    monkeypatch.setattr(host, '_active', None)
    with pytest.raises(UserError, match=f"'{name}' is already imported from {tmp_path}"):
        host.activate()


def test_activate_names_a_foreign_dnnlib(tmp_path, monkeypatch):
    """StyleGAN3's, for example."""
    foreign = types.ModuleType('dnnlib')
    foreign.__path__ = [str(tmp_path / 'stylegan3' / 'dnnlib')]
    monkeypatch.setitem(sys.modules, 'dnnlib', foreign)
    monkeypatch.setattr(host, '_active', None)
    with pytest.raises(UserError, match=r'dnnlib is already imported from .*stylegan3'):
        host.activate()


# --- fetch --------------------------------------------------------------------------------------------------------


def test_fetch_asks_git_first_and_then_pypi(nowhere, downloads, monkeypatch):
    assert host.fetch(nowhere / 'a').origin == 'git: a test'
    assert host.fetch(nowhere / 'b', 'pypi').origin == 'pypi: a test'
    assert downloads == ['git', 'pypi']

    def unavailable(path):
        (path / 'half').mkdir(parents=True)
        raise host_download.Unavailable('no git here')

    monkeypatch.setattr(host_download, 'clone', unavailable)
    assert host.fetch(nowhere / 'c').origin == 'pypi: a test'
    assert not (nowhere / 'c' / 'half').exists()
    with pytest.raises(UserError, match=r'no git here.*--host'):
        host.fetch(nowhere / 'd', 'git')
    assert not (nowhere / 'd').exists()


def test_fetch_into_the_cache_happens_once_unless_another_source_is_wanted(nowhere, downloads):
    assert host.find_or_fetch() == host.find_or_fetch() == host.fetch()
    assert downloads == ['git']
    host.fetch(source='git')
    assert downloads == ['git']
    assert host.fetch(source='pypi').origin == 'pypi: a test'
    assert host.find().origin == 'pypi: a test'


@pytest.mark.parametrize('damage', ['truncated', 'missing', 'no receipt', 'only a beginning'])
def test_a_cache_that_was_changed_is_no_host_and_is_moved_aside(damage, nowhere, downloads, capfd):
    cached = host.fetch().path
    (cached / 'runs').mkdir()
    (cached / 'runs' / 'network-snapshot.pkl').write_text('a week')
    if damage == 'truncated':
        (cached / 'training' / 'loss.py').write_text('raise')
    elif damage == 'missing':
        (cached / 'training' / 'loss.py').unlink()
    elif damage == 'no receipt':
        (cached / host._RECEIPT).unlink()
    else:
        for name in host._LANDMARKS[2:]:
            (cached / name).unlink()
    with pytest.raises(UserError, match='stylegan2-compress host'):
        host.find()
    assert host.find_or_fetch().path == cached
    assert downloads == ['git', 'git']
    assert host.find().path == cached
    aside = next(path for path in cached.parent.iterdir() if path.name != 'host')
    assert (aside / 'runs' / 'network-snapshot.pkl').read_text() == 'a week'
    assert f'What was there is now in {aside}' in capfd.readouterr().err
    assert sorted(os.listdir(cached.parent)) == ['host', aside.name]


def test_what_another_process_fetched_meanwhile_stays(nowhere, downloads, monkeypatch):
    """As when several test processes start on a new machine: the first one is already importing from it."""

    def slow_clone(path):
        host.fetch(source='pypi')
        (cache_dir('host') / 'in use').touch()
        make_host(path)
        return 'git: a test'

    monkeypatch.setattr(host_download, 'clone', slow_clone)
    assert (host.fetch().path / 'in use').exists()
    assert os.listdir(cache_dir()) == ['host']


def test_scripts_beside_the_modules_may_be_patched(nowhere, downloads):
    (host.fetch().path / 'train.py').write_text('patched')
    assert host.find_or_fetch().is_checkout
    assert downloads == ['git']


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError(28, 'No space left on device')])
def test_an_interrupted_fetch_leaves_nothing(error, nowhere, monkeypatch):
    def interrupted(path):
        make_host(path)
        raise error

    monkeypatch.setattr(host_download, 'clone', interrupted)
    with pytest.raises((KeyboardInterrupt, UserError)):
        host.fetch(nowhere / 'new' / 'host')
    assert os.listdir(nowhere / 'new') == []


def test_fetch_never_overwrites_a_directory_of_the_users(nowhere, downloads):
    (nowhere / 'mine').mkdir()
    (nowhere / 'mine' / 'thesis.tex').write_text('42')
    with pytest.raises(UserError, match=r'--dest=.*mine is not empty and not stylegan2-ada-pytorch'):
        host.fetch(nowhere / 'mine')
    with pytest.raises(UserError, match=r'--dest=.*thesis.tex is not empty and not stylegan2-ada-pytorch'):
        host.fetch(nowhere / 'mine' / 'thesis.tex')
    with pytest.raises(UserError, match='cannot be written'):
        host.fetch(nowhere / 'mine' / 'thesis.tex' / 'host')
    assert (nowhere / 'mine' / 'thesis.tex').read_text() == '42'
    assert host.fetch(make_host(nowhere / 'checkout')).origin == 'not fetched by stylegan2-compress'
    assert downloads == []


def test_an_empty_directory_is_filled_and_stays_the_one_it_is(nowhere, downloads):
    """It may be where the user is, or a mount point."""
    (nowhere / 'empty').mkdir()
    inode = (nowhere / 'empty').stat().st_ino
    assert host.fetch(nowhere / 'empty').source == '--dest'
    assert (nowhere / 'empty').stat().st_ino == inode
    assert host.fetch('.').path == Path.cwd() == host.find().path
    assert sorted(os.listdir('.')) == sorted(os.listdir(nowhere / 'empty'))


def test_a_directory_with_a_host_from_another_source_is_refused(nowhere, downloads):
    host.fetch(nowhere / 'modules', 'pypi')
    with pytest.raises(UserError, match=r'--dest=.*modules has a copy that is not from --source=git: name a new'):
        host.fetch(nowhere / 'modules', 'git')
    assert host.fetch(nowhere / 'modules', 'pypi') == host.fetch(nowhere / 'modules')
    checkout = make_host(nowhere / 'checkout')
    (checkout / 'train.py').touch()
    assert host.fetch(checkout, 'git').is_checkout
    assert downloads == ['pypi']


# --- Downloads ----------------------------------------------------------------------------------------------------


def test_clone_is_at_the_pinned_commit_and_clean(tmp_path, monkeypatch):
    def git(*args):
        command = ['git', '-C', str(tmp_path / 'upstream'), '-c', 'user.name=t', '-c', 'user.email=t@t', *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    make_host(tmp_path / 'upstream')
    git('init', '--quiet')
    git('add', '.')
    git('commit', '--quiet', '-m', 'pinned')
    pinned = git('rev-parse', 'HEAD')
    git('commit', '--quiet', '--allow-empty', '-m', 'later')

    monkeypatch.setattr(host_download, 'URL', (tmp_path / 'upstream').as_uri())
    monkeypatch.setattr(host_download, 'PINNED_COMMIT', pinned)
    fetched = host.fetch(tmp_path / 'clone', 'git')
    assert pinned[:7] in fetched.origin
    for command, expected in (('rev-parse', 'HEAD'), pinned), (('status', '--porcelain'), ''):
        done = subprocess.run(['git', '-C', str(fetched.path), *command], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Neither git nor pip reach anything."""
    settings = {
        'GIT_CONFIG_COUNT': '1',
        'GIT_CONFIG_KEY_0': f'url.{(tmp_path / "nothing").as_uri()}.insteadOf',
        'GIT_CONFIG_VALUE_0': host_download.URL,
        'PIP_CONFIG_FILE': os.devnull,
        'PIP_FIND_LINKS': '',
        'PIP_NO_INDEX': '1',
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def test_without_a_network_there_is_one_sentence(offline, tmp_path):
    with pytest.raises(UserError, match='--host') as raised:
        host.fetch(tmp_path / 'host')
    assert 'git cannot clone https://github.com/NVlabs' in raised.value.message
    assert 'pip cannot download draggan==1.1.6' in raised.value.message
    assert '\n' not in raised.value.message
    assert os.listdir(tmp_path) == []


def test_a_wheel_that_is_not_the_one_we_know_is_refused(offline, tmp_path, monkeypatch):
    for wheel in host_download._WHEELS:
        (tmp_path / wheel.filename).write_bytes(b'something else')
    monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path))
    with pytest.raises(UserError, match='SHA-256'):
        host.fetch(tmp_path / 'host', 'pypi')
    assert not (tmp_path / 'host').exists()


def test_without_pip_there_is_one_sentence(tmp_path, monkeypatch):
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(python))
    with pytest.raises(UserError, match=r'no pip .*ensurepip'):
        host.fetch(tmp_path / 'host', 'pypi')


def test_without_git_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(UserError, match='git is not installed'):
        host.fetch(tmp_path / 'host', 'git')


def test_git_never_asks_for_a_password(tmp_path, monkeypatch):
    git = tmp_path / 'git'
    git.write_text('#!/bin/sh\necho "prompt=$GIT_TERMINAL_PROMPT askpass=$GIT_ASKPASS." >&2\nexit 1\n')
    git.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(UserError, match=r'prompt=0 askpass=\.'):
        host.fetch(tmp_path / 'host', 'git')


def test_a_program_that_hangs_is_stopped_with_its_children_still_there():
    start = time.perf_counter()
    with pytest.raises(host_download._Failure, match=r'no answer in 0.5 seconds'):
        host_download._run(['sh', '-c', 'sleep 20 & sleep 20'], timeout=0.5)
    assert time.perf_counter() - start < 10


def test_relative_imports_become_absolute_wherever_they_stand():
    source = (
        b'from .. import dnnlib, legacy\n'
        b'try:\n'
        b'    from ..torch_utils.ops import bias_act\n'
        b'except ImportError:\n'
        b'    pass\n'
        b'from . import metric_utils\n'
        b"text = 'copied from ..torch_utils'\n"
    )
    assert host_download._with_absolute_imports(source) == (
        b'import dnnlib, legacy\n'
        b'try:\n'
        b'    from torch_utils.ops import bias_act\n'
        b'except ImportError:\n'
        b'    pass\n'
        b'from . import metric_utils\n'
        b"text = 'copied from ..torch_utils'\n"
    )


# --- What PyPI has ------------------------------------------------------------------------------------------------


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, '-c', code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def pypi_host(tmp_path_factory):
    return host.fetch(tmp_path_factory.mktemp('pypi') / 'host', 'pypi')


def test_pypi_host_has_every_module_and_imports_nothing_from_elsewhere(pypi_host):
    assert host._missing(pypi_host.path) == []
    assert not pypi_host.is_checkout
    assert pypi_host.origin == 'PyPI: draggan==1.1.6, slideflow-noncommercial==0.0.2'
    printed = run_python(
        f'import sys; sys.path.insert(0, {str(pypi_host.path)!r})\n'
        'import training.networks, training.augment, training.loss, training.dataset, training.training_loop\n'
        'import metrics.metric_main, legacy\n'
        'print(sorted(m for m in sys.modules if m.split(".")[0] in ("slideflow", "draggan", "torchvision", "gradio")))'
    )
    assert printed.strip() == '[]'


@pytest.mark.checkout
def test_pypi_host_shares_its_foundations_with_the_checkout_byte_for_byte(pypi_host):
    checkout = Path(os.environ['STYLEGAN2_ADA_PYTORCH'])
    sizes = json.loads((pypi_host.path / host._RECEIPT).read_text())['sizes']
    shared = [name for name in sizes if name.startswith(('dnnlib/', 'torch_utils/', 'legacy.py'))]
    assert len(shared) >= 20
    for name in shared:
        assert (pypi_host.path / name).read_bytes() == (checkout / name).read_bytes(), name


TRAIN_A_LITTLE = """
import pickle, sys
import numpy as np
import torch
host_path, npz, pkl = sys.argv[1:]
sys.modules['stylegan2_compress'] = None  # Not ours: the hosts as they are.
sys.path.insert(0, host_path)
import dnnlib

torch.manual_seed(0)
common = dict(c_dim=3, img_resolution=16, img_channels=3)
synthesis_kwargs = dict(channel_base=256, channel_max=16, conv_clamp=256)
G = dnnlib.util.construct_class_by_name(
    class_name='training.networks.Generator', z_dim=16, w_dim=16, synthesis_kwargs=synthesis_kwargs, **common)
D = dnnlib.util.construct_class_by_name(
    class_name='training.networks.Discriminator', channel_base=256, channel_max=16, **common)
augment_pipe = dnnlib.util.construct_class_by_name(
    class_name='training.augment.AugmentPipe', xflip=1, rotate90=1, xint=1, scale=1, rotate=1, aniso=1, xfrac=1,
    brightness=1, contrast=1, lumaflip=1, hue=1, saturation=1, noise=1, cutout=1)
loss = dnnlib.util.construct_class_by_name(
    class_name='training.loss.StyleGAN2Loss', device=torch.device('cpu'), G_mapping=G.mapping, G_synthesis=G.synthesis,
    D=D, augment_pipe=augment_pipe)
z, c = torch.randn([4, 16]), torch.eye(3)[[0, 1, 2, 0]]
arrays = {'img': G(z, c).detach().numpy(), 'logits': D(G(z, c), c).detach().numpy()}
for phase in ('Gmain', 'Greg', 'Gboth', 'Dmain', 'Dreg', 'Dboth'):
    if phase in ('Dreg', 'Dboth'):
        loss.augment_pipe = None  # R1 through it needs a second derivative that not every torch has.
    G.zero_grad(set_to_none=True)
    D.zero_grad(set_to_none=True)
    real_img = torch.randn([4, 3, 16, 16])
    loss.accumulate_gradients(phase, real_img=real_img, real_c=c, gen_z=z, gen_c=c, sync=True, gain=1)
    for name, param in [*G.named_parameters(prefix='G'), *D.named_parameters(prefix='D')]:
        if param.grad is not None:
            arrays[f'{phase} {name}'] = param.grad.numpy()
np.savez(npz, **arrays)
with open(pkl, 'wb') as f:
    pickle.dump(dict(G=G, D=D, G_ema=G, augment_pipe=augment_pipe, training_set_kwargs={}), f)
"""


@pytest.fixture(scope='module')
def trained(pypi_host, tmp_path_factory):
    """Arrays and pickle of the same little training with the PyPI host and with the checkout."""
    results = {}
    for name, path in ('pypi', pypi_host.path), ('checkout', Path(os.environ['STYLEGAN2_ADA_PYTORCH'])):
        directory = tmp_path_factory.mktemp(name)
        command = [sys.executable, '-c', TRAIN_A_LITTLE, str(path), str(directory / 'a.npz'), str(directory / 'a.pkl')]
        subprocess.run(command, check=True, cwd=directory)
        results[name] = (np.load(directory / 'a.npz'), directory / 'a.pkl')
    return results


@pytest.mark.checkout
def test_pypi_host_computes_what_the_checkout_computes_bit_for_bit(trained):
    pypi, checkout = (arrays for arrays, _ in trained.values())
    assert set(pypi) == set(checkout)
    assert len([name for name in pypi if name.startswith('Dreg')]) > 5
    for name in checkout:
        assert np.array_equal(pypi[name], checkout[name]), name


@pytest.mark.checkout
def test_pickles_of_the_pypi_host_open_in_the_checkout_without_us(trained, tmp_path):
    code = (
        'import sys; sys.modules["stylegan2_compress"] = None; sys.path.insert(0, sys.argv[1])\n'
        'import numpy as np, torch, legacy\n'
        'with open(sys.argv[2], "rb") as f: data = legacy.load_network_pkl(f)\n'
        'G = data["G_ema"]\n'
        'z, c = torch.from_numpy(np.load(sys.argv[3])), torch.eye(3)\n'
        'np.save(sys.argv[4], G(z, c, noise_mode="const").detach().numpy())\n'
    )
    np.save(tmp_path / 'z.npy', np.random.default_rng(0).normal(size=[3, 16]).astype(np.float32))
    images = []
    for _, pkl in trained.values():
        files = [os.environ['STYLEGAN2_ADA_PYTORCH'], str(pkl), str(tmp_path / 'z.npy'), str(tmp_path / 'img.npy')]
        subprocess.run([sys.executable, '-c', code, *files], check=True, cwd=tmp_path)
        images.append(np.load(tmp_path / 'img.npy'))
    assert images[0].shape == (3, 3, 16, 16)
    assert np.array_equal(*images)


# --- The command --------------------------------------------------------------------------------------------------


def test_host_command_reports_where_it_is_and_what_is_repaired():
    report = run('host', '--host', REAL)
    assert report.splitlines()[0] == str(REAL)
    assert '--host' in report
    assert 'ImageFolderDataset' in report


def test_host_command_refuses_what_is_no_host(tmp_path):
    refused('host', '--host', tmp_path, unchanged=tmp_path)
    refused('host', '--host', REAL, '--source', 'git', usage=True)
