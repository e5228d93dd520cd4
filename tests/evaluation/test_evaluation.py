"""Evaluation: our numbers against the host's, closed forms and other implementations; records, tables, bad input."""

import csv
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import zipfile
from pathlib import Path

import commands
import detectors
import dnnlib
import forked
import numpy as np
import pytest
import torch
from metrics import (
    frechet_inception_distance,
    inception_score,
    kernel_inception_distance,
    metric_main,
    metric_utils,
    perceptual_path_length,
    precision_recall,
)
from torch_utils import training_stats

from stylegan2_compress import embeddings, pickles
from stylegan2_compress.compression.planning import parse_metrics
from stylegan2_compress.embeddings.perceptual import perceptual_distance
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation import (
    distances,
    features,
    generators,
    measuring,
    metrics,
    names,
    records,
    samples,
    tables,
)
from stylegan2_compress.evaluation.base import Metric
from stylegan2_compress.evaluation.compare import compare
from stylegan2_compress.evaluation.evaluate import evaluate, table
from stylegan2_compress.host import datasets, downloads
from stylegan2_compress.losses.features import TeacherPass
from stylegan2_compress.losses.images import ImageMatching
from stylegan2_compress.losses.terms import Batch, StyleMixing
from stylegan2_compress.report import reading
from stylegan2_compress.runs.directory import RunDirectory

REPOSITORY = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.filterwarnings('ignore:This DataLoader will create 3 worker processes'),
    pytest.mark.filterwarnings('ignore::DeprecationWarning'),
]


@pytest.fixture(scope='module')
def place(tmp_path_factory, make_dataset_zip, make_generator, make_discriminator):
    """A run directory with a teacher and a student, their data, an embedding, and detectors in the host's cache."""
    directory = tmp_path_factory.mktemp('evaluation')
    make_dataset_zip(directory, n=40, labels=2)
    for seed, name in enumerate(('teacher.pkl', 'student.pkl')):
        G = make_generator(seed, c_dim=2).eval().requires_grad_(False)
        D = make_discriminator(seed, c_dim=2).eval().requires_grad_(False)
        pickles.save(directory / name, dict(G=G, D=D, G_ema=G, augment_pipe=None, training_set_kwargs=None))
    with pytest.MonkeyPatch.context() as patch, detectors.in_the_place_of_the_hosts(directory / 'dnnlib') as detector:
        torch.jit.script(detector).save(directory / 'embedding.pt')
        patch.setenv('STYLEGAN2_COMPRESS_CACHE', str(directory / 'cache'))
        yield directory


@pytest.fixture
def copies(place, tmp_path):
    """Teacher and student by themselves, so that records go where only this test looks."""
    return [shutil.copy(place / name, tmp_path) for name in ('teacher.pkl', 'student.pkl')]


def spec_of(place) -> str:
    return f'torchscript:{place / "embedding.pt"}@size=16'


# --- The host's metrics -----------------------------------------------------------------------------------------------

HOSTS = {  # How the host computes each, at 64 images.
    'fid50k_full': lambda opts: [frechet_inception_distance.compute_fid(opts, None, 64)],
    'kid50k_full': lambda opts: [kernel_inception_distance.compute_kid(opts, 1000000, 64, 100, 1000)],
    'pr50k3_full': lambda opts: precision_recall.compute_pr(opts, 200000, 64, 3, 10000, 10000),
    'is50k': lambda opts: inception_score.compute_is(opts, 64, 10),
    'ppl2_wend': lambda opts: [perceptual_path_length.compute_ppl(opts, 64, 1e-4, 'w', 'end', False, 2)],
}


def host_options(place, G, **changed):
    kwargs = dict(class_name='training.dataset.ImageFolderDataset', path=str(place / 'data.zip'))
    kwargs.update(resolution=16, use_labels=True, **changed)
    return metric_utils.MetricOptions(G=G, dataset_kwargs=kwargs, device=torch.device('cpu'))


@pytest.mark.parametrize('metric', HOSTS)
def test_host_metrics_are_the_hosts_at_any_number_of_images(metric, place, copies):
    """Equal, with the data's statistics computed on the way or from the host's cache, for the same seed."""
    found = evaluate([copies[1]], str(place / 'data.zip'), metric, samples=64, seed=5, device='cpu')[0].values
    opts = host_options(place, pickles.load(copies[1])['G_ema'])
    if metric != 'ppl2_wend':
        opts.dataset_kwargs.update(max_size=None, xflip=False)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = HOSTS[metric](opts)
    assert [value for (value,) in found.values()] == pytest.approx(list(expected), rel=1e-6)
    name = {'ppl2_wend': 'ppl2_wend_0.064k'}.get(metric, metric.replace('50k', '0.064k'))
    assert all(key.startswith(name) for key in found)
    assert (Path(copies[1]).parent / f'metric-{name}.jsonl').is_file()


@pytest.mark.parametrize('metric', metric_main.list_valid_metrics())
def test_without_samples_the_host_is_asked_for_what_it_does_itself(metric, place, copies, monkeypatch):
    """Every argument but the images' source, for every metric it has."""
    calls = []
    for module, name in [
        (frechet_inception_distance, 'compute_fid'),
        (kernel_inception_distance, 'compute_kid'),
        (precision_recall, 'compute_pr'),
        (inception_score, 'compute_is'),
        (perceptual_path_length, 'compute_ppl'),
    ]:
        result = (0.25, 0.5) if name in ('compute_pr', 'compute_is') else 0.25

        def compute(opts, result=result, name=name, **kwargs):
            calls.append((name, kwargs, dict(opts.dataset_kwargs)))
            return result

        monkeypatch.setattr(module, name, compute)
    mirror = metric in ('fid50k', 'kid50k', 'pr50k3')
    xflip = {'xflip': True} if mirror else {}
    ours = evaluate([copies[0]], str(place / 'data.zip'), metric, device='cpu', mirror=mirror)[0].values
    theirs = metric_main.calc_metric(metric, **vars(host_options(place, None, **xflip)) | {'progress': None})
    assert calls[0] == calls[1]
    assert {name: value for name, (value,) in ours.items()} == theirs.results


@pytest.mark.checkout
@pytest.mark.parametrize('metric', ['fid50k_full', 'kid50k_full'])
def test_equals_calc_metrics_of_a_checkout(metric, place, copies, monkeypatch):
    """The host's own command, on a CPU in place of its GPU, at 64 images: equal numbers, and equal records."""
    import calc_metrics

    class OnCPU:
        def __getattr__(self, name):
            return getattr(torch, name)

        def device(self, *_which):
            return torch.device('cpu')

    for module, name in [(frechet_inception_distance, 'compute_fid'), (kernel_inception_distance, 'compute_kid')]:
        compute = getattr(module, name)
        at_64 = lambda opts, compute=compute, **kwargs: compute(opts, **{**kwargs, 'num_gen': 64})  # noqa: E731
        monkeypatch.setattr(module, name, at_64)
    monkeypatch.setattr(calc_metrics, 'torch', OnCPU())
    monkeypatch.setattr(torch.multiprocessing, 'set_start_method', lambda _name: None)
    monkeypatch.setattr(calc_metrics.dnnlib.util, 'Logger', lambda **_options: None)
    monkeypatch.setattr(training_stats, '_sync_called', False)  # Trainings of other tests have collected already.

    # Ours first, which fills the cache; the number of images is the host's own here, as far as we know.
    monkeypatch.setattr('stylegan2_compress.evaluation.host_metrics.COMPUTED_BY', ())
    ours = evaluate([copies[1]], str(place / 'data.zip'), metric, seed=3, device='cpu')[0].values[metric][0]
    directory = Path(copies[1]).parent
    (directory / 'training_options.json').write_text('{}')  # Without it the host writes no record.
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    arguments = ['--network', copies[1], '--metrics', metric, '--data', str(place / 'data.zip'), '--verbose', '0']
    calc_metrics.calc_metrics.main(arguments, standalone_mode=False)
    mine, theirs = records.read(directory)
    assert theirs['results'][metric] == pytest.approx(ours, rel=1e-6)
    assert set(theirs) <= set(mine)
    assert {mine[key] == theirs[key] for key in ('metric', 'num_gpus', 'snapshot_pkl')} == {True}


def test_data_statistics_are_those_in_the_hosts_cache(place, copies):
    """calc_metrics.py finds what we computed, and the other way round."""
    evaluate([copies[0]], str(place / 'data.zip'), 'fid50k_full', samples=64, device='cpu')
    cache = place / 'dnnlib' / 'gan-metrics'
    before = sorted(cache.iterdir())
    opts = host_options(place, pickles.load(copies[0])['G_ema'])
    opts.dataset_kwargs.update(max_size=None, xflip=False)
    HOSTS['fid50k_full'](opts)
    assert before
    assert sorted(cache.iterdir()) == before


def test_statistics_of_other_data_at_the_same_path_are_not_taken(copies, tmp_path, make_dataset_zip, monkeypatch):
    """The host finds those that it has by the path as it was given, in whatever directory."""
    found, expected = {}, {}
    for name, count in [('a', 40), ('b', 50)]:
        (tmp_path / name).mkdir()
        make_dataset_zip(tmp_path / name, n=count, labels=2)
        data = str(tmp_path / name / 'data.zip')
        expected[name] = evaluate([copies[1]], data, 'fid50k_full', samples=20, device='cpu')
    computed = metric_utils.get_feature_detector
    calls = []
    monkeypatch.setattr(metric_utils, 'get_feature_detector', lambda **given: calls.append(given) or computed(**given))
    for name in 'abb':
        monkeypatch.chdir(tmp_path / name)
        found[name] = evaluate([copies[1]], 'data.zip', 'fid50k_full', samples=20, device='cpu')
        assert found[name][0].values == expected[name][0].values
    assert found['a'][0].values != found['b'][0].values
    assert len(calls) == 2 + 2 + 1  # Of generated images, and of the data unless there are those of the same.


def test_statistics_without_a_mark_are_made_anew(place, copies, tmp_path):
    """The host's own tools make such, of another file with the same name in another directory, say."""
    data = str(shutil.copy(place / 'data.zip', tmp_path / 'other.zip'))
    evaluate([copies[0]], data, 'fid50k_full', samples=20, device='cpu')
    (cached,) = (place / 'dnnlib' / 'gan-metrics').glob('other-*.pkl')
    for is_marked in (True, False):
        (mark,) = cached.parent.glob('other-*.pkl.data')
        made = cached.stat().st_mtime_ns
        if not is_marked:
            mark.unlink()
        evaluate([copies[0]], data, 'fid50k_full', samples=20, device='cpu')
        assert (cached.stat().st_mtime_ns == made) == is_marked


def test_without_a_place_for_statistics_of_the_data_numbers_are_the_same(place, copies, tmp_path, monkeypatch, capsys):
    given = dict(samples=64, seed=5, device='cpu')
    expected = evaluate([copies[1]], str(place / 'data.zip'), 'fid50k_full', **given)[0].values
    with detectors.in_the_place_of_the_hosts(tmp_path / 'dnnlib'):
        (tmp_path / 'dnnlib' / 'gan-metrics').write_text('a file in its place')
        assert evaluate([copies[1]], str(place / 'data.zip'), 'fid50k_full', **given)[0].values == expected
        statistics = list(Path(dnnlib.make_cache_dir_path('gan-metrics')).glob('*.pkl'))
    assert capsys.readouterr().err.startswith(f'Cannot write to the cache {tmp_path}/dnnlib (File exists): until')
    assert len(statistics) == 1


# --- Distances --------------------------------------------------------------------------------------------------------


def test_kernel_distance_is_the_hosts_with_one_subset_of_everything():
    rnd = np.random.default_rng(0)
    x, y = rnd.standard_normal([40, 5]), rnd.standard_normal([40, 5]) + 0.5
    kernel = lambda a, b: (a @ b.T / 5 + 1) ** 3  # noqa: E731
    within = sum(kernel(z, z).sum() - np.trace(kernel(z, z)) for z in (x, y)) / (40 * 39)
    expected = within - 2 * kernel(x, y).mean()
    assert distances.kernel_distance(x, y, rnd, subsets=3, size=40) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_of_subsets_has_the_mean_of_the_whole():
    rnd = np.random.default_rng(0)
    x, y = rnd.standard_normal([300, 3]), rnd.standard_normal([300, 3]) + 1
    whole = distances.kernel_distance(x, y, rnd, subsets=1, size=300)
    assert distances.kernel_distance(x, y, rnd, subsets=200, size=50) == pytest.approx(whole, rel=0.1)


@pytest.mark.parametrize('rows', [7, 2000])
def test_density_and_coverage_by_counting(rows):
    """Against the definition, one pair of points at a time."""
    rnd = np.random.default_rng(0)
    real, fake, k = rnd.standard_normal([30, 2]), 0.7 * rnd.standard_normal([20, 2]) + 0.3, 3
    radii = [sorted(np.linalg.norm(real - centre, axis=1))[k] for centre in real]
    inside = [[np.linalg.norm(f - c) < r for f in fake] for c, r in zip(real, radii, strict=True)]
    density, coverage = distances.density_coverage(real, fake, k, rows=rows)
    assert density == pytest.approx(np.sum(inside) / (k * 20))
    assert coverage == pytest.approx(np.mean([any(ball) for ball in inside]))
    assert 0 < coverage < 1


def test_density_and_coverage_at_their_ends():
    real = np.random.default_rng(0).standard_normal([50, 4])
    assert distances.density_coverage(real, real)[1] == 1
    assert distances.density_coverage(real, real + 100) == (0, 0)


def test_features_far_from_zero():
    """As some networks have them: distances are those around zero."""
    real, fake = np.random.default_rng(0).standard_normal([2, 60, 4])
    expected = distances.density_coverage(real, fake)
    assert distances.density_coverage(real + 1e5, fake + 1e5) == pytest.approx(expected, abs=0.02)
    assert expected[1] > 0.5


def test_frechet_distance_of_one_feature():
    x, y = np.random.default_rng(0).standard_normal([2, 100, 1])
    y = 2 * y + 3
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert distances.frechet_distance(x, y) == pytest.approx(expected)


class Layers(torch.nn.Module):
    """An embedding with two layers that can be written down."""

    def forward(self, x):
        return x.mean(dim=(2, 3))

    def layers(self, x):
        return [x, torch.nn.functional.avg_pool2d(x, 2)]


def layered() -> embeddings.Embedding:
    spec = embeddings.specs.parse_options('module:tests:layers@size=image')
    identity = embeddings.base.Preprocessing(size=None, mean=(0.5,) * 3, std=(0.5,) * 3)
    return embeddings.Embedding(spec, Layers(), identity, torch.device('cpu'))


def test_perceptual_distance_written_out():
    x, y = torch.rand([2, 2, 3, 4, 4], generator=torch.Generator().manual_seed(0)) + 0.1
    found = perceptual_distance(layered(), x, y)
    expected = np.zeros(2)
    for n in range(2):
        for a, b in zip(Layers().layers(x), Layers().layers(y), strict=True):
            side = a.shape[2]
            for i in range(side):
                for j in range(side):
                    u, v = a[n, :, i, j], b[n, :, i, j]
                    expected[n] += ((u / u.norm() - v / v.norm()) ** 2).sum() / side**2 / 2
    assert found.numpy() == pytest.approx(expected, rel=1e-4)
    assert perceptual_distance(layered(), x, x).max() == 0


def test_perceptual_distance_has_a_finite_gradient_at_black():
    x = torch.zeros([1, 3, 4, 4], requires_grad=True)
    perceptual_distance(layered(), x, torch.ones_like(x)).sum().backward()
    assert x.grad.isfinite().all()


def test_image_distillation_written_out(make_generator):
    """3 · mean |x_S − x_T| + 5 d(x_S, x_T), for the latents and the mixing of the batch."""
    teacher, student = (make_generator(seed).eval() for seed in (0, 1))
    z, z2, c = (*torch.randn([2, 4, 16]).unbind(), torch.zeros([4, 0]))
    images = student(z, c, noise_mode='const')
    batch = Batch(z, c, StyleMixing(z2, cutoff=2), images, torch.zeros([4, 1]))
    summands = ImageMatching(TeacherPass(teacher, {'noise_mode': 'const'}), layered(), 3, 5).generator(batch)
    found = sum(summand.weight * summand.value for summand in summands)
    ws = torch.cat([teacher.mapping(z, c)[:, :2], teacher.mapping(z2, c)[:, 2:]], dim=1)
    wanted = teacher.synthesis(ws, noise_mode='const')
    expected = 3 * (images - wanted).abs().mean() + 5 * perceptual_distance(layered(), images, wanted).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()
    assert student.synthesis.b16.conv1.weight.grad.abs().sum() > 0
    assert teacher.synthesis.b16.conv1.weight.grad is None


# --- Beyond the host's ------------------------------------------------------------------------------------------------


def test_embedding_metrics_from_the_images_themselves(place, copies):
    """FD, KD, density and coverage in an embedding, computed here from files and from the generator."""
    spec = spec_of(place)
    wanted = f'fd:{spec},kd:{spec},dc:{spec}'
    found = evaluate([copies[1]], str(place / 'data.zip'), wanted, samples=48, seed=2, device='cpu')[0].values
    embedding = embeddings.load(spec, 'cpu')
    from training.dataset import ImageFolderDataset

    dataset = ImageFolderDataset(str(place / 'data.zip'), use_labels=True)
    reals = embedding(torch.stack([torch.from_numpy(image) for image, _c in dataset]) / 127.5 - 1).numpy()
    G = pickles.load(copies[1])['G_ema']
    c = samples.draw_labels(dict(class_name='training.dataset.ImageFolderDataset', path=dataset._path, use_labels=True),
                            2, 48, 2)  # fmt: skip
    assert 10 < c.sum(0)[0] < 38  # Both classes, as in the data.
    images = torch.cat(list(samples.fakes(G, samples.latents(G, 48, 2), c, noise_seed=2)))
    assert torch.equal(images, ((images + 1) * 127.5).round() / 127.5 - 1)
    fakes = embedding(images).numpy()
    slug = 'torchscript_embedding.pt@size=16'
    assert found[f'fd0.048k_{slug}'] == pytest.approx([distances.frechet_distance(reals, fakes)], rel=1e-4)
    kd = distances.kernel_distance(reals, fakes, np.random.default_rng(0), 2000)
    assert found[f'kd0.048k_{slug}'][0] == pytest.approx(kd, rel=0.2)
    for what, value in zip(('density', 'coverage'), distances.density_coverage(reals, fakes, 5), strict=True):
        assert found[f'dc0.048k5_{slug}_{what}'] == pytest.approx([value], rel=1e-4)
    assert distances.density_coverage(reals, fakes, 5) != distances.density_coverage(fakes, reals, 5)
    assert set(found) == {
        f'fd0.048k_{slug}',
        f'kd0.048k_{slug}',
        f'dc0.048k5_{slug}_density',
        f'dc0.048k5_{slug}_coverage',
    }


def test_data_features_are_kept_until_the_data_changes(place, make_dataset_zip, tmp_path, monkeypatch):
    embedding = embeddings.load(spec_of(place), 'cpu')
    monkeypatch.setenv('STYLEGAN2_COMPRESS_CACHE', str(tmp_path / 'cache'))
    kwargs = dict(class_name='training.dataset.ImageFolderDataset', resolution=16)
    kwargs['path'] = str(make_dataset_zip(tmp_path, n=8))
    first = features.data_features(embedding, kwargs, torch.device('cpu'))
    with monkeypatch.context() as patch:
        patch.setattr(samples, 'reals', None)  # Cannot be read again.
        assert np.array_equal(features.data_features(embedding, kwargs, torch.device('cpu')), first)
        embedding.network.library = 'transformers 9.9.9'  # Its features may be others.
        with pytest.raises(TypeError, match='NoneType'):
            features.data_features(embedding, kwargs, torch.device('cpu'))
    with zipfile.ZipFile(kwargs['path']) as archive:
        contents = {name: archive.read(name) for name in archive.namelist() if name.endswith('.png')}
    with zipfile.ZipFile(kwargs['path'], 'w') as archive:  # The same names, backwards.
        for name, content in zip(contents, reversed(contents.values()), strict=True):
            archive.writestr(name, content)
    again = features.data_features(embedding, kwargs, torch.device('cpu'))
    assert again == pytest.approx(first[::-1], rel=1e-6)


def test_an_evaluation_looks_at_the_data_once(place, copies, monkeypatch):
    """Which data a folder holds takes reading all its files."""
    seen = []
    fingerprint = datasets.fingerprint
    monkeypatch.setattr(datasets, 'fingerprint', lambda path: seen.append(path) or fingerprint(path))
    wanted = f'fd:{spec_of(place)},kd:{spec_of(place)}'
    evaluate(copies, str(place / 'data.zip'), wanted, samples=20, repeats=2, device='cpu')
    assert seen == [str(place / 'data.zip')]


@pytest.mark.parametrize('line', ['{"results": {"fid": 1', '[]', '{"results": {"fid": "low"}, "snapshot_pkl": "a.pkl"}',
                                  '{"results": {"fid": 1}, "snapshot_pkl": null}'])  # fmt: skip
def test_lines_that_are_no_results_are_left_out_and_counted(tmp_path, capsys, line):
    good = dict(results=dict(fid=1.5), snapshot_pkl='a.pkl')
    (tmp_path / 'metric-fid.jsonl').write_text(f'{line}\n{json.dumps(good)}\n')
    assert list(records.read(tmp_path)) == [good]
    assert capsys.readouterr().err == f'{tmp_path}/metric-fid.jsonl: 1 line left out, which is no result of a metric.\n'


def test_a_line_that_was_cut_off_takes_no_other_with_it(tmp_path):
    record = dict(results=dict(fid=1.5), metric='fid', seed=0)
    stump = '{"results": {"fid": 1'
    (tmp_path / 'metric-fid.jsonl').write_text(stump)
    for _ in range(2):
        records.append(str(tmp_path / 'a.pkl'), record)
    assert [each['results'] for each in records.read(tmp_path)] == [dict(fid=1.5)] * 2
    assert (tmp_path / 'metric-fid.jsonl').read_text().startswith(f'{stump}\n{{')


def test_a_result_that_cannot_be_written_is_in_the_error_and_leaves_the_file(tmp_path):
    """A limit on the size of files is as a full disk: the first bytes fit."""
    resource = pytest.importorskip('resource')
    (tmp_path / 'metric-fid.jsonl').write_text('{}\n')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(UserError, match=r'Cannot write .*metric-fid.jsonl: .*\. The result is \{"fid": 1.5\}\.'):
            records.append(str(tmp_path / 'a.pkl'), dict(results=dict(fid=1.5), metric='fid', seed=0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert (tmp_path / 'metric-fid.jsonl').read_text() == '{}\n'


def test_records_that_cannot_be_read_are_a_sentence(tmp_path):
    (tmp_path / 'metric-fid.jsonl').mkdir()
    with pytest.raises(UserError, match=r'metric-fid\.jsonl is a directory, not a file\.'):
        list(records.read(tmp_path))


def test_results_go_where_they_can_be_written(place, copies, tmp_path, monkeypatch):
    """Every network's, with its path; nothing beside the networks."""
    out = tmp_path / 'results.jsonl'
    given = dict(samples=20, device='cpu', out=str(out))
    found = evaluate(copies, str(place / 'data.zip'), f'fd:{spec_of(place)}', **given)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line['snapshot_pkl'] for line in lines] == copies
    assert [list(line['results'].values()) for line in lines] == [next(iter(each.values.values())) for each in found]
    assert not list(tmp_path.glob('metric-*'))
    monkeypatch.setattr(os, 'access', lambda path, _mode: str(path) != str(tmp_path))
    said = r'metric-agreement1k.jsonl: its directory does not exist or is not writable; --out=FILE takes'
    with pytest.raises(UserError, match=said):
        evaluate(copies, str(place / 'data.zip'), 'agreement', device='cpu')
    evaluate(copies, str(place / 'data.zip'), 'agreement', **given)
    assert len(out.read_text().splitlines()) == 3


def test_results_that_cannot_be_written_are_refused_before_they_are_measured(place, copies, tmp_path, monkeypatch):
    """As root, who may write everything, only what is no file cannot be."""
    monkeypatch.setattr(samples, 'generate', None)  # Nothing is measured.
    (tmp_path / 'metric-agreement1k.jsonl').mkdir()
    with pytest.raises(UserError, match=r'metric-agreement1k.jsonl: Is a directory; --out=FILE takes the results'):
        evaluate(copies, str(place / 'data.zip'), 'agreement', device='cpu')
    for name, said in [('file/r.jsonl', 'Not a directory'), ('metric-agreement1k.jsonl', 'Is a directory')]:
        (tmp_path / 'file').touch()
        with pytest.raises(UserError, match=f'Cannot write .*{name}: {said}'):
            evaluate(copies, str(place / 'data.zip'), 'agreement', device='cpu', out=str(tmp_path / name))
    with pytest.raises(UserError, match=r'Cannot write .*metric-agreement1k.jsonl: Is a directory'):
        records.append(copies[0], dict(results={}, metric='agreement1k'))


def test_a_run_directory_stands_for_its_last_snapshot(place, copies, tmp_path):
    for kimg, file in [(1, copies[0]), (2, copies[1])]:
        shutil.copy(file, tmp_path / f'network-snapshot-{kimg:06d}.pkl')
    found = evaluate([copies[0], str(tmp_path)], str(place / 'data.zip'), 'agreement', samples=20, device='cpu')
    assert found[1].file == f'{tmp_path}/network-snapshot-000002.pkl'
    assert found[1].values == evaluate(copies, str(place / 'data.zip'), 'agreement', samples=20, device='cpu')[1].values


def spoiled(path, out, weights, value=float('nan')):
    """A copy of a network file whose weights of a name are another value."""
    contents = pickles.load(path)
    dict(contents['G_ema'].named_parameters())[weights].data[0] = value
    pickles.save(out, contents)
    return str(out)


@pytest.mark.parametrize('name', ['fd', 'fid50k_full', 'agreement', 'ppl2_wend'])
def test_images_that_are_not_finite_are_refused_before_anything_is_recorded(place, copies, tmp_path, name):
    """NaN becomes 0 in 8 bits: grey images are nearer to noise than a network is that has learnt nothing."""
    metric = f'fd:{spec_of(place)}' if name == 'fd' else name
    bad = spoiled(copies[1], tmp_path / 'nan.pkl', 'synthesis.b16.torgb.bias')
    with pytest.raises(UserError, match=r'nan.pkl has 1 weights of [0-9,]+ in G_ema that are NaN or infinite'):
        evaluate([copies[0], bad], str(place / 'data.zip'), metric, samples=20, device='cpu')
    large = spoiled(copies[1], tmp_path / 'large.pkl', 'synthesis.b16.torgb.bias', 3e38)
    contents = pickles.load(large)
    contents['G_ema'].synthesis.b8.torgb.bias.data[:] = 3e38
    pickles.save(large, contents)
    with pytest.raises(UserError, match=r'large.pkl makes images that are NaN or infinite \((\d+) of the first \1\)'):
        evaluate([large] if name != 'agreement' else [copies[0], large], str(place / 'data.zip'), metric, samples=20,
                 device='cpu')  # fmt: skip
    assert not list(tmp_path.glob('*.jsonl'))


def test_images_are_looked_at_only_while_they_are_measured(place, copies):
    G = pickles.load(copies[0])['G_ema']
    with samples.required_to_be_finite('teacher.pkl', G):
        G(torch.zeros([1, 16]), torch.zeros([1, 2]))
    assert not G.synthesis._forward_hooks


def test_agreement_with_the_teacher(place, copies):
    """Zero for the teacher's copy; for another network the mean over pairs of images of the same z."""
    same = shutil.copy(copies[0], Path(copies[0]).parent / 'copy.pkl')
    files = [copies[0], same, copies[1], copies[1]]  # One of them twice, as globs may have it.
    found = evaluate(files, str(place / 'data.zip'), 'agreement', samples=20, device='cpu')
    assert [each.file for each in found] == files[:3]
    assert found[0].values == {}
    assert found[1].values == {'agreement0.02k_pixels': [0]}
    x, y = pairs_of(copies, place, 20)
    assert found[2].values['agreement0.02k_pixels'][0] == pytest.approx((x - y).abs().mean().item(), abs=0.005)


def pairs_of(files, place, count):
    """Images of two networks for the same z and labels."""
    networks = [pickles.load(file)['G_ema'] for file in files]
    data = dict(class_name='training.dataset.ImageFolderDataset', path=str(place / 'data.zip'), use_labels=True)
    c = samples.draw_labels(data, 2, count, 0)
    z = torch.from_numpy(np.random.RandomState(0).standard_normal([count, 16])).float()
    return [G(z, c, noise_mode='const').clamp(-1, 1) for G in networks]


def test_the_teacher_is_on_record(place, copies):
    evaluate(copies, str(place / 'data.zip'), 'agreement', samples=20, device='cpu')
    (record,) = (each for each in records.read(Path(copies[1]).parent) if each['metric'] == 'agreement0.02k')
    assert record['teacher'] == hashlib.sha256(Path(copies[0]).read_bytes()).hexdigest()


def test_agreement_in_features(place, copies, monkeypatch):
    monkeypatch.setattr(embeddings, 'load', lambda *_: layered())
    monkeypatch.setattr(embeddings, 'parse', lambda text: text)
    found = evaluate(copies, str(place / 'data.zip'), 'agreement:layered', samples=20, device='cpu')[1].values
    assert set(found) == {'agreement0.02k_layered_pixels', 'agreement0.02k_layered_features'}
    expected = perceptual_distance(layered(), *pairs_of(copies, place, 20)).mean().item()
    assert found['agreement0.02k_layered_features'][0] == pytest.approx(expected, rel=0.01)


class Brightness(Metric):
    """The mean of all pixels, in [-1, 1]."""

    def __init__(self, samples):
        super().__init__(samples or 10)
        self.name = f'brightness{self.samples}'

    def facts(self):
        return dict(device=str(self.setting.device))

    def measure(self, G, seed):
        z = samples.latents(G, self.samples, seed)
        c = samples.draw_labels(self.setting.training_set_kwargs, G.c_dim, self.samples, seed)
        return {self.name: torch.cat(list(samples.fakes(G, z, c))).mean().item()}


class Nameless(Metric):
    def measure(self, G, seed):
        return {}


class Returning(Brightness):
    returned: object = None

    def measure(self, G, seed):
        return self.returned


@pytest.mark.parametrize('returned', [None, 'text', {}, {'brightness': 'bright'}, torch.ones(2)])
def test_a_metric_that_returns_no_numbers(returned, place, copies, monkeypatch):
    monkeypatch.setattr(Returning, 'returned', returned)
    with pytest.raises(UserError, match='--metrics=brightness10 must return numbers by name, such as '):
        evaluate(copies, str(place / 'data.zip'), 'test_evaluation.Returning', device='cpu')
    assert not any(Path(copies[0]).parent.glob('*.jsonl'))


def test_a_metric_that_returns_a_number_of_numpys(place, copies, monkeypatch):
    monkeypatch.setattr(Returning, 'returned', {'brightness': np.float32(0.5)})
    (found,) = evaluate(copies[:1], str(place / 'data.zip'), 'test_evaluation.Returning', device='cpu')
    assert found.values == {'brightness': [0.5]} == {'brightness': [compare(copies[:1])[0]['brightness']]}


@pytest.mark.parametrize(('given', 'count'), [(None, 10), (20, 20)])
def test_a_metric_of_the_users_by_its_dotted_name(place, copies, given, count):
    """Beside one of ours, with as many images as were asked for, and with records that `compare` reads."""
    name = f'brightness{count}'
    kwargs = dict(samples=given, seed=3, device='cpu')
    wanted = 'test_evaluation.Brightness' + (',agreement' if given else '')
    results = evaluate(copies, str(place / 'data.zip'), wanted, **kwargs)
    for file, result in zip(copies, results, strict=True):
        G = pickles.load(file)['G_ema']
        training_set_kwargs = datasets.metric_dataset_kwargs(str(place / 'data.zip'), G, False)
        c = samples.draw_labels(training_set_kwargs, G.c_dim, count, 3)
        images = torch.cat(list(samples.fakes(G, samples.latents(G, count, 3), c)))
        assert result.values[name] == [images.mean().item()]
        assert compare([file])[0][name] == images.mean().item()
    first, _second = (json.loads(line) for line in Path(copies[0]).with_name(f'metric-{name}.jsonl').open())
    assert (first['device'], first['seed'], first['metric']) == ('cpu', 3, name)


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        ('test_evaluation.NoSuchMetric', 'cannot be imported'),
        ('no_such_module.Metric', 'cannot be imported .*fid50k_full'),
        ('os.getcwd', 'is not a metric'),
        ('test_evaluation.Nameless', 'is not a metric'),
    ],
)
def test_what_is_no_metric_is_refused(name, said):
    with pytest.raises(UserError, match=f'--metrics={name} {said}'):
        metrics.parse(name, None)


def test_repeats_are_other_seeds_with_mean_and_deviation(place, copies):
    wanted = f'fd:{spec_of(place)}'
    found = evaluate([copies[0]], str(place / 'data.zip'), wanted, samples=20, repeats=3, seed=4, device='cpu')
    (values,) = found[0].values.values()
    assert len(set(values)) == 3
    last = evaluate([copies[0]], str(place / 'data.zip'), wanted, samples=20, seed=6, device='cpu')
    assert next(iter(last[0].values.values())) == [values[2]]
    text = table(found)
    assert f'{tables.number(np.mean(values))} ± {tables.number(np.std(values, ddof=1))}' in text


def test_results_are_appended_beside_each_file_and_shown_against_the_first(place, copies):
    arguments = ['evaluate', *copies, '--data', place / 'data.zip', '--metrics', 'fid50k_full,is50k']
    for _ in range(2):
        text = commands.run(*arguments, '--samples', 30, '--device', 'cpu')
    directory = Path(copies[0]).parent
    found = list(records.read(directory))
    assert [record['snapshot_pkl'] for record in found if record['metric'] == 'fid0.03k_full'] == [
        'teacher.pkl', 'student.pkl', 'teacher.pkl', 'student.pkl'
    ]  # fmt: skip
    fids = [record['results']['fid0.03k_full'] for record in found if record['metric'] == 'fid0.03k_full']
    assert fids[:2] == fids[2:]  # The same seed, with and without cached statistics.
    student = text.splitlines()[-1]
    assert f'{tables.number(fids[1])} ({fids[1] - fids[0]:+.4g})' in student
    assert not any(directory.glob('*.tmp'))


def without_times(directory: Path) -> list[dict]:
    times = ('timestamp', 'total_time', 'total_time_str')
    return [{key: record[key] for key in record if key not in times} for record in records.read(directory)]


def test_two_processes_measure_what_one_does(place, copies, tmp_path):
    one, two = tmp_path / 'one', tmp_path / 'two'
    for directory, more in ((one, []), (two, ['--gpus', 2])):
        directory.mkdir()
        files = [shutil.copy(copy, directory) for copy in copies]
        metrics = f'fid50k_full,fd:{spec_of(place)},agreement'
        arguments = ['evaluate', *files, '--data', place / 'data.zip', '--metrics', metrics, '--samples', 30]
        text = commands.run(*arguments, '--repeats', 2, '--device', 'cpu', *more)
        assert str(directory) in text
    assert len(without_times(one)) == 2 * 2 * 2 + 2  # Nothing agrees with the teacher but the student.
    assert without_times(two) == without_times(one)


class Ended(Brightness):
    """A metric in whose process memory runs out."""

    def measure(self, G, seed):
        os._exit(9)


class Impossible(Brightness):
    def measure(self, G, seed):
        raise UserError('This cannot be measured.')


def test_a_file_that_is_replaced_while_others_are_measured_is_noticed(place, copies):
    """A process opens it when its turn comes, which may be hours later."""
    kwargs = datasets.open_training_set(str(place / 'data.zip'))[1]
    digests = {file: generators.sha256(file) for file in copies}
    question = measuring.Question('agreement', 10, copies[0], digests, str(place / 'data.zip'), kwargs, trust=False)
    worker = measuring._Worker(question, torch.device('cpu'))
    assert worker.answer(copies[1], seed=0)
    worker.answer(copies[0], seed=0)
    shutil.copy(copies[0], copies[1])
    with pytest.raises(UserError, match=r'was replaced while it was measured: measure a copy of it\.'):
        worker.answer(copies[1], seed=1)


class OfOthers(Brightness):
    of_teacher = False


def test_a_metric_that_compares_networks_needs_two_and_is_called_by_its_name(place, copies):
    with pytest.raises(UserError, match=r'^--metrics=test_evaluation\.OfOthers compares other networks with the first'):
        evaluate([copies[0]], str(place / 'data.zip'), 'test_evaluation.OfOthers', samples=10, device='cpu')
    with pytest.raises(UserError, match=r'^--metrics=test_evaluation\.OfOthers compares two networks'):
        parse_metrics('fid50k_full, test_evaluation.OfOthers')


@pytest.mark.usefixtures('forked_processes')
@pytest.mark.parametrize(
    ('name', 'said'),
    [('Ended', '--gpus=2: a process was ended from outside'), ('Impossible', 'This cannot be measured.')],
)
def test_a_process_that_fails_ends_the_evaluation(name, said, place, copies):
    with pytest.raises(UserError, match=said):
        evaluate(copies, str(place / 'data.zip'), f'test_evaluation.{name}', samples=10, device='cpu', gpus=2)
    assert not any(Path(copies[0]).parent.glob('*.jsonl'))
    assert not multiprocessing.active_children()


def test_records_have_the_hosts_format(place, copies, tmp_path):
    """Key by key what `report_metric` writes, for the host's tools and ours to read."""
    evaluate([copies[0]], str(place / 'data.zip'), 'is50k', samples=20, device='cpu')
    (ours,) = records.read(Path(copies[0]).parent)
    run = tmp_path / 'run'
    run.mkdir()
    result = dict(results=dict(is50k_mean=1.0, is50k_std=0.1), metric='is50k', total_time=1.0, num_gpus=1)
    result['total_time_str'] = '1s'
    metric_main.report_metric(result, run_dir=str(run), snapshot_pkl=str(run / 'teacher.pkl'))
    (theirs,) = records.read(run)
    assert set(theirs) <= set(ours)
    assert {key: type(ours[key]) for key in theirs} == {key: type(theirs[key]) for key in theirs}
    assert ours['snapshot_pkl'] == theirs['snapshot_pkl'] == 'teacher.pkl'


# --- Comparing runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def run_dir(place, tmp_path):
    """What the host leaves: two snapshots, metrics in training without seeds, a line that broke off."""
    directory = tmp_path / '00000-run'
    directory.mkdir()
    kwargs = dict(loss_kwargs=dict(class_name='training.loss.StyleGAN2Loss', r1_gamma=0.5), total_kimg=25, batch_size=8)
    (directory / 'training_options.json').write_text(json.dumps(kwargs | {'random_seed': 1}))
    for kimg in (0, 25):
        shutil.copy(place / 'student.pkl', directory / f'network-snapshot-{kimg:06d}.pkl')
        result = dict(results=dict(fid50k_full=100.0 - kimg), metric='fid50k_full')
        metric_main.report_metric(
            result, run_dir=str(directory), snapshot_pkl=str(directory / f'network-snapshot-{kimg:06d}.pkl')
        )
    with open(directory / 'metric-fid50k_full.jsonl', 'a') as file:
        file.write('{"results": {"fid50k_f')
    return directory


def test_compare_reads_runs_of_the_hosts(run_dir):
    (row,) = compare([str(run_dir)])
    assert row['fid50k_full'] == 75
    assert row['snapshot'] == 'network-snapshot-000025.pkl'
    assert (row['loss'], row['gamma'], row['kimg'], row['batch'], row['seed']) == ('StyleGAN2Loss', 0.5, 25, 8, 1)
    G = pickles.load(run_dir / 'network-snapshot-000025.pkl')['G_ema']
    assert row['parameters'] == sum(parameter.numel() for parameter in G.parameters())
    (first,) = compare([str(run_dir / 'network-snapshot-000000.pkl')])
    assert first['fid50k_full'] == 100


@pytest.mark.parametrize('loss', [None, 'StyleGAN2Loss', dict(teacher=3)])
def test_compare_leaves_out_options_that_are_none(run_dir, loss):
    (run_dir / 'training_options.json').write_text(json.dumps(dict(loss_kwargs=loss, batch_size=8)))
    (row,) = compare([str(run_dir)])
    assert (row['loss'], row['teacher'], row['gamma'], row['batch']) == (None, None, None, 8)


def test_compare_takes_the_last_snapshot_whatever_else_was_measured(run_dir, place):
    shutil.copy(place / 'student.pkl', run_dir)
    records.append(str(run_dir / 'student.pkl'), dict(results=dict(fid50k_full=1.0), metric='fid50k_full', seed=0))
    assert compare([str(run_dir)])[0]['snapshot'] == 'network-snapshot-000025.pkl'


def test_compare_takes_the_newest_of_each_seed(run_dir):
    pkl = str(run_dir / 'network-snapshot-000025.pkl')
    for seed, value in [(0, 1.0), (1, 4.0), (0, 2.0)]:
        records.append(pkl, dict(results=dict(fid50k_full=value), metric='fid50k_full', seed=seed))
    (row,) = compare([pkl])
    assert row['fid50k_full'] == 3
    assert row['fid50k_full std'] == pytest.approx(2**0.5)


def test_compare_averages_results_of_one_setting(run_dir):
    """So are other data, other mirroring, another embedding of the same name and another teacher; the newest counts."""
    pkl = str(run_dir / 'network-snapshot-000025.pkl')
    first = dict(data='a.zip', mirror=False)
    for change in (dict(data='b.zip'), dict(mirror=True), dict(fingerprint='0123'), dict(teacher='0123')):
        for more in (dict(seed=0, value=14.0), dict(seed=1, value=13.0), dict(seed=0, value=21.0, **change)):
            about = first | more
            records.append(pkl, dict(results=dict(fid50k=about.pop('value')), metric='fid50k', **about))
        (row,) = compare([pkl])
        assert row['fid50k'] == 21
        assert 'fid50k std' not in row
    records.append(pkl, dict(results=dict(fid50k=15.0), metric='fid50k', seed=0, **first))
    (row,) = compare([pkl])
    assert row['fid50k'] == 14  # Again the first setting, of which both seeds count.


def test_results_are_of_the_network_that_is_there(place, copies, capsys):
    other, pkl = copies
    words = ['--data', place / 'data.zip', '--metrics', 'agreement', '--samples', 10, '--device', 'cpu']
    commands.run('evaluate', other, pkl, *words)
    (before,) = compare([pkl])
    assert before['agreement0.01k_pixels'] > 0
    shutil.copy(other, pkl)
    (row,) = compare([pkl])
    assert 'agreement0.01k_pixels' not in row
    assert f'{pkl}: 1 result is of another file that had this name, and left out.' in capsys.readouterr().err
    assert reading.results_beside(Path(pkl)) == {}
    commands.run('evaluate', other, pkl, *words, '--seed', 1)
    (row,) = compare([pkl])
    assert row['agreement0.01k_pixels'] == 0  # And no mean of two networks.


def test_results_of_one_name_of_the_data_in_two_directories_are_of_two_data_sets(place, copies, tmp_path, monkeypatch):
    pkl, words = copies[0], ['--metrics', 'fid50k', '--samples', 20, '--device', 'cpu']
    for number, name in enumerate(['data.zip', './data.zip', '../other/data.zip']):
        directory = tmp_path / ('other' if number == 2 else 'one')
        directory.mkdir(exist_ok=True)
        shutil.copy(place / 'data.zip', directory)
        monkeypatch.chdir(tmp_path / 'one')
        commands.run('evaluate', pkl, '--data', name, *words, '--seed', number)
    paths = [record['data'] for record in records.read(Path(pkl).parent) if record['metric'] == 'fid0.02k']
    assert paths == [str(tmp_path / each / 'data.zip') for each in ('one', 'one', 'other')]


def test_data_and_mirroring_are_on_record(place, copies):
    for more in ([], ['--mirror']):
        words = ['--metrics', 'fid50k,fid50k_full', '--samples', 20, '--device', 'cpu', *more]
        commands.run('evaluate', copies[0], '--data', place / 'data.zip', *words)
    found = list(records.read(Path(copies[0]).parent))
    assert {record['data'] for record in found} == {str(place / 'data.zip')}
    mirrored = {'fid0.02k': [False, True], 'fid0.02k_full': [None, None]}  # The latter never uses mirrored data.
    for name, expected in mirrored.items():
        assert [record.get('mirror') for record in found if record['metric'] == name] == expected
    mine = [record['results']['fid0.02k'] for record in found if record['metric'] == 'fid0.02k']
    assert mine[0] != mine[1]
    assert compare([copies[0]])[0]['fid0.02k'] == mine[1]


def test_compare_shows_what_was_trained_and_how_far(run_dir):
    """Of the last snapshot, how far the statistics go; of an earlier one, what its name says."""
    run = RunDirectory(run_dir)
    args = run.read_options()
    args['loss_kwargs']['embeddings'] = ['dino_resnet50', 'clip_rn50']
    run.write_options(dict(args, total_kimg=100))
    run.write_inputs({'student.ratio': '0.7', 'student.criterion': 'diversity'})
    run.stats_path.write_text(json.dumps({'Progress/kimg': {'mean': 25.6}}) + '\n')
    rows = compare([str(run_dir), str(run_dir / 'network-snapshot-000000.pkl')])
    assert [row['kimg'] for row in rows] == [25.6, 0]
    record = dict(results=dict(fid=3.0), metric='fid', snapshot_pkl='network-snapshot-000000.pkl', cur_nimg=804)
    records = record | dict(cur_nimg=16), record  # Both are of that name: the first has been replaced.
    (run.path / 'metric-fid.jsonl').write_text(''.join(json.dumps(each) + '\n' for each in records))
    (row,) = compare([str(run_dir / 'network-snapshot-000000.pkl')])
    assert (row['kimg'], row['fid']) == (0.804, 3)  # As our loop has it beside a metric.
    assert (rows[0]['ratio'], rows[0]['criterion']) == (0.7, 'diversity')
    assert rows[0]['embeddings'] == 'dino_resnet50, clip_rn50'


def test_compare_in_every_format(run_dir, place):
    metric = run_dir / 'metric-fid50k_full.jsonl'
    metric.write_text(metric.read_text().rpartition('\n')[0] + '\n')  # Without the line that broke off.

    def printed(form):
        return commands.run('compare', run_dir, place / 'teacher.pkl', '--format', form)

    rows = json.loads(printed('json'))
    assert [row.get('fid50k_full') for row in rows] == [75, None]
    table = list(csv.DictReader(io.StringIO(printed('csv'))))
    assert [line['fid50k_full'] for line in table] == ['75.0', '']
    markdown = printed('markdown').splitlines()
    assert len({line.count('|') for line in markdown}) == 1
    assert len(markdown) == 4
    text = printed('text').splitlines()
    assert text[1][text[0].index('fid50k_full') :].startswith('75')  # A directory's name may have 75 in it, too.


# --- Names and bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('metric', 'samples', 'expected'),
    [
        ('fid50k_full', 50000, 'fid50k_full'),
        ('fid50k_full', 5000, 'fid5k_full'),
        ('pr50k3_full', 1500, 'pr1.5k3_full'),
        ('ppl2_wend', 2000, 'ppl2_wend_2k'),
    ],
)
def test_the_number_of_images_is_in_the_name(metric, samples, expected):
    assert names.host_name(metric, samples) == expected


def test_names_of_embeddings_make_file_names():
    assert names.slug('torchscript:/a/b/c.pt#forward@size=32') == 'torchscript_c.pt_forward@size=32'
    assert names.slug('hf:facebook/dinov2-large') == 'hf_facebook_dinov2-large'
    assert names.slug('inception@weights=/a/b.pt@size=32') == 'inception@weights=b.pt@size=32'


def refused(place, *arguments, network='teacher.pkl', data='data.zip') -> str:
    arguments = ('evaluate', place / network, '--data', place / data, '--device', 'cpu', *arguments)
    return commands.refused(*arguments, unchanged=place)


def test_unknown_metrics_are_refused(place):
    assert 'fid50k_full' in refused(place, '--metrics', 'fid')
    assert 'fd:EMBEDDING' in refused(place, '--metrics', 'fd')
    assert 'dinov3' in refused(place, '--metrics', 'fd:dinov3')
    assert 'two whose results' in refused(place, '--metrics', 'is50k,is50k')
    spec = spec_of(place)
    assert 'layers' in refused(place, '--metrics', f'agreement:{spec}')


def test_data_without_enough_neighbours_are_refused(place, tmp_path, make_dataset_zip):
    few = make_dataset_zip(tmp_path, n=5, labels=2)
    assert 'has 5 images' in refused(place, '--metrics', f'dc:{spec_of(place)}', data=few)


def test_networks_that_do_not_fit_are_refused(place, make_dataset_zip, make_generator, make_discriminator):
    for name, kwargs in [
        ('big', dict(resolution=32)),
        ('grey', dict(channels=1)),
        ('bare', {}),
        ('three', dict(labels=3)),
    ]:
        make_dataset_zip(place, name=f'{name}.zip', **kwargs)
    metric = ('--metrics', 'agreement')
    assert 'resolution 16, but' in refused(place, *metric, data='big.zip')
    assert 'channels 3, but' in refused(place, *metric, data='grey.zip')
    assert 'label dimensions 2, but' in refused(place, *metric, data='bare.zip')
    assert 'label dimensions 2, but' in refused(place, *metric, data='three.zip')
    assert 'no-such.pkl' in refused(place, *metric, network='no-such.pkl')
    assert 'no-such.zip' in refused(place, *metric, data='no-such.zip')


def test_a_detector_that_cannot_be_had_is_named_with_its_place(place, tmp_path, monkeypatch):
    import requests

    def offline(*_args, **_kwargs):
        raise requests.ConnectionError('no network')

    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path))
    monkeypatch.setattr(downloads, '_PAUSE', 0)
    monkeypatch.setattr(requests.Session, 'request', offline)
    url = 'https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/vgg16.pt'
    said = refused(place, '--metrics', 'pr50k3_full')
    assert url in said
    assert str(detectors.download(tmp_path, url)) in said


def test_places_without_a_run_are_refused(tmp_path):
    for place in (tmp_path, tmp_path / 'nowhere'):
        commands.refused('compare', place, unchanged=tmp_path)


# --- The benchmark ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_quality_benchmark_in_smoke_size_goes_on_where_it_was(make_dataset_zip, tmp_path):
    data = make_dataset_zip(tmp_path, n=100, resolution=8, labels=2)
    command = [str(REPOSITORY / 'benchmarks' / 'quality.py'), '--size', 'smoke']
    command += ['--data', str(data), '--outdir', str(tmp_path / 'out'), '--device', 'cpu']

    def run(*more: str) -> tuple[int, str]:
        return forked.run_script(tmp_path, *command, *more, **os.environ)

    status, output = run()
    assert status == 0, output
    table = (tmp_path / 'out' / 'table.md').read_text()
    for row in ('data |', 'teacher, ', 'pruned, ', 'adversarial only, D from scratch |', 'NICKEL and DiME |'):
        assert f'| {row}' in table
    assert '| NICKEL and DiME, beside adversarial only, D from scratch | 1 |' in table
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.pkl')}
    assert before
    measured = list((tmp_path / 'out').glob('ratio0.5/*/seed0'))
    assert len(measured) == 2
    for directory in measured:  # They are not needed any more.
        shutil.rmtree(directory)
        before = {path: changed for path, changed in before.items() if directory not in path.parents}
    status, output = run('--methods', 'adversarial', '--repeats', '2', '--trained-on', 'full,none', '--jobs', '2')
    assert status == 0, output
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.pkl')}
    assert before.items() < after.items()
    assert not any(directory.exists() for directory in measured)
    longer = (tmp_path / 'out' / 'table.md').read_text()
    of_one_seed = {line for line in longer.partition('\n\n')[0].splitlines() if '±' not in line}
    assert {line for line in of_one_seed if 'NICKEL' not in line} < set(table.splitlines())
    assert longer.count('±') == 14  # Of two seeds in two settings: four distances, CAS, recognised, coverage.
    assert longer.count('| none |') == 1  # In neither setting anything is beside another method.
    status, output = run('--methods', 'adversarial', '--repeats', '2', '--trained-on', 'full,none', '--at', '99')
    assert status == 0, output
    assert '| pruned, ' in (tmp_path / 'out' / 'table.md').read_text()
    assert 'D from scratch' not in (tmp_path / 'out' / 'table.md').read_text()  # None has trained for so long.
    status, output = run('--batch', '32')
    assert status == 2
    assert 'holds results with --batch=64, not 32' in output


@pytest.mark.parametrize(
    ('loss_args', 'said'),
    [
        (['embedding=nothing'], "No embedding is called 'nothing'"),
        (['pixel_weight=-1'], 'pixel_weight=-1 must be a number from 0 on'),
        (['embedding=torchscript:EMBEDDING@size=16'], 'shows no layers'),
    ],
)
def test_image_distillation_refuses_bad_arguments(loss_args, said, place, tmp_path):
    arguments = ['distill', '--teacher', place / 'teacher.pkl', '--data', place / 'data.zip', '--outdir', tmp_path]
    arguments += ['--loss', 'stylegan2_compress.ImageDistillationLoss', '--device', 'cpu']
    for argument in loss_args:
        arguments += ['--loss-arg', argument.replace('EMBEDDING', str(place / 'embedding.pt'))]
    assert said in commands.refused(*arguments, unchanged=tmp_path)


def test_image_distillation_refuses_a_student_with_other_latents(
    place, make_generator, make_discriminator, tmp_path, monkeypatch
):
    monkeypatch.setattr('stylegan2_compress.embeddings.load', lambda _spec, _device: layered())
    G = make_generator(c_dim=2, z_dim=8).eval().requires_grad_(False)
    D = make_discriminator(c_dim=2).eval().requires_grad_(False)
    student = tmp_path / 'student.pkl'
    pickles.save(student, dict(G=G, D=D, G_ema=G, augment_pipe=None, training_set_kwargs=None))
    arguments = ['distill', '--teacher', place / 'teacher.pkl', '--data', place / 'data.zip', '--student', student]
    arguments += ['--loss', 'stylegan2_compress.ImageDistillationLoss', '--outdir', tmp_path, '--device', 'cpu']
    message = commands.refused(*arguments, unchanged=tmp_path)
    assert 'has latents of 16 numbers, but the student has 8' in message


def test_columns_stand_where_they_first_appear():
    """The standard deviation of a number that one run has alone is beside the number."""
    rows = [dict(run='a', fd=1.0, kd=2.0), {'run': 'b', 'seed': 0, 'fd': 3.0, 'fd std': 0.5, 'dc': 1.0}]
    header = tables.render(rows, 'csv').splitlines()[0]
    assert header == 'run,seed,fd,fd std,dc,kd'
