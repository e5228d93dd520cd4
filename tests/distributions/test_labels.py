"""Distributions of features and labels together: statistics, and what a distance sees of them."""

import numpy as np
import pytest
import torch
from plans import checked

from stylegan2_compress import embeddings, pickles
from stylegan2_compress.distributions import labels, sources
from stylegan2_compress.distributions.statistics import Statistics
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import datasets
from stylegan2_compress.losses.dime import DiMELoss, DistanceLoss
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


def by_label_of(features, c):
    """Mean features [labels, dim] of each label's images, in double precision."""
    return torch.stack([features[c[:, label] > 0].double().mean(0) for label in range(c.shape[1])])


def test_statistics_are_those_of_all_images(labelled_data, reals):
    network, source = embeddings.load(EMBEDDING, 'cpu'), sources.DatasetImages(labelled_data)
    shares = source.shares()
    assert shares == [8 / 23, 8 / 23, 7 / 23]
    x, c = reals
    for bank in (0, 23):
        (found,) = labels.labelled_statistics(source, [network], shares, samples=23, bank=bank)
        torch.testing.assert_close(found.m1, by_label_of(x, c), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.m2, by_label_of(x.square(), c), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.of_all().m1, x.double().mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.of_all().m2, x.double().square().mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.bank.sum(0), labels.beside_labels(x, c).sum(0), rtol=1e-4, atol=1e-5)
    (few,) = labels.labelled_statistics(source, [network], shares, samples=12, bank=6)
    assert few.bank.shape == (6, network.dim + 3)
    assert few.of_all().bank.shape == (6, network.dim)


def reference_of(estimator, labelled_data):
    """Arguments of an estimator for all images of the data set, with their labels."""
    network, source = embeddings.load(EMBEDDING, 'cpu'), sources.DatasetImages(labelled_data)
    entry, shares = ESTIMATORS[estimator], source.shares()
    bank = 23 if entry.has_bank else 0
    (reference,) = labels.labelled_statistics(source, [network], shares, samples=23, bank=bank)
    return entry, [False] if entry.has_bank else [], reference, shares


@pytest.mark.parametrize('estimator', ESTIMATORS)
def test_a_distance_sees_labels_that_are_exchanged(labelled_data, reals, estimator):
    entry, choices, reference, shares = reference_of(estimator, labelled_data)
    distance = entry.build(*choices, reference, shares)
    features, c = reals
    right, wrong = (float(distance(labels.beside_labels(features, each))) for each in (c, c.roll(1, dims=1)))
    assert abs(right) < 1e-4 * max(wrong, 1) < wrong


@pytest.mark.parametrize('estimator', ESTIMATORS)
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
        references, features = (labels.beside_labels(each, c) for each in of_all)
        m1, m2 = y.double().mean(0).repeat(count, 1), y.double().square().mean(0).repeat(count, 1)
        reference = labels.LabelledStatistics(m1, m2, references, torch.tensor(shares))
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
    shares = source.shares()
    assert shares == [31 / 32, 0, 1 / 32, 0]
    network = embeddings.load(EMBEDDING, 'cpu')
    (found,) = labels.labelled_statistics(source, [network], shares, samples=32, bank=32)
    of_labels = found.bank[:, -4:]
    assert (of_labels > 0).sum(0).tolist() == [31, 0, 2, 0]  # Two rows at least, to be compared with each other.
    torch.testing.assert_close(of_labels.sum(0) / len(of_labels), torch.tensor(shares))  # Each counts for less.
    assert [bool(moment.any()) for moment in found.m1] == [True, False, True, False]


@pytest.mark.parametrize('estimator', ['moments', 'squared-moments'])
@pytest.mark.parametrize('images', [16, 64])
def test_moments_are_nearest_for_the_means_of_the_reference(estimator, images):
    """Of students whose labels have the reference's means times a factor, although labels are drawn by chance."""
    rnd = torch.Generator().manual_seed(0)
    means, count = torch.randn(10, 8, generator=rnd).sign() * 2, 2000 // images * 10
    reference = labels.LabelledStatistics(means, means.square() + 1, torch.zeros(0, 18), torch.full([10], 0.1))
    distance = ESTIMATORS[estimator].build(reference, [0.1] * 10)
    drawn = torch.randint(10, [count, images], generator=rnd)
    noise = torch.randn(count, images, 8, generator=rnd)

    def found(factor):
        pairs = zip(factor * means[drawn] + noise, torch.eye(10)[drawn], strict=True)
        return float(torch.stack([distance(labels.beside_labels(*pair)) for pair in pairs]).mean())

    assert min([0.7, 0.8, 0.9, 1.0, 1.1, 1.2], key=found) in (0.9, 1.0, 1.1)


def test_a_rare_label_is_best_with_its_own_spread():
    """By a kernel: a bank in which it has more rows than its share does not ask for images that are all alike."""
    rnd = torch.Generator().manual_seed(0)
    shares, rows = [15 / 16, 1 / 16], [240, 32]
    y = torch.randn(272, 4, generator=rnd)
    of_labels = torch.eye(2).repeat_interleave(torch.tensor(rows), 0) * torch.tensor(shares) * 272 / torch.tensor(rows)
    bank = labels.beside_labels(y, of_labels)
    reference = labels.LabelledStatistics(torch.zeros(2, 4), torch.ones(2, 4), bank, torch.tensor(shares))
    distance = ESTIMATORS['rbf'].build(False, reference, shares)
    c = torch.eye(2).repeat_interleave(torch.tensor([480, 32]), 0)
    x = torch.randn(512, 4, generator=rnd)

    def found(spread):
        return float(distance(labels.beside_labels(torch.cat([x[:480], spread * x[480:]]), c)))

    assert min([0.0, 0.5, 0.8, 1.0, 1.25, 2.0], key=found) in (0.8, 1.0, 1.25)


def test_a_distance_from_the_same_distribution_is_zero_on_average():
    """With a bank in the order of labels, of which each has its rows."""
    rnd = torch.Generator().manual_seed(0)
    y = torch.randn(400, 4, generator=rnd)
    bank = labels.beside_labels(y, torch.eye(20).repeat_interleave(20, 0))
    reference = labels.LabelledStatistics(torch.zeros(20, 4), torch.ones(20, 4), bank, torch.full([20], 0.05))
    distance = ESTIMATORS['rbf'].build(True, reference, [0.05] * 20)
    found = torch.stack(
        [
            distance(
                labels.beside_labels(
                    torch.randn(64, 4, generator=rnd), torch.eye(20)[torch.randint(20, [64], generator=rnd)]
                )
            )
            for _ in range(300)
        ]
    )
    assert abs(found.mean()) < 4 * found.std() / 300**0.5 + 0.01


def test_one_image_of_a_label_is_refused(tmp_path, make_dataset_zip):
    labelled_data = dict(
        class_name='training.dataset.ImageFolderDataset', path=str(make_dataset_zip(tmp_path, n=4, labels=3)),
        use_labels=True,
    )  # fmt: skip
    with pytest.raises(UserError, match=r'is more than the 1 images|is too few'):
        labels.labelled_statistics(
            sources.DatasetImages(labelled_data), [embeddings.load(EMBEDDING, 'cpu')], [0.5, 0.25, 0.25], samples=4
        )


def test_a_run_that_mixes_labels_says_so(labelled_data):
    def warnings(batch=4, **more):
        args = dict(batch_size=batch, batch_gpu=batch, num_gpus=1, device='cpu', training_set_kwargs=labelled_data)
        given = dict(training_set_kwargs=labelled_data, embeddings=EMBEDDING, reference='data', estimator='rbf')
        return checked(DiMELoss, args, **given, **more)

    (said,) = warnings()
    assert said.endswith('--loss-arg by_label=true compares them with those of their label.')
    assert warnings(by_label=True) == warnings(balance=0.5) == warnings(batch=2) == []


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
    features = network(G.synthesis(G.mapping(z, c, skip_w_avg_update=True)))
    source = sources.DatasetImages(labelled_data)
    (reference,) = labels.labelled_statistics(source, [network], source.shares(), samples=23)
    expected = torch.zeros([])
    for label in range(3):  # Of which the batch has two images each.
        of_one = features[label::3]
        for found, wanted in [(of_one, reference.m1[label]), (of_one.square(), reference.m2[label])]:
            expected = expected + 20 * (found.mean(0) - wanted).abs().mean() / 3
    (gradient,) = torch.autograd.grad(expected.float(), [G.synthesis.b8.conv1.weight])
    torch.testing.assert_close(gradients[0], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))
    assert joint.terms[0].spreads[0].wanted == pytest.approx(float(plain.terms[0].spreads[0].wanted), rel=1e-3)
