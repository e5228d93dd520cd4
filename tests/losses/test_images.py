"""The distance to the teacher's images as a further term, fading out; losses that are named by several."""

import copy
import glob
import json
import types

import pytest
import torch
from plans import checked

import stylegan2_compress
from stylegan2_compress import embeddings, pickles
from stylegan2_compress.compression.distill import distill
from stylegan2_compress.distributions.layer_features import LayerFeatures
from stylegan2_compress.distributions.teacher_dataset import TeacherDataset
from stylegan2_compress.embeddings.perceptual import perceptual_distance
from stylegan2_compress.errors import UserError
from stylegan2_compress.host.networks import is_placeholder
from stylegan2_compress.losses import features
from stylegan2_compress.losses.adversarial import AdversarialLoss
from stylegan2_compress.losses.distribution_matching import DistributionMatching
from stylegan2_compress.losses.fading import Fading
from stylegan2_compress.losses.features import TeacherPass
from stylegan2_compress.losses.generator_loss import GeneratorLoss
from stylegan2_compress.losses.images import ImageDistillation, ImageDistillationLoss, ImageMatching, RegressionLoss
from stylegan2_compress.losses.loss_classes import accepted, methods_of
from stylegan2_compress.losses.moment_matching import LayerMoments
from stylegan2_compress.losses.nickel import NICKEL, NickelDimeLoss
from stylegan2_compress.losses.space import Space
from stylegan2_compress.losses.terms import Batch
from stylegan2_compress.networks.dual import DualDiscriminator
from stylegan2_compress.runs.directory import RunDirectory

TINY = 'module:tiny_embeddings:tiny@size=16'
NO_LAYERS = 'module:tiny_embeddings:no_layers@size=16'

pytestmark = pytest.mark.usefixtures('own_cache')


@pytest.fixture
def teacher(tmp_path, make_generator, make_discriminator):
    G, D = make_generator(5).eval(), make_discriminator(5).eval()
    pickles.save(tmp_path / 'teacher.pkl', dict(G=G, D=D, G_ema=G, training_set_kwargs=None, augment_pipe=None))
    return str(tmp_path / 'teacher.pkl')


def written_out(x, y, network):
    """mean |x − y| + the mean over layers and places of ‖a/‖a‖ − b/‖b‖‖²."""
    total = 0
    layers = list(zip(network.layers(x), network.layers(y), strict=True))
    for a, b in layers:
        a, b = (maps / (maps.square().sum(dim=1, keepdim=True) + 1e-10).sqrt() for maps in (a, b))
        total = total + (a - b).square().sum(dim=1).mean()
    return (x - y).abs().mean() + total / len(layers)


def gradient_of_both_distances(nimg=0, images=4, **given):
    """Of a term with weights 2 and 2, and that of the distances written out, of images and masks [N, 1, H, W]."""
    embedding = embeddings.load(f'{TINY}@preprocess=raw@dtype=fp64', 'cpu')
    rnd = torch.Generator().manual_seed(0)
    x, y = (torch.randn([images, 3, 16, 16], generator=rnd, dtype=torch.float64) for _ in range(2))
    passes = []
    G = types.SimpleNamespace(
        mapping=lambda z, c, **_truncation: z, synthesis=lambda ws, **_precision: passes.append(ws) or y
    )
    term = ImageMatching(TeacherPass(G, {}), embedding, 2.0, 2.0, **given)
    term.before_step(nimg)
    x.requires_grad_()
    summands = term.generator(Batch(torch.zeros(images, 2), torch.zeros(images, 0), None, x, None))
    loss = sum((summand.weight * summand.value for summand in summands), x.sum() * 0)
    (found,) = torch.autograd.grad(loss, x)

    def expected(factor, mask=1):
        return torch.autograd.grad(factor * written_out(x * mask, y * mask, embedding.network), x)[0]

    return found, expected, len(passes)


@pytest.mark.parametrize(('nimg', 'share'), [(0, 1), (500, 0.75), (2000, 0)])
def test_the_gradient_is_that_of_both_distances_and_fades(nimg, share):
    found, expected, passes = gradient_of_both_distances(nimg, fading=Fading(2))
    assert passes == (share > 0)  # The teacher makes images only as long as they count.
    torch.testing.assert_close(found, expected(2 * share), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('loss', ['ImageDistillationLoss', 'StyleKDLoss', 'GCCLoss', 'ITGCLoss', 'NickelDimeLoss'])
def test_the_teachers_images_are_truncated_in_every_method(teacher, tmp_path, small_grids, monkeypatch, loss):
    """As those of `--truncation` are that stand for real ones, of the same teacher."""
    seen, original = [], features.teacher_ws
    G = pickles.load(teacher)['G_ema']

    def spy(teacher_G, batch, truncation_psi):
        ws = original(teacher_G, batch, truncation_psi)
        expected = G.mapping(batch.z, batch.c, truncation_psi=0.5)
        seen.append(torch.equal(ws[:, 0], expected[:, 0]) and not torch.equal(ws, G.mapping(batch.z, batch.c)))
        return ws

    monkeypatch.setattr(features, 'teacher_ws', spy)
    arguments = {'NickelDimeLoss': (f'embeddings={TINY}', 'samples=8', 'images=1', f'images_embedding={TINY}')}
    arguments |= dict.fromkeys(('ImageDistillationLoss', 'StyleKDLoss', 'ITGCLoss'), (f'embedding={TINY}',))
    distill(
        teacher, None, str(tmp_path / 'out'), loss=f'stylegan2_compress.{loss}', loss_args=arguments.get(loss, ()),
        ratio=0.5, kimg=1, batch=500, batch_gpu=100, device='cpu', truncation=0.5,
    )  # fmt: skip
    assert seen
    assert all(seen)


def test_without_a_discriminator_the_batch_need_not_fit_one(teacher, tmp_path, small_grids):
    """Of six images, it compares groups of four."""
    given = dict(
        loss_args=(f'embedding={TINY}',), ratio=0.5, batch=6, kimg=1, kimg_per_tick=1, device='cpu', only='G_ema'
    )
    with pytest.raises(UserError, match='which D compares in groups of 4'):
        distill(teacher, None, str(tmp_path / 'a'), loss='stylegan2_compress.ImageDistillationLoss', **given)
    assert distill(teacher, None, str(tmp_path / 'b'), loss='stylegan2_compress.RegressionLoss', **given)


def test_a_run_goes_on_that_has_no_truncation_on_record(teacher, tmp_path, small_grids):
    """As those that were started when paired images were not truncated."""
    given = dict(
        teacher=teacher, outdir=str(tmp_path / 'out'), loss='stylegan2_compress.RegressionLoss', batch=200, kimg=1,
        loss_args=(f'embedding={TINY}',), ratio=0.5, device='cpu', resume='latest', ema_kimg=1,
    )  # fmt: skip
    path = RunDirectory(distill(**given)).options_path
    options = json.loads(path.read_text())
    assert options['loss_kwargs'].pop('truncation_psi') == 1
    path.write_text(json.dumps(options))
    assert distill(**given | dict(kimg=2)) == str(path.parent)
    assert distill(**given | dict(kimg=3, truncation=0.5)) != str(path.parent)


def test_only_a_weight_that_falls_is_in_the_way_of_a_recording():
    """A run that goes on after it has fallen is told nothing else, before its first step either."""
    term = ImageMatching(None, None, 2.0, 2.0, fading=Fading(2))
    assert term.obstacle() == ''
    term.before_step(0)
    assert 'falls' in term.obstacle()
    term.before_step(2000)
    assert term.obstacle() == ''


def test_terms_share_one_pass_of_an_embedding(monkeypatch):
    """Means of layers, the distance in these layers, and their moments: with the gradient of separate passes."""
    embedding = embeddings.load(f'{TINY}@preprocess=raw@dtype=fp64@layers=all', 'cpu')
    rnd = torch.Generator().manual_seed(0)
    x, y = (torch.randn([4, 3, 16, 16], generator=rnd, dtype=torch.float64) for _ in range(2))
    taught = types.SimpleNamespace(images=y)
    terms = [DistributionMatching([Space(embedding, lambda features: features.square().mean(), 3.0)])]
    terms.append(ImageMatching(lambda _batch: taught, embedding, 0.0, 2.0))
    features = LayerFeatures(embedding, [3, 16, 16])
    moments, others = (
        LayerMoments(features, *torch.full([2, 1, features.dim], 0.5), classes=0, normalize=True) for _ in range(2)
    )
    terms.append(moments)
    x.requires_grad_()
    by_itself = others.generator(Batch(None, torch.zeros(4, 0), None, x, None))[-1].value
    alone = 3 * embedding(x).square().mean() + 2 * perceptual_distance(embedding, x, y).mean() + by_itself
    (expected,) = torch.autograd.grad(alone, x)
    layers, seen = embedding.layers, []
    monkeypatch.setattr(embedding, 'layers', lambda images: seen.append(images is x) or layers(images))
    monkeypatch.setattr(embedding, 'forward', None)
    batch = Batch(torch.zeros(4, 2), torch.zeros(4, 0), None, x, None)
    summands = [each for term in terms for each in term.generator(batch)]
    (found,) = torch.autograd.grad(sum(each.weight * each.value for each in summands if each.weight), x)
    assert seen == [True, False]  # The student's images and the teacher's, once each.
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_without_a_weight_no_features_are_made(teacher):
    loss = ImageDistillationLoss(
        'cpu', *generator_parts(teacher), D=None, teacher=teacher, embedding=NO_LAYERS, perceptual_weight=0
    )
    (term,) = loss.terms
    assert term.embedding is None
    x, y = torch.randn(2, 3, 16, 16), torch.zeros(2, 3, 16, 16)
    term.teacher = lambda _batch: types.SimpleNamespace(images=y)
    (pixels,) = term.generator(Batch(None, None, None, x, None))
    assert (pixels.name, pixels.weight) == ('images/pixels', 3)


@pytest.mark.parametrize('images', [1, 4])
def test_a_mask_leaves_the_content_and_the_mean_over_all_pixels(images):
    """As the authors' code: both images times the mask of the teacher's; an image without content counts as equal."""
    mask = torch.zeros(images, 1, 16, 16)
    mask[: images - images // 2, :, 4:13, 2:9] = 1  # Half of several images have no content.
    seen = []
    found, expected, _passes = gradient_of_both_distances(
        images=images, mask=lambda shown: seen.append(shown) or mask * 0.9
    )
    torch.testing.assert_close(found, expected(2, mask.double()), rtol=1e-9, atol=1e-12)
    assert not found[mask.expand_as(found) == 0].any()
    assert found.any()
    assert len(seen) == 1  # The teacher's images, not the student's.


def generator_parts(teacher):
    """Mapping and synthesis network of a student of the teacher's shape."""
    G = pickles.load(teacher)['G'].train().requires_grad_(True)
    return G.mapping, G.synthesis


def build(teacher, **given):
    """NICKEL and DiME with a student of its own."""
    networks = pickles.load(teacher)
    widths = dict(channel_base=256, channel_max=16)
    torch.manual_seed(0)
    D = DualDiscriminator(
        c_dim=0, img_resolution=16, img_channels=3, student_kwargs=widths, teacher_kwargs=widths,
        matched_channels={'b4': 16},
    )  # fmt: skip
    G = networks['G'].train().requires_grad_(True)
    return NickelDimeLoss(
        'cpu', G.mapping, G.synthesis, D.requires_grad_(False), teacher=teacher, embeddings=TINY, samples=8, **given
    )


def gradients(loss, nimg):
    loss.steps.nimg = nimg
    torch.manual_seed(1)
    loss.accumulate_gradients('Gmain', None, None, torch.randn(4, 16), torch.zeros(4, 0), True, 1)
    found = [parameter.grad.clone() for parameter in loss.G_synthesis.parameters()]
    for parameter in loss.G_synthesis.parameters():
        parameter.grad = None
    return found


def test_beside_nickel_and_dime(teacher):
    """After `images_kimg`, and without a weight, nothing is left of it."""
    plain = build(teacher)
    loss = build(teacher, images=3, images_kimg=2, images_embedding=TINY)
    assert [type(term) for term in loss.terms[:-1]] == [type(term) for term in plain.terms]
    without = gradients(plain, 0)
    with torch.no_grad():  # Another student than the teacher.
        for each in (plain, loss):
            for parameter in each.G_synthesis.parameters():
                parameter.add_(0.1)
    without = gradients(plain, 0)
    assert not torch.allclose(gradients(loss, 0)[0], without[0])
    torch.testing.assert_close(gradients(loss, 2000), without, rtol=0, atol=0)


@pytest.mark.parametrize(
    ('given', 'sentence'),
    [
        (dict(images=1, images_embedding=NO_LAYERS), 'images_embedding=module:.* shows no layers'),
        (dict(images=-1), 'images=-1 must be a number from 0 on'),
        (dict(images_kimg=5), 'images_kimg=5 needs a weight'),
        (dict(images_embedding=TINY), 'images_embedding=.* needs a weight'),
        (dict(images=1, images_kimg=0), 'images_kimg=0 must be a number above 0'),
    ],
)
def test_refused(teacher, given, sentence):
    with pytest.raises(UserError, match=sentence):
        checked(NickelDimeLoss, teacher=teacher, embeddings=TINY, samples=8, **given)


class Mask(torch.nn.Module):
    """Everything above a brightness, of which there is none or all; or something of another shape."""

    def __init__(self, least: float, side: int = 16):
        super().__init__()
        self.least = least
        self.side = side

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.mean(dim=1, keepdim=True) > self.least).float()[..., : self.side]


def write_mask(path, *given):
    torch.jit.script(Mask(*given)).save(str(path))
    return str(path)


@pytest.mark.parametrize(
    ('given', 'sentence'),
    [
        ((1e9,), 'mask=.*mask.pt finds no content in 16 of the teacher'),
        ((-1e9, 8), r'The content mask has shape \[1, 1, 16, 8\]'),
    ],
)
def test_masks_that_are_refused(teacher, tmp_path, given, sentence):
    mask = write_mask(tmp_path / 'mask.pt', *given)
    with pytest.raises(UserError, match=sentence):
        checked(ImageDistillationLoss, teacher=teacher, embedding=TINY, mask=mask)


def test_a_mask_from_a_file_reaches_the_loss(teacher, tmp_path, make_discriminator):
    """One that finds everything changes nothing; one that finds some, the gradient."""
    found = []
    for given in ({}, {'mask': write_mask(tmp_path / 'all.pt', -1e9)}, {'mask': write_mask(tmp_path / 'some.pt', 0.0)}):
        G = pickles.load(teacher)['G'].train().requires_grad_(True)
        G.synthesis.b16.torgb.bias.data += 0.1  # Another student than the teacher.
        D = make_discriminator(1).requires_grad_(False)
        loss = ImageDistillationLoss('cpu', G.mapping, G.synthesis, D, teacher=teacher, embedding=TINY, **given)
        found.append(torch.cat([gradient.flatten() for gradient in gradients(loss, 0)]))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert not torch.allclose(found[0], found[2])


# --- Losses of several ------------------------------------------------------------------------------------------------


def test_names_that_are_joined_are_a_loss_with_the_methods_of_all(teacher):
    loss = getattr(stylegan2_compress, 'NICKELLoss+ImageDistillationLoss')
    assert issubclass(loss, AdversarialLoss)
    assert loss.methods == (NICKEL, ImageDistillation)
    assert {'feature_weight', 'pixel_weight', 'teacher', 'r1_gamma'} <= accepted(loss).keys()
    chosen = methods_of(loss, dict(teacher=teacher, feature_weight=2, perceptual_weight=1))
    assert [each.teacher for each in chosen[1:]] == [teacher] * 2
    assert (chosen[1].feature_weight, chosen[2].perceptual_weight) == (2, 1)
    twice = getattr(stylegan2_compress, 'NickelDimeLoss+NICKELLoss+AdversarialLoss')
    assert twice.methods == NickelDimeLoss.methods


@pytest.mark.parametrize('name', ['NICKELLoss+', 'NICKELLoss+Nothing', 'NICKELLoss+DualDiscriminator'])
def test_names_that_are_no_losses_are_refused(name):
    with pytest.raises(AttributeError):
        getattr(stylegan2_compress, name)


def test_a_run_of_several(teacher, tmp_path, make_dataset_zip, small_grids):
    data = str(make_dataset_zip(tmp_path, n=4))
    name = 'stylegan2_compress.DiMELoss+ImageDistillationLoss+MomentMatchingLoss'
    given = dict(embeddings=TINY, samples=8, embedding=TINY, moments_weight=0.5)
    run_dir = distill(
        teacher, data, str(tmp_path / 'out'), loss=name, loss_args=given, kimg=1, batch=500, device='cpu', workers=0,
        snap=1000, pl_weight=0,
    )  # fmt: skip
    statistics = (tmp_path / run_dir / 'stats.jsonl').read_text()
    assert f'Loss/DiME/{TINY}' in statistics
    assert 'Loss/images/pixels' in statistics
    assert 'Loss/moments/objective' in statistics
    with pytest.raises(UserError, match='DualDiscriminator cannot be combined'):
        distill(teacher, data, str(tmp_path / 'out'), loss=f'{name}+DualDiscriminator', dry_run=True)


# --- Without a discriminator ------------------------------------------------------------------------------------------


def test_regression_has_the_gradient_of_both_distances_and_no_other(teacher):
    networks = pickles.load(teacher)
    G, G_teacher = networks['G'], networks['G_ema']
    with torch.no_grad():
        for parameter in G.synthesis.parameters():
            parameter.mul_(1.1)
    G.requires_grad_(True)
    rnd = torch.Generator().manual_seed(0)
    z, c = torch.randn([4, G.z_dim], generator=rnd), torch.zeros(4, 0)
    loss = RegressionLoss('cpu', G.mapping, G.synthesis, teacher=teacher, embedding=TINY)
    for phase in ('Greg', 'Dmain', 'Dreg'):
        loss.accumulate_gradients(phase, None, None, z, c, sync=True, gain=1)
    assert not any(parameter.grad is not None for parameter in G.parameters())
    for module in (G.synthesis, G_teacher.synthesis):  # The same noise for both passes.
        for name, buffer in module.named_buffers():
            if name.endswith('noise_const'):
                buffer.zero_()
        for name, parameter in module.named_parameters():
            if name.endswith('noise_strength'):
                parameter.detach().zero_()
    loss.terms[0].teacher.G = G_teacher
    loss.accumulate_gradients('Gmain', None, None, z, c, sync=True, gain=2)
    found = [parameter.grad for parameter in G.parameters()]
    network = embeddings.load(TINY, 'cpu')
    expected = written_out(G(z, c), G_teacher(z, c).detach(), network)
    wanted = torch.autograd.grad(2 * 3 * expected, list(G.parameters()), allow_unused=True)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize('name', ['RegressionLoss', 'RegressionLoss+MomentMatchingLoss'])
def test_without_a_discriminator_no_real_images_are_made(teacher, tmp_path, small_grids, monkeypatch, name):
    made = []
    make = TeacherDataset.make
    monkeypatch.setattr(TeacherDataset, 'make', lambda *given: made.append(1) or make(*given))

    def run(directory):
        made.clear()
        given = dict(loss=f'stylegan2_compress.{name}', loss_args=dict(embedding=TINY), kimg=1, batch=200, device='cpu')
        run_dir = distill(teacher, None, str(tmp_path / directory), workers=0, snap=1000, **given)
        return len(made), pickles.load(glob.glob(f'{run_dir}/network-snapshot-*.pkl')[-1])

    without, networks = run('without')
    monkeypatch.setattr(GeneratorLoss, 'sees_reals', True)
    with_reals, same = run('with')
    assert with_reals >= without + 5  # One per step; the others are for reals.png.
    for mine, theirs in zip(networks['G'].parameters(), same['G'].parameters(), strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(networks['D'].parameters(), pickles.load(teacher)['D'].parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_teacher_without_a_discriminator(teacher, tmp_path, small_grids):
    alone = str(tmp_path / 'alone.safetensors')
    pickles.save(alone, dict(pickles.load(teacher), G=None, D=None))
    given = dict(loss_args=dict(embedding=TINY), kimg=1, batch=500, device='cpu', workers=0, snap=1000)
    run_dir = distill(alone, None, str(tmp_path / 'out'), loss='stylegan2_compress.RegressionLoss', **given)
    snapshot = glob.glob(f'{run_dir}/network-snapshot-*.pkl')[-1]
    networks = pickles.load(snapshot)
    assert is_placeholder(networks['D'])  # The host opens no pickle without.
    assert any(
        not torch.equal(mine, start)
        for mine, start in zip(
            networks['G'].parameters(), pickles.load(f'{run_dir}/student.pkl')['G'].parameters(), strict=True
        )
    )
    small = str(tmp_path / 'small.safetensors')
    pickles.save(small, {'G_ema': networks['G_ema'], 'training_set_kwargs': None, 'augment_pipe': None})
    for student in (snapshot, small):
        again = dict(given, student=student, lr=0)
        other = distill(alone, None, str(tmp_path / 'out'), loss='stylegan2_compress.RegressionLoss', **again)
        started = pickles.load(glob.glob(f'{other}/network-snapshot-*.pkl')[-1])
        assert is_placeholder(started['D'])
        start = pickles.load(student)['G'] or networks['G_ema']
        assert all(map(torch.equal, started['G'].parameters(), start.parameters()))
    for student in (None, snapshot, small):
        with pytest.raises(UserError, match=r'(has no [GD] to train|has a placeholder for D)'):
            distill(
                alone,
                None,
                str(tmp_path / 'out'),
                loss='stylegan2_compress.ImageDistillationLoss',
                **dict(given, student=student),
            )


def test_states_of_a_combination_go_on(teacher, make_dataset_zip, tmp_path):
    data = dict(
        class_name='training.dataset.ImageFolderDataset', path=str(make_dataset_zip(tmp_path, n=8)), use_labels=False
    )
    loss_class = getattr(stylegan2_compress, 'AdversarialLoss+MomentMatchingLoss')
    networks = pickles.load(teacher)
    G, D = networks['G'].requires_grad_(True), networks['D'].requires_grad_(True)
    losses = [
        loss_class('cpu', G.mapping, G.synthesis, D, None, embedding=TINY, training_set_kwargs=data) for _ in range(2)
    ]
    z, c = torch.randn(4, G.z_dim), torch.zeros(4, 0)
    losses[0].accumulate_gradients('Gmain', None, None, z, c, sync=True, gain=1)
    losses[1].load_state_dict(copy.deepcopy(losses[0].state_dict()))
    first, second = (loss.terms[0].state_dict()['v_mean'] for loss in losses)
    assert any(tensor.any() for tensor in first.values())
    assert all(torch.equal(first[name], second[name]) for name in first)
