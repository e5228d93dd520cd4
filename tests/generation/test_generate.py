"""`generate`: the pixels of the host's generate.py, of every network that `evaluate` opens."""

import re
import subprocess
import sys

import numpy as np
import PIL.Image
import PIL.ImageSequence
import pytest
import torch
from commands import refused, run

from stylegan2_compress import host, images, pickles
from stylegan2_compress.compression.convert import convert
from stylegan2_compress.compression.options import PruneOptions
from stylegan2_compress.compression.prune import prune
from stylegan2_compress.errors import UserError
from stylegan2_compress.generation import films
from stylegan2_compress.generation import generate as generation
from stylegan2_compress.generation.generate import generate, walk
from stylegan2_compress.generation.options import GenerateOptions, parse_numbers
from stylegan2_compress.host import scripts
from stylegan2_compress.networks.masked import ScoreMaskedGenerator
from stylegan2_compress.tickets import baking

HOST = host.activate()
SMALL = dict(synthesis_kwargs=dict(channel_base=64, channel_max=8, num_fp16_res=1))


@pytest.fixture(scope='module')
def place(tmp_path_factory, make_generator, make_discriminator):
    """A directory with networks of all kinds, named by what is special about each."""
    directory = tmp_path_factory.mktemp('networks')

    def save(name, G, **shape):
        D = make_discriminator(channel_base=64, channel_max=8, **shape)
        pickles.save(directory / name, dict(G=G, D=D, G_ema=G, augment_pipe=None, training_set_kwargs=None))

    save('plain.pkl', lively(make_generator(**SMALL)))
    save('labels.pkl', lively(make_generator(c_dim=3, **SMALL)), c_dim=3)
    save('grey.pkl', lively(make_generator(img_channels=1, **SMALL)), img_channels=1)
    save('wide.pkl', lively(make_generator(z_dim=24, **SMALL)))
    save('res8.pkl', lively(make_generator(img_resolution=8, **SMALL)), img_resolution=8)
    save('no_average.pkl', lively(make_generator(mapping_kwargs=dict(num_layers=2, w_avg_beta=None), **SMALL)))
    shape = dict(z_dim=16, c_dim=0, w_dim=16, img_resolution=16, img_channels=3, mapping_kwargs=dict(num_layers=2))
    masked = lively(ScoreMaskedGenerator(**shape, **SMALL, keep=0.5))
    save('unbaked.pkl', masked)
    save('baked.pkl', baking.plain(masked))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        prune(PruneOptions(teacher='plain.pkl', ratio=0.5, out='pruned.pkl'))
        convert('plain.pkl', 'plain.safetensors')
        convert('plain.pkl', 'plain.pt')
        (directory / 'run').mkdir()
        pickles.save('run/network-snapshot-000001.pkl', pickles.load('plain.pkl'))
        yield directory


def lively(G):
    """Noise and truncation have an effect."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for name, tensor in [*G.named_parameters(), *G.named_buffers()]:
            if name.endswith(('w_avg', 'noise_strength')):
                tensor.add_(torch.randn_like(tensor) * 0.3)
    return G.eval().requires_grad_(False)


def made(network, tmp_path, *options, seeds='0-2'):
    """The images of a network, [N, H, W] or [N, H, W, 3]."""
    out = tmp_path / 'images'
    run('generate', network, '--seeds', seeds, '--out', out, *options)
    return np.stack([np.asarray(PIL.Image.open(path)) for path in sorted(out.iterdir())])


def by_the_host(network, tmp_path, monkeypatch, *options, seeds='0-2'):
    """The same by its generate.py."""
    out = tmp_path / 'host'
    arguments = ['--network', network, '--seeds', seeds, '--outdir', str(out), *options]
    with pytest.raises(SystemExit, match='0'):
        scripts.run('generate.py', arguments)
    return np.stack([np.asarray(PIL.Image.open(path)) for path in sorted(out.iterdir())])


# --- As the host ------------------------------------------------------------------------------------------------------


@pytest.mark.checkout
@pytest.mark.parametrize(
    ('network', 'options', 'seeds'),
    [
        ('plain.pkl', [], '0-24'),
        ('pruned.pkl', ['--trunc=0.7'], '5,1234567'),
        ('unbaked.pkl', ['--trunc=-0.5'], '0-2'),
        ('labels.pkl', ['--class=2'], '0-2'),
        ('grey.pkl', [], '0-2'),
        ('no_average.pkl', [], '0-2'),
    ],
)
def test_pixels_are_those_of_the_hosts_script(place, tmp_path, monkeypatch, network, options, seeds):
    expected = by_the_host(network, tmp_path, monkeypatch, *options, seeds=seeds)
    ours = made(network, tmp_path, *options, seeds=seeds)
    if network == 'grey.pkl':
        ours = ours[..., None].repeat(3, axis=-1)  # The script knows RGB only.
    assert (ours == expected).all()
    assert expected.std() > 10
    assert [path.name for path in sorted((tmp_path / 'images').iterdir())] == [
        path.name for path in sorted((tmp_path / 'host').iterdir())
    ]


@pytest.mark.checkout
def test_pixels_without_noise_are_those_of_the_hosts_script(place, tmp_path, monkeypatch):
    expected = by_the_host('plain.pkl', tmp_path, monkeypatch, '--noise-mode=none')
    ours = made('plain.pkl', tmp_path, '--noise=none')
    assert (ours == expected).all()


@pytest.mark.checkout
def test_pixels_are_within_a_level_of_those_without_our_repairs(place, tmp_path, monkeypatch):
    """On CPUs, repairs of the host compute the same in another order."""
    from training import networks

    from stylegan2_compress.patches import bias_act_on_cpu, modulated_conv_on_cpu, upfirdn2d_on_cpu

    monkeypatch.setattr(networks, 'modulated_conv2d', modulated_conv_on_cpu._host_function)
    monkeypatch.setattr(upfirdn2d_on_cpu.upfirdn2d, '_upfirdn2d_ref', upfirdn2d_on_cpu._host_function)
    monkeypatch.setattr(bias_act_on_cpu.bias_act, '_bias_act_ref', bias_act_on_cpu._host_function)
    expected = by_the_host('plain.pkl', tmp_path, monkeypatch, seeds='0-9').astype(int)
    monkeypatch.undo()
    ours = made(str(place / 'plain.pkl'), tmp_path, seeds='0-9')
    assert abs(ours - expected).max() <= 1


def test_rounding_is_the_hosts():
    values = torch.tensor([-2, -1, -1 + 1 / 255, 0, 1 / 255, 0.5, 1, 2]).reshape(1, 1, 2, 4)
    expected = (values.permute(0, 2, 3, 1) * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    assert (images.to_uint8_as_the_host(values) == expected.permute(0, 3, 1, 2).numpy()).all()


# --- Every network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('network', ['plain.safetensors', 'plain.pt', 'run'])
def test_files_and_directories_of_the_same_network(place, tmp_path, network):
    expected = made('plain.pkl', tmp_path / 'a').astype(int)
    assert abs(made(network, tmp_path / 'b') - expected).max() <= (network == 'plain.pt')  # Which scales weights.


def test_an_export(place, tmp_path):
    run('export', 'res8.pkl', '--format', 'torch', '--out', 'res8-torch')
    expected = made('res8.pkl', tmp_path / 'a', '--trunc=0.6').astype(int)
    made_of_it = made('res8-torch', tmp_path / 'b', '--trunc=0.6', '--trust')
    assert abs(made_of_it - expected).max() <= 1
    assert (made('res8-torch', tmp_path / 'c', '--trunc=0.6', '--trust', '--noise=const') == made_of_it).all()


@pytest.mark.parametrize(('built_in', 'others'), [('const', ['none', 'random']), ('none', ['const', 'random'])])
def test_the_noise_of_an_export_is_its_own(place, tmp_path, built_in, others):
    export = tmp_path / 'export'
    run('export', 'res8.pkl', '--format', 'torch', '--noise', built_in, '--out', export)
    expected = made('res8.pkl', tmp_path / 'a', f'--noise={built_in}').astype(int)
    assert abs(made(export, tmp_path / 'b', '--trust', f'--noise={built_in}') - expected).max() <= 1
    assert abs(made(export, tmp_path / 'c', '--trust') - expected).max() <= 1
    for other in others:
        assert f'--noise={other}: {export} is an export, which has its noise built in, {built_in}' in refused(
            'generate', export, '--trust', f'--noise={other}', '--out', tmp_path / 'd.png'
        )


def test_a_baked_ticket_makes_the_images_of_the_unbaked(place, tmp_path):
    difference = made('baked.pkl', tmp_path / 'a').astype(int) - made('unbaked.pkl', tmp_path / 'b')
    assert abs(difference).max() <= 1


# --- What is written --------------------------------------------------------------------------------------------------


def test_a_grid_has_the_images_row_by_row(place, tmp_path):
    single = made('plain.pkl', tmp_path, seeds='0-5')
    run('generate', 'plain.pkl', '--grid', '3x2', '--out', tmp_path / 'grid.png')
    grid = np.asarray(PIL.Image.open(tmp_path / 'grid.png'))
    assert (grid == np.concatenate([np.concatenate(single[i : i + 3], axis=1) for i in (0, 3)])).all()


def test_a_grid_that_is_not_full_is_white_at_the_end(place, tmp_path):
    run('generate', 'grey.pkl', '--seeds', '0-4', '--out', tmp_path / 'grid.png')
    grid = np.asarray(PIL.Image.open(tmp_path / 'grid.png'))
    assert grid.shape == (3 * 16, 2 * 16)
    assert (grid[32:, 16:] == 255).all()


def test_what_was_written_is_said(place, tmp_path):
    def said(seeds, out, *networks):
        return run('generate', *networks, '--seeds', seeds, '--out', tmp_path / out).strip()

    assert said('3', 'one', 'plain.pkl') == f'{tmp_path / "one"}: 1 image'
    assert said('3,4', 'two', 'plain.pkl') == f'{tmp_path / "two"}: 2 images'
    assert said('3', 'one.png', 'plain.pkl') == f'{tmp_path / "one.png"}: 1 image'
    both = said('3', 'both.png', 'plain.pkl', 'pruned.pkl', '--compare')
    assert both == f'{tmp_path / "both.png"}: 1 image of each of 2 networks'


def test_classes_take_turns(place, tmp_path):
    turns = made('labels.pkl', tmp_path / 'a', '--class=0,2', seeds='7,8,9')
    assert (turns[0] == made('labels.pkl', tmp_path / 'b', '--class=0', seeds='7')[0]).all()
    assert (turns[1] == made('labels.pkl', tmp_path / 'c', '--class=2', seeds='8')[0]).all()
    assert (turns[2] == made('labels.pkl', tmp_path / 'd', '--class=0', seeds='9')[0]).all()


def test_random_noise_is_a_function_of_the_seed(place, tmp_path):
    state = torch.random.get_rng_state()
    first, again = (made('plain.pkl', tmp_path / name, '--noise=random') for name in 'ab')
    assert (first == again).all()
    assert (first != made('plain.pkl', tmp_path / 'c')).any()
    assert (torch.random.get_rng_state() == state).all()
    assert (first == made('plain.pkl', tmp_path / 'd', '--noise=random', '--batch=2')).all()
    assert (first[1] == made('plain.pkl', tmp_path / 'e', '--noise=random', seeds='1')[0]).all()


def test_random_noise_stands_still(place):
    """Frames of a walk that goes nowhere are all the same."""
    G = pickles.load('plain.pkl')['G_ema']
    options = GenerateOptions(interpolate='walk.gif', seeds='0-1', noise='random', batch=4)
    frames = [np.asarray(frame) for frame in walk(G, torch.ones([2, 16]), torch.zeros([2, 0]), 3, options)]
    assert len(frames) == 6
    assert all((frame == frames[0]).all() for frame in frames)


def test_batches_round_otherwise_at_most(place, tmp_path):
    difference = made('plain.pkl', tmp_path / 'a', '--batch=3', seeds='0-7').astype(int)
    assert abs(difference - made('plain.pkl', tmp_path / 'b', seeds='0-7')).max() <= 1


def test_compared_networks_have_a_row_each(place, tmp_path):
    run('generate', '--compare', 'plain.pkl', 'grey.pkl', 'res8.pkl', '--seeds', '4-5', '--out', tmp_path / 'c.png')
    picture = np.asarray(PIL.Image.open(tmp_path / 'c.png'))
    assert picture.ndim == 3
    gap, caption, side = 8, 24, 16
    for row, network in enumerate(['plain.pkl', 'grey.pkl', 'res8.pkl']):
        top = row * (caption + side) + caption
        for column, image in enumerate(made(network, tmp_path / network, seeds='4-5')):
            left = gap + column * side
            image = image[..., None].repeat(3, axis=-1) if image.ndim == 2 else image
            image = image.repeat(side // len(image), axis=0).repeat(side // len(image), axis=1)
            assert (picture[top : top + side, left : left + side] == image).all()


def test_a_walk_passes_the_images_and_ends_where_it_began(place, tmp_path):
    ffmpeg = pytest.importorskip('imageio_ffmpeg')
    for ending in ('gif', 'mp4'):
        film = tmp_path / f'walk.{ending}'
        run('generate', 'plain.pkl', '--seeds', '0-2', '--frames', '4', '--interpolate', film, '--batch', '5')
    frames = [frame.convert('RGB') for frame in PIL.ImageSequence.Iterator(PIL.Image.open(tmp_path / 'walk.gif'))]
    assert len(frames) == 12
    for frame, image in zip(frames[::4], made('plain.pkl', tmp_path), strict=True):
        assert abs(np.asarray(frame).astype(int) - image).mean() < 8  # GIF has 256 colours.
    assert ffmpeg.count_frames_and_secs(str(tmp_path / 'walk.mp4')) == (12, pytest.approx(12 / 25, abs=0.01))
    stream = subprocess.run([ffmpeg.get_ffmpeg_exe(), '-i', tmp_path / 'walk.mp4'], stderr=subprocess.PIPE, text=True)
    assert re.search(r'yuv420p\((tv, )?smpte170m', stream.stderr)  # Else large films have other colours in browsers.


def test_a_walk_of_several_networks(place, tmp_path):
    words = ['--compare', 'plain.pkl', 'pruned.pkl', '--seeds', '0-1', '--frames', '2']
    run('generate', *words, '--interpolate', tmp_path / 'walk.gif')
    film = PIL.Image.open(tmp_path / 'walk.gif')
    assert film.n_frames == 4
    assert film.size[1] == 2 * (24 + 16) + 8
    first = np.asarray(film.convert('RGB')).astype(int)
    rows = [first[24:40, 8:24], first[64:80, 8:24]]
    for row, network in zip(rows, ('plain.pkl', 'pruned.pkl'), strict=True):
        assert abs(row - made(network, tmp_path / network)[0]).mean() < 8  # GIF has 256 colours.
    assert abs(rows[0] - rows[1]).mean() > 8


def test_the_curve_is_closed_and_smooth():
    places = np.random.RandomState(0).randn(4, 3)
    curve = np.concatenate(list(films.closed_curve(places, 50, batch=7)))
    assert curve.shape == (200, 3)
    assert np.allclose(curve[::50], places)
    steps = np.diff(np.concatenate([curve, curve[:2]]), axis=0)
    assert np.linalg.norm(np.diff(steps, axis=0), axis=1).max() < 0.02


# --- What is there already --------------------------------------------------------------------------------------------


def test_files_in_a_directory_are_replaced_by_force_only(place, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'mine.txt').write_text('mine')
    (out / 'seed0001.png').write_bytes(b'mine, too')
    line = ['generate', 'plain.pkl', '--seeds', '0-1', '--out', out]
    assert 'seed0001.png exists: name another file, or add --force' in refused(*line, unchanged=tmp_path)
    run(*line, '--force')
    assert sorted(path.name for path in out.iterdir()) == ['mine.txt', 'seed0000.png', 'seed0001.png']
    assert (out / 'mine.txt').read_text() == 'mine'
    assert PIL.Image.open(out / 'seed0001.png').size == (16, 16)


@pytest.mark.parametrize('out', ['out', 'new/out'])
def test_files_that_appear_meanwhile_are_not_replaced(out, place, tmp_path, monkeypatch):
    out = tmp_path / out
    options = GenerateOptions(seeds='0-1', out=str(out))
    pictures = generation.pictures

    def another_job(*args):
        out.mkdir(parents=True, exist_ok=True)
        (out / 'seed0001.png').write_bytes(b'of another job')
        return pictures(*args)

    monkeypatch.setattr(generation, 'pictures', another_job)
    with pytest.raises(UserError, match=r'seed0001\.png has appeared while this was made'):
        generation.generate(['plain.pkl'], options)
    assert [path.name for path in out.iterdir()] == ['seed0001.png']
    assert (out / 'seed0001.png').read_bytes() == b'of another job'


def test_more_images_than_memory_holds_are_a_sentence(place, tmp_path, monkeypatch):
    def full(*_args):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')  # As on a GPU.

    monkeypatch.setattr(generation, 'pictures', full)
    with pytest.raises(UserError, match=r'--batch=.* is more than memory holds on cpu: give a smaller one'):
        generation.generate(['plain.pkl'], GenerateOptions(seeds='0-1', out=str(tmp_path / 'out')))
    assert not (tmp_path / 'out').exists()


def test_nothing_is_left_of_images_that_are_not_finite(place, tmp_path):
    """The third image is the first that is infinite."""
    contents = pickles.load('plain.pkl')
    forward = type(contents['G_ema'].synthesis).forward
    seen = []

    def broken(self, *args, **kwargs):
        seen.append(1)
        return forward(self, *args, **kwargs) / (len(seen) < 3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(contents['G_ema'].synthesis), 'forward', broken)
        with pytest.raises(UserError, match=r'NaN or infinite \(1 of the first 3\)'):
            generate(['plain.pkl'], GenerateOptions(out=str(tmp_path / 'new' / 'out'), seeds='0-5', device='cpu'))
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_for_films(monkeypatch):
    monkeypatch.setitem(sys.modules, 'imageio_ffmpeg', None)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    sentence = '--interpolate=a.mp4 needs the package imageio-ffmpeg: pip install imageio-ffmpeg, or take .gif.'
    assert sentence in refused('generate', 'plain.pkl', '--interpolate', 'a.mp4')


@pytest.mark.parametrize(('text', 'numbers'), [('3', [3]), ('0-2,7,5-5', [0, 1, 2, 7, 5]), ('4, 1', [4, 1])])
def test_numbers(text, numbers):
    assert parse_numbers('--seeds', text, 9) == numbers


def test_without_an_average_of_w_there_is_no_truncation(place, tmp_path):
    sentence = '--trunc=0.7: no_average.pkl has no average of w to truncate to.'
    assert sentence in refused('generate', 'no_average.pkl', '--trunc=0.7', '--out', tmp_path / 'a.png')
