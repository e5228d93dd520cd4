"""Reference statistics: the right numbers, computed once, never somebody else's."""

import copy
import dataclasses
import os

import dnnlib
import numpy as np
import pytest
import torch
from two_processes import in_two_processes

from stylegan2_compress import embeddings, pickles
from stylegan2_compress.distributions import moments, sources, statistics
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import datasets
from stylegan2_compress.pickles.networks import Networks

SPEC = 'efficientnet_lite0@size=32'


pytestmark = pytest.mark.usefixtures('own_cache')


@pytest.fixture(scope='module')
def embedding():
    return embeddings.load(SPEC, 'cpu')


@pytest.fixture
def make_teacher(tmp_path, make_generator):
    def build(name='teacher.pkl', **overrides):
        G = make_generator(**overrides).eval().requires_grad_(False)
        G.mapping.w_avg.normal_(generator=torch.Generator().manual_seed(1))
        pickles.save(tmp_path / name, dict(G=G, D=G, G_ema=G, training_set_kwargs=None, augment_pipe=None))
        return str(tmp_path / name)

    return build


@pytest.fixture
def count_chunks(monkeypatch):
    """How many chunks of images teachers have made so far."""
    seen = []
    original = sources.TeacherImages.draw

    def counting(self, index):
        seen.append(index)
        return original(self, index)

    monkeypatch.setattr(sources.TeacherImages, 'draw', counting)
    return lambda: len(seen)


def teacher_images(file, **kwargs):
    return sources.TeacherImages(file, **kwargs)


@pytest.fixture
def make_data(tmp_path, make_dataset_zip):
    def build(name='data.zip', **kwargs):
        path = make_dataset_zip(tmp_path, name=name, **kwargs)
        return dict(class_name='training.dataset.ImageFolderDataset', path=str(path), use_labels=False)

    return build


def same(first, second):
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in ('m1', 'm2', 'bank'))


# --- Sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('c_dim', [0, 3])
def test_a_chunk_depends_on_its_index_alone(make_teacher, c_dim):
    """Not on the chunks before, and not on the global random state, which it does not change either."""
    file = make_teacher(c_dim=c_dim)
    torch.manual_seed(0)
    images, labels = teacher_images(file, truncation_psi=0.7).draw(1)
    after = torch.rand(1)
    assert images.shape == (32, 3, 16, 16)
    assert labels.shape == (32, c_dim)
    source = teacher_images(file, truncation_psi=0.7)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))
    assert not torch.equal(source.draw(0)[0], images)
    assert torch.equal(source.draw(1)[0], images)
    assert not torch.equal(teacher_images(file, truncation_psi=0.7, seed=1).draw(1)[0], images)


def test_truncation_is_the_hosts(make_teacher, make_generator):
    file = make_teacher(synthesis_kwargs=dict(channel_base=256, channel_max=16, use_noise=False))
    mean = pickles.load(file)['G_ema']
    images, _labels = teacher_images(file, truncation_psi=0).draw(0)
    torch.testing.assert_close(images[0], mean(torch.randn(1, 16), None, truncation_psi=0)[0])
    torch.testing.assert_close(images[0], images[1])


def test_large_images_come_in_small_chunks(make_teacher):
    file, networks = make_teacher(), Networks()
    for resolution, chunk in [(32, 32), (256, 32), (512, 8), (1024, 4)]:
        networks[file]['G_ema'].img_resolution = resolution
        assert sources.TeacherImages(file, networks).chunk == chunk


def test_a_teacher_that_is_open_is_not_opened_again(make_teacher, monkeypatch):
    file, networks = make_teacher(), Networks()
    G = networks[file]['G_ema']
    for name in ('load', 'load_with_sha256'):
        monkeypatch.setattr(pickles, name, lambda *_args, **_kwargs: pytest.fail('opened again'))
    source = sources.TeacherImages(file, networks)
    assert source.G is G
    assert source.facts['teacher'] == networks.sha256(file)


def test_data_come_in_random_order_each_once_an_epoch(make_data):
    kwargs = make_data(n=40)
    source = sources.DatasetImages(kwargs)
    images = torch.cat([source.draw(index)[0] for index in range(3)])
    assert (images.min(), images.max()) == (-1, 1)
    training_set = dnnlib.util.construct_class_by_name(**kwargs)
    everything = torch.stack([torch.from_numpy(training_set[i][0]) for i in range(40)]).float() / 127.5 - 1
    order = [int((everything == image).flatten(1).all(1).nonzero()) for image in images]
    assert sorted(order[:40]) == sorted(order[40:80]) == list(range(40))
    assert order[:40] != order[40:80] != list(range(40))
    again = sources.DatasetImages(kwargs)
    assert torch.equal(again.draw(2)[0], images[64:])


def test_other_choices_of_the_same_data_are_other_sources(make_data):
    kwargs = make_data(n=4)
    facts = [sources.DatasetImages(kwargs | changes).facts for changes in (dict(), dict(xflip=True), dict(max_size=3))]
    assert len({fact['subset or mirroring'] for fact in facts}) == 3


@pytest.mark.parametrize('label', [0, 2])
def test_images_of_one_class(make_teacher, make_data, label):
    """Only its images, in an order of their own; the source that they are of stays as it was."""
    kwargs = make_data(n=40, labels=3) | dict(use_labels=True)
    teacher, data = teacher_images(make_teacher(c_dim=3), training_set_kwargs=kwargs), sources.DatasetImages(kwargs)
    for source in (teacher, data):
        before = source.draw(0)
        one = source.of_class(label, 3)
        assert one.facts == source.facts | dict(label=label)
        images, labels = one.draw(0)
        assert len(images) == 32
        assert torch.equal(labels, torch.eye(3)[[label] * 32])
        assert all(torch.equal(*pair) for pair in zip(before, source.draw(0), strict=True))
        assert 'label' not in source.facts
    assert teacher.of_class(label, 3).size is None
    members = torch.from_numpy(datasets.labels(data.training_set)[:]).argmax(1) == label
    one = data.of_class(label, 3)
    assert one.size == members.sum() < data.size == 40
    everything = torch.stack([torch.from_numpy(data.training_set[i][0]) for i in range(40)]).float() / 127.5 - 1
    drawn = one.draw(0)[0][: one.size]
    places = [int((everything == image).flatten(1).all(1).nonzero()) for image in drawn]
    assert sorted(places) == members.nonzero().flatten().tolist()


# --- Statistics -------------------------------------------------------------------------------------------------------


def test_moments_and_bank_are_those_of_the_images(make_teacher, embedding):
    source = teacher_images(make_teacher())
    (found,) = statistics.reference_statistics(source, [embedding], samples=40, bank=35)
    features = torch.cat([embedding(source.draw(0)[0]), embedding(source.draw(1)[0][:8])])
    torch.testing.assert_close(found.m1, features.double().mean(0), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.m2, features.double().square().mean(0), rtol=1e-6, atol=1e-9)
    assert torch.equal(found.bank, features[:35])


def test_statistics_of_a_data_set(make_data, embedding):
    kwargs = make_data(n=10)
    (found,) = statistics.reference_statistics(sources.DatasetImages(kwargs), [embedding], samples=10)
    training_set = dnnlib.util.construct_class_by_name(**kwargs)
    images = torch.stack([torch.from_numpy(training_set[i][0]) for i in range(10)]).float() / 127.5 - 1
    torch.testing.assert_close(found.m1, embedding(images).double().mean(0), rtol=1e-6, atol=1e-9)
    with pytest.raises(UserError, match='samples=11 is more than the 10 images'):
        statistics.reference_statistics(sources.DatasetImages(kwargs), [embedding], samples=11)


def test_embeddings_that_are_not_finite_are_named(make_teacher, embedding, monkeypatch):
    monkeypatch.setattr(embedding, 'forward', lambda images: torch.full([len(images), embedding.dim], torch.inf))
    with pytest.raises(UserError, match='efficientnet_lite0@size=32 is not finite'):
        statistics.reference_statistics(teacher_images(make_teacher()), [embedding], samples=4)


# --- The cache, and files ---------------------------------------------------------------------------------------------


def test_second_time_comes_from_the_cache(make_teacher, embedding, count_chunks):
    teacher = make_teacher()
    (first,) = statistics.reference_statistics(teacher_images(teacher), [embedding], samples=33, bank=3)
    assert count_chunks() == 2
    (second,) = statistics.reference_statistics(teacher_images(teacher), [embedding], samples=33, bank=3)
    assert count_chunks() == 2
    assert same(first, second)


def test_without_a_cache_a_temporary_one_keeps_them(make_teacher, embedding, count_chunks, tmp_path, capsys):
    (tmp_path / 'cache').write_text('a file in its place')
    teacher = make_teacher()
    found = [statistics.reference_statistics(teacher_images(teacher), [embedding], samples=33) for _ in range(2)]
    assert count_chunks() == 2
    assert same(found[0][0], found[1][0])
    assert capsys.readouterr().err.count('/cache (Not a directory): until this command ends') == 1


def test_whatever_changes_the_statistics_is_in_the_key(make_teacher, make_data, embedding, count_chunks):
    teacher = make_teacher()
    raw = embeddings.load(f'{SPEC}@preprocess=raw', 'cpu')
    runs = [
        (teacher_images(teacher), embedding, 4),
        (teacher_images(make_teacher('other.pkl', seed=1)), embedding, 4),
        (teacher_images(teacher), raw, 4),
        (teacher_images(teacher), embedding, 5),
        (teacher_images(teacher, truncation_psi=0.5), embedding, 4),
        (teacher_images(teacher, seed=1), embedding, 4),
        (sources.DatasetImages(make_data(n=4)), embedding, 4),
        (sources.DatasetImages(make_data(n=4) | dict(xflip=True)), embedding, 8),
    ]
    found = [statistics.reference_statistics(source, [each], samples=samples)[0].m1 for source, each, samples in runs]
    assert count_chunks() == 6
    assert len({tuple(m1.tolist()) for m1 in found}) == len(runs)


def test_one_pass_for_several_embeddings(make_teacher, embedding, count_chunks):
    other = embeddings.load(f'{SPEC}@preprocess=raw', 'cpu')
    both = statistics.reference_statistics(teacher_images(make_teacher()), [embedding, other], samples=4)
    assert count_chunks() == 1
    assert not torch.equal(both[0].m1, both[1].m1)


@pytest.mark.parametrize(
    'damage', [lambda path: path.write_bytes(b''), lambda path: path.write_bytes(path.read_bytes()[:99])]
)
def test_a_damaged_cache_file_is_made_again(make_teacher, embedding, count_chunks, damage, tmp_path):
    source = teacher_images(make_teacher())
    (first,) = statistics.reference_statistics(source, [embedding], samples=4)
    (path,) = (tmp_path / 'cache' / 'statistics').iterdir()
    damage(path)
    (second,) = statistics.reference_statistics(source, [embedding], samples=4)
    assert count_chunks() == 2
    assert same(first, second)


def test_a_foreign_cache_file_is_not_believed(make_teacher, embedding, tmp_path):
    source, other = teacher_images(make_teacher()), teacher_images(make_teacher('other.pkl', seed=1))
    (right,) = statistics.reference_statistics(source, [embedding], samples=4)
    (path,) = (tmp_path / 'cache' / 'statistics').iterdir()
    statistics.reference_statistics(other, [embedding], samples=4)
    (foreign,) = set((tmp_path / 'cache' / 'statistics').iterdir()) - {path}
    path.write_bytes(foreign.read_bytes())
    assert same(statistics.reference_statistics(source, [embedding], samples=4)[0], right)


def test_a_file_gives_back_what_it_got(make_teacher, embedding, tmp_path):
    source, raw = teacher_images(make_teacher()), embeddings.load(f'{SPEC}@preprocess=raw', 'cpu')
    found = statistics.compute_statistics(source, [embedding, raw], samples=6, bank=4)
    statistics.write_statistics(tmp_path / 'file.npz', source, 6, [embedding, raw], found)
    for each, expected in zip([embedding, raw], found, strict=True):
        assert same(statistics.read_statistics(tmp_path / 'file.npz', source, each, samples=6, bank=4), expected)
    other_seed = teacher_images(str(tmp_path / 'teacher.pkl'), seed=5)
    again = statistics.read_statistics(tmp_path / 'file.npz', other_seed, raw, bank=2)
    assert torch.equal(again.bank, found[1].bank[:2])


def test_a_foreign_file_is_refused_by_what_differs(make_teacher, make_data, embedding, tmp_path):
    teacher, data = make_teacher(c_dim=3), make_data(n=6, labels=3)
    file = tmp_path / 'file.npz'
    source = teacher_images(teacher)
    statistics.write_statistics(file, source, 4, [embedding], statistics.compute_statistics(source, [embedding], 4))
    other_weights = copy.copy(embedding)
    other_weights.fingerprint = 'f' * 64
    other_size = copy.copy(embedding)
    other_size.preprocessing = dataclasses.replace(embedding.preprocessing, size=64)
    cases = [
        (teacher_images(make_teacher('other.pkl', seed=1, c_dim=3)), embedding, {}, r'\(teacher \w{8}, not \w{8}\)'),
        (teacher_images(teacher, truncation_psi=0.5), embedding, {}, r'\(truncation 1, not 0.5\)'),
        (
            teacher_images(teacher, training_set_kwargs=data | dict(use_labels=True)), embedding, {},
            r"\(labels \w{8}, .* this run's --teacher and --data, whose labels count, or",
        ),
        (source, embedding, dict(samples=5), r'\(samples 4, not 5\).* --teacher, without --data, or leave it out'),
        (source, embedding, dict(bank=5), 'features of 0 images, but --loss-arg bank=5'),
        (source, other_weights, {}, r'\(weights \w{8}, not ffffffff\)'),
        (source, other_size, {}, r'\(preprocessing .*32.*, not .*64'),
        (source, embeddings.load(f'{SPEC}@dtype=fp64', 'cpu'), {}, f'no statistics of .*fp64, only of {SPEC}'),
        (sources.DatasetImages(data), embedding, {}, 'data none, not .*; teacher.* --data, without --teacher, or'),
    ]  # fmt: skip
    for wrong_source, wrong_embedding, kwargs, sentence in cases:
        with pytest.raises(UserError, match=sentence):
            statistics.read_statistics(file, wrong_source, wrong_embedding, **kwargs)
    written = file.read_bytes()
    begin = len(written) // 2
    damaged = [written[: begin - gap] + written[begin:] for gap in (1, 26, 200)]
    for content in (b'', b'no such thing', (tmp_path / 'teacher.pkl').read_bytes(), *damaged):
        file.write_bytes(content)
        with pytest.raises(UserError, match='holds no statistics'):
            statistics.read_statistics(file, source, embedding)
    with pytest.raises(UserError, match='Cannot read'):
        statistics.read_statistics(tmp_path / 'nowhere.npz', source, embedding)


def test_another_version_of_the_library_has_its_own_cache_and_reads_the_same_files(make_teacher, tmp_path):
    embedding, upgraded = (embeddings.load(SPEC, 'cpu') for _ in range(2))
    upgraded.network.library = 'transformers 9.9.9'
    source = teacher_images(make_teacher())
    paths = {statistics.cache_path(source, each, 4, 0) for each in (embedding, upgraded)}
    assert len(paths) == 2
    computed = statistics.compute_statistics(source, [embedding], 4)
    statistics.write_statistics(tmp_path / 'file.npz', source, 4, [embedding], computed)
    assert same(statistics.read_statistics(tmp_path / 'file.npz', source, upgraded), computed[0])


# --- Two processes ----------------------------------------------------------------------------------------------------


def test_two_processes_share_the_work(tmp_path, make_teacher, embedding):
    """The numbers of one process, to rounding, in both; each chunk is made once, and one file written."""
    make_teacher()
    in_two_processes(_share, str(tmp_path))
    source = teacher_images(str(tmp_path / 'teacher.pkl'))
    alone = statistics.compute_statistics(source, [embedding], samples=70, bank=50)[0]
    found = [torch.load(tmp_path / f'{rank}.pt') for rank in range(2)]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    (first, chunks), (second, chunks_then) = found[0]
    torch.testing.assert_close(first, [alone.m1, alone.m2, alone.bank], rtol=1e-3, atol=1e-5)  # Features are float32.
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    assert (chunks, chunks_then) == (3, 0)  # Then from the cache of the first, which the second does not see.
    assert [path.name for path in (tmp_path / 'cache0' / 'statistics').iterdir()] == [
        statistics.cache_path(source, embedding, 70, 50).name
    ]
    assert not (tmp_path / 'cache1').exists()


def _share(rank, directory):
    os.environ['STYLEGAN2_COMPRESS_CACHE'] = f'{directory}/cache{rank}'
    source, drawn = teacher_images(f'{directory}/teacher.pkl'), []
    draw = source.draw
    source.draw = lambda index: drawn.append(index) or draw(index)
    embedding, results = embeddings.load(SPEC, 'cpu'), []
    for _ in range(2):
        drawn.clear()
        (found,) = statistics.reference_statistics(source, [embedding], samples=70, bank=50)
        count = torch.tensor(len(drawn))
        torch.distributed.all_reduce(count)
        results.append(([found.m1, found.m2, found.bank], int(count)))
    torch.save(results, f'{directory}/{rank}.pt')


def test_labels_follow_the_training_set(tmp_path, make_dataset_zip):
    data = make_dataset_zip(tmp_path, n=4, labels=3)  # Classes 0, 1, 2, 0.
    kwargs = dict(class_name='training.dataset.ImageFolderDataset', path=str(data), use_labels=True)
    labels = sources.LabelSource(3, kwargs)
    drawn = labels.draw(20000, np.random.default_rng(0), torch.device('cpu'))
    torch.testing.assert_close(drawn.mean(0), torch.tensor([0.5, 0.25, 0.25]), atol=0.02, rtol=0)
    uniform = sources.LabelSource(3, None)
    assert uniform.fingerprint != labels.fingerprint
    assert sources.LabelSource(0, kwargs).draw(2, np.random.default_rng(0), torch.device('cpu')).shape == (2, 0)
    assert copy.deepcopy(labels).fingerprint == labels.fingerprint


def test_features_are_taken_in_parts_by_memory(make_dataset_zip, tmp_path, monkeypatch):
    """Few images and few columns at a time: the same moments and bank."""
    path = str(make_dataset_zip(tmp_path, n=40))
    source = sources.DatasetImages(dict(class_name='training.dataset.ImageFolderDataset', path=path))
    together, sizes = [], []

    class Wide:
        dim, spec = 3 * 16 * 16, 'wide'

        def __call__(self, images):
            sizes.append(len(images))
            return images.flatten(1)

    for feature_bytes, columns in [(statistics.FEATURE_BYTES, moments.COLUMNS), (4 * Wide.dim * 3, 100)]:
        monkeypatch.setattr(statistics, 'FEATURE_BYTES', feature_bytes)
        monkeypatch.setattr(moments, 'COLUMNS', columns)
        together += statistics.compute_statistics(source, [Wide()], 37, 35)
    whole, parts = together
    assert max(sizes[2:]) == 3
    assert sum(sizes[2:]) == sum(sizes[:2]) == 37
    assert torch.equal(whole.bank, parts.bank)
    for name in ('m1', 'm2'):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-12, atol=1e-12)
