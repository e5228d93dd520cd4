"""DiME's large batches and balanced weights: against formulas in float64, from states, and on two processes."""

import copy

import numpy as np
import pytest
import torch
from plans import checked
from two_processes import in_two_processes

from stylegan2_compress import distributed, pickles
from stylegan2_compress.compression.distill import distill
from stylegan2_compress.distributions.memory import FeatureMemory
from stylegan2_compress.distributions.sources import LabelSource
from stylegan2_compress.distributions.statistics import Statistics
from stylegan2_compress.errors import UserError
from stylegan2_compress.losses import balance as balancing
from stylegan2_compress.losses.balance import Balance
from stylegan2_compress.losses.dime import DiMELoss, DistanceLoss
from stylegan2_compress.losses.distribution_matching import DistributionMatching
from stylegan2_compress.losses.estimators import ESTIMATORS
from stylegan2_compress.losses.large_batch import LargeBatch
from stylegan2_compress.losses.masks import MaskSchedule
from stylegan2_compress.losses.space import Space
from stylegan2_compress.losses.terms import Batch
from stylegan2_compress.networks.masked import ScoreMaskedGenerator

TINY = 'module:tiny_embeddings:tiny@size=16'
BATCH, SIZE, SEED = 8, 24, 5


class Mapping(torch.nn.Module):
    z_dim, c_dim = 4, 2

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(6, 5).double()

    def forward(self, z, c, skip_w_avg_update):
        assert skip_w_avg_update  # These images are beside the run's own.
        return self.linear(torch.cat([z, c], dim=1).double()).tanh()


class Synthesis(torch.nn.Module):
    def __init__(self, noise):
        super().__init__()
        self.linear = torch.nn.Linear(5, 12).double()
        self.noise = noise

    def forward(self, ws, force_fp32):
        images = self.linear(ws).tanh().view(-1, 3, 2, 2)
        return images + self.noise * torch.randn(images.shape, dtype=torch.float64)


def network(images):
    return torch.cat([images.mean(dim=(2, 3)), images.square().mean(dim=(2, 3))], dim=1)


def reference():
    y = torch.randn(9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return Statistics(y.mean(0), y.square().mean(0), y)


def distance_of(name):
    entry = ESTIMATORS[name]
    return entry.build(*([True] if entry.has_bank else []), reference())


def large_batch(noise=0.1):
    torch.manual_seed(0)
    mapping, synthesis = Mapping(), Synthesis(noise)
    found = LargeBatch(SIZE, BATCH, SEED, mapping, synthesis, LabelSource(2, None), dict(force_fp32=True))
    return found, [*mapping.parameters(), *synthesis.parameters()]


def backward(found, parameters, at_once, names=('moments', 'rbf'), nimg=48, share=1.0):
    """Values, features, and the gradients that reach the parameters."""
    for parameter in parameters:
        parameter.grad = None
    spaces = [Space(network, distance_of(name), weight) for name, weight in zip(names, [2.0, 3.0], strict=True)]
    values, features = found.backward(nimg, at_once, spaces, share, torch.device('cpu'))
    return values, features, [parameter.grad for parameter in parameters]


# --- Large batches ----------------------------------------------------------------------------------------------------


def test_the_gradient_is_that_of_the_whole_batch_at_once():
    """k λ ∂d/∂θ of all images, times the rounds that loops average over; the noise of an image is one noise."""
    found, parameters = large_batch()
    values, _features, gradients = backward(found, parameters, at_once=4)
    images = torch.cat(list(found.images(48, 4, torch.device('cpu'))))
    assert images.shape == (SIZE, 3, 2, 2)
    features = network(images)
    moments, rbf = distance_of('moments')(features), distance_of('rbf')(features)
    torch.testing.assert_close(values, [moments.detach(), rbf.detach()])
    interval, rounds = SIZE / BATCH, BATCH / 4
    expected = torch.autograd.grad(interval * rounds * (2 * moments + 3 * rbf), parameters)
    torch.testing.assert_close(gradients, list(expected))
    a1, a2 = sum(features) / SIZE, sum(f**2 for f in features) / SIZE
    formula = (a1 - reference().m1).abs().mean() + (a2 - reference().m2).abs().mean()
    torch.testing.assert_close(values[0], formula.detach())
    _values, _features, half = backward(found, parameters, at_once=4, share=0.5)
    torch.testing.assert_close(half, [gradient / 2 for gradient in expected])


def test_images_are_fresh_and_of_their_place_in_the_run():
    found, _parameters = large_batch(noise=0)
    device = torch.device('cpu')
    images = torch.cat(list(found.images(48, 8, device)))
    rnd = np.random.default_rng([SEED, 48, 1])
    z = torch.from_numpy(rnd.standard_normal([SIZE, 4], np.float32))
    c = LabelSource(2, None).draw(SIZE, rnd, device)
    assert set(c.argmax(1).tolist()) == {0, 1}
    torch.testing.assert_close(images, found.G_synthesis(found.G_mapping(z, c, True), True))
    torch.testing.assert_close(torch.cat(list(found.images(48, 2, device))), images)
    assert not torch.allclose(torch.cat(list(found.images(72, 8, device))), images)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    list(found.images(48, 8, device))
    assert torch.equal(torch.rand(1), expected)


def test_every_third_step_if_it_is_three_times_as_large():
    found, _parameters = large_batch()
    assert [found.is_due(8 * step) for step in range(7)] == [True, False, False, True, False, False, True]


@pytest.fixture
def teacher(tmp_path, make_generator, make_discriminator, monkeypatch):
    monkeypatch.setenv('STYLEGAN2_COMPRESS_CACHE', str(tmp_path / 'cache'))
    quiet = dict(channel_base=256, channel_max=16, use_noise=False)
    G, D = make_generator(5, synthesis_kwargs=quiet).eval(), make_discriminator(5).eval()
    pickles.save(tmp_path / 'teacher.pkl', dict(G=G, D=D, G_ema=G, training_set_kwargs=None, augment_pipe=None))
    return str(tmp_path / 'teacher.pkl')


def build(teacher, **given):
    networks = pickles.load(teacher)
    G = networks['G'].train().requires_grad_(True)
    with torch.no_grad():  # Another student than the teacher.
        for parameter in G.synthesis.parameters():
            parameter.add_(0.03)
    given = dict(samples=8, style_mixing_prob=0) | given
    return DiMELoss(
        'cpu', G.mapping, G.synthesis, networks['D'].requires_grad_(False), teacher=teacher, embeddings=TINY, **given
    )


def steps(loss, first, count, rounds=1, bad=None):
    """The mean gradients of rounds, of some steps of eight images; in step `bad` they are not finite."""
    found = []
    for step in range(first, first + count):
        for parameter in loss.G_synthesis.parameters():
            parameter.grad = None
        z = torch.randn([8, 16], generator=torch.Generator().manual_seed(step)) * (torch.nan if step == bad else 1)
        for index, part in enumerate(z.chunk(rounds)):
            loss.accumulate_gradients('Gmain', None, None, part, torch.zeros(len(part), 0), index == rounds - 1, 1)
        grads = [parameter.grad for parameter in loss.G_synthesis.parameters()]
        found.append([None if grad is None else grad / rounds for grad in grads])
    return found


def test_dime_is_exact_under_gradient_accumulation(teacher):
    """Without it, the mean of rounds is another gradient."""

    def of_dime(rounds, **given):
        with_it, without = (build(teacher, weights=weight, **given) for weight in (20, 0))
        pairs = zip(steps(with_it, 0, 1, rounds)[0], steps(without, 0, 1, rounds)[0], strict=True)
        return torch.cat([(a - b).flatten() for a, b in pairs])

    def difference(**given):
        whole, in_rounds = of_dime(1, **given), of_dime(4, **given)
        return float((whole - in_rounds).norm() / whole.norm())

    exact = difference(large_batch=8, batch_size=8)
    assert exact < 1e-3
    assert difference() > 20 * exact


def test_a_loss_of_nothing_but_large_batches_makes_no_other_images(teacher):
    """Also where masks follow their schedule beside it, which have nothing to do with images."""
    masks = MaskSchedule(ScoreMaskedGenerator(16, 0, 16, 16, 3, keep=0.5).parts, total_nimg=100)
    G = pickles.load(teacher)['G'].train().requires_grad_(True)
    made = []
    G.synthesis.register_forward_hook(lambda _module, inputs, _images: made.append(len(inputs[0])))
    given = dict(teacher=teacher, embeddings=TINY, samples=8, large_batch=16, batch_size=8)
    found = steps(DistanceLoss('cpu', G.mapping, G.synthesis, **given, terms=[masks]), 0, 2)
    assert made == [8, 8] * 2  # In the first of two steps: without gradient, and with it.
    assert found[0][-1] is not None
    assert found[1] == [None] * len(found[1])


def test_a_large_batch_that_is_not_finite_is_left_out(teacher, capsys):
    loss = build(teacher, large_batch=8, batch_size=8)
    network = loss.terms[0].spaces[0].network
    network.network.register_forward_hook(lambda _network, _inputs, outputs: outputs * torch.nan)
    assert all(gradient is None for gradient in steps(loss, 0, 1)[0])
    assert f'DiME {TINY} not finite' in capsys.readouterr().out


# --- Balance ----------------------------------------------------------------------------------------------------------


def test_weights_are_the_ratio_of_gradients_at_the_images():
    """ρ ‖∂L_adv/∂x‖ / ‖∂L_k/∂x‖, both averaged; nothing at the floor."""
    found = Balance(0.5, 2, 'cpu')
    x = torch.randn([3, 3, 2, 2], dtype=torch.float64, requires_grad=True)
    adversarial, values = (x**3).mean(), [x.square().mean(), x.sin().sum()]
    found.follow(x, adversarial, values)
    n = x.numel()
    norms = [float(each.norm()) for each in (3 * x.detach() ** 2 / n, 2 * x.detach() / n, x.detach().cos())]
    expected = [0.5 * norms[0] / own for own in norms[1:]]
    weights = found.weights(values, torch.tensor([-100.0, 100.0]))
    torch.testing.assert_close(weights, torch.tensor([expected[0], 0]))
    found.follow(x, 2 * adversarial, values)
    weights = found.weights(values, torch.tensor([-100.0, -100.0]))
    torch.testing.assert_close(weights, torch.tensor(expected) * (1 + balancing.GRADIENT_RATE))


def test_gradients_that_overflow_leave_the_averages_as_they_are():
    """λ would be infinite, and then not a number, until the next gradients are measured twice."""
    found = Balance(0.5, 1, 'cpu')
    x = torch.ones([1, 1, 2, 2], requires_grad=True)
    loss, overflow = x.square().mean(), (x * torch.inf).sum()
    found.follow(x, overflow, [loss])
    floor = torch.tensor([-1.0])
    assert float(found.weights([loss], floor)) == 0  # There is no average yet.
    for adversarial, own in ((loss, loss), (overflow, loss), (loss, overflow), (loss, loss)):
        found.follow(x, adversarial, [own])
        torch.testing.assert_close(found.weights([loss], floor), torch.tensor([0.5]))


def test_a_step_with_balanced_weights(teacher):
    """What is added is λ_k as the formula has it, and recorded."""
    loss = build(teacher, balance=0.3)
    steps(loss, 0, 1)
    term = loss.terms[0]
    images = torch.randn([8, 3, 16, 16], requires_grad=True)
    adversarial = torch.nn.functional.softplus(-loss.D(images, torch.zeros(8, 0))).mean()
    state = copy.deepcopy(loss.state_dict())
    (fresh,) = build(teacher, balance=0.3).terms
    fresh.before_step(0)
    value, spread, weight = fresh.generator(Batch(None, None, None, images, None, adversarial))
    (own,), (other,) = (torch.autograd.grad(each, images, retain_graph=True) for each in (value.value, adversarial))
    assert float(value.weight) == pytest.approx(0.3 * float(other.norm() / own.norm()), rel=1e-5)
    assert (spread.name, weight.name) == (f'DiME/spread/{TINY}', f'DiME/weight/{TINY}')
    assert weight.weight is None
    continued = build(teacher, balance=0.3)
    continued.load_state_dict(state)
    torch.testing.assert_close(steps(continued, 1, 2), steps(loss, 1, 2), rtol=0, atol=0)
    assert term.balance.tensors() == continued.terms[0].balance.tensors()


def test_floors_stay_when_a_run_goes_on_with_a_refreshed_bank(teacher):
    kwargs = dict(estimator='rbf', bank=16, samples=None, refresh=1, balance=0.3)
    loss, continued = build(teacher, **kwargs), build(teacher, **kwargs)
    steps(loss, 0, 2)
    before = loss.terms[0].floors(8)
    continued.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert torch.equal(continued.terms[0].floors(8), before)
    continued.terms[0].floors.measured.clear()
    assert not torch.equal(continued.terms[0].floors(8), before)  # Measured anew, with another bank.


def test_a_step_that_is_left_out_moves_no_average(teacher):
    loss = build(teacher, balance=0.3)
    steps(loss, 0, 1, bad=0)
    assert all(bool(tensor.isnan().all()) for tensor in loss.terms[0].balance.tensors().values())
    steps(loss, 1, 1)
    assert all(bool(tensor.isfinite().all()) for tensor in loss.terms[0].balance.tensors().values())


@pytest.mark.parametrize('given', [{}, dict(memory=40), dict(estimator='rbf', bank=16, samples=None)])
def test_the_teachers_own_images_are_at_the_floor(teacher, given):
    """A student that is the teacher is at it, one that is off is above."""
    (term,) = build(teacher, balance=1.0, **(dict(samples=64) | given)).terms
    floor = term.floors(8)
    assert floor.shape == (1,)
    source = term.floors.source
    network, distance = term.spaces[0].network, term.spaces[0].distance
    drawn = torch.cat([network(source.draw(index)[0]) for index in range(100, 103)])
    past = [drawn[:32]] if 'memory' in given else []
    values = torch.stack([distance(part, *past) for part in drawn[32:].split(8)])
    assert float(values.mean()) == pytest.approx(float(floor), abs=3 * float(values.std()) + 1e-6)
    assert float(distance(drawn[32:40] + 2 * drawn.std(), *past)) > float(floor) + float(values.std())


@pytest.mark.parametrize(
    ('given', 'sentence'),
    [
        (dict(large_batch=2), 'large_batch=2 must be the batch of 4 images or a multiple'),
        (dict(large_batch=6), 'large_batch=6 must be the batch of 4 images or a multiple'),
        (dict(large_batch=8, memory=8), 'memory=8 and large_batch=8 exclude each other'),
        (dict(large_batch=8, balance=1), 'balance=1 and large_batch=8 exclude each other'),
        (dict(balance=1, weights=20), 'weights=20 and balance=1 exclude each other'),
        (dict(balance=0), 'balance=0 must be a number above 0'),
    ],
)
def test_refused(teacher, given, sentence):
    with pytest.raises(UserError, match=sentence):
        checked(DiMELoss, teacher=teacher, embeddings=TINY, samples=8, **given)


@pytest.mark.parametrize('loss', ['DistanceLoss', 'RegressionLoss+DistanceLoss'])
def test_balance_needs_something_to_balance_with(teacher, tmp_path, loss):
    with pytest.raises(UserError, match='balance=1 goes by the gradient of a discriminator, and this loss has none'):
        distill(
            teacher, None, str(tmp_path / 'out'), ratio=0.5, loss=f'stylegan2_compress.{loss}', device='cpu', kimg=1,
            loss_args=(f'embeddings={TINY}', 'samples=8', 'balance=1', *([f'embedding={TINY}'] * ('+' in loss))),
        )  # fmt: skip
    assert not (tmp_path / 'out').exists()


# --- Two processes ----------------------------------------------------------------------------------------------------


def of_this_process():
    """What one process with the batch, or two with half of it each, have in the end."""
    rank, processes = distributed.rank(), distributed.world_size()
    found, parameters = large_batch(noise=0)
    values, _features, gradients = backward(found, parameters, at_once=8 // processes)
    distributed.average(gradients)
    images = torch.randn([8, 3, 2, 2], dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    own = images.chunk(processes)[rank].requires_grad_()
    balance = Balance(1.0, 1, 'cpu')
    value = distance_of('rbf')(network(own))
    balance.follow(own, own.square().mean(), [value])
    memory = FeatureMemory(20, 6)
    memory.note(network(own))
    memory.commit()
    weights = balance.weights([value], torch.tensor([-1.0]))
    return dict(values=values, gradients=gradients, weights=weights, before=memory.before(network(own)).detach())


def beside_a_round():
    """Gradients of a step of the host's loop: with several processes, its backward pass brings them together."""
    rank, processes = distributed.rank(), distributed.world_size()
    found, parameters = large_batch(noise=0)
    if processes > 1:
        found.G_mapping, found.G_synthesis = (
            torch.nn.parallel.DistributedDataParallel(module) for module in (found.G_mapping, found.G_synthesis)
        )
    z = torch.randn([8, 4], generator=torch.Generator().manual_seed(3)).chunk(processes)[rank]
    images = found.G_synthesis(found.G_mapping(z, torch.eye(2)[torch.arange(len(z)) % 2], True), True)
    backward(found, parameters, at_once=8 // processes)
    images.square().mean().backward()
    return [parameter.grad for parameter in parameters]


def alone(teacher):
    """Gradients of a step, in two rounds, of a loss that has no other than the large batch's."""
    rank, processes = distributed.rank(), distributed.world_size()
    G = pickles.load(teacher)['G'].train().requires_grad_(True)
    modules = [G.mapping, G.synthesis]
    if processes > 1:
        modules = [torch.nn.parallel.DistributedDataParallel(each, broadcast_buffers=False) for each in modules]
    given = dict(teacher=teacher, embeddings=TINY, samples=8, large_batch=16, batch_size=8)
    loss = DistanceLoss('cpu', *modules, **given)
    for index, z in enumerate(torch.randn([2, 8, 16], generator=torch.Generator().manual_seed(4)).chunk(2)):
        own = z[0].chunk(2 * processes)[rank]
        loss.accumulate_gradients('Gmain', None, None, own, torch.zeros(len(own), 0), index == 1, 1)
    return [parameter.grad for parameter in G.parameters()]


def _process(rank, directory, teacher):
    found = of_this_process() | dict(step=beside_a_round(), alone=alone(teacher))
    torch.save(found, f'{directory}/{rank}.pt')


def test_two_processes_are_one(tmp_path, teacher):
    in_two_processes(_process, str(tmp_path), teacher)
    expected = of_this_process() | dict(step=beside_a_round(), alone=alone(teacher))
    assert all(gradient is not None and gradient.any() for gradient in expected['alone'][-4:])
    for rank in range(2):
        found = torch.load(tmp_path / f'{rank}.pt')
        torch.testing.assert_close(found.pop('alone'), expected['alone'], rtol=1e-3, atol=1e-5)  # In float32.
        torch.testing.assert_close(found, {name: each for name, each in expected.items() if name != 'alone'})
    assert len(expected['before']) == 8


def test_a_term_without_all_this_is_as_plain_as_it_was():
    """Without any option, `DistributionMatching` is the published term."""
    images = torch.randn([4, 3, 2, 2], dtype=torch.float64)

    class Eyes(torch.nn.Module):
        spec, dim, pools_layers = 'eyes', 6, False
        forward = staticmethod(network)

    term = DistributionMatching([Space(Eyes(), distance_of('moments'), 20.0)])
    (summand,) = term.generator(Batch(None, None, None, images, None))
    assert (summand.name, summand.weight) == ('DiME/eyes', 20.0)
    assert torch.equal(summand.value, distance_of('moments')(network(images)))
