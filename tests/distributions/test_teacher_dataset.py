"""A teacher's images in the place of a training set: by place in the run, whatever splits or interrupts it."""

import json

import dnnlib
import numpy as np
import pytest
import torch
from tiny_runs import compressing, loop_arguments

from stylegan2_compress import pickles
from stylegan2_compress.compression.distill import distill
from stylegan2_compress.distributions import sources, teacher_dataset
from stylegan2_compress.errors import Stopped, UserError
from stylegan2_compress.host import datasets
from stylegan2_compress.images import to_uint8
from stylegan2_compress.runs import states
from stylegan2_compress.runs.directory import RunDirectory
from stylegan2_compress.training_loops import data, loop
from stylegan2_compress.training_loops.distillation import training_loop

EMBEDDING = 'module:tiny_embeddings:tiny@size=16'


pytestmark = pytest.mark.usefixtures('own_cache')


@pytest.fixture
def make_teacher(tmp_path, make_generator, make_discriminator):
    def build(c_dim=0):
        G, D = make_generator(5, c_dim=c_dim).eval(), make_discriminator(5, c_dim=c_dim).eval()
        path = str(tmp_path / f'teacher{c_dim}.pkl')
        pickles.save(path, dict(G=G, D=D, G_ema=G, training_set_kwargs=None, augment_pipe=None))
        return path, G

    return build


def training_set_of(path, G, **given):
    kwargs = teacher_dataset.arguments(path, G, **given)
    return dnnlib.util.construct_class_by_name(**kwargs), kwargs


def test_it_is_a_data_set_of_the_hosts(make_teacher):
    path, G = make_teacher(c_dim=3)
    training_set, _kwargs = training_set_of(path, G, truncation=0.5)
    assert training_set.image_shape == [3, 16, 16]
    assert (training_set.resolution, training_set.num_channels, training_set.label_dim) == (16, 3, 3)
    assert training_set.has_labels
    assert len(training_set) >= teacher_dataset.IMAGES
    assert len(training_set) % 3 == 0
    image, label = training_set[4]
    assert (image.dtype, image.shape) == (np.uint8, (3, 16, 16))
    assert label.tolist() == [0, 1, 0] == training_set.get_label(4).tolist()
    assert np.array_equal(training_set[4][0], image)
    assert not np.array_equal(training_set[7][0], image)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    training_set[1]
    assert torch.equal(torch.rand(2), expected)  # It draws nothing from the global state.


def test_nothing_is_read_before_the_first_image(make_teacher):
    _path, G = make_teacher()
    training_set, _kwargs = training_set_of('nowhere.pkl', G)
    assert training_set.get_label(0).shape == (0,)
    assert not training_set.has_labels
    with pytest.raises(UserError, match=r'nowhere\.pkl'):
        training_set[0]


def batches(training_set, rank=0, gpus=1, batch_gpu=8, start=0, count=2):
    share = data.Share(8, batch_gpu, gpus, rank)
    found = data.teacher_batches(training_set, share, 7, start)
    return [next(found) for _ in range(count)]


def test_an_image_depends_on_its_place_in_the_run(make_teacher):
    """Not on processes and rounds (without noise, which is a round's), and not on where the run went on."""
    path, G = make_teacher(c_dim=3)
    for name, buffer in G.named_buffers():
        if 'noise_const' in name:
            buffer.zero_()
    for name, parameter in G.named_parameters():
        if 'noise_strength' in name:
            parameter.data.zero_()
    pickles.save(path, dict(G=G, D=None, G_ema=G, training_set_kwargs=None, augment_pipe=None))
    training_set, _kwargs = training_set_of(path, G, labels='0,2,2')
    whole = [batch[0] for batch in batches(training_set)]
    assert not torch.equal(whole[0][0], whole[1][0])
    in_rounds = [
        [torch.cat(parts) for parts in zip(*batch, strict=True)] for batch in batches(training_set, batch_gpu=2)
    ]
    of_two = [batches(training_set, rank, 2, batch_gpu=4, count=1)[0][0] for rank in range(2)]
    later = batches(training_set, start=8, count=1)[0][0]
    for (images, labels), others in zip([*whole, whole[0], whole[1]], [*in_rounds, of_two, later], strict=True):
        if isinstance(others[0], tuple):
            others = [torch.cat(parts) for parts in zip(*others, strict=True)]
        torch.testing.assert_close(others[0], images, rtol=0, atol=2 / 127.5)
        assert torch.equal(others[1], labels)
    assert set(whole[0][1].argmax(1).tolist()) == {0, 2}


def test_the_images_are_the_teachers_in_256_values(make_teacher):
    path, G = make_teacher()
    training_set, _kwargs = training_set_of(path, G, truncation=0.6)
    ((images, labels),) = batches(training_set, count=1)[0:1][0]
    assert labels.shape == (8, 0)
    z = data.generator(7, data.REALS, 0).standard_normal([8, 16], np.float32)
    (seed,) = data.generator(7, data.REALS, 0, 0).integers(2**31, size=1)
    torch.manual_seed(int(seed))
    with torch.no_grad():
        expected = G(torch.from_numpy(z), labels, truncation_psi=0.6)
    torch.testing.assert_close(images, torch.from_numpy(to_uint8(expected)).float() / 127.5 - 1)


def test_labels_are_those_of_a_reference_without_a_data_set(make_teacher):
    """So that a file of `stats --teacher` without `--data` fits a run without data."""
    path, G = make_teacher(c_dim=3)
    _set, uniform = training_set_of(path, G)
    _set, given = training_set_of(path, G, labels='1,1,1,0')
    assert sources.LabelSource(3, uniform).fingerprint == sources.LabelSource(3, None).fingerprint
    other = sources.LabelSource(3, given)
    assert other.fingerprint != sources.LabelSource(3, None).fingerprint
    assert other.drawn.shares() == [0.25, 0.75, 0]


def test_labels_of_a_dataset_json(make_teacher, tmp_path):
    file = tmp_path / 'dataset.json'
    file.write_text(json.dumps({'labels': [['a.png', 2], ['b.png', 2], ['c.png', 0], ['d.png', 0]]}))
    training_set, kwargs = training_set_of(*make_teacher(c_dim=3), labels=str(file))
    assert kwargs['label_counts'] == [2, 0, 2]
    assert datasets.labels(training_set)[:].tolist() == [[1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ('labels', 'c_dim', 'sentence'),
    [
        ('0,3', 3, 'names class 3, but the teacher has 0 to 2'),
        ('cats', 3, 'must be class numbers'),
        ('-1', 3, 'must be class numbers, such as 0,3,3, or a dataset.json with such labels.'),
        ('99999999999', 3, 'names class 99999999999, but the teacher has 0 to 2'),
        ('99999999999999999999999', 3, 'names class 99999999999999999999999'),
        ('none.json', 3, 'Cannot read none.json: No such file or directory'),
        ('0', 0, 'this one takes none'),
    ],
)
def test_labels_that_there_are_not(labels, c_dim, sentence):
    with pytest.raises(UserError, match=sentence):
        teacher_dataset.counts_of(labels, c_dim)


@pytest.mark.parametrize('label', ['1.5', 'NaN', '-1', 'null', '"cat"', '[0, 1]', '[' * 100000])
def test_a_dataset_json_without_classes(tmp_path, label):
    file = tmp_path / 'dataset.json'
    file.write_text(f'{{"labels": [["a.png", {label}]]}}')
    with pytest.raises(
        UserError, match=r'dataset.json must be class numbers, such as 0,3,3, or .* with such labels\.$'
    ):
        teacher_dataset.counts_of(str(file), 3)


# --- Runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures('small_grids')
def test_a_stopped_run_goes_on_exactly(make_teacher, tmp_path, monkeypatch):
    """With memories, of features and of nothing else; and the snapshot names no data set."""
    path, G = make_teacher(c_dim=3)
    kwargs = teacher_dataset.arguments(path, G)
    given = dict(total_kimg=0.064, batch_gpu=8, network_snapshot_ticks=1000, training_set_kwargs=kwargs)
    arguments = lambda name: loop_arguments(  # noqa: E731
        tmp_path / name, tmp_path, **compressing('moments', path), **given
    )
    training_loop(**arguments('whole'))
    stop_after, original = 2, loop.step

    def step(run):
        original(run)
        if run.progress.batch_idx == stop_after:
            run.options.state_kimg = 0
            loop.save_state(run)
            raise Stopped('Stopped.')

    with monkeypatch.context() as patch:
        patch.setattr(loop, 'step', step)
        with pytest.raises(Stopped):
            training_loop(**arguments('parts'))
    training_loop(**arguments('parts'))
    one, two = (pickles.load(tmp_path / name / 'network-snapshot-000000.pkl') for name in ('whole', 'parts'))
    assert one['training_set_kwargs'] is None
    for name in ('G', 'D', 'G_ema'):
        torch.testing.assert_close(two[name].state_dict(), one[name].state_dict(), rtol=0, atol=0)
    kept, expected = (states.load_latest_state(RunDirectory(tmp_path / name))['loss'] for name in ('parts', 'whole'))
    torch.testing.assert_close(kept, expected, rtol=0, atol=0)
    assert len(kept['terms'][0]['kept'][0]['rows']) == 32


@pytest.mark.usefixtures('small_grids')
@pytest.mark.parametrize('loss', ['training.loss.StyleGAN2Loss', 'stylegan2_compress.DiMELoss'])
def test_distill_without_data(make_teacher, tmp_path, capsys, monkeypatch, loss):
    path, _G = make_teacher(c_dim=3)
    read, original = [], pickles.load_with_sha256
    monkeypatch.setattr(pickles, 'load_with_sha256', lambda path: read.append(path) or original(path))
    loss_args = (f'embeddings={EMBEDDING}', 'samples=8') if 'DiME' in loss else ()
    run_dir = distill(
        path, None, str(tmp_path / 'out'), loss=loss, loss_args=loss_args, kimg=1, batch=100, device='cpu', ratio=0.5,
        truncation=0.7, labels='0,2', pl_weight=0,
    )  # fmt: skip
    options = json.loads((tmp_path / run_dir / 'training_options.json').read_text())
    assert options['training_set_kwargs']['label_counts'] == [1, 0, 1]
    assert options['loss_kwargs'].get('truncation_psi', 0.7) == 0.7
    assert ('truncation_psi' in options['loss_kwargs']) == ('DiME' in loss)
    assert 'teacher3-images' in run_dir
    if 'DiME' in loss:
        assert read.count(path) == 1  # For the plan, the images and the loss.
    snapshot = pickles.load(f'{run_dir}/network-snapshot-000001.pkl')
    assert snapshot['G_ema'](torch.zeros(1, 16), torch.eye(3)[:1]).shape == (1, 3, 16, 16)
    assert (tmp_path / run_dir / 'reals.png').exists()
    assert 'the teacher makes them' in (tmp_path / run_dir / 'log.txt').read_text()
    assert RunDirectory(run_dir).read_inputs()['training_set_kwargs.path'] == pickles.sha256(path)
    printed = capsys.readouterr().out
    assert f'images of {path}' in printed
    assert 'evaluate' not in printed  # Which takes images in files.
