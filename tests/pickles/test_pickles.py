"""Network files: what is read is what the host reads, without executing anything; round trips are exact."""

import builtins
import contextlib
import copy
import hashlib
import http.server
import io
import json
import math
import os
import pickle
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import legacy
import numpy as np
import pytest
import safetensors
import torch
from commands import refused, run
from dnnlib import EasyDict
from hypothesis import given, settings
from hypothesis import strategies as st
from pickling import assert_same, edited, snapshot, write, write_tensorflow
from torch_utils import misc
from training import augment, networks

from stylegan2_compress import pickles
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import profiling
from stylegan2_compress.pickles import safetensors_file, sources
from stylegan2_compress.pickles.machine import Blob, Machine
from stylegan2_compress.pickles.networks import Networks

TRAINING_SET = {'class_name': 'training.dataset.ImageFolderDataset', 'path': 'mnist.zip', 'max_size': None}


@pytest.fixture(scope='module')
def data(make_generator, make_discriminator):
    """A snapshot as the host's training loop makes it."""
    return snapshot(make_generator(), make_discriminator(), augment.AugmentPipe(xflip=1, imgfilter=1), **TRAINING_SET)


@pytest.fixture(scope='module')
def pkl(data, tmp_path_factory):
    """The same as a file."""
    return write(tmp_path_factory.mktemp('pickles') / 'network-snapshot-000001.pkl', data)


def load_by_host(path) -> dict:
    """What the host's own, unsafe loader reads."""
    with open(path, 'rb') as file:
        return legacy.load_network_pkl(file)


def images(G: torch.nn.Module) -> torch.Tensor:
    """A few images of a generator."""
    z = torch.from_numpy(np.random.RandomState(0).randn(2, G.z_dim))
    c = torch.eye(G.c_dim)[[0, 1]] if G.c_dim else None
    return G(z, c, truncation_psi=0.7, noise_mode='const', force_fp32=True)


def assert_same_data(a: dict, b: dict) -> None:
    """Same keys, networks and plain values."""
    assert set(a) == set(b)
    for key, value in a.items():
        if isinstance(value, torch.nn.Module):
            assert_same(value, b[key])
        else:
            assert value == b[key]
            assert type(value) is type(b[key])


# --- reading pickles ----------------------------------------------------------------------------------------------

VARIANTS = {
    'skip': ({}, {}),
    'resnet': ({'synthesis_kwargs': {'channel_base': 128, 'channel_max': 8, 'architecture': 'resnet'}}, {}),
    'orig': (
        {'synthesis_kwargs': {'channel_base': 128, 'channel_max': 8, 'architecture': 'orig'}},
        {'architecture': 'orig'},
    ),
    'labels': ({'c_dim': 3}, {'c_dim': 3}),
    'grey': ({'img_channels': 1}, {'img_channels': 1, 'architecture': 'skip'}),
    'fp16': (
        {'synthesis_kwargs': EasyDict(channel_base=256, channel_max=16, num_fp16_res=2, fp16_channels_last=True)},
        {'num_fp16_res': 2, 'conv_clamp': 256, 'block_kwargs': EasyDict(fp16_channels_last=True)},
    ),
    'frozen': ({}, {'block_kwargs': {'freeze_layers': 3}, 'epilogue_kwargs': {'mbstd_num_channels': 0}}),
    'no noise': (
        {'synthesis_kwargs': {'channel_base': 128, 'channel_max': 8, 'use_noise': False}},
        {'epilogue_kwargs': {'mbstd_group_size': None}},
    ),
    'small': ({'img_resolution': 8, 'z_dim': 4}, {'img_resolution': 8}),
}


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_snapshot_is_read_as_the_host_reads_it(variant, make_generator, make_discriminator, tmp_path):
    g_kwargs, d_kwargs = VARIANTS[variant]
    G, D = make_generator(**g_kwargs), make_discriminator(**d_kwargs)
    path = write(tmp_path / 'a.pkl', snapshot(G, D, augment.AugmentPipe(xint=1, noise=0.5), **TRAINING_SET))
    ours, theirs = pickles.load(path), load_by_host(path)
    assert_same_data(ours, theirs)
    assert torch.equal(images(ours['G_ema']), images(theirs['G_ema']))


@pytest.mark.parametrize('protocol', [3, 4, 5])
def test_every_protocol_that_python_3_writes_by_default_is_read(protocol, data, tmp_path):
    path = write(tmp_path / 'a.pkl', data, protocol)
    assert_same_data(pickles.load(path), load_by_host(path))


def test_networks_come_back_as_instances_of_the_local_classes_without_touching_random_numbers(pkl):
    before = torch.get_rng_state()
    loaded = pickles.load(str(pkl))
    assert torch.equal(torch.get_rng_state(), before)
    assert type(loaded['G']) is networks.Generator
    assert type(loaded['D'].b4.conv) is networks.Conv2dLayer
    assert type(loaded['augment_pipe']) is augment.AugmentPipe
    assert copy.deepcopy(loaded['G']).init_kwargs == loaded['G'].init_kwargs


def test_mode_and_gradients_are_as_stored(make_generator, make_discriminator, tmp_path):
    G = make_generator()
    G.mapping.eval()
    G.synthesis.b4.const.requires_grad_(False)
    path = write(tmp_path / 'a.pkl', {'G': G, 'D': make_discriminator(), 'G_ema': G})
    assert_same_data(pickles.load(path), load_by_host(path))


def test_one_object_in_the_file_stays_one_object(make_generator, tmp_path):
    G = make_generator()
    G.mapping.fc1.weight = G.mapping.fc0.weight
    loaded = pickles.load(write(tmp_path / 'a.pkl', {'G': G, 'G_ema': G}))
    assert loaded['G'] is loaded['G_ema']
    assert loaded['G'].mapping.fc1.weight is loaded['G'].mapping.fc0.weight
    assert loaded['G'].mapping.fc0.bias is not loaded['G'].mapping.fc1.bias


def test_what_was_changed_after_construction_is_kept(data, tmp_path):
    G = copy.deepcopy(data['G'])
    G.synthesis.b8.conv1.conv_clamp = 0.5
    G.note = {'kimg': 25_000, 'layers': (1, 2), 'seen': {'a', 'b'}, 'raw': b'\0\1', 'gain': np.float32(0.1)}
    path = write(tmp_path / 'a.pkl', {**data, 'G_ema': G})
    loaded = pickles.load(path)
    assert_same(loaded['G_ema'], load_by_host(path)['G_ema'])
    assert torch.equal(images(loaded['G_ema']), images(G))


def test_tensors_keep_dtype_and_strides_and_may_be_parts_of_larger_ones(data, tmp_path):
    G = copy.deepcopy(data['G'])
    G.synthesis.b8.half()
    G.mapping.fc0.weight = torch.nn.Parameter(torch.randn([40, 40])[3:19, 5:37:2], requires_grad=False)
    G.mapping.fc1.weight = torch.nn.Parameter(torch.randn([16, 16], dtype=torch.float64).t(), requires_grad=False)
    path = write(tmp_path / 'a.pkl', {**data, 'G': G})
    assert_same(pickles.load(path, as_stored=True)['G'], load_by_host(path)['G'])


def test_weights_of_other_precisions_are_used_in_fp32(data, tmp_path):
    halved = {**data, 'G_ema': copy.deepcopy(data['G_ema']).half()}
    path = write(tmp_path / 'half.pkl', halved)
    used = [pickles.load(path), pickles.load_with_sha256(path)[0], pickles.load(path, trust=True)]
    expected = copy.deepcopy(halved['G_ema']).float()
    for each in used:
        assert_same(each['G_ema'], expected)
        assert images(each['G_ema']).dtype == torch.float32
    run('convert', path, tmp_path / 'half.safetensors')
    assert_same(pickles.load(tmp_path / 'half.safetensors', as_stored=True)['G_ema'], halved['G_ema'])


def test_pickles_of_the_first_torch_versions_are_read(data, tmp_path):
    """torch 1.7 on Python 3.7 with NumPy 1: fewer attributes in every module, ordered dictionaries, old NumPy names."""
    new = {'_backward_pre_hooks', '_is_full_backward_hook', '_load_state_dict_post_hooks', '_state_dict_pre_hooks'}

    def age(path: str, meta: dict) -> None:
        state = {k: v for k, v in meta['state'].items() if k not in new and not k.endswith(('_kwargs', '_called'))}
        state['_init_kwargs'] = meta['state']['_init_kwargs']
        meta['state'] = state

    text = pickle.dumps(edited(data, G=age, D=age, G_ema=age, augment_pipe=age), protocol=3)
    text = text.replace(b'cnumpy._core.multiarray\n', b'cnumpy.core.multiarray\n')
    (tmp_path / 'a.pkl').write_bytes(text)
    loaded = pickles.load(tmp_path / 'a.pkl')
    assert_same_data(loaded, data)
    assert torch.equal(images(loaded['G_ema']), images(data['G_ema']))


def test_attributes_that_an_older_class_lacked_come_from_the_local_one(data, tmp_path):
    def age(path: str, meta: dict) -> None:
        meta['state'].pop('num_ws' if path == '' else 'none', None)

    loaded = pickles.load(write(tmp_path / 'a.pkl', edited(data, G_ema=age)))
    assert loaded['G_ema'].num_ws == data['G_ema'].num_ws


def test_missing_entries_are_none(data, tmp_path):
    loaded = pickles.load(write(tmp_path / 'a.pkl', {'G_ema': data['G_ema']}))
    assert set(loaded) == set(pickles.KEYS)
    assert [key for key, value in loaded.items() if value is not None] == ['G_ema']


def test_networks_go_to_the_device_asked_for(pkl):
    assert pickles.load(pkl, device='meta')['D'].b4.fc.weight.device.type == 'meta'


def test_a_pickle_of_the_pruned_generator_is_read(data, tmp_path):
    from stylegan2_compress.networks.pruned import PrunedGenerator

    channels = {'b4.const': 3, 'b4.conv1': 5, 'b8.conv0': 2, 'b8.conv1': 2, 'b16.conv0': 7, 'b16.conv1': 1}
    G = PrunedGenerator(16, 0, 16, 16, 3, channels=channels).eval().requires_grad_(False)
    path = write(tmp_path / 'a.pkl', {**data, 'G_ema': G})
    loaded = pickles.load(path)
    assert type(loaded['G_ema']) is PrunedGenerator
    assert_same_data(loaded, load_by_host(path))


# --- files that several parts of a run need -----------------------------------------------------------------------


@pytest.fixture
def openings(monkeypatch):
    """Paths as they are opened, with what opens them."""
    paths = []

    def recorded(name, function):
        def wrapped(path, *args, **kwargs):
            paths.append((name, str(path)))
            return function(path, *args, **kwargs)

        return wrapped

    for module, name in [(builtins, 'open'), (os, 'open'), (safetensors, 'safe_open')]:
        monkeypatch.setattr(module, name, recorded(f'{module.__name__}.{name}', getattr(module, name)))
    return paths


@pytest.mark.parametrize('first', ['contents', 'hash'])
@pytest.mark.parametrize('suffix', ['.pkl', '.safetensors'])
def test_a_file_is_opened_once_for_contents_and_hash(first, suffix, data, tmp_path, openings):
    path = str(tmp_path / f'a{suffix}')
    pickles.save(path, data)
    expected = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    shared = Networks()
    openings.clear()
    if first == 'hash':
        assert shared.sha256(path) == expected
    contents = shared[path]
    by_library = [('safetensors.safe_open', path)] if suffix == '.safetensors' else []
    assert [opening for opening in openings if opening[1] == path] == [('builtins.open', path), *by_library]

    os.unlink(path)  # Whatever is in its place from now on is not what was hashed.
    assert shared.sha256(path) == expected
    assert shared[path] is contents
    assert_same_data(contents, data)


def test_released_contents_are_read_again_and_their_hash_is_kept(pkl, openings):
    shared = Networks()
    contents = shared[str(pkl)]
    openings.clear()
    shared.release()
    assert shared.sha256(str(pkl)) == pickles.sha256(pkl)
    assert len(openings) == 1  # By the line above.
    assert shared[str(pkl)] is not contents


def test_what_is_no_network_file_has_neither_contents_nor_hash(tmp_path):
    for name, content in [('missing.pkl', None), ('a.pkl', b'PK'), ('a.safetensors', b'PK')]:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            Networks()[str(tmp_path / name)]
        with pytest.raises(UserError, match=name):
            Networks().sha256(str(tmp_path / name))


# --- the source text in a pickle ----------------------------------------------------------------------------------


def with_source(data: dict, tmp_path, change) -> str:
    """A snapshot whose G_ema was made by a changed source text."""

    def edit(path: str, meta: dict) -> None:
        meta['module_src'] = change(meta['module_src'])

    return str(write(tmp_path / 'a.pkl', edited(data, G_ema=edit)))


@pytest.mark.parametrize(
    'change',
    [
        lambda source: source.replace('# ', '#  '),
        lambda source: source.replace('\n', '\r\n'),
        lambda source: 'import typing\n' + source,
        lambda source: source + '\n\nclass Unused(torch.nn.Module):\n    pass\n',
        lambda source: source.replace('    def forward(self, x):\n', '    def forward(self, x):\n        """Now."""\n'),
    ],
    ids=['comments', 'line ends', 'imports', 'an unused class', 'docstrings'],
)
def test_source_that_says_the_same_is_no_news(change, data, tmp_path, recwarn):
    path = with_source(data, tmp_path, change)
    assert_same(pickles.load(path)['G_ema'], data['G_ema'])
    assert not recwarn.list


@pytest.mark.parametrize(
    ('old', 'new', 'classes'),
    [
        ('x = x + y if x is not None else y', 'x = x - y', None),
        ('self.bias_gain = lr_multiplier', 'self.bias_gain = 1', 'FullyConnectedLayer'),
        (
            'def normalize_2nd_moment(x, dim=1, eps=1e-8)',
            'def normalize_2nd_moment(x, dim=1, eps=1e-7)',
            'MappingNetwork',
        ),
        ('dcoefs = (w.square()', 'dcoefs = 1 * (w.square()', 'SynthesisLayer, ToRGBLayer'),
    ],
)
def test_source_of_a_class_in_use_that_says_something_else_is_told(old, new, classes, data, tmp_path):
    """Also where it is a function that the class uses; not where it is a class that the network does not use."""
    path = with_source(data, tmp_path, lambda source: source.replace(old, new, 1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        loaded = pickles.load(path)
    assert_same(loaded['G_ema'], data['G_ema'])
    said = [str(warning.message) for warning in caught]
    if classes is None:
        assert said == []
    else:
        assert len(said) == 1
        assert f'source code of {classes} than' in said[0]
        assert caught[0].filename == __file__  # It points at the caller.


def test_the_two_forms_of_the_host_are_taken_for_the_same():
    """Whichever host the tests run on: its definitions are among those that `sources` knows."""
    definitions = sources._definitions(networks.Generator._orig_module_src)
    assert {definitions[name].digest() for name in ('Generator', 'Discriminator')} == set(sources._SAME.values())


HOSTILE_SOURCES = [
    'class',
    'import',
    '(' * 100_000,
    '-' * 100_000 + '1',
    'a.' * 50_000 + 'b',
    '\0',
    '"""',
    '  x\n y',
    '\ud800',
    'x' * 10**6,
]


@pytest.mark.parametrize('text', HOSTILE_SOURCES, ids=range(len(HOSTILE_SOURCES)))
def test_source_that_is_no_python_differs(text):
    assert sources.differ('Generator', text, networks.Generator._orig_module_src)


# --- what is refused, and --trust ---------------------------------------------------------------------------------


def rename(path: str, meta: dict) -> None:
    """Makes the outermost class one that nobody has."""
    if path == '':
        meta['module_src'] = re.sub(r'\bGenerator\b', 'Sculptor', meta['module_src'])
        meta['class_name'] = 'Sculptor'


def test_an_unknown_class_is_named_and_trust_is_the_way(data, tmp_path):
    path = write(tmp_path / 'a.pkl', edited(data, G_ema=rename))
    with pytest.raises(
        UserError, match=r"a\.pkl holds a network of class 'Sculptor', .*Nothing in it was run; .*--trust"
    ):
        pickles.load(path)
    trusted = pickles.load(path, trust=True)
    assert type(trusted['G_ema']).__name__ == 'Sculptor'
    assert torch.equal(images(trusted['G_ema']), images(data['G_ema']))


def test_a_network_operated_on_after_construction_is_refused_and_trust_is_the_way(data, tmp_path):
    G = copy.deepcopy(data['G_ema'])
    G.synthesis.b16.conv0 = networks.SynthesisLayer(16, 16, w_dim=16, resolution=16, up=2, kernel_size=5)
    path = write(tmp_path / 'a.pkl', {**data, 'G_ema': G.eval().requires_grad_(False)})
    with pytest.raises(
        UserError, match=r'does not fit the local classes: its synthesis\.b16\.conv0\.weight has .*--trust'
    ):
        pickles.load(path)
    assert_same(pickles.load(path, trust=True)['G_ema'], G)


def test_the_commands_that_the_sentence_names_do_with_trust_what_it_says(data, make_dataset_zip, tmp_path):
    path = write(tmp_path / 'a.pkl', edited(data, G=rename, G_ema=rename))
    commands = {
        'profile': ('--no-measure', path),
        'compare': (path,),
        'evaluate': (
            *(path, '--data', make_dataset_zip(tmp_path), '--metrics', 'fd:module:tiny_embeddings:tiny'),
            *('--samples', 16, '--device', 'cpu'),
        ),
    }
    for command, arguments in commands.items():
        assert f'`{command}`' in refused(command, *arguments)
        run(command, '--trust', *arguments)


@pytest.mark.parametrize('name', ['training_set_kwargs', 'D'])
def test_trust_is_not_recommended_where_no_command_could_measure(name, data, tmp_path):
    """Names that no network needs, and files without a generator."""
    files = {'training_set_kwargs': {**data, 'training_set_kwargs': {'x': io.BytesIO}}, 'D': {'D': data['D']}}
    path = write(tmp_path / 'a.pkl', edited(files[name], **({'D': rename_discriminator} if name == 'D' else {})))
    with pytest.raises(UserError) as error:
        pickles.load(path)
    assert '--trust' not in error.value.format_message()


def rename_discriminator(path: str, meta: dict) -> None:
    if path == '':
        meta['class_name'] = 'Critic'


def test_what_even_the_host_cannot_load_is_a_sentence(tmp_path):
    path = write(tmp_path / 'a.pkl', [1, 2, 3])
    with pytest.raises(UserError, match=r'The host cannot load .*a\.pkl \(TypeError'):
        pickles.load(path, trust=True)


@pytest.mark.parametrize(
    ('content', 'sentence'),
    [
        (b'', 'is no network file but an empty file'),
        (b'PK\x03\x04 a zip archive', 'is no network file but a zip archive'),
        (b'<html>Quota exceeded</html>', 'is no network file but an HTML page'),
        (pickle.dumps([1, 2, 3]), 'it holds a list'),
        (pickle.dumps({}), 'it has none of G, D and G_ema'),
        (pickle.dumps({'G': 1}), 'its G is not a network'),
        (pickle.dumps({'G_ema': None, 'training_set_kwargs': {}}), 'it has none of G, D and G_ema'),
    ],
)
def test_what_is_no_network_pickle_is_a_sentence(content, sentence, tmp_path):
    (tmp_path / 'a.pkl').write_bytes(content)
    for read in (pickles.load, pickles.inspect):
        with pytest.raises(UserError, match=sentence):
            read(tmp_path / 'a.pkl')


@pytest.mark.parametrize(
    ('name', 'sentence'), [('missing.pkl', 'No such file'), ('.', 'directory'), ('no.safetensors', 'No such')]
)
def test_what_is_no_file_is_a_sentence(name, sentence, tmp_path):
    for read in (pickles.load, pickles.inspect, lambda path: pickles.load(path, trust=True)):
        with pytest.raises(UserError, match=sentence):
            read(tmp_path / name)


# --- the machine against Python's own ------------------------------------------------------------------------------

KEYS = st.none() | st.booleans() | st.text(max_size=5) | st.integers(-(2**60) + 1, 2**60 - 1)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=300)
    | st.frozensets(KEYS, max_size=3)
    | st.sets(KEYS, max_size=3)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5) | st.lists(inner, max_size=5).map(tuple)
    ),
    max_leaves=30,
)


def filled(value):
    """A machine's value with the bytes of its blobs."""
    if isinstance(value, Blob):
        return value.read()
    if isinstance(value, (list, tuple)):
        return type(value)(map(filled, value))
    return {key: filled(item) for key, item in value.items()} if isinstance(value, dict) else value


@settings(max_examples=150, deadline=None)
@given(VALUES, st.sampled_from([3, 4, 5]))
def test_plain_data_is_read_as_python_reads_it(value, protocol):
    if protocol == 3:
        value = [value, value]  # Sets are calls there, which this test does not allow.
        if b'builtins' in pickle.dumps(value, protocol):
            return
    text = pickle.dumps(value, protocol)
    assert filled(Machine(io.BytesIO(text), len(text), find_global=None).load()) == pickle.loads(text)


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), st.lists))
def test_the_text_protocol_is_read_as_python_reads_it(value):
    text = pickle.dumps(value, 0)
    assert Machine(io.BytesIO(text), len(text), find_global=None).load() == pickle.loads(text)


# --- safetensors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('variant', VARIANTS)
def test_pickle_to_safetensors_and_back_is_exact(variant, make_generator, make_discriminator, tmp_path):
    g_kwargs, d_kwargs = VARIANTS[variant]
    start = snapshot(
        make_generator(**g_kwargs), make_discriminator(**d_kwargs), augment.AugmentPipe(hue=1), **TRAINING_SET
    )
    pickles.save(tmp_path / '1.pkl', start)
    pickles.save(tmp_path / '2.safetensors', pickles.load(tmp_path / '1.pkl'))
    there = pickles.load(tmp_path / '2.safetensors')
    pickles.save(tmp_path / '3.pkl', there)
    assert_same_data(there, start)
    assert_same_data(load_by_host(tmp_path / '3.pkl'), start)


def test_every_bit_survives(data, tmp_path):
    G = copy.deepcopy(data['G'])
    weight = G.mapping.fc0.weight
    bits = np.random.RandomState(0).randint(-(2**31), 2**31, weight.shape).astype(np.int32)
    bits.flat[:4] = [-(2**31), 0x7FC00001, 0x7F800001, 1]  # -0, NaNs with a payload, a subnormal number.
    weight.data = torch.from_numpy(bits).view(torch.float32)
    G.synthesis.b8.half()
    G.mapping.fc1.bias.data = torch.randn([16], dtype=torch.float64)
    for name in ('a.pkl', 'a.safetensors'):
        pickles.save(tmp_path / name, {'G': G})
        assert_same(pickles.load(tmp_path / name, as_stored=True)['G'], G)


def test_what_is_not_in_the_arguments_survives_as_well(data, tmp_path):
    G = copy.deepcopy(data['G'])
    G.train()
    G.mapping.eval().requires_grad_(True)
    G.mapping.w_avg.requires_grad_(True)
    G.synthesis.b8.conv1.conv_clamp = 0.5
    G.synthesis.b8.use_fp16 = True
    G.note = {
        'nested': [(1, 2.5, -0.0), {'a', 'b'}, frozenset([1]), None, True],
        'raw': b'\0\xff',
        'numpy': [np.float64(0.1), np.float32(-0.0), np.int64(2**62), np.bool_(True)],
        'easy': EasyDict(a=EasyDict(b=1)),
        'keys': {1: 'one', None: 'none', False: 'false'},
        '!': 'our own tag',
        'inf': [math.inf, -math.inf],
    }
    pickles.save(tmp_path / 'a.safetensors', {'G': G, 'training_set_kwargs': None, 'more': [EasyDict(x=(1,))]})
    loaded = pickles.load(tmp_path / 'a.safetensors')
    assert_same(loaded['G'], G)
    assert repr(loaded['G'].note) == repr(G.note)
    assert type(loaded['G'].note['easy'].a) is EasyDict
    assert loaded['more'] == [{'x': (1,)}]


def test_a_single_network_will_do_and_missing_ones_are_none(data, tmp_path):
    pickles.save(tmp_path / 'a.safetensors', {'G_ema': data['G_ema'], 'D': None})
    loaded = pickles.load(tmp_path / 'a.safetensors')
    assert_same(loaded['G_ema'], data['G_ema'])
    assert {key for key, value in loaded.items() if value is None} == set(pickles.KEYS) - {'G_ema'}


def test_shared_tensors_are_stored_once_and_stay_shared(data, tmp_path):
    G = copy.deepcopy(data['G'])
    G.mapping.fc1.weight = G.mapping.fc0.weight
    pickles.save(tmp_path / 'one.safetensors', {'G': data['G']})
    pickles.save(tmp_path / 'two.safetensors', {'G': G, 'G_ema': G})
    loaded = pickles.load(tmp_path / 'two.safetensors')
    assert loaded['G'].mapping.fc1.weight is loaded['G'].mapping.fc0.weight is loaded['G_ema'].mapping.fc0.weight
    assert_same(loaded['G_ema'], G)
    assert (tmp_path / 'two.safetensors').stat().st_size < 1.5 * (tmp_path / 'one.safetensors').stat().st_size


def test_tensors_that_share_memory_without_being_one_are_all_stored(data, tmp_path):
    G = copy.deepcopy(data['G'])
    common = torch.randn([17, 16])
    G.mapping.fc0.weight.data, G.mapping.fc1.weight.data = common[1:], common[:-1]
    pickles.save(tmp_path / 'a.safetensors', {'G': G})
    assert_same(pickles.load(tmp_path / 'a.safetensors')['G'], G)


def test_the_same_networks_give_the_same_file(data, tmp_path):
    for name in ('a.safetensors', 'b.safetensors'):
        pickles.save(tmp_path / name, data)
    assert pickles.sha256(tmp_path / 'a.safetensors') == pickles.sha256(tmp_path / 'b.safetensors')


def _replaced(G):
    G.mapping.fc0 = networks.FullyConnectedLayer(16, 8)


def _regrown(G):
    G.mapping.fc2 = networks.FullyConnectedLayer(16, 16)


def _recast(G):
    G.mapping.fc0.__class__ = networks.Conv2dLayer


def _hooked(G):
    G.mapping.register_forward_hook(print)


def _worded(G):
    G.note = np.str_('text')


def _laden(G):
    G.loss = torch.nn.functional.mse_loss


@pytest.mark.parametrize('spoil', [_replaced, _regrown, _recast, _hooked, _worded, _laden])
def test_a_network_that_is_not_what_its_arguments_make_has_no_form_as_safetensors(spoil, data, tmp_path):
    G = copy.deepcopy(data['G'])
    spoil(G)
    with pytest.raises(UserError, match='G cannot be stored as safetensors'):
        pickles.save(tmp_path / 'a.safetensors', {'G': G})
    assert not list(tmp_path.iterdir())


def test_a_network_without_recorded_arguments_has_no_form_as_safetensors(tmp_path):
    with pytest.raises(UserError, match='a Linear does not know its constructor arguments'):
        pickles.save(tmp_path / 'a.safetensors', {'G': torch.nn.Linear(1, 1)})


def test_networks_on_a_device_are_stored_for_the_cpu(data, tmp_path, monkeypatch):
    """A `cpu()` that is not needed would copy everything; one that is missing shuts out machines without the device."""
    moved = []
    monkeypatch.setattr(torch.nn.Module, 'cpu', lambda module: moved.append(type(module).__name__) or data['G'])
    pickles.save(tmp_path / 'a.pkl', {**data, 'G': copy.deepcopy(data['G']).to('meta')})
    assert moved == ['Generator']
    assert_same_data(load_by_host(tmp_path / 'a.pkl'), data)


# --- TensorFlow ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def tensorflow_pkl(make_generator, make_discriminator, tmp_path_factory):
    """G, D, and the TensorFlow pickle of the two."""
    G = make_generator(synthesis_kwargs={'channel_base': 256, 'channel_max': 16}).eval().requires_grad_(False)
    D = make_discriminator().eval().requires_grad_(False)
    for name, parameter in G.named_parameters():
        if name.endswith('affine.bias'):
            parameter.copy_((parameter * 64).round() / 64)
        elif name.endswith(('bias', 'noise_strength')):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    path = tmp_path_factory.mktemp('tensorflow') / 'stylegan2.pkl'
    return G, D, write_tensorflow(path, G, D, fmap_base=128, fmap_max=16)


def test_a_tensorflow_pickle_becomes_the_networks_that_it_describes(tensorflow_pkl):
    G, D, path = tensorflow_pkl
    loaded = pickles.load(path)
    assert_same_data(loaded, load_by_host(path))
    assert torch.equal(images(loaded['G_ema']), images(G))
    x = torch.randn([4, 3, 16, 16])
    assert torch.equal(loaded['D'](x, None), D(x, None))


def test_a_tensorflow_pickle_converts_and_is_inspected(tensorflow_pkl, tmp_path):
    G, _, path = tensorflow_pkl
    for name in ('a.safetensors', 'a.pkl'):
        run('convert', path, tmp_path / name)
        assert torch.equal(images(pickles.load(tmp_path / name)['G_ema']), images(G))
    report = pickles.inspect(path)
    assert report.format == 'TensorFlow pickle'
    assert report.networks['G_ema'].parameters == profiling.parameters(G)
    assert report.networks['G_ema'].macs == profiling.macs(G)


def test_a_tensorflow_pickle_that_the_host_cannot_convert_is_a_sentence(tensorflow_pkl, tmp_path, capsys):
    G, D, _ = tensorflow_pkl
    path = write_tensorflow(tmp_path / 'a.pkl', G, D, fmap_base=128, fmap_max=16, fused_modconv=True)
    with pytest.raises(UserError, match=r'converter cannot convert it .*Unknown TensorFlow kwarg.*fused_modconv'):
        pickles.load(path)
    assert capsys.readouterr().out == ''


# --- URLs ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(directory):
    """The address of an http server for a directory."""
    handler = lambda *args: http.server.SimpleHTTPRequestHandler(*args, directory=directory)  # noqa: E731
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_a_url_is_read_through_the_hosts_cache(pkl, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path))
    with served(pkl.parent) as address:
        url = f'{address}/{pkl.name}'
        assert_same_data(pickles.load(url), data)
        with pytest.raises(UserError, match=r'Cannot download http://127.0.0.1:\d+/missing.pkl'):
            pickles.load(f'{address}/missing.pkl')
    assert_same_data(pickles.load(url), data)  # The server is gone.
    assert pickles.inspect(url).sha256 == pickles.sha256(pkl)


def test_the_format_of_a_url_is_told_by_its_path(data, tmp_path, monkeypatch):
    """The links of a download page end in a query."""
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))
    pickles.save(tmp_path / 'a.safetensors', data)
    with served(tmp_path) as address:
        url = f'{address}/a.safetensors?download=true'
        assert_same_data(pickles.load(url), data)
        assert pickles.inspect(url).networks.keys() == pickles.inspect(tmp_path / 'a.safetensors').networks.keys()


# --- inspect and convert ------------------------------------------------------------------------------------------


def test_inspect_tells_what_is_inside(make_generator, make_discriminator, tmp_path):
    G = make_generator(z_dim=8, c_dim=3, synthesis_kwargs={'channel_base': 128, 'channel_max': 12})
    data = snapshot(G, make_discriminator(c_dim=3), **TRAINING_SET)
    for name in ('a.pkl', 'a.safetensors'):
        pickles.save(tmp_path / name, data)
        report = pickles.inspect(tmp_path / name)
        found = report.networks['G_ema']
        assert found.class_name == 'Generator'
        dimensions = {'img_resolution': 16, 'img_channels': 3, 'z_dim': 8, 'c_dim': 3, 'w_dim': 16}
        assert found.dimensions == dimensions
        assert found.channels == {4: [12, 12], 8: [12, 12], 16: [8, 8]}
        assert report.networks['D'].channels == {4: [16], 8: [16], 16: [16]}
        assert (found.parameters, found.macs) == (profiling.parameters(G), profiling.macs(G))
        classes = {module.path: module.class_name for module in found.modules}
        assert classes == {path: type(module).__name__ for path, module in G.named_modules()}
        counts = {module.path: module.parameters for module in found.modules}
        assert counts == {path: profiling.parameters(module) for path, module in G.named_modules()}
        assert report.training_set_kwargs == TRAINING_SET
        assert report.bytes == (tmp_path / name).stat().st_size
        assert report.sha256 == pickles.sha256(tmp_path / name)
        assert report.suspicious == []


def test_inspect_needs_no_known_class_and_says_what_is_odd(data, tmp_path):
    def edit(path: str, meta: dict) -> None:
        rename(path, meta)
        meta['module_src'] += '\nimport subprocess\n'

    def tamper(path: str, meta: dict) -> None:
        meta['module_src'] = meta['module_src'].replace('self.bias_gain = lr_multiplier', 'self.bias_gain = 1')
        if path == 'b8.conv0':
            meta['state']['up'] = 50

    path = write(tmp_path / 'a.pkl', edited(data, G_ema=edit, D=tamper))
    path.write_bytes(path.read_bytes() + b'more')
    report = pickles.inspect(path)
    assert report.networks['G_ema'].class_name == 'Sculptor'
    assert report.networks['G_ema'].parameters == profiling.parameters(data['G_ema'])
    assert report.networks['G_ema'].macs is None
    said = '\n'.join(report.suspicious)
    for sign in ("'Sculptor'", "'subprocess'", 'b8.conv0.up', 'FullyConnectedLayer', '4 bytes'):
        assert sign in said, sign
    assert len(report.suspicious) == 5


def test_inspect_on_the_command_line(pkl, data):
    text = run('inspect', pkl)
    assert pickles.sha256(pkl) in text
    assert f'Generator, {profiling.parameters(data["G"]):,} parameters, {profiling.macs(data["G"]):,} MACs' in text
    assert 'Nothing suspicious.' in text
    machine = json.loads(run('inspect', '--json', pkl))
    assert machine['networks']['G_ema']['parameters'] == profiling.parameters(data['G'])


def test_convert_on_the_command_line(pkl, data, tmp_path):
    there, back = tmp_path / 'a.safetensors', tmp_path / 'b.pkl'
    run('convert', pkl, there)
    run('convert', there, back)
    assert_same_data(load_by_host(back), data)

    before = there.read_bytes()
    assert '--force' in refused('convert', pkl, there)
    assert there.read_bytes() == before
    run('convert', pkl, there, '--force')
    assert '.safetensors' in refused('convert', pkl, tmp_path / 'a.onnx')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.safetensors', 'b.pkl']


def test_convert_with_trust_brings_unknown_classes_to_a_pickle_but_not_to_safetensors(data, tmp_path):
    path = write(tmp_path / 'a.pkl', edited(data, G_ema=rename))
    run('convert', path, '--trust', tmp_path / 'b.pkl')
    assert torch.equal(images(load_by_host(tmp_path / 'b.pkl')['G_ema']), images(data['G_ema']))
    assert "'Sculptor'" in refused('convert', path, '--trust', tmp_path / 'b.safetensors', unchanged=tmp_path)


@pytest.mark.parametrize(
    ('contents', 'what'),
    [
        (b'', 'an empty file'),
        (b'\n<HTML><body>Sign in</body></HTML>', 'an HTML page'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n', 'a Git LFS pointer'),
        (b'PK\x03\x04\x00\x00', 'a zip archive'),
        ('Grüße an alle, die dies lesen.\n'.encode() * 30, 'a text file'),
        (b'\xff\xfe\x00a\x00b', None),
        (b'I1111111111111111111111', None),
    ],
)
@pytest.mark.parametrize('ending', ['pkl', 'safetensors'])
def test_what_is_taken_for_a_network_file_is_named(tmp_path, contents, what, ending):
    path = tmp_path / f'a.{ending}'
    path.write_bytes(contents)
    with pytest.raises(UserError) as raised:
        pickles.load(path)
    assert (f'{path} is no network file but {what}' in raised.value.message) == (what is not None)


def test_a_flipped_bit_in_safetensors_is_found(tmp_path, make_generator):
    path = tmp_path / 'a.safetensors'
    pickles.save(path, dict(G_ema=make_generator()))
    whole = path.read_bytes()
    assert pickles.load(path)['G_ema'] is not None
    for position in (len(whole) - 3, whole.index(b'"training') + 3):  # In a tensor, in the description.
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r'is damaged|does not describe'):
            pickles.load(path)


def test_safetensors_without_a_checksum_are_read(tmp_path, make_generator, monkeypatch):
    """Those of earlier versions."""
    monkeypatch.setattr(safetensors_file, '_CHECKSUM', 'another')
    pickles.save(tmp_path / 'a.safetensors', dict(G_ema=make_generator()))
    monkeypatch.undo()
    assert pickles.load(tmp_path / 'a.safetensors')['G_ema'] is not None


@pytest.mark.parametrize('ending', ['pkl', 'safetensors'])
def test_a_generator_alone(tmp_path, make_generator, make_discriminator, ending):
    """It makes the same images; the host opens the pickle."""
    G, D, G_ema = make_generator(0), make_discriminator(), make_generator(1).eval()
    whole, alone = tmp_path / f'whole.{ending}', tmp_path / f'alone.{ending}'
    pickles.save(whole, dict(G=G, D=D, G_ema=G_ema, training_set_kwargs=dict(path='data.zip'), augment_pipe=None))
    run('convert', '--only', 'G_ema', whole, alone)
    found = pickles.load(alone)
    z, c = torch.randn(2, 16), torch.zeros(2, 0)
    assert torch.equal(found['G_ema'](z, c, noise_mode='const'), G_ema(z, c, noise_mode='const'))
    assert found['training_set_kwargs'] == dict(path='data.zip')
    weights = sum(tensor.nbytes for tensor in misc.params_and_buffers(G_ema))
    assert alone.stat().st_size < weights + 100_000 < whole.stat().st_size  # The text of the host's modules is in it.
    if ending == 'pkl':
        with open(alone, 'rb') as file:
            assert legacy.load_network_pkl(file)['G_ema'].z_dim == 16
    assert 'has no StyleGAN2 generator as G_ema' in refused(
        'convert', '--only', 'G_ema', saved(tmp_path / 'd.pkl', D=D), tmp_path / 'x.pkl'
    )


def saved(path, **networks):
    pickles.save(path, dict(dict(G=None, D=None, G_ema=None), **networks))
    return path


def test_networks_of_the_same_shapes_are_shown_once(tmp_path, make_generator, make_discriminator):
    networks = dict(G=make_generator(0), D=make_discriminator(), G_ema=make_generator(1))
    text = pickles.inspect(saved(tmp_path / 'a.pkl', **networks)).text()
    assert 'G_ema: the same modules and shapes as G\n' in text
    assert text.count('mapping ') == 1
    networks['G_ema'] = make_generator(synthesis_kwargs=dict(channel_base=128, channel_max=8))
    assert 'the same' not in pickles.inspect(saved(tmp_path / 'b.pkl', **networks)).text()


def test_inspecting_does_not_import_what_augmentation_takes(tmp_path, make_generator):
    saved(tmp_path / 'a.pkl', G_ema=make_generator())
    script = (
        'import sys\nfrom stylegan2_compress import pickles\npickles.inspect("a.pkl")\n'
        'print(*(name for name in ("training.augment", "scipy.signal") if name in sys.modules))'
    )
    result = subprocess.run([sys.executable, '-c', script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stdout == '\n', result.stderr
