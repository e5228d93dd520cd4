"""Distributions of features and labels together: statistics, and what a distance sees of them."""

import numpy as np
import pytest
import torch

from stylegan2_compress import embeddings, pickles
from stylegan2_compress.distributions import labels, sources
from stylegan2_compress.distributions.statistics import Statistics
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import datasets
from stylegan2_compress.losses.dime import DistanceLoss
from stylegan2_compress.losses.estimators import ESTIMATORS, number_of_labels

EMBEDDING = 'module:tiny_embeddings:tiny@size=image'

pytestmark = pytest.mark.usefixtures('own_cache')


@pytest.fixture
def reals(labelled_data):
    """Features and labels of all images of the data set."""
    training_set = sources.DatasetImages(labelled_data).training_set
    images = np.stack([training_set[index][0] for index in range(len(training_set))])
    c = np.stack([training_set.get_label(index) for index in range(len(training_set))])
    return embeddings.load(EMBEDDING, 'cpu')(torch.from_numpy(images).float() / 127.5 - 1), torch.from_numpy(c)


def test_features_are_at_the_place_of_their_label():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert labels.at_labels(x, torch.tensor([[0, 0, 1], [1, 0, 0]])).tolist() == [
        [0, 0, 0, 0, 1, 2],
        [3, 4, 0, 0, 0, 0],
    ]


def test_statistics_are_those_of_all_images(labelled_data, reals):
    network, source = embeddings.load(EMBEDDING, 'cpu'), sources.DatasetImages(labelled_data)
    shares = labels.shares_of(source, 3)
    assert shares == [8 / 23, 8 / 23, 7 / 23]
    (found,) = labels.labelled_statistics(source, [network], shares, samples=23)
    joint = labels.at_labels(*reals).double()
    torch.testing.assert_close(found.m1, joint.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.m2, joint.square().mean(0), rtol=1e-4, atol=1e-6)
    (found,) = labels.labelled_statistics(source, [network], shares, samples=23, bank=23)
    joint = labels.beside_labels(*reals)
    torch.testing.assert_close(found.bank.sum(0), joint.sum(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.m1, joint.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.m2, joint.square().mean(0), rtol=1e-4, atol=1e-6)
    (few,) = labels.labelled_statistics(source, [network], shares, samples=12, bank=6)
    assert few.bank.shape == (6, joint.shape[1])


def reference_of(estimator, labelled_data):
    """Arguments of an estimator for all images of the data set, with their labels."""
    network, source = embeddings.load(EMBEDDING, 'cpu'), sources.DatasetImages(labelled_data)
    entry, shares = ESTIMATORS[estimator], labels.shares_of(source, 3)
    bank = 23 if entry.has_bank else 0
    (reference,) = labels.labelled_statistics(source, [network], shares, samples=23, bank=bank)
    return entry, [False] if entry.has_bank else [], reference, shares


@pytest.mark.parametrize('estimator', ESTIMATORS)
def test_a_distance_sees_labels_that_are_exchanged(labelled_data, reals, estimator):
    entry, choices, reference, shares = reference_of(estimator, labelled_data)
    distance = entry.build(*choices, reference, shares)
    join = labels.beside_labels if entry.has_bank else labels.at_labels
    features, c = reals
    right, wrong = (float(distance(join(features, each))) for each in (c, c.roll(1, dims=1)))
    assert abs(right) < 1e-4 * max(wrong, 1) < wrong


@pytest.mark.parametrize('estimator', ['moments', 'linear', 'rbf', 'cubic'])
def test_what_all_labels_have_in_common_counts_as_without_labels(estimator):
    """Whatever the number of labels, and although there are some that no image has."""
    torch.manual_seed(0)
    y, x = torch.randn(64, 5), 0.7 * torch.randn(64, 5) + 0.2
    entry = ESTIMATORS[estimator]
    choices = [False] if entry.has_bank else []

    def found(labels_in_use, count):
        shares = [1 / labels_in_use if label < labels_in_use else 0 for label in range(count)]
        c = torch.eye(count)[torch.arange(64 * labels_in_use) % labels_in_use]
        of_all = [each.repeat_interleave(labels_in_use, 0) for each in (y, x)]  # Each image once for each label.
        join = labels.beside_labels if entry.has_bank else labels.at_labels
        references, features = (join(each, c) for each in of_all)
        reference = Statistics(references.double().mean(0), references.double().square().mean(0), references)
        return entry.build(*choices, reference, shares)(features)

    reference = Statistics(y.double().mean(0), y.double().square().mean(0), y)
    alone = entry.build(*choices, reference)(x)
    for labels_in_use, count in [(4, 4), (4, 9)]:
        # Bandwidths of `rbf` are by the median distance, and some here are 0.
        torch.testing.assert_close(found(labels_in_use, count), alone, rtol=1e-2, atol=1e-5)


def test_the_number_of_labels():
    assert number_of_labels([]) == 1
    assert number_of_labels([0.25] * 4) == number_of_labels([0.25] * 4 + [0.0] * 3) == 4
    assert 1 < number_of_labels([0.9, 0.1]) < 2


def test_labels_that_no_image_has_take_no_rows_and_rare_ones_no_more_than_their_share(tmp_path, make_generator,
                                                                                      make_discriminator):  # fmt: skip
    """Of a teacher that makes two of four labels."""
    teacher = str(tmp_path / 'teacher.pkl')
    G = make_generator(c_dim=4).eval()
    pickles.save(
        teacher, dict(G=G, D=make_discriminator(c_dim=4), G_ema=G, training_set_kwargs=None, augment_pipe=None)
    )
    source = sources.TeacherImages(teacher)
    source.labels.drawn = datasets.Labels(np.eye(4, dtype=np.float32)[[0] * 31 + [2]])
    shares = labels.shares_of(source, 4)
    assert shares == [31 / 32, 0, 1 / 32, 0]
    network = embeddings.load(EMBEDDING, 'cpu')
    (found,) = labels.labelled_statistics(source, [network], shares, samples=32, bank=32)
    assert found.bank[:, -4:].sum(0).tolist() == [31, 0, 1, 0]
    (found,) = labels.labelled_statistics(source, [network], shares, samples=32)
    assert [bool(part.any()) for part in found.m1.chunk(4)] == [True, False, True, False]


def test_one_image_of_a_label_is_refused(tmp_path, make_dataset_zip):
    labelled_data = dict(
        class_name='training.dataset.ImageFolderDataset', path=str(make_dataset_zip(tmp_path, n=4, labels=3)),
        use_labels=True,
    )  # fmt: skip
    with pytest.raises(UserError, match=r'is more than the 1 images|is too few'):
        labels.labelled_statistics(
            sources.DatasetImages(labelled_data), [embeddings.load(EMBEDDING, 'cpu')], [0.5, 0.25, 0.25], samples=4
        )


def test_the_loss_compares_by_label(labelled_data, make_generator):
    G = make_generator(c_dim=3).requires_grad_(True)
    given = dict(training_set_kwargs=labelled_data, embeddings=EMBEDDING, reference='data', estimator='moments')
    joint, plain = (
        DistanceLoss('cpu', G.mapping, G.synthesis, by_label=by_label, **given) for by_label in (True, False)
    )
    z, c = torch.randn(6, G.z_dim), torch.eye(3)[torch.arange(6) % 3]
    gradients = []
    for loss in (joint, plain):
        G.zero_grad()
        torch.manual_seed(0)
        loss.accumulate_gradients('Gmain', None, None, z, c, sync=True, gain=1)
        gradients.append(G.synthesis.b8.conv1.weight.grad.clone())
    assert gradients[0].abs().max() > 0
    assert not torch.allclose(*gradients)
    torch.manual_seed(0)
    network = embeddings.load(EMBEDDING, 'cpu')
    features = labels.at_labels(network(G.synthesis(G.mapping(z, c, skip_w_avg_update=True))), c)
    source = sources.DatasetImages(labelled_data)
    (reference,) = labels.labelled_statistics(source, [network], labels.shares_of(source, 3), samples=23)
    expected = (
        3
        * 20
        * ((features.mean(0) - reference.m1).abs().mean() + (features.square().mean(0) - reference.m2).abs().mean())
    )
    (gradient,) = torch.autograd.grad(expected.float(), [G.synthesis.b8.conv1.weight])
    torch.testing.assert_close(gradients[0], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))
