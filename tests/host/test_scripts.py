"""`run-host`: each of the host's scripts from the real checkout, with small networks, on a CPU."""

import json
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import detectors
import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner
from commands import refused

from stylegan2_compress import pickles
from stylegan2_compress.cli import main
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import activate, scripts

HOST = activate()
pytestmark = pytest.mark.filterwarnings('ignore')  # Of the host's scripts.
CUDA = torch.device('cuda')


@pytest.fixture(scope='module')
def place(tmp_path_factory, make_generator, make_discriminator, make_dataset_zip):
    """A directory with networks of colour and grey images whose last two resolutions are for FP16, and data."""
    directory = tmp_path_factory.mktemp('scripts')
    blocks = dict(channel_base=64, channel_max=8, num_fp16_res=2, conv_clamp=256)
    for name, channels in [('colour', 3), ('grey', 1)]:
        G = make_generator(img_channels=channels, synthesis_kwargs=blocks).eval().requires_grad_(False)
        D = make_discriminator(img_channels=channels, **blocks).eval().requires_grad_(False)
        pickles.save(directory / f'{name}.pkl', dict(G=G, D=D, G_ema=G, augment_pipe=None, training_set_kwargs=None))
    make_dataset_zip(directory, n=16)
    with pytest.MonkeyPatch.context() as patch, detectors.in_the_place_of_the_hosts(directory / 'dnnlib'):
        patch.chdir(directory)
        yield directory


def run_host(*words: str) -> str:
    """What a script prints that succeeds."""
    result = CliRunner().invoke(main, ['run-host', *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def pixels(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as image:
        assert image.mode == 'RGB'
        return np.asarray(image)


def is_grey(image: np.ndarray) -> bool:
    return bool((image[..., :1] == image).all())


@pytest.mark.checkout
@pytest.mark.parametrize('name', ['colour', 'grey'])
def test_generate(place, name):
    run_host('generate.py', '--network', f'{name}.pkl', '--seeds', '3-4', '--trunc=0.7', '--outdir', f'fakes-{name}')
    first, second = (pixels(place / f'fakes-{name}' / f'seed{seed:04d}.png') for seed in (3, 4))
    assert first.shape == (16, 16, 3)
    assert (first != second).any()
    assert is_grey(first) == (name == 'grey')


@pytest.mark.checkout
@pytest.mark.parametrize('name', ['colour', 'grey'])
def test_style_mixing(place, name):
    words = ['--rows', '1', '--cols', '2,3', '--styles', '0-1', '--outdir', f'mixed-{name}']
    run_host('style_mixing.py', '--network', f'{name}.pkl', *words)
    assert pixels(place / f'mixed-{name}' / '1-2.png').shape == (16, 16, 3)
    assert pixels(place / f'mixed-{name}' / 'grid.png').shape == (2 * 16, 3 * 16, 3)
    assert is_grey(pixels(place / f'mixed-{name}' / 'grid.png')) == (name == 'grey')


@pytest.mark.checkout
@pytest.mark.parametrize('name', ['colour', 'grey'])
def test_projector(place, name):
    """A small network stands for VGG16, which is a download."""
    pytest.importorskip('imageio_ffmpeg')
    PIL.Image.fromarray(np.random.RandomState(0).randint(256, size=[20, 24, 3]).astype(np.uint8)).save('target.png')
    words = ['--target', 'target.png', '--num-steps', '2', '--outdir', f'projected-{name}']
    said = run_host('projector.py', '--network', f'{name}.pkl', *words)
    assert 'step    2/2' in said
    assert np.isfinite(np.load(place / f'projected-{name}' / 'projected_w.npz')['w']).all()
    assert is_grey(pixels(place / f'projected-{name}' / 'proj.png')) == (name == 'grey')
    assert (place / f'projected-{name}' / 'proj.mp4').stat().st_size > 0


@pytest.mark.checkout
def test_calc_metrics(place):
    """A small network stands for VGG16; the metric makes fewer images."""
    script = (
        'import sys\n'
        'from stylegan2_compress import host\n'
        'host.activate()\n'
        'from stylegan2_compress.host import scripts\n'
        'from metrics import perceptual_path_length\n'
        'compute = perceptual_path_length.compute_ppl\n'
        'def compute_few(opts, num_samples, batch_size, **kwargs):\n'
        '    return compute(opts, num_samples=4, batch_size=2, **kwargs)\n'
        'perceptual_path_length.compute_ppl = compute_few\n'
        'scripts.run("calc_metrics.py", sys.argv[1:])\n'
    )
    words = ['--network=colour.pkl', '--metrics=ppl2_wend', '--data=data.zip']
    result = subprocess.run([sys.executable, '-c', script, *words], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith('{"results"')]
    assert json.loads(line)['results']['ppl2_wend'] > 0
    assert 'float16' not in result.stdout  # Of the table of layers.


@pytest.mark.checkout
def test_dataset_tool(place):
    (place / 'images').mkdir()
    for seed in range(2):
        image = np.random.RandomState(seed).randint(256, size=[20, 24, 3]).astype(np.uint8)
        PIL.Image.fromarray(image).save(f'images/{seed}.png')
    run_host(
        'dataset_tool.py', '--source=images', '--dest=made.zip', '--width=16', '--height=16', '--transform=center-crop'
    )
    with zipfile.ZipFile('made.zip') as archive:
        assert len([name for name in archive.namelist() if name.endswith('.png')]) == 2


@pytest.mark.checkout
def test_legacy(place):
    assert 'Done.' in run_host('legacy.py', '--source=colour.pkl', '--dest=again.pkl')
    weights = [pickles.load(place / name)['G_ema'].synthesis.b4.const for name in ('colour.pkl', 'again.pkl')]
    assert (weights[0] == weights[1]).all()


@pytest.mark.checkout
def test_train(place):
    """The script's and the loop's code, with narrower networks and fewer images."""
    script = (
        'import sys\n'
        'from stylegan2_compress import host\n'
        'host.activate()\n'
        'from stylegan2_compress.host import scripts\n'
        'from training import training_loop\n'
        'loop, grid = training_loop.training_loop, training_loop.setup_snapshot_image_grid\n'
        'def small_grid(training_set):\n'
        '    _size, images, labels = grid(training_set)\n'
        '    return (2, 2), images[:4], labels[:4]\n'
        'training_loop.setup_snapshot_image_grid = small_grid\n'
        'def small(G_kwargs, D_kwargs, total_kimg, **kwargs):\n'
        '    G_kwargs.synthesis_kwargs.channel_max = D_kwargs.channel_max = 8\n'
        '    loop(G_kwargs=G_kwargs, D_kwargs=D_kwargs, total_kimg=0.016, **kwargs)\n'
        'training_loop.training_loop = small\n'
        'scripts.run("train.py", sys.argv[1:])\n'
    )
    words = ['--outdir=runs', '--data=data.zip', '--cfg=paper256', '--batch=8', '--snap=1', '--metrics=none']
    words += ['--aug=noaug', '--workers=1']
    result = subprocess.run([sys.executable, '-c', script, *words], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (run_dir,) = (place / 'runs').iterdir()
    assert {'fakes_init.png', 'log.txt', 'stats.jsonl', 'training_options.json'} <= {p.name for p in run_dir.iterdir()}
    snapshot = sorted(run_dir.glob('network-snapshot-*.pkl'))[-1]
    assert pickles.load(snapshot)['G_ema'].init_kwargs.synthesis_kwargs.num_fp16_res == 4  # As it was asked for.
    stats = json.loads((run_dir / 'stats.jsonl').read_text().splitlines()[-1])
    assert stats['Timing/Gmain']['mean'] > 0


@pytest.mark.checkout
def test_the_checkout_stays_as_it_is(place):
    def files():
        kept = (path for path in HOST.path.rglob('*') if '__pycache__' not in path.parts and '.git' not in path.parts)
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in kept if path.is_file()}

    before = files()
    run_host('generate.py', '--help')
    run_host('generate.py', '--network', 'colour.pkl', '--seeds=0', '--outdir=more')
    assert files() == before


@pytest.mark.checkout
def test_scripts_end_with_their_own_status_and_words():
    result = CliRunner().invoke(main, ['run-host', 'generate.py', '--network', 'x.pkl'])
    assert result.exit_code == 2
    assert "Missing option '--outdir'" in result.stderr


def test_a_script_that_is_not_there(tmp_path, monkeypatch):
    assert 'train2.py is no script of the host; there are generate.py,' in refused('run-host', 'train2.py')
    monkeypatch.setattr(scripts.checkout, 'activate', lambda _host: scripts.checkout.Host(tmp_path, 'cached copy'))
    assert f'{tmp_path} has no train.py: name a git clone' in refused('run-host', 'train.py')


@pytest.mark.checkout
def test_a_package_that_a_script_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, 'imageio', None)
    sentence = 'projector.py needs the package imageio: pip install imageio imageio-ffmpeg.'
    assert sentence in refused('run-host', 'projector.py', '--help')


# --- How it is done ---------------------------------------------------------------------------------------------------


def test_what_is_asked_for_on_cuda_is_made_elsewhere():
    with scripts.Instead(torch.device('cpu')):
        made = torch.zeros([2], device=CUDA)
        moved = torch.nn.Linear(2, 2).to(torch.device('cuda', 1))(torch.ones([2]).pin_memory().to(CUDA))
        assert torch.empty([1], device='meta').device.type == 'meta'
    assert made.device.type == moved.device.type == 'cpu'


def test_blocks_compute_in_fp32_and_pickles_keep_their_precision(place, tmp_path):
    G = pickles.load(place / 'colour.pkl')['G_ema']
    ws = torch.zeros([1, G.num_ws, G.w_dim])
    with torch.random.fork_rng():
        expected = G.synthesis(ws, noise_mode='const', force_fp32=True)
    with scripts.in_fp32():
        made = G.synthesis(ws, noise_mode='const')
        pickles.save(tmp_path / 'G.pkl', dict(G_ema=G))
    assert (made == expected).all()
    assert (G.synthesis(ws, noise_mode='const') != expected).any()  # Afterwards all is as before.
    assert pickles.load(tmp_path / 'G.pkl')['G_ema'].synthesis.b16.use_fp16


def test_several_processes_need_gpus():
    with (
        scripts.repaired_processes('train.py', '', torch.device('cpu')),
        pytest.raises(UserError, match='leave --gpus'),
    ):
        torch.multiprocessing.spawn(print)


def test_processes_that_a_script_starts_are_repaired(tmp_path, monkeypatch):
    """As for several GPUs, by a script in the place of the host's."""
    script = tmp_path / 'script.py'
    script.write_text(
        'import sys, torch.multiprocessing\n'
        'from torch_utils import misc\n'
        'def work(rank, path):\n'
        '    from stylegan2_compress import patches\n'
        '    open(path, "w").write(" ".join(patches._applied))\n'
        'if __name__ == "__main__":\n'
        '    torch.multiprocessing.spawn(fn=work, args=(sys.argv[1],), nprocs=1)\n'
    )
    written = tmp_path / 'repairs'
    monkeypatch.setattr(sys, 'argv', [str(script), str(written)])
    with scripts.repaired_processes('train.py', str(HOST.path), CUDA):
        runpy.run_path(str(script), run_name='__main__')
    assert 'modulated_conv_on_cpu' in written.read_text().split()
