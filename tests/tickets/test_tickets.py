"""tickets/: mask rules over time, masks as bytes, the ticket file, and the commands."""

import dataclasses
import glob
import hashlib
import json
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import scipy.linalg
import torch
from commands import refused, run
from host_alone import HOST_SCRIPT, WITHOUT_OUR_PACKAGE
from hypothesis import given, settings
from hypothesis import strategies as st
from training import networks

from stylegan2_compress import embeddings, host, pickles
from stylegan2_compress.compression.find_ticket import find_ticket, plan_search
from stylegan2_compress.compression.options import DISTANCES, MOST_LR, PRESETS, TicketOptions
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation import samples
from stylegan2_compress.host import profiling
from stylegan2_compress.host.networks import bound_arguments
from stylegan2_compress.losses.estimators import ESTIMATORS
from stylegan2_compress.losses.masks import Masks, MaskSchedule
from stylegan2_compress.networks.masked import RULES, Rule, ScoreMaskedGenerator
from stylegan2_compress.runs.directory import RunDirectory
from stylegan2_compress.runs.plan import Plan
from stylegan2_compress.tickets import baking, coding, ticket_file
from stylegan2_compress.tickets.ticket_file import Ticket

HOST = host.activate().path
EMBEDDING = 'module:tiny_embeddings:tiny@size=image'
SHAPE = dict(
    z_dim=16,
    c_dim=0,
    w_dim=16,
    img_resolution=16,
    img_channels=3,
    mapping_kwargs={'num_layers': 2},
    synthesis_kwargs={'channel_base': 256, 'channel_max': 16},
)
PAPER256 = dict(
    z_dim=512,
    c_dim=0,
    w_dim=512,
    img_resolution=256,
    img_channels=3,
    mapping_kwargs={'num_layers': 8},
    synthesis_kwargs={'channel_base': 16384, 'channel_max': 512},
)


pytestmark = pytest.mark.usefixtures('own_cache')


def make(**changes):
    """A masked generator that has been trained a little: scores and the average of W are not where they start."""
    G = ScoreMaskedGenerator(**{**SHAPE, 'keep': 0.3, **changes})
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for scores in G.parameters():
            spread = scores.std() if scores.numel() > 1 else 0.5
            scores += torch.rand(scores.shape, generator=draws) * spread
    G(torch.randn(4, 16, generator=draws), None)
    return G.eval().requires_grad_(False)


def images(G, **how):
    z = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    return G(z, torch.zeros(3, 0), noise_mode='const', **how)


# --- Rules ------------------------------------------------------------------------------------------------------------


def alive(G):
    return torch.cat([part.tensor(name, '_alive').flatten() for part in G.parts for name in part.names])


@pytest.mark.parametrize('rule', ['gem-miner', 'imp'])
def test_rules_with_steps_leave_exactly_what_their_schedule_says(rule):
    G = make(rule=rule, keep=0.1)
    steps = RULES[rule].steps if rule == 'gem-miner' else RULES[rule].rounds
    total, before = len(alive(G)), alive(G)
    for progress in np.linspace(0, 1, 41):
        RULES[rule].advance(G.parts, progress)
        done = int(steps * min(progress / 0.9, 1) + 1e-9)
        now = alive(G)
        assert int(now.sum()) == round(0.1 ** (done / steps) * total)
        assert not (now & ~before).any()  # What is dead stays dead.
        before = now
    assert int(now.sum()) == round(0.1 * total)


def test_gem_miner_freezes_the_lowest_and_rounds():
    G = make(rule='gem-miner', keep=0.5)
    scores = torch.cat([part.tensor(name, '_scores').flatten() for part in G.parts for name in part.names])
    with torch.no_grad():
        G.synthesis.b8.conv1.weight_scores.view(-1)[0] = -3
    RULES['gem-miner'].advance(G.parts, 1)
    assert G.synthesis.b8.conv1.weight_scores.view(-1)[0] == 0
    assert scores[alive(G)].clamp(max=1).min() >= scores[~alive(G)].clamp(max=1).max()
    for part in G.parts:
        for name, mask in part.masks().items():
            assert torch.equal(mask, part.tensor(name, '_alive') & (part.tensor(name, '_scores') > 0.5))
    penalty = RULES['gem-miner'].penalty(G.parts)
    clamped = sum(float(scores.double().square().sum()) for scores in G.parameters())
    torch.testing.assert_close(float(penalty), 5e-7 * clamped, rtol=1e-4, atol=0)


def test_imp_keeps_the_largest_and_rewinds():
    G = make(rule='imp', keep=0.5)
    start = {name: part.tensor(name, '_start').clone() for part in G.parts for name in part.names}
    before = {
        name: part.tensor(name).abs() / part.tensor(name, '_start').pow(2).mean().sqrt()
        for part in G.parts
        for name in part.names
    }
    RULES['imp'].advance(G.parts, 0.05)
    assert alive(G).all()  # The first round is not over.
    RULES['imp'].advance(G.parts, 0.9)
    kept = {name: part.tensor(name, '_alive') for part in G.parts for name in part.names}
    lowest = min(float(before[name][mask].min()) for name, mask in kept.items() if mask.any())
    assert lowest >= max(float(before[name][~mask].max()) for name, mask in kept.items() if not mask.all())
    for part in G.parts:
        for name in part.names:
            assert torch.equal(part.tensor(name), start[name])


@pytest.mark.parametrize('init', ['signed-constant', 'kaiming-normal'])
def test_imp_leaves_a_share_of_every_layer(init):
    """Layers store weights of very different sizes; of trained ones, each is as likely to be kept."""
    G = make(rule='imp', keep=0.1, weight_init=init)
    rnd = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in G.parts:
            for name in part.names:
                weight = part.tensor(name)
                size = part.tensor(name, '_start').pow(2).mean().sqrt()
                if 'conv' in name and 'affine' not in name:  # As the host's, for Adam's steps.
                    assert float(size) == pytest.approx(1, abs=0.1)
                weight += 0.1 * size * torch.randn(weight.shape, generator=rnd)
    RULES['imp'].advance(G.parts, 0.9)
    for part in G.parts:
        for name in part.names:
            assert 0.02 < part.tensor(name, '_alive').float().mean() < 0.3, name
    made = images(G)
    assert (made[0] - made[1]).std() > 0.01 * made.std() > 0


# --- Masks as bytes ---------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 300), st.sampled_from([0, 0.01, 0.1, 0.5, 0.9, 1]))
def test_what_is_coded_comes_back(seed, size, keep):
    mask = np.random.default_rng(seed).random(size) < keep
    coded = coding.encode(mask)
    assert np.array_equal(coding.decode(coded, size), mask)
    assert len(coded.remainders) == coding.remainder_bytes(coded.ones, size, coded.shift)


@pytest.mark.parametrize('keep', [0.001, 0.02, 0.1, 0.25, 0.9])
def test_codes_come_close_to_the_entropy(keep):
    mask = np.random.default_rng(0).random(1_000_000) < keep
    coded = coding.encode(mask)
    entropy = -(keep * np.log2(keep) + (1 - keep) * np.log2(1 - keep)) * mask.size
    assert entropy * 0.99 < 8 * (len(coded.quotients) + len(coded.remainders)) < entropy * 1.03


@settings(max_examples=150, deadline=None)
@given(st.integers(-2, 60), st.integers(-1, 40), st.binary(max_size=12), st.binary(max_size=12))
def test_codes_that_are_none_are_refused(ones, shift, quotients, remainders):
    try:
        mask = coding.decode(coding.Coded(ones, shift, quotients, remainders), 50)
    except ValueError:
        return
    assert mask.sum() == ones


@pytest.mark.parametrize(('rule', 'most'), [('edge-popup', 1_500_000), ('signed-edge-popup', 1_800_000)])
def test_the_size_of_a_ticket_of_24_million_weights(tmp_path, rule, most):
    arguments = bound_arguments(make(), defaults=True) | PAPER256 | dict(keep=0.1, rule=rule)
    shapes = ticket_file.weight_shapes(arguments)
    rnd, masks = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        mask = np.zeros(int(np.prod(shape)), np.bool_)
        mask[rnd.choice(mask.size, round(0.1 * mask.size), replace=False)] = True
        masks[name] = mask.reshape(shape)
    turned = {name: mask & (rnd.random(mask.shape) < 0.5) for name, mask in masks.items()} if 'signed' in rule else {}
    ticket = Ticket(arguments, '', masks, turned, {'mapping.w_avg': np.zeros(512, np.float32)}, {})
    assert ticket.total == 24_743_232  # And 24,226 biases, constants and noise strengths.
    assert ticket.write(tmp_path / 'big.ticket') < most
    read = Ticket.read(tmp_path / 'big.ticket')
    assert all(np.array_equal(mask, masks[name]) for name, mask in read.masks.items())
    assert all(np.array_equal(read.turned[name], turned[name]) for name in turned)


# --- The file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('rule', 'density'),
    [
        ('edge-popup', 'uniform'),
        ('edge-popup', 'erk'),
        ('edge-popup', 'erk-odds'),
        ('signed-edge-popup', 'uniform'),
        ('signed-edge-popup', 'erk'),
        ('global-edge-popup', 'uniform'),
        ('gem-miner', 'uniform'),
    ],
)
@pytest.mark.parametrize('init', ['signed-constant', 'kaiming-normal'])
def test_a_ticket_brings_back_the_same_images(tmp_path, rule, density, init):
    G = make(rule=rule, density=density, weight_init=init, seed=2**63 + 1, unmasked=['*torgb.weight'])
    G.update_masks()
    Ticket.from_generator(G, {'note': 'ü'}).write(tmp_path / 'a.ticket')
    ticket = Ticket.read(tmp_path / 'a.ticket')
    assert ticket.facts == {'note': 'ü'}
    back = ticket.generator('a.ticket')
    baked = baking.bake(back)
    assert type(baked).__module__ == networks.Generator.__module__
    for how in ({}, dict(truncation_psi=0.5)):
        assert torch.equal(images(back, **how), images(G, **how))
        assert torch.equal(images(baked, **how), images(G, **how))
    zeros = sum(int((weight == 0).sum()) for name, weight in baked.named_parameters() if name.endswith('weight'))
    assert zeros == ticket.total - ticket.kept  # Weights that are drawn are never zero.


@pytest.mark.parametrize(
    ('rule', 'digest'),
    [
        ('edge-popup', '89988a063c44c26aa26a5d803d8ac733ee8f76f10c0e98556f2a10fdd4d5c040'),
        ('global-edge-popup', '8a85e22fd5656ab43e1c91682c58ec8abe9c3be7aa672419284f84bddc406586'),
        ('gem-miner', '3db41802ec89367ff74247c2658afeca4343021c03e4f9288866f6840903e3fd'),
    ],
)
def test_the_bytes_of_version_1_never_change(tmp_path, rule, digest):
    """These are files that version 0.1.0 wrote; the digests are not to be updated."""
    G = ScoreMaskedGenerator(**SHAPE, keep=0.3, rule=rule, seed=2**63 + 1, unmasked=['*torgb.weight']).eval()
    with torch.no_grad():
        G.mapping.w_avg.copy_(torch.arange(16) / 16)
        for scores in G.parameters():
            scores.copy_(scores.flip(0))
    path = tmp_path / 'a.ticket'
    size = Ticket.from_generator(G, {'note': 'ü', 'frechet_distance': 1.5}).write(path)
    content = path.read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (size, digest)
    assert torch.equal(images(Ticket.read(path).generator(path)), images(G))


def test_signs_take_a_bit_for_each_weight_that_is_kept(tmp_path):
    G = make(rule='signed-edge-popup')
    with torch.no_grad():
        for scores in G.parameters():
            scores.view(-1)[::3] *= -1
    ticket = Ticket.from_generator(G)
    size = ticket.write(tmp_path / 'signed.ticket')
    assert (tmp_path / 'signed.ticket').read_bytes()[12:14] == b'\x02\x00'
    plain = dataclasses.replace(ticket, turned={}, arguments=ticket.arguments | dict(rule='edge-popup'))
    without = plain.write(tmp_path / 'plain.ticket') + len('signed-')
    assert size - without == sum(-(-int(mask.sum()) // 8) for mask in ticket.masks.values())
    back = Ticket.read(tmp_path / 'signed.ticket').generator('signed.ticket')
    assert torch.equal(images(back), images(G))
    for name, turned in back.turned().items():
        assert turned.any()
        assert torch.equal(turned, G.turned()[name])


def test_a_ticket_of_a_rule_from_another_module(tmp_path, monkeypatch):
    source = 'from stylegan2_compress.networks.masked import EdgePopup\nclass Mine(EdgePopup): pass\n'
    (tmp_path / 'other_rules.py').write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / 'a.ticket'
    G = make(rule='other_rules.Mine')
    Ticket.from_generator(G).write(path)
    assert torch.equal(images(Ticket.read(path).generator(path)), images(G))
    del sys.modules['other_rules']
    with pytest.raises(UserError, match=r"names the mask rule 'other_rules\.Mine' of .*: `import other_rules` first"):
        Ticket.read(path)
    assert 'ticket bake --trust' in refused('ticket', 'show', path, unchanged=tmp_path)
    assert 'other_rules' not in sys.modules
    run('ticket', 'bake', '--trust', path, tmp_path / 'baked.pkl')
    torch.testing.assert_close(images(pickles.load(tmp_path / 'baked.pkl')['G_ema']), images(G))


class WeightsTrain(Rule):
    scored = False

    def mask(self, part, name):
        return torch.ones_like(part.tensor(name), dtype=torch.bool)


class Scheduled(Rule):
    scheduled = True


def test_a_teachers_ticket_needs_that_teacher(tmp_path, make_generator, make_discriminator):
    files = []
    for seed in (1, 2):
        dense = make_generator(seed).eval()
        files.append(str(tmp_path / f'{seed}.pkl'))
        pickles.save(files[-1], dict(G=dense, G_ema=dense, D=make_discriminator(), training_set_kwargs=None,
                                     augment_pipe=None))  # fmt: skip
    G = make(weight_init=None, teacher=pickles.sha256(files[0]))
    baking.put_weights(G, pickles.load(files[0])['G_ema'])
    Ticket.from_generator(G).write(tmp_path / 'a.ticket')
    ticket = Ticket.read(tmp_path / 'a.ticket')
    assert torch.equal(images(ticket.generator('a.ticket', files[0])), images(G))
    with pytest.raises(UserError, match=r'a\.ticket has the weights of a teacher .* --teacher'):
        ticket.generator('a.ticket')
    with pytest.raises(UserError, match='is not the teacher of'):
        ticket.generator('a.ticket', files[1])
    random = Ticket.from_generator(make())
    with pytest.raises(UserError, match='leave --teacher out'):
        random.generator('a.ticket', files[0])


def test_weights_that_no_seed_brings_back_are_refused():
    G = make()
    G.synthesis.b8.conv1.weight[0, 0, 0, 0] += 1
    with pytest.raises(UserError, match='not those of its seed 0'):
        Ticket.from_generator(G)
    with pytest.raises(UserError, match='imp trains weights'):
        Ticket.from_generator(make(rule='imp'))
    with pytest.raises(UserError, match='WeightsTrain trains weights'):
        Ticket.from_generator(make(rule='test_tickets.WeightsTrain'))


def test_weights_that_come_out_otherwise_are_noticed(tmp_path, monkeypatch):
    ticket = Ticket.from_generator(make())
    monkeypatch.setattr(
        'stylegan2_compress.networks.masked.random_signs', lambda rnd, count: np.ones(count, np.float32)
    )
    with pytest.raises(UserError, match='come out differently'):
        ticket.generator('a.ticket')


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / 'a.ticket'
    Ticket.from_generator(make()).write(path)
    content = path.read_bytes()
    rnd = np.random.default_rng(0)
    for place in [0, 12, 14, 20, len(content) - 1, *rnd.integers(len(content), size=30)]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << rnd.integers(8)]) + content[place + 1 :])
        with pytest.raises(UserError, match=r'a\.ticket is (not a ticket|damaged)'):
            Ticket.read(path)
    for length in [0, 5, 12, 18, 40, 60, len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r'a\.ticket is (not a ticket|damaged)'):
            Ticket.read(path)
    path.write_bytes(content + b'x')
    with pytest.raises(UserError, match='damaged'):
        Ticket.read(path)


def forge(path, ticket, edit=lambda header: None, payload=None, version=1, length=None):
    """A file with a right checksum and whatever else is wanted."""
    ticket.write(path)
    content = path.read_bytes()[:-32]
    (size,) = struct.unpack('<I', content[14:18])
    header = json.loads(content[18 : 18 + size])
    edit(header)
    text = json.dumps(header).encode()
    body = content[18 + size :] if payload is None else payload
    forged = content[:12] + struct.pack('<HI', version, len(text) if length is None else length) + text + body
    path.write_bytes(forged + hashlib.sha256(forged).digest())


def test_forged_files_are_refused_without_effort(tmp_path):
    ticket = Ticket.from_generator(make())
    path = tmp_path / 'a.ticket'
    forge(path, ticket)
    Ticket.read(path)
    first = next(iter(ticket.masks))

    def arguments(**changes):
        return lambda header: header['arguments'].update(changes)

    def mask(*numbers):
        return lambda header: header['masks'].update({first: list(numbers)})

    for edit in [
        arguments(w_dim=2**40),
        arguments(w_dim=2**18, z_dim=2**18),
        arguments(img_resolution=2**30),
        arguments(synthesis_kwargs={'channel_base': 2**20, 'channel_max': 2**20}),
        arguments(mapping_kwargs={'num_layers': 10**6}),
        arguments(w_dim=8),
        arguments(rule=3),
        arguments(seed='x'),
        arguments(masked=['nothing']),
        arguments(z_dim=[1]),
        mask(10**9, 2, 5),
        mask(-1, 2, 5),
        mask(3, 2, 10**12),
        mask(3, 60, 1),
        mask('3', 2, 5),
        lambda header: header['masks'].pop(first),
        lambda header: header.pop('trained'),
        lambda header: header['trained'].update({'mapping.w_avg': [10**12]}),
        lambda header: header['trained'].update({'mapping.w_avg': [-1]}),
        lambda header: header.update(arguments=[1]),
        *(lambda header, name=name: header['arguments'].pop(name) for name in ('seed', 'teacher', 'keep')),
    ]:
        forge(path, ticket, edit)
        with pytest.raises(UserError, match=r'a\.ticket is not a valid ticket'):
            Ticket.read(path)
    for changes in (dict(payload=b''), dict(length=2**31), dict(length=5)):
        forge(path, ticket, **changes)
        with pytest.raises(UserError, match='is not a valid ticket'):
            Ticket.read(path)
    for version in (2, 3):
        forge(path, ticket, version=version)
        with pytest.raises(UserError, match='its version is not that of its rule'):
            Ticket.read(path)
    forge(path, ticket, version=4)
    with pytest.raises(UserError, match='version 4'):
        Ticket.read(path)


def test_nothing_but_what_searches_train_is_put_into_a_generator(tmp_path):
    ticket, path = Ticket.from_generator(make()), tmp_path / 'a.ticket'
    for name, shape, said in [
        ('mapping.fc0.weight', (16, 16), "changes 'mapping.fc0.weight', which no search trains"),
        ('mapping.w_avg', (3,), 'lacks mapping.w_avg'),
    ]:
        more = {**ticket.trained, name: np.full(shape, 7, np.float32)}
        dataclasses.replace(ticket, trained=more).write(path)
        with pytest.raises(UserError, match=said):
            Ticket.read(path).generator(path)


def test_show_prints_no_control_characters(tmp_path):
    path = tmp_path / 'a.ticket'
    Ticket.from_generator(make(), {'snapshot': 'a\x1b[2J\nmask     99 of 100'}).write(path)
    assert 'snapshot: a\\x1b[2J\\nmask     99 of 100\n' in run('ticket', 'show', path)


def test_a_generator_whose_ticket_could_not_be_read_is_not_searched_for(tmp_path, data, monkeypatch):
    monkeypatch.setattr(ticket_file, 'MAX_WEIGHTS', 5000)
    with pytest.raises(UserError, match=r'This generator is larger than tickets can be \(.* more than 5,000 weights\)'):
        search(data, tmp_path / 'runs', **SMALL)
    assert not (tmp_path / 'runs').exists()


def test_a_snapshot_is_baked_as_its_ticket_is(tmp_path):
    """And one of a rule that trains weights, of which there are no tickets."""
    for rule in ('edge-popup', 'imp'):
        G = make(rule=rule)
        pickles.save(tmp_path / 'snapshot.pkl', dict(G=G, G_ema=G, D=None, training_set_kwargs=None, augment_pipe=None))
        run('ticket', 'bake', '--force', tmp_path / 'snapshot.pkl', tmp_path / 'plain.pkl')
        baked = pickles.load(tmp_path / 'plain.pkl')
        assert type(baked['G_ema']).__name__ == 'Generator'
        torch.testing.assert_close(images(baked['G_ema']), images(G))
        assert baked['training_set_kwargs'] is None
        assert f'{profiling.macs(baked["G_ema"]):,} MACs' in run('inspect', tmp_path / 'snapshot.pkl')


@pytest.mark.parametrize('rule', ['edge-popup', 'signed-edge-popup'])
def test_what_was_trained_beside_masks_comes_back(tmp_path, rule):
    G = make(rule=rule, train_unmasked=True, unmasked=('mapping.fc1.*',))
    assert not torch.equal(images(G), images(make(rule=rule, unmasked=('mapping.fc1.*',))))
    path = tmp_path / 'a.ticket'
    ticket = Ticket.from_generator(G)
    for name in ('synthesis.b8.conv1.bias', 'synthesis.b4.const', 'synthesis.b8.torgb.weight_factor',
                 'synthesis.b8.conv0.noise_strength', 'mapping.fc1.weight', 'mapping.fc0.weight_factor'):  # fmt: skip
        assert np.array_equal(ticket.trained[name], G.trained()[name].numpy())
    assert 'synthesis.b8.conv1.weight' not in ticket.trained
    ticket.write(path)
    assert path.read_bytes()[12] == 3
    again = Ticket.read(path).generator(path)
    assert torch.equal(images(again), images(G))
    torch.testing.assert_close(images(baking.bake(again)), images(G))
    run('ticket', 'bake', path, tmp_path / 'plain.pkl')
    assert 'trained  all that is not masked' in run('ticket', 'show', path)
    del ticket.trained['synthesis.b4.const']
    with pytest.raises(UserError, match=r'it lacks synthesis\.b4\.const'):
        ticket.generator('a.ticket')


def test_tickets_without_it_are_as_they_were(tmp_path):
    ticket = Ticket.from_generator(make())
    assert 'train_unmasked' not in ticket.arguments
    assert list(ticket.trained) == ['mapping.w_avg']
    ticket.write(tmp_path / 'a.ticket')
    assert 'trained' not in run('ticket', 'show', tmp_path / 'a.ticket')


def test_gradients_reach_what_is_not_masked():
    G = ScoreMaskedGenerator(**SHAPE, keep=0.3, train_unmasked=True).requires_grad_(True)
    images(G).square().sum().backward()
    trained = G.trained()
    for name in ('synthesis.b16.conv1.bias', 'synthesis.b4.const', 'synthesis.b16.torgb.weight_factor'):
        assert trained[name].grad.abs().max() > 0, name


def test_a_mask_that_is_none_of_its_rules_is_refused():
    ticket = Ticket.from_generator(make())
    name, mask = next(iter(ticket.masks.items()))
    mask[~mask] = True
    with pytest.raises(UserError, match=f'mask of {name}'):
        ticket.generator('a.ticket')


# --- Commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def ticket(tmp_path):
    path = tmp_path / 'a.ticket'
    Ticket.from_generator(make(), {'frechet_distance': 1.5}).write(path)
    return path


def test_load_save_bake_and_show(tmp_path, ticket):
    run('ticket', 'load', ticket, tmp_path / 'masked.pkl')
    run('ticket', 'save', '--network=G', tmp_path / 'masked.pkl', tmp_path / 'b.ticket')
    run('ticket', 'bake', tmp_path / 'b.ticket', tmp_path / 'plain.pkl')
    plain = pickles.load(tmp_path / 'plain.pkl')
    assert torch.equal(images(plain['G_ema']), images(make()))
    assert type(plain['G']).__name__ == 'Generator'
    shown = run('ticket', 'show', '--layers', ticket)
    contents = Ticket.read(ticket)
    for text in ('seed 0, signed-constant', f'{contents.kept:,} of {contents.total:,}', 'frechet_distance: 1.5'):
        assert text in shown
    layers = json.loads(run('ticket', 'show', '--json', ticket))['layers']
    assert layers['synthesis.b8.conv1.weight'] == [round(0.3 * 16 * 16 * 9), 16 * 16 * 9]


def test_tickets_are_taken_by_url(tmp_path, ticket, monkeypatch):
    """One that was downloaded before, under the name that the host gives it."""
    url = 'https://example.com/a.ticket'
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))
    (tmp_path / 'cache' / 'downloads').mkdir(parents=True)
    shutil.copy(ticket, tmp_path / 'cache' / 'downloads' / f'{hashlib.md5(url.encode()).hexdigest()}_a.ticket')
    assert run('ticket', 'show', url) == run('ticket', 'show', ticket)
    for command in ('load', 'bake'):
        run('ticket', command, url, tmp_path / f'{command}.pkl')
        assert torch.equal(images(pickles.load(tmp_path / f'{command}.pkl')['G_ema']), images(make()))


def test_other_commands_take_masked_generators_or_say_why_not(tmp_path, ticket):
    for command in ('load', 'bake'):
        run('ticket', command, ticket, tmp_path / f'{command}.pkl')
    counts = []
    for command in ('load', 'bake'):
        profiled = json.loads(run('profile', '--no-measure', '--json', tmp_path / f'{command}.pkl'))
        counts.append([profiled['profiles'][0][name] for name in ('macs', 'parameters')])
        (compared,) = json.loads(run('compare', tmp_path / f'{command}.pkl', '--format=json'))
        assert [compared[name] for name in ('MACs', 'parameters')] == counts[-1]
    assert counts[0] == counts[1]
    assert 'Suspicious' not in run('inspect', tmp_path / 'load.pkl')
    arguments = ('prune', '--teacher', tmp_path / 'load.pkl', '--ratio=0.5', '--out', tmp_path / 'x.pkl')
    assert 'ticket bake' in refused(*arguments, unchanged=tmp_path)


def test_a_baked_ticket_opens_where_only_the_host_is(tmp_path, ticket):
    run('ticket', 'bake', ticket, tmp_path / 'plain.pkl')
    assert b'stylegan2_compress' not in (tmp_path / 'plain.pkl').read_bytes()
    assert b'ScoreMasked' not in (tmp_path / 'plain.pkl').read_bytes()
    script = f'import sys; sys.path.insert(0, {str(HOST)!r})\n' + WITHOUT_OUR_PACKAGE + (
        'import legacy, torch\n'
        "data = legacy.load_network_pkl(open('plain.pkl', 'rb'))\n"
        "z = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))\n"
        "torch.save(data['G_ema'](z, torch.zeros(3, 0), noise_mode='const'), 'images.pt')\n"
        "data['D'](torch.zeros(1, 3, 16, 16), None)\n"
    )  # fmt: skip
    subprocess.run([sys.executable, '-c', script], check=True, cwd=tmp_path)
    # The host without our repairs resamples in another order of operations.
    torch.testing.assert_close(torch.load(tmp_path / 'images.pt'), images(make()))


@pytest.mark.checkout
def test_generate_py_runs_a_baked_ticket(tmp_path, ticket):
    run('ticket', 'bake', ticket, tmp_path / 'plain.pkl')
    script = [sys.executable, '-c', HOST_SCRIPT, HOST / 'generate.py', f'--network={tmp_path / "plain.pkl"}']
    options = ['--seeds=3', f'--outdir={tmp_path}', '--trunc=0.7', '--noise-mode=const']
    subprocess.run([*script, *options], check=True, cwd=HOST)
    z = torch.from_numpy(np.random.RandomState(3).randn(1, 16))
    image = make()(z, None, truncation_psi=0.7, noise_mode='const')[0].permute(1, 2, 0) * 127.5 + 128
    pixels = np.asarray(PIL.Image.open(tmp_path / 'seed0003.png'), dtype=np.float32)
    assert np.abs(pixels - image.clamp(0, 255).floor().numpy()).max() <= 1


@pytest.fixture
def data(tmp_path, make_dataset_zip):
    return str(make_dataset_zip(tmp_path, n=24))


SMALL = dict(z_dim=16, w_dim=16, channel_base=128, channel_max=8, mapping_layers=2, device='cpu', workers=0)


def search(data, outdir, **changes):
    defaults = dict(embedding=EMBEDDING, kimg=1, batch=64, lr=0.01, eval_samples=32, snap=1, kimg_per_tick=0.5)
    return find_ticket(data, str(outdir), **{**defaults, **changes})


@pytest.mark.parametrize('rule', ['edge-popup', 'gem-miner', 'imp'])
def test_find_ticket_from_random_weights(tmp_path, data, rule, capsys):
    run_dir = search(data, tmp_path / 'runs', rule=rule, keep=0.2, seed=11, **SMALL)
    compared = [json.loads(line) for line in Path(run_dir, 'tickets.jsonl').read_text().splitlines()]
    snapshots = sorted(glob.glob(f'{run_dir}/network-snapshot-*.pkl'))
    assert len(compared) == len(snapshots) >= 2
    if rule == 'imp':
        assert not glob.glob(f'{run_dir}/*.ticket')
        assert 'no ticket' in capsys.readouterr().out
        return
    best, last = (Ticket.read(f'{run_dir}/{name}.ticket') for name in ('best', 'last'))
    if rule == 'gem-miner':  # Keeps fewer and fewer, and the others are compared as long as they keep too many.
        assert compared[0]['kept'] > compared[-1]['kept'] == round(0.2 * best.total)
        compared = [facts for facts in compared if facts['kept'] <= round(0.2 * best.total)]
    assert best.facts == min(compared, key=lambda facts: facts['frechet_distance'])
    assert best.kept == best.facts['kept']
    G = pickles.load(snapshots[-1])['G_ema']
    assert torch.equal(images(last.generator('last.ticket')), images(G))
    start = ScoreMaskedGenerator(**last.arguments)
    assert last.arguments['seed'] == 11
    assert not torch.equal(images(start.eval()), images(G))


def test_snapshots_are_compared_in_the_embedding_for_that(tmp_path, data):
    """By the Fréchet distance of its features of as many images as asked for, to those of all of the data."""
    spec = 'module:tiny_embeddings:no_layers@size=image'
    run_dir = search(data, tmp_path / 'runs', eval_embedding=spec, eval_samples=40, seed=11, **SMALL)
    last = json.loads(Path(run_dir, 'tickets.jsonl').read_text().splitlines()[-1])
    assert (last['embedding'], last['samples']) == (spec, 40)
    with zipfile.ZipFile(data) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith('.png'))
        pictures = [np.asarray(PIL.Image.open(archive.open(name))).reshape(16, 16, -1) for name in names]
    reals = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    G = pickles.load(Path(run_dir, last['snapshot']))['G_ema'].eval()
    z = samples.latents(G, 40, seed=0)
    with torch.no_grad():
        fakes = (G(z, None, noise_mode='const') * 127.5 + 128).clamp(0, 255).to(torch.uint8)  # As in files.
        features = [embeddings.load(spec, 'cpu')(x / 127.5 - 1).double().numpy() for x in (fakes, reals)]
    (m, cov), (m_real, cov_real) = ((x.mean(axis=0), np.cov(x, rowvar=False)) for x in features)
    distance = ((m - m_real) ** 2).sum() + np.trace(cov + cov_real - 2 * scipy.linalg.sqrtm(cov @ cov_real).real)
    assert last['frechet_distance'] == pytest.approx(distance, rel=1e-3)


@pytest.mark.slow
def test_a_search_that_is_continued_finds_the_same_ticket(tmp_path, data):
    given = dict(SMALL, batch=200, lr_decay=0, ema_kimg=0.1)  # By default they follow from the length of the run.
    whole = search(data, tmp_path / 'whole', kimg=2, **given)
    half = search(data, tmp_path / 'halves[2]', kimg=1, **given)
    assert search(data, tmp_path / 'halves[2]', kimg=2, resume='latest', **given) == half
    one, two = (Ticket.read(f'{run_dir}/last.ticket') for run_dir in (whole, half))
    assert one.facts == two.facts
    assert all(np.array_equal(mask, two.masks[name]) for name, mask in one.masks.items())
    for snapshot in RunDirectory(half).snapshots():
        snapshot.unlink()
    with pytest.raises(UserError, match='has no snapshots any more'):
        search(data, tmp_path / 'halves[2]', kimg=2, resume='latest', **given)


def test_presets_are_what_is_not_given(tmp_path, data):
    def plan(**given):
        return plan_search(TicketOptions(**dict(data=data, outdir=str(tmp_path), kimg=100, device='cpu') | given)).args

    steady = plan(embedding=EMBEDDING)
    assert steady.loss_kwargs.normalize
    assert (steady.loss_kwargs.moments_penalty, steady.loss_kwargs.side_power) == (1, 1)
    assert steady.G_kwargs.masked == ['*weight']
    assert steady.lr_decay_kimg == steady.loss_kwargs.lr_decay_kimg == [0, 100]
    assert steady.ema_kimg == 2
    assert (steady.G_kwargs.density, steady.G_opt_kwargs.betas) == ('erk-odds', [0.5, 0.95])
    assert steady.network_snapshot_ticks == steady.image_snapshot_ticks == 2  # Of 25.
    assert plan(embedding=EMBEDDING, kimg=60).network_snapshot_ticks == 1  # Of 15: two would leave less than ten.
    assert plan(embedding=EMBEDDING, snap=7).network_snapshot_ticks == 7
    assert plan(embedding=EMBEDDING, kimg=50000).network_snapshot_ticks == 50
    assert steady.G_opt_kwargs.lr == TicketOptions(data=data, outdir=str(tmp_path)).learning_rate(100, 64)
    paper = plan(preset='paper', embedding=EMBEDDING)
    loss = paper.loss_kwargs
    assert (loss.moving_average_lr, loss.normalize, loss.moments_penalty, loss.side_power) == (1e-5, False, 0, 0)
    assert paper.G_kwargs.masked == ['*weight', '*bias']
    assert (paper.G_kwargs.score_init, paper.G_opt_kwargs.lr) == ('uniform', 5e-5)
    assert paper.G_opt_kwargs.betas == [0.5, 0.999]
    assert 'lr_decay_kimg' not in paper
    assert 'lr_decay_kimg' not in loss
    mixed = plan(preset='paper', embedding=EMBEDDING, lr=1e-3, masked=('*weight',), loss_args=('normalize=true',))
    assert mixed.G_opt_kwargs.lr == 1e-3
    assert mixed.G_kwargs.masked == ['*weight']
    assert mixed.loss_kwargs.normalize
    assert PRESETS['paper'].embedding == 'vgg19_bn'


@pytest.mark.parametrize('preset', PRESETS)
def test_rules_that_need_other_settings_have_them_in_every_preset(tmp_path, data, preset):
    def plan(**given):
        options = dict(data=data, outdir=str(tmp_path), kimg=100, device='cpu', preset=preset, embedding=EMBEDDING)
        return plan_search(TicketOptions(**options | given)).args

    rounding, training = plan(rule='gem-miner'), plan(rule='imp')
    assert 'score_init' not in rounding.G_kwargs  # So that half of the scores count.
    assert plan(rule='gem-miner', score_init='unit').G_kwargs.score_init == 'unit'
    assert (training.G_opt_kwargs.lr, training.G_kwargs.weight_init) == (2.5e-3, 'kaiming-normal')
    assert training.G_kwargs.masked == ['*weight']  # Biases start alike.
    assert rounding.G_kwargs.weight_init == 'signed-constant'
    assert 'lr_decay_kimg' not in training  # Late in the run, weights are rewound.
    given = plan(rule='imp', lr=1e-3, lr_decay=0.5, weight_init='signed-constant')
    assert (given.G_opt_kwargs.lr, given.lr_decay_kimg) == (1e-3, [50, 100])
    assert given.G_kwargs.weight_init == 'signed-constant'


def test_scores_go_as_far_in_runs_of_any_length(tmp_path):
    options = TicketOptions(data='x.zip', outdir=str(tmp_path))
    steps = [1000 * kimg / options.batch for kimg in (1000, 20000)]
    travels = [options.learning_rate(kimg, 64) * count for kimg, count in zip((1000, 20000), steps, strict=True)]
    assert travels[0] == pytest.approx(travels[1])
    assert options.learning_rate(0.1, 64) == MOST_LR
    assert TicketOptions(data='x.zip', outdir=str(tmp_path), lr=0.5).learning_rate(1000, 64) == 0.5


def test_distances_are_those_there_are():
    assert set(DISTANCES) == {'layer-moments', *ESTIMATORS}


def test_find_ticket_trains_what_is_not_masked(tmp_path, data):
    run_dir = search(data, tmp_path / 'runs', train_unmasked=True, **SMALL)
    assert run_dir.endswith('-trained-unmasked')
    ticket = Ticket.read(f'{run_dir}/last.ticket')
    start = ScoreMaskedGenerator(**ticket.arguments).trained()
    assert all(not np.array_equal(ticket.trained[name], tensor.detach()) for name, tensor in start.items()
               if name.endswith(('torgb.bias', 'torgb.weight_factor')))  # fmt: skip


@pytest.mark.parametrize('distance', ['rbf', 'moments'])
def test_find_ticket_by_a_distance_of_dimes(tmp_path, make_dataset_zip, distance):
    data = str(make_dataset_zip(tmp_path, n=24, labels=3))
    run_dir = search(data, tmp_path / 'runs', distance=distance, cond=True, rule='global-edge-popup', **SMALL)
    statistics = [json.loads(line) for line in Path(run_dir, 'stats.jsonl').read_text().splitlines()]
    assert f'Loss/DiME/{EMBEDDING}' in statistics[-1]
    with open(f'{run_dir}/training_options.json') as file:
        loss = json.load(file)['loss_kwargs']
    assert (loss['by_label'], loss['memory'], loss['estimator'], loss['reference']) == (True, 1024, distance, 'data')
    best = Ticket.read(f'{run_dir}/best.ticket')
    assert best.kept == round(0.1 * best.total)


@pytest.mark.parametrize(
    ('rule', 'length'),
    [('edge-popup', None), ('global-edge-popup', None), ('gem-miner', 7), ('test_tickets.Scheduled', 7)],
)
def test_only_rules_with_a_schedule_fix_the_length_of_a_search(rule, length):
    args = SimpleNamespace(G_kwargs={'rule': rule}, loss_kwargs=SimpleNamespace(), total_kimg=7)
    Masks().adapt(Plan('', args))
    assert getattr(args.loss_kwargs, 'total_kimg', None) == length


def test_steps_with_a_rule_of_ones_own_are_not_recorded():
    """It may do what a CUDA graph does not see."""
    obstacles = {rule: MaskSchedule([SimpleNamespace(rule=rule)], 1).obstacle() for rule in RULES}
    assert set(obstacles.values()) == {''}
    own = MaskSchedule([SimpleNamespace(rule='test_tickets.Scheduled')], 1).obstacle()
    assert own == 'the rule test_tickets.Scheduled is not known to be fit for it'


def test_find_ticket_in_a_teachers_weights(tmp_path, data, make_generator, make_discriminator):
    dense = make_generator().eval()
    teacher = str(tmp_path / 'teacher.pkl')
    pickles.save(teacher, dict(G=dense, G_ema=dense, D=make_discriminator(), training_set_kwargs=None,
                               augment_pipe=None))  # fmt: skip
    run_dir = search(data, tmp_path / 'runs', teacher=teacher, reference='teacher', keep=0.5, device='cpu', workers=0,
                     loss_args=('samples=32',))  # fmt: skip
    with open(f'{run_dir}/training_options.json') as file:
        assert json.load(file)['loss_kwargs']['teacher'] == teacher
    last = Ticket.read(f'{run_dir}/last.ticket')
    assert last.arguments['teacher'] == pickles.sha256(teacher)
    baked = baking.bake(last.generator('last.ticket', teacher))
    kept = baked.synthesis.b8.conv1.weight
    assert torch.equal(kept[kept != 0], dense.synthesis.b8.conv1.weight[kept != 0])
    assert int((kept != 0).sum()) == round(last.masks['synthesis.b8.conv1.weight'].mean() * kept.numel())
    assert abs(last.kept - 0.5 * last.total) <= len(last.masks) / 2


@pytest.mark.parametrize(
    ('options', 'density'),
    [
        ({}, 'erk-odds'),
        (dict(rule='signed-edge-popup'), 'erk-odds'),
        (dict(preset='paper'), None),  # Uniform, as it is where nothing is said.
        (dict(preset='paper', density='erk'), 'erk'),
        (dict(density='uniform'), None),
        (dict(rule='gem-miner'), None),  # It shares out itself.
        (dict(rule='global-edge-popup'), None),
    ],
)
def test_layers_share_what_is_kept_as_the_preset_says(data, tmp_path, options, density):
    options = dict(embedding=EMBEDDING, device='cpu', data=data, outdir=str(tmp_path)) | options
    assert plan_search(TicketOptions(**options)).args.G_kwargs.get('density') == density


def test_layers_share_what_is_kept_as_the_option_says(data, tmp_path):
    run_dir = search(data, tmp_path / 'runs', **SMALL)
    last = Ticket.read(f'{run_dir}/last.ticket')
    assert last.arguments['density'] == 'erk-odds'
    assert abs(last.kept - 0.1 * last.total) <= len(last.masks) / 2  # Layers are rounded one by one.
    shares = {name: mask.mean() for name, mask in last.masks.items()}
    assert shares['synthesis.b8.torgb.weight'] > 0.1 > shares['synthesis.b8.conv1.weight']
    assert 'edge-popup, erk-odds: ' in run('ticket', 'show', f'{run_dir}/last.ticket')
    run_dir = search(data, tmp_path / 'runs', density='uniform', **SMALL)
    masks = Ticket.read(f'{run_dir}/last.ticket').masks
    assert all(mask.sum() == round(0.1 * mask.size) for mask in masks.values())


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        (['--keep=0'], '--keep=0 '),
        (['--keep=1.1'], '--keep=1.1 '),
        (['--keep=nan'], '--keep=nan '),
        (['--rule=magic'], '--rule=magic'),
        (['--weight-init=zero'], '--weight-init=zero'),
        (['--score-init=zero'], '--score-init=zero'),
        (['--unmasked=encoder.*'], 'encoder.*'),
        (['--masked=*bais'], '*bais'),
        (['--embedding=module:tiny_embeddings:no_layers@size=16'], 'exposes no layers'),
        (['--embedding=nothing'], "'nothing'"),
        (['--lr=0'], '--lr=0'),
        (['--reference=teacher'], '--reference=teacher needs'),
        (['--loss-arg', 'layers=7'], 'layers=7'),
        (['--loss-arg', 'per_class=true'], 'needs labels'),
        (['--seed=-1'], '--seed=-1'),
        (['--channel-max=0'], '--channel-max=0'),
        (['--channel-base=16'], '--channel-base=16'),
        (['--eval-samples=1'], '--eval-samples=1'),
        (['--cond=1'], '--cond'),
        (['--teacher=TEACHER'], 'resolution 16'),
        (['--data=nowhere.zip'], 'nowhere.zip'),
    ],
)
def test_bad_input_to_find_ticket(tmp_path, changes, sentence, make_dataset_zip, make_generator, make_discriminator):
    dense = make_generator()
    pickles.save(tmp_path / 'teacher.pkl', dict(G=dense, G_ema=dense, D=make_discriminator(), training_set_kwargs=None,
                                                augment_pipe=None))  # fmt: skip
    path = make_dataset_zip(tmp_path, n=4, resolution=32)
    shape = [] if 'TEACHER' in changes[0] else ['--z-dim=16', '--w-dim=16', '--channel-base=128', '--channel-max=8']
    changes = [change.replace('TEACHER', str(tmp_path / 'teacher.pkl')) for change in changes]
    common = [f'--data={path}', f'--outdir={tmp_path / "runs"}', f'--embedding={EMBEDDING}', '--device=cpu', '--kimg=1']
    assert sentence in refused('find-ticket', *common, *shape, *changes, unchanged=tmp_path)


def test_bad_input_to_ticket(tmp_path, ticket, make_generator, make_discriminator):
    dense = make_generator()
    plain = tmp_path / 'plain.pkl'
    pickles.save(plain, dict(G=dense, G_ema=dense, D=make_discriminator(), training_set_kwargs=None, augment_pipe=None))
    for arguments, sentence in [
        (['save', plain, tmp_path / 'b.ticket'], 'holds a Generator'),
        (['save', '--network=D', plain, tmp_path / 'b.ticket'], '--network=D'),
        (['bake', ticket, plain], 'exists'),
        (['bake', plain, tmp_path / 'x.pkl'], 'holds a Generator, whose weights are not masked'),
        (['bake', '--teacher', plain, plain, tmp_path / 'x.pkl'], 'is no ticket, and has its weights itself'),
        (['bake', tmp_path / 'none.ticket', tmp_path / 'x.pkl'], 'Cannot read'),
        (['load', '--teacher', plain, ticket, tmp_path / 'x.pkl'], 'leave --teacher out'),
        (['load', ticket, tmp_path / 'nowhere' / 'x.pkl'], 'Cannot write'),
        (['show', plain], 'is not a ticket'),
    ]:
        assert sentence in refused('ticket', *arguments, unchanged=tmp_path)
