"""Teacher statistics: the right numbers, computed once, never somebody else's."""

import copy

import numpy as np
import pytest
import torch

from stylegan2_compress import embeddings, pickles, references

SPEC = 'efficientnet_lite0@size=32'


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('STYLEGAN2_COMPRESS_CACHE', str(tmp_path / 'cache'))


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
def count_images(monkeypatch):
    """How many images teachers have made so far."""
    seen = []
    original = references.teacher_images

    def counting(*args):
        for images in original(*args):
            seen.append(len(images))
            yield images

    monkeypatch.setattr(references, 'teacher_images', counting)
    return lambda: sum(seen)


@pytest.mark.parametrize('c_dim', [0, 3])
def test_moments_are_those_of_the_images(make_teacher, embedding, c_dim):
    teacher = make_teacher(c_dim=c_dim)
    ((m1, m2),) = references.teacher_moments(teacher, [embedding], samples=10, batch=4, truncation_psi=0.7)
    G = pickles.load(teacher)['G_ema']
    labels = references.LabelSource(c_dim, None)
    population = references.Population('', '', 10, 0.7, 0)
    images = torch.cat(list(references.teacher_images(G, population, labels, batch=4)))
    assert images.shape == (10, 3, 16, 16)
    features = embedding(images).double()
    torch.testing.assert_close(m1, features.mean(0), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(m2, features.square().mean(0), rtol=1e-6, atol=1e-9)


def test_second_time_comes_from_the_cache(make_teacher, embedding, count_images):
    teacher = make_teacher()
    first = references.teacher_moments(teacher, [embedding], samples=6, batch=4)
    assert count_images() == 6
    second = references.teacher_moments(teacher, [embedding], samples=6, batch=4)
    assert count_images() == 6
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))


def test_whatever_changes_the_moments_is_in_the_key(make_teacher, embedding, count_images):
    common = dict(samples=4, batch=4)
    teacher = make_teacher()
    runs = [
        (teacher, embedding, common),
        (make_teacher('other.pkl', seed=1), embedding, common),
        (teacher, embeddings.load(f'{SPEC}@preprocess=raw', 'cpu'), common),
        (teacher, embedding, common | dict(samples=5)),
        (teacher, embedding, common | dict(truncation_psi=0.5)),
        (teacher, embedding, common | dict(seed=1)),
    ]
    found = [references.teacher_moments(pkl, [network], **kwargs)[0][0] for pkl, network, kwargs in runs]
    assert count_images() == 25
    assert len({tuple(m1.tolist()) for m1 in found}) == len(runs)


def test_one_pass_for_several_embeddings(make_teacher, embedding, count_images):
    other = embeddings.load(f'{SPEC}@preprocess=raw', 'cpu')
    both = references.teacher_moments(make_teacher(), [embedding, other], samples=4, batch=4)
    assert count_images() == 4
    assert not torch.equal(both[0][0], both[1][0])


@pytest.mark.parametrize(
    'damage', [lambda path: path.write_bytes(b''), lambda path: path.write_bytes(path.read_bytes()[:99])]
)
def test_a_damaged_cache_file_is_made_again(make_teacher, embedding, count_images, damage, tmp_path):
    teacher = make_teacher()
    first = references.teacher_moments(teacher, [embedding], samples=4)
    (path,) = (tmp_path / 'cache' / 'statistics').iterdir()
    damage(path)
    second = references.teacher_moments(teacher, [embedding], samples=4)
    assert count_images() == 8
    assert torch.equal(first[0][0], second[0][0])


def test_a_foreign_cache_file_is_not_believed(make_teacher, embedding, tmp_path):
    teacher, other = make_teacher(), make_teacher('other.pkl', seed=1)
    right = references.teacher_moments(teacher, [embedding], samples=4)[0][0]
    (path,) = (tmp_path / 'cache' / 'statistics').iterdir()
    references.teacher_moments(other, [embedding], samples=4)
    (foreign,) = set((tmp_path / 'cache' / 'statistics').iterdir()) - {path}
    path.write_bytes(foreign.read_bytes())
    assert torch.equal(references.teacher_moments(teacher, [embedding], samples=4)[0][0], right)


def test_global_random_state_neither_matters_nor_changes(make_teacher, embedding, monkeypatch, tmp_path):
    teacher = make_teacher(synthesis_kwargs=dict(channel_base=256, channel_max=16))
    torch.manual_seed(0)
    first = references.teacher_moments(teacher, [embedding], samples=4)[0][0]
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))
    monkeypatch.setenv('STYLEGAN2_COMPRESS_CACHE', str(tmp_path / 'another'))
    torch.manual_seed(5)
    assert torch.equal(references.teacher_moments(teacher, [embedding], samples=4)[0][0], first)


def test_labels_follow_the_training_set(tmp_path, make_dataset_zip):
    data = make_dataset_zip(tmp_path, n=4, labels=3)  # Classes 0, 1, 2, 0.
    kwargs = dict(class_name='training.dataset.ImageFolderDataset', path=str(data), use_labels=True)
    labels = references.LabelSource(3, kwargs)
    drawn = labels.draw(20000, np.random.default_rng(0), torch.device('cpu'))
    torch.testing.assert_close(drawn.mean(0), torch.tensor([0.5, 0.25, 0.25]), atol=0.02, rtol=0)
    uniform = references.LabelSource(3, None)
    assert uniform.fingerprint != labels.fingerprint
    assert references.LabelSource(0, kwargs).draw(2, np.random.default_rng(0), torch.device('cpu')).shape == (2, 0)
    assert copy.deepcopy(labels).fingerprint == labels.fingerprint
