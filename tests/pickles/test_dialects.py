"""Networks that stylegan3 and the paper's public code wrote: the host's in another form, or a sentence."""

import copy
import json
import re
import shutil

import legacy
import numpy as np
import pytest
import standin_alias_free
import standin_papers_code
import standin_stylegan3
import torch
from click.testing import CliRunner
from commands import refused, run
from mutations import count_refused, nothing_runs
from other_code import WRITE_SNAPSHOT, run_there
from pickling import edited, snapshot, write
from training import networks

from stylegan2_compress import pickles
from stylegan2_compress.cli import main
from stylegan2_compress.errors import UserError
from stylegan2_compress.networks.pruned import PrunedGenerator

DIMENSIONS = {'z_dim': 16, 'c_dim': 0, 'w_dim': 16, 'img_resolution': 16, 'img_channels': 3}
IMAGES = {'c_dim': 0, 'img_resolution': 16, 'img_channels': 3}
WIDTHS = {'channel_base': 256, 'channel_max': 16}


def images(G, **kwargs) -> torch.Tensor:
    z = torch.from_numpy(np.random.RandomState(0).randn(4, G.z_dim))
    return G(z, None, truncation_psi=0.7, noise_mode='const', force_fp32=True, **kwargs)


def lively(network):
    """The network with parameters that are not the zeros they are born with, ready to make images."""
    network = network.eval().requires_grad_(False)
    rnd = torch.Generator().manual_seed(0)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if 'filter' not in name:
            tensor.add_(torch.randn(tensor.shape, generator=rnd) * 0.3)
    return network


def stylegan3s_networks(**kwargs):
    """G and D as stylegan3's `train.py --cfg=stylegan2` makes them, by the stand-in."""
    G = standin_stylegan3.Generator(
        **DIMENSIONS, mapping_kwargs={'num_layers': 2}, **WIDTHS, fused_modconv_default='inference_only', **kwargs
    )
    return lively(G), lively(standin_stylegan3.Discriminator(**IMAGES, **WIDTHS))


@pytest.fixture(scope='module')
def stylegan3(tmp_path_factory):
    """G, D and the file of the two."""
    G, D = stylegan3s_networks()
    return G, D, write(tmp_path_factory.mktemp('stylegan3') / 'ffhq.pkl', snapshot(G, D, path='faces.zip'))


def load_by_host(path) -> dict:
    with open(path, 'rb') as file:
        return legacy.load_network_pkl(file)


# Stand-ins are other source code than the repositories'. Whether that of the repositories is known is asked below.
told = pytest.mark.filterwarnings('ignore:.*other source code:UserWarning')


# --- StyleGAN2 of the stylegan3 repository ------------------------------------------------------------------------


@told
def test_stylegans_2_of_stylegan3_become_the_hosts(stylegan3):
    G, D, path = stylegan3
    with nothing_runs():
        loaded = pickles.load(path)
    assert type(loaded['G_ema']) is networks.Generator
    assert type(loaded['D']) is networks.Discriminator
    torch.testing.assert_close(images(loaded['G_ema']), images(G), rtol=0, atol=1.2e-6)
    torch.testing.assert_close(loaded['D'](images(G), None), D(images(G), None), rtol=0, atol=1e-6)
    assert loaded['training_set_kwargs'] == {'path': 'faces.zip'}


@told
def test_arguments_are_the_hosts_with_the_defaults_of_the_class_that_was_written(stylegan3):
    _G, _D, path = stylegan3
    loaded = pickles.load(path)
    assert loaded['G']._init_kwargs == DIMENSIONS | {
        'mapping_kwargs': {'num_layers': 2, 'w_avg_beta': 0.998},
        'synthesis_kwargs': {'num_fp16_res': 4, 'conv_clamp': 256, **WIDTHS},
    }
    assert loaded['D']._init_kwargs == IMAGES | WIDTHS | {'num_fp16_res': 4, 'conv_clamp': 256}
    assert loaded['G'].synthesis.b16.use_fp16
    assert loaded['G'].synthesis.b16.conv1.conv_clamp == 256
    made = networks.Generator(**loaded['G']._init_kwargs)
    for path, module in loaded['G'].named_modules():
        assert module._init_kwargs == made.get_submodule(path)._init_kwargs
        assert vars(module).keys() == vars(made.get_submodule(path)).keys()


@told
@pytest.mark.parametrize('given', [{'num_fp16_res': 0, 'conv_clamp': None}, {'architecture': 'resnet'}])
def test_what_is_given_goes_before_the_defaults(given, tmp_path):
    G, D = stylegan3s_networks(**given)
    loaded = pickles.load(write(tmp_path / 'a.pkl', snapshot(G, D)))['G']
    assert loaded._init_kwargs['synthesis_kwargs'].items() >= given.items()
    assert loaded.synthesis.b16.use_fp16 == G.synthesis.b16.use_fp16
    torch.testing.assert_close(images(loaded), images(G), rtol=0, atol=1e-6)


@told
def test_flat_arguments_are_enough_to_know_them_by(stylegan3, tmp_path):
    def edit(path: str, meta: dict) -> None:
        meta['state'].pop('num_fp16_res', None)

    path = write(tmp_path / 'a.pkl', edited({'G_ema': stylegan3[0]}, G_ema=edit))
    assert torch.equal(images(pickles.load(path)['G_ema']), images(pickles.load(stylegan3[2])['G_ema']))


@told
def test_what_was_changed_after_construction_is_kept(stylegan3, tmp_path):
    G = copy.deepcopy(stylegan3[0])
    G.synthesis.b8.conv1.conv_clamp = 0.5
    G.train()
    loaded = pickles.load(write(tmp_path / 'a.pkl', {'G_ema': G}))['G_ema']
    assert loaded.synthesis.b8.conv1.conv_clamp == 0.5
    assert loaded.training


@told
def test_one_network_in_the_file_stays_one(stylegan3, tmp_path):
    G, D, _ = stylegan3
    loaded = pickles.load(write(tmp_path / 'a.pkl', {'G': G, 'D': D, 'G_ema': G}))
    assert loaded['G'] is loaded['G_ema']


@told
def test_what_is_made_of_them_opens_in_the_host(stylegan3, tmp_path):
    G, _D, path = stylegan3
    run('convert', path, tmp_path / 'a.safetensors')
    run('convert', tmp_path / 'a.safetensors', tmp_path / 'a.pkl')
    run('prune', '--teacher', path, '--ratio', 0.5, '--out', tmp_path / 'student.pkl')
    for name in ('a.pkl', 'student.pkl'):
        assert torch.equal(
            images(load_by_host(tmp_path / name)['G_ema']), images(pickles.load(tmp_path / name)['G_ema'])
        )
    torch.testing.assert_close(images(load_by_host(tmp_path / 'a.pkl')['G_ema']), images(G), rtol=0, atol=1.2e-6)
    assert pickles.load(tmp_path / 'a.pkl')['D']._init_kwargs['conv_clamp'] == 256


@told
def test_they_are_distilled_evaluated_and_searched_for_tickets(stylegan3, make_dataset_zip, tmp_path):
    _G, _D, path = stylegan3
    data = make_dataset_zip(tmp_path, n=16)
    options = ['--data', data, '--outdir', tmp_path / 'runs', '--kimg', 1, '--snap', 1, '--device', 'cpu']
    options += ['--workers', 0, '--batch', 256]
    invoke('distill', '--teacher', path, '--loss', 'training.loss.StyleGAN2Loss', *options)
    invoke('find-ticket', '--teacher', path, '--embedding', 'module:tiny_embeddings:tiny', '--dry-run', *options)
    (student,) = tmp_path.glob('runs/*/network-snapshot-000001.pkl')
    measured = ('--metrics', 'fd:module:tiny_embeddings:tiny', '--samples', 16, '--device', 'cpu')
    assert str(student) in run('evaluate', copy_of(path, tmp_path), student, '--data', data, *measured)
    assert torch.equal(images(load_by_host(student)['G_ema']), images(pickles.load(student)['G_ema']))


def invoke(*arguments) -> None:
    """Run a command that says what it does, also on stderr."""
    result = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output


def copy_of(path, directory):
    """A copy of a file, beside which results may be written."""
    return shutil.copy(path, directory / 'teacher.pkl')


def test_inspect_says_what_they_are(stylegan3):
    report = pickles.inspect(stylegan3[2])
    assert report.networks['G_ema'].macs
    assert report.networks['G_ema'].written_by == 'stylegan3'
    assert 'written by stylegan3' in report.text()
    assert not any('constructor arguments' in item for item in report.suspicious)


@pytest.mark.parametrize('resolution', [16, 32])
def test_the_code_of_stylegan3_makes_the_same_images(resolution, tmp_path, recwarn):
    G = dict(DIMENSIONS, class_name='training.networks_stylegan2.Generator', mapping_kwargs={'num_layers': 2}, **WIDTHS)
    D = dict(IMAGES, class_name='training.networks_stylegan2.Discriminator', **WIDTHS)
    G['img_resolution'] = D['img_resolution'] = resolution
    run_there('stylegan3', WRITE_SNAPSHOT, tmp_path, json.dumps(G), json.dumps(D))
    compare_with_the_code(tmp_path)
    assert not recwarn.list  # Its source code is known.


def compare_with_the_code(directory) -> None:
    expected = np.load(directory / 'images.npz')
    loaded = pickles.load(directory / 'a.pkl')
    made = images(loaded['G_ema'])
    scale = abs(expected['images']).max()
    np.testing.assert_allclose(made, expected['images'], rtol=0, atol=6e-7 * scale)
    logits = loaded['D'](torch.from_numpy(expected['images']), None, force_fp32=True)
    np.testing.assert_allclose(logits, expected['logits'], rtol=1e-5, atol=1e-5)
    assert pickles.inspect(directory / 'a.pkl').suspicious == []


# --- StyleGAN3 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('kwargs', 'config'), [({}, 'stylegan3-t'), ({'conv_kernel': 1}, 'stylegan3-r')])
def test_stylegan3_generators_are_a_sentence(kwargs, config, tmp_path):
    G = standin_alias_free.Generator(**DIMENSIONS, **kwargs)
    path = write(tmp_path / 'a.pkl', {'G': G, 'D': None, 'G_ema': G})
    said = refused('prune', '--teacher', path, '--ratio', 0.5, '--out', tmp_path / 'b.pkl', unchanged=tmp_path)
    assert f'has a StyleGAN3 generator ({config})' in said
    assert '--trust' not in said
    assert [item for item in pickles.inspect(path).suspicious if config not in item] == []
    assert [item.split()[0] for item in pickles.inspect(path).suspicious] == ['G', 'G_ema']


@pytest.mark.parametrize(('kwargs', 'config'), [({}, 'stylegan3-t'), ({'conv_kernel': 1}, 'stylegan3-r')])
def test_those_of_the_code_of_stylegan3_are_the_same_sentence(kwargs, config, tmp_path):
    G = dict(DIMENSIONS, class_name='training.networks_stylegan3.Generator', **WIDTHS, **kwargs)
    D = dict(IMAGES, class_name='training.networks_stylegan2.Discriminator', **WIDTHS)
    script = re.sub(r'\nz = .*', '', WRITE_SNAPSHOT, flags=re.DOTALL).replace('*G.parameters(), G.mapping.w_avg', '')
    run_there('stylegan3', script, tmp_path, json.dumps(G), json.dumps(D))
    for trust in ([], ['--trust']):
        said = refused('profile', *trust, tmp_path / 'a.pkl')
        assert f'has a StyleGAN3 generator ({config})' in said


# --- the paper's public code --------------------------------------------------------------------------------------


@told
def test_pruned_generators_of_the_papers_code_become_ours(tmp_path):
    kwargs = dict(DIMENSIONS, mapping_kwargs={'num_layers': 2}, synthesis_kwargs=dict(WIDTHS, num_fp16_res=2))
    G = lively(standin_papers_code.Generator(**kwargs, pruning_ratio=0.7))
    path = write(tmp_path / 'a.pkl', {'G': G, 'D': networks.Discriminator(**IMAGES, **WIDTHS), 'G_ema': G})
    with nothing_runs():
        loaded = pickles.load(path)['G_ema']
    assert type(loaded) is PrunedGenerator
    assert set(loaded._init_kwargs['channels'].values()) == {5}
    assert list(loaded._init_kwargs['channels'])[:3] == ['b4.const', 'b4.conv1', 'b8.conv0']
    torch.testing.assert_close(images(loaded), images(G), rtol=0, atol=1e-6)
    run('convert', path, tmp_path / 'b.pkl')
    assert torch.equal(images(load_by_host(tmp_path / 'b.pkl')['G_ema']), images(loaded))
    assert pickles.inspect(path).networks['G_ema'].written_by == 'NICKEL_AND_DIME'


@told
def test_one_that_is_not_pruned_becomes_the_hosts(tmp_path):
    G = lively(standin_papers_code.Generator(**DIMENSIONS, synthesis_kwargs=dict(WIDTHS)))
    G._init_kwargs['pruning_ratio'] = 0.0
    loaded = pickles.load(write(tmp_path / 'a.pkl', {'G_ema': G}))['G_ema']
    assert type(loaded) is networks.Generator
    torch.testing.assert_close(images(loaded), images(G), rtol=0, atol=1e-6)


@pytest.mark.parametrize('method', ['CAGC', 'CAGC_with_VEM', 'DD', 'GCC', 'GS', 'StyleKD'])
def test_the_papers_code_makes_the_same_images(method, tmp_path, recwarn):
    G = dict(
        DIMENSIONS,
        class_name=f'training.networks_{method}.Generator',
        mapping_kwargs={'num_layers': 2},
        synthesis_kwargs=dict(WIDTHS, num_fp16_res=2, conv_clamp=256),
        pruning_ratio=0.7,
    )
    D = dict(IMAGES, class_name=f'training.networks_{method}.Discriminator', **WIDTHS)
    run_there('NICKEL_AND_DIME', WRITE_SNAPSHOT, tmp_path, json.dumps(G), json.dumps(D))
    compare_with_the_code(tmp_path)
    assert not recwarn.list


# --- hostile files, and --trust -----------------------------------------------------------------------------------


@told
@pytest.mark.parametrize('kind', ['stylegan3', 'alias-free', 'paper'])
def test_500_mutated_files(kind, tmp_path):
    small = dict(z_dim=2, c_dim=0, w_dim=2, img_resolution=8, img_channels=3, mapping_kwargs={'num_layers': 1})
    widths = {'channel_base': 32, 'channel_max': 4}
    G = {
        'stylegan3': lambda: standin_stylegan3.Generator(**small, **widths),
        'alias-free': lambda: standin_alias_free.Generator(**small),
        'paper': lambda: standin_papers_code.Generator(**small, synthesis_kwargs=widths, pruning_ratio=0.5),
    }[kind]()

    def without_source(path: str, meta: dict) -> None:
        meta['module_src'] = '# none'

    path = write(tmp_path / 'a.pkl', edited({'G_ema': G}, G_ema=without_source))
    number = count_refused(path)
    assert number == 500 if kind == 'alias-free' else 50 < number < 500


@told
@pytest.mark.parametrize(
    'spoil',
    [
        lambda state: state.update(_init_kwargs={}),
        lambda state: state.update(_init_kwargs={'mapping_kwargs': 7}),
        lambda state: state.update(_init_kwargs=[]),
        lambda state: state.update(_init_args=(1,) * 20),
        lambda state: state['_init_kwargs'].update(channel_base=10**12),
        lambda state: state['_init_kwargs'].update(pruning_ratio=0.5),
        lambda state: state['_init_kwargs'].update(pruning_ratio='x', synthesis_kwargs=7),
        lambda state: state['_modules'].update(synthesis=7),
        lambda state: state['_modules'].update(mapping=None),
    ],
    ids=range(9),
)
def test_records_that_make_no_sense_are_a_sentence(spoil, stylegan3, tmp_path):
    def edit(path: str, meta: dict) -> None:
        if path == '':
            meta['state']['_init_kwargs'] = dict(meta['state']['_init_kwargs'])
            spoil(meta['state'])

    path = write(tmp_path / 'a.pkl', edited({'G_ema': stylegan3[0]}, G_ema=edit))
    with nothing_runs(), pytest.raises(UserError):
        pickles.load(path)


@told
@pytest.mark.parametrize('modules', [None, 7])
def test_a_pruned_network_without_modules_is_a_sentence(modules, stylegan3, tmp_path):
    def edit(path: str, meta: dict) -> None:
        if path == '':
            meta['state']['_init_kwargs'] = dict(meta['state']['_init_kwargs'], pruning_ratio=0.5)
        if path == 'synthesis':
            del meta['state']['_modules']
            if modules is not None:
                meta['state']['_modules'] = modules

    path = write(tmp_path / 'a.pkl', edited({'G_ema': stylegan3[0]}, G_ema=edit))
    for read in (pickles.load, pickles.inspect):
        with nothing_runs(), pytest.raises(UserError):
            read(path)


def test_pruning_with_trust_what_is_constructed_otherwise_is_a_sentence(stylegan3, tmp_path):
    said = refused(
        'prune', '--trust', '--teacher', stylegan3[2], '--ratio', 0.5, '--out', tmp_path / 'b.pkl', unchanged=tmp_path
    )
    assert 'its Generator is not constructed as the host constructs a generator' in said


@pytest.mark.parametrize('argument', ['', 'temperature = 1,'])
def test_pruning_with_trust_a_class_that_is_constructed_as_the_hosts_is(argument, tmp_path):
    """A generator by code that a file defines, with another argument or without, becomes the student of the host's."""
    torch.manual_seed(0)
    G = lively(networks.Generator(**DIMENSIONS, synthesis_kwargs=WIDTHS))

    def edit(path: str, meta: dict) -> None:
        text = re.sub(r'(mapping_kwargs +=)', rf'{argument} \1', meta['module_src'])
        meta['module_src'] = f'# {argument}\n{text}'
        if path == '' and argument:
            meta['state']['_init_kwargs'] = dict(meta['state']['_init_kwargs'], temperature=2)

    data = snapshot(G, networks.Discriminator(**IMAGES, **WIDTHS))
    path = write(tmp_path / 'a.pkl', edited(data, G_ema=edit))
    students = [tmp_path / 'b.safetensors', tmp_path / 'c.safetensors']
    run('prune', '--trust', '--teacher', path, '--ratio', 0.5, '--only', 'G_ema', '--out', students[0])
    known = write(tmp_path / 'known.pkl', data)
    run('prune', '--teacher', known, '--ratio', 0.5, '--only', 'G_ema', '--out', students[1])
    one, other = (pickles.load(student)['G_ema'] for student in students)
    assert torch.equal(images(one), images(other))


def test_code_that_runs_would_be_seen(stylegan3, tmp_path):
    def edit(path: str, meta: dict) -> None:
        meta['module_src'] += '# One that was not run before in this process.\n'

    path = write(tmp_path / 'a.pkl', edited(snapshot(*stylegan3[:2]), G_ema=edit))
    with pytest.raises(AssertionError, match=r'exec|compile'), nothing_runs():
        pickles.load(path, trust=True)
