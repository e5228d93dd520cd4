"""Steps whose loss is not finite: named, left out without a trace, agreed on by all processes, and not for ever."""

import copy

import pytest
import torch
from torch_utils import misc, training_stats
from training import networks
from two_processes import in_two_processes

from stylegan2_compress.errors import DivergedError
from stylegan2_compress.losses.adversarial import AdversarialLoss
from stylegan2_compress.losses.terms import Summand, Term

NAN = float('nan')


class Fragile(Term):
    """Adds the mean of the images, times a factor that may be anything."""

    factor = 1.0
    finished = 0

    def generator(self, batch):
        return [Summand('Fragile/mean', batch.images.mean() * self.factor)]

    def discriminator(self, batch):
        return [Summand('Fragile/logits', batch.logits.mean() * self.factor)]

    def after_step(self):
        self.finished += 1


def build(wrap=lambda module: module, **kwargs):
    """A tiny G and D, and the loss with a fragile term."""
    widths = dict(channel_base=64, channel_max=8)
    shape = dict(img_resolution=8, img_channels=3, c_dim=0)
    torch.manual_seed(1)
    G = networks.Generator(z_dim=8, w_dim=8, mapping_kwargs=dict(num_layers=1), synthesis_kwargs=widths, **shape)
    D = networks.Discriminator(**shape, **widths)
    modules = dict(G_mapping=G.mapping, G_synthesis=G.synthesis, D=D)
    for module in (G, D):
        module.train()
    modules = {name: wrap(module.requires_grad_(True)).requires_grad_(False) for name, module in modules.items()}
    return G, D, AdversarialLoss('cpu', terms=[Fragile()], **modules, **kwargs)


def accumulate(loss, G, D, phase, rounds=1, before_round=lambda index: None, **changes):
    """One phase as the host's loop runs it, up to the optimizer."""
    module = G if phase.startswith('G') else D
    for parameter in module.parameters():
        parameter.grad = None
    module.requires_grad_(True)
    for index in range(rounds):
        before_round(index)
        given = dict(real_img=torch.randn(4, 3, 8, 8), gen_z=torch.randn(4, 8)) | changes
        loss.accumulate_gradients(
            phase, real_c=torch.zeros(4, 0), gen_c=torch.zeros(4, 0), sync=index == rounds - 1, gain=1, **given
        )
    module.requires_grad_(False)
    return [parameter.grad for parameter in module.parameters()]


def reported():
    collector = training_stats.Collector(regex='Loss/.*', keep_previous=False)
    collector.update()
    return collector


@pytest.mark.parametrize('phase', ['Gmain', 'Gboth', 'Dmain', 'Dboth'])
@pytest.mark.parametrize('bad_round', [0, 1])
def test_a_bad_round_drops_the_whole_step(phase, bad_round, capsys):
    G, D, loss = build()
    (term,) = loss.terms
    loss.pl_mean.fill_(0.5)
    w_avg = G.mapping.w_avg.clone()
    statistics = reported()

    def poison(index):
        term.factor = NAN if index == bad_round else 1.0

    assert all(grad is None for grad in accumulate(loss, G, D, phase, rounds=2, before_round=poison))
    assert loss.pl_mean == 0.5
    assert torch.equal(G.mapping.w_avg, w_avg)
    assert term.finished == 0
    statistics.update()
    assert not any(stat['num'] for stat in statistics.as_dict().values())
    name = 'mean' if phase.startswith('G') else 'logits'
    assert capsys.readouterr().out == f'{phase} step left out at 0.0 kimg: Fragile {name} not finite.\n'

    # The next step is like any other, and nothing of the bad one is in its numbers.
    term.factor = 1.0
    grads = accumulate(loss, G, D, phase)
    assert any(grad is not None and grad.any() for grad in grads)
    assert all(grad is None or grad.isfinite().all() for grad in grads)
    statistics.update()
    assert all(torch.tensor(stat['mean']).isfinite() for stat in statistics.as_dict().values() if stat['num'])
    assert sum(stat['num'] for stat in statistics.as_dict().values())
    assert term.finished == (1 if phase.startswith('G') else 0)
    if phase == 'Gboth':
        assert loss.pl_mean != 0.5
    assert not torch.equal(G.mapping.w_avg, w_avg)


@pytest.mark.parametrize(
    ('phase', 'changes', 'culprits'),
    [
        ('Gmain', dict(gen_z=torch.full([4, 8], NAN)), 'generator loss, Fragile mean'),
        ('Greg', dict(gen_z=torch.full([4, 8], NAN)), 'path length penalty'),
        ('Dmain', dict(gen_z=torch.full([4, 8], NAN)), "discriminator loss on the student's images, Fragile logits"),
        ('Dmain', dict(real_img=torch.full([4, 3, 8, 8], NAN)), 'discriminator loss on real images'),
        ('Dreg', dict(real_img=torch.full([4, 3, 8, 8], NAN)), 'R1 penalty, discriminator loss on real images'),
    ],
)
def test_the_culprit_is_named(phase, changes, culprits, capsys):
    G, D, loss = build()
    loss.steps.nimg = 3140
    w_avg = G.mapping.w_avg.clone()
    assert all(grad is None for grad in accumulate(loss, G, D, phase, **changes))
    assert capsys.readouterr().out == f'{phase} step left out at 3.1 kimg: {culprits} not finite.\n'
    assert loss.pl_mean == 0
    assert torch.equal(G.mapping.w_avg, w_avg)  # The latents went through the mapping network before anything failed.


def test_a_finite_loss_is_used_whatever_its_gradient():
    """An infinite gradient of a finite loss stays the loop's business, as in the host."""
    G, D, loss = build()
    G.synthesis.b8.torgb.weight.requires_grad_(True).register_hook(lambda grad: grad * float('inf'))
    grads = accumulate(loss, G, D, 'Gmain')
    assert not any(grad is None for grad in grads)
    assert G.synthesis.b8.torgb.weight.grad.isinf().any()


@pytest.mark.parametrize('phase', ['Gmain', 'Dmain'])
def test_no_weight_moves(phase):
    """What the host's loop does after a phase leaves weights and Adam's averages alone."""
    G, D, loss = build()
    module = G if phase == 'Gmain' else D
    opt = torch.optim.Adam(module.parameters(), lr=0.1, betas=(0.0, 0.99))
    accumulate(loss, G, D, phase)
    opt.step()
    weights, averages = copy.deepcopy(module.state_dict()), copy.deepcopy(opt.state_dict())
    loss.terms[0].factor = NAN
    accumulate(loss, G, D, phase)
    for parameter in module.parameters():
        if parameter.grad is not None:
            misc.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
    opt.step()
    assert all(torch.equal(value, weights[name]) for name, value in module.named_parameters())
    torch.testing.assert_close(opt.state_dict(), averages, rtol=0, atol=0)


def test_ten_in_a_row_are_the_end():
    G, D, loss = build()
    (term,) = loss.terms
    for factors in ([NAN] * 9 + [1], [NAN] * 9):  # Good steps of other phases do not count.
        for factor in factors:
            term.factor = factor
            accumulate(loss, G, D, 'Gmain')
            accumulate(loss, G, D, 'Greg')
    state = copy.deepcopy(loss.state_dict())
    for survivor in ((G, D, loss), build()):  # Also in a run that goes on.
        survivor[2].load_state_dict(state)
        survivor[2].terms[0].factor = NAN
        with pytest.raises(DivergedError) as caught:
            accumulate(survivor[2], *survivor[:2], 'Gmain')
        message = str(caught.value)
        assert message.startswith('Training diverged at 0.1 kimg: Fragile mean not finite in 10 Gmain steps in a row;')
        assert message.count('.') == 2  # One sentence, and the point of 0.1.
    assert loss.state_dict()['steps']['nimg'] == 20 * 4


def _train(rank, directory):
    G, D, loss = build(lambda module: torch.nn.parallel.DistributedDataParallel(module, broadcast_buffers=False))
    torch.manual_seed(10 + rank)
    (term,) = loss.terms
    found = {}
    for step, bad_rank in enumerate([None, 1, None]):
        term.factor = NAN if rank == bad_rank else 1.0
        for phase in ('Gmain', 'Greg', 'Dmain'):
            grads = accumulate(loss, G, D, phase, rounds=2)
            found[f'{step} {phase}'] = [None if grad is None else grad.clone() for grad in grads]
        found[f'{step} pl_mean'] = loss.pl_mean.clone()
    found['nimg'] = loss.steps.nimg
    torch.save(found, f'{directory}/{rank}.pt')


def test_two_processes_agree(tmp_path, capfd):
    """The step that only the second one cannot take is taken by neither, and path lengths have one average."""
    in_two_processes(_train, str(tmp_path))
    first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    for step in range(3):
        for phase in ('Gmain', 'Dmain'):
            assert all((grad is None) == (step == 1) for grad in first[f'{step} {phase}'])
    assert len({float(first[f'{step} pl_mean']) for step in range(3)}) == 3
    assert first['nimg'] == 3 * 2 * 4 * 2
    assert capfd.readouterr().out.splitlines() == [
        'Gmain step left out at 0.0 kimg: Fragile mean not finite.',
        'Dmain step left out at 0.0 kimg: Fragile logits not finite.',
    ]


def test_path_length_average_is_that_of_all_lengths(tmp_path):
    """Two processes whose paths differ by a known factor: the average follows the mean of both."""
    alone = [_average(rank) for rank in range(2)]
    in_two_processes(lambda rank: torch.save(_average(rank), tmp_path / f'{rank}.pt'))
    both = [torch.load(tmp_path / f'{rank}.pt') for rank in range(2)]
    assert alone[0] != alone[1]
    assert both[0] == both[1]
    torch.testing.assert_close(both[0], (alone[0] + alone[1]) / 2)


def _average(rank):
    G, D, loss = build()
    torch.manual_seed(rank)
    accumulate(loss, G, D, 'Greg')
    return loss.pl_mean
