"""Distributions of features and labels together: statistics, and what a distance sees of them."""

import numpy as np
import pytest
import torch

from stylegan2_compress import embeddings
from stylegan2_compress.distributions import labels, sources
from stylegan2_compress.errors import UserError
from stylegan2_compress.losses.dime import DistanceLoss
from stylegan2_compress.losses.estimators import ESTIMATORS

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
    assert labels.with_labels(x, torch.tensor([[0, 0, 1], [1, 0, 0]])).tolist() == [
        [0, 0, 0, 0, 1, 2],
        [3, 4, 0, 0, 0, 0],
    ]


def test_statistics_are_those_of_all_images(labelled_data, reals):
    network = embeddings.load(EMBEDDING, 'cpu')
    (found,) = labels.labelled_statistics(sources.DatasetImages(labelled_data), [network], 3, samples=23, bank=23)
    joint = labels.with_labels(*reals).double()
    torch.testing.assert_close(found.m1, joint.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.m2, joint.square().mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.bank.double().sum(0), joint.sum(0), rtol=1e-4, atol=1e-5)
    (few,) = labels.labelled_statistics(sources.DatasetImages(labelled_data), [network], 3, samples=12, bank=6)
    assert few.bank.shape == (6, joint.shape[1])


@pytest.mark.parametrize('estimator', ['moments', 'rbf'])
def test_a_distance_sees_labels_that_are_exchanged(labelled_data, reals, estimator):
    network = embeddings.load(EMBEDDING, 'cpu')
    (reference,) = labels.labelled_statistics(sources.DatasetImages(labelled_data), [network], 3, samples=23, bank=23)
    build = ESTIMATORS[estimator].build
    distance = build(reference) if estimator == 'moments' else build(False, reference)
    features, c = reals
    right, wrong = (float(distance(labels.with_labels(features, each))) for each in (c, c.roll(1, dims=1)))
    assert abs(right) < 1e-4 < wrong


def test_one_image_of_a_label_is_refused(tmp_path, make_dataset_zip):
    labelled_data = dict(
        class_name='training.dataset.ImageFolderDataset', path=str(make_dataset_zip(tmp_path, n=4, labels=3)),
        use_labels=True,
    )  # fmt: skip
    with pytest.raises(UserError, match=r'is more than the 1 images|is too few'):
        labels.labelled_statistics(
            sources.DatasetImages(labelled_data), [embeddings.load(EMBEDDING, 'cpu')], 3, samples=4
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
    features = labels.with_labels(network(G.synthesis(G.mapping(z, c, skip_w_avg_update=True))), c)
    (reference,) = labels.labelled_statistics(sources.DatasetImages(labelled_data), [network], 3, samples=23)
    expected = 20 * (
        (features.mean(0) - reference.m1).abs().mean() + (features.square().mean(0) - reference.m2).abs().mean()
    )
    (gradient,) = torch.autograd.grad(expected.float(), [G.synthesis.b8.conv1.weight])
    torch.testing.assert_close(gradients[0], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))
