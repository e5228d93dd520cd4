"""Hostile and broken files: no code runs, no hang, no crash, no memory to speak of; always a sentence."""

import importlib
import io
import json
import os
import pickle
import random
import re
import resource
import struct
import subprocess
import sys
import types
from collections import OrderedDict
from pathlib import Path

import dnnlib
import numpy as np
import pytest
import safetensors.torch
import torch
import torch_utils.persistence
from hypothesis import given, settings
from hypothesis import strategies as st
from pickling import Call, edited, snapshot, write, write_tensorflow

from stylegan2_compress import pickles
from stylegan2_compress.errors import UserError

pytestmark = pytest.mark.filterwarnings('ignore:.*other source code:UserWarning')


@pytest.fixture(scope='module')
def data(make_generator, make_discriminator):
    """A good snapshot, as small as they come."""
    small = {'channel_base': 32, 'channel_max': 4}
    G = make_generator(img_resolution=8, z_dim=2, w_dim=2, mapping_kwargs={'num_layers': 1}, synthesis_kwargs=small)
    return snapshot(G, make_discriminator(img_resolution=8, **small), path='mnist.zip')


@pytest.fixture
def canary(tmp_path):
    """A file that the hostile code of a test would make."""
    path = tmp_path / 'canary'
    yield path
    assert not path.exists(), 'code from the file was run'


def read(path: Path) -> str | None:
    """Load and inspect a file; the sentence with which loading ends, or None where it does not."""
    said = None
    try:
        pickles.load(path)
    except UserError as error:
        said = error.format_message()
        assert said.endswith('.')
        assert '\n' not in said
        assert len(said) < 1000
        said.encode()  # It can be printed.
    try:
        pickles.inspect(path).text().encode()
    except UserError:
        assert said is not None
    return said


def refused(path: Path) -> str:
    """The sentence with which loading ends."""
    said = read(path)
    assert said is not None
    return said


# --- code ---------------------------------------------------------------------------------------------------------


def saved(value: object, **options) -> bytes:
    """What `torch.save` makes of it."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def payloads(canary: str) -> dict[str, tuple[object, str]]:
    """Values that run code when they are loaded carelessly, and what the sentence has to name."""
    touch, python = f'touch {canary}', f'open({canary!r}, "w").close()'
    system = Call(os.system, touch)
    return {
        'system': (system, "'posix.system'"),
        'eval': (Call(eval, python), "'builtins.eval'"),
        'exec': (Call(exec, python), "'builtins.exec'"),
        'open': (Call(open, canary, 'w'), "'_?io.open'"),
        'getattr': (Call(getattr, Call(__import__, 'os'), 'system'), "'builtins.getattr'"),
        'Popen': (Call(subprocess.Popen, ['touch', canary]), "'subprocess.Popen'"),
        'import': (Call(importlib.import_module, 'antigravity'), "'importlib.import_module'"),
        'torch.load': (Call(torch.load, f'{canary}.pt'), "'torch.serialization.load'"),
        'torch.hub': (Call(torch.hub.load, 'owner/repository', 'model'), "'torch.hub.load'"),
        'numpy.load': (Call(np.load, f'{canary}.npy', None, True), "'numpy.*load'"),
        'pickle': (Call(pickle.loads, pickle.dumps(system)), "'_pickle.loads'"),
        'host': (Call(dnnlib.util.call_func_by_name, touch), "'dnnlib.util.call_func_by_name'"),
        'bytes that torch loads': (
            Call(torch.storage._load_from_bytes, saved(system, _use_new_zipfile_serialization=False)),
            "'posix.system'",
        ),
        'a zip that torch loads': (Call(torch.storage._load_from_bytes, saved(system)), 'outside the file'),
        'a type': (Call(type, 'Evil', (), {}), "'builtins.type'"),
        'an instance': (types.SimpleNamespace(a=1), "'types.SimpleNamespace'"),
        'a function': (os.system, "'posix.system'"),
    }


PAYLOADS = list(payloads(''))
PLACES = {
    'the file': lambda data, evil: evil,
    'G': lambda data, evil: {**data, 'G': evil},
    'an unknown key': lambda data, evil: {**data, 'more': [{'x': evil}]},
    'training_set_kwargs': lambda data, evil: {**data, 'training_set_kwargs': {'path': evil}},
    'an attribute': lambda data, evil: edited(data, D=set_state('b4.mbstd', 'group_size', evil)),
    'an argument': lambda data, evil: edited(data, G=set_state('', '_init_kwargs', {'z_dim': evil})),
    'a hook': lambda data, evil: edited(data, G=set_state('', '_forward_hooks', OrderedDict({0: evil}))),
    'a module': lambda data, evil: edited(data, G=set_state('synthesis', '_modules', {'b4': evil})),
    'a tensor': lambda data, evil: edited(data, G=set_state('mapping.fc0', '_parameters', {'weight': evil})),
}


def set_state(path: str, key: str, value: object):
    """An edit of a record: replace one entry of the state of one module."""

    def edit(where: str, meta: dict) -> None:
        if where == path:
            assert key in meta['state']
            meta['state'][key] = value

    return edit


@pytest.mark.parametrize('name', ['system', 'eval', 'exec', 'open', 'Popen', 'pickle', 'bytes that torch loads'])
def test_the_payloads_do_what_they_should_when_loaded_carelessly(name, tmp_path, monkeypatch):
    """Otherwise the tests below would prove nothing."""
    canary = tmp_path / 'canary'
    careless = torch.load
    monkeypatch.setattr(torch, 'load', lambda file, **_: careless(file, weights_only=False))
    evil, _ = payloads(str(canary))[name]
    try:
        done = pickle.loads(pickle.dumps(evil))
        if isinstance(done, subprocess.Popen):
            done.wait()
    except AttributeError:  # torch expects something else of what it has loaded.
        pass
    assert canary.exists()


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('name', PAYLOADS)
def test_calls_are_named_and_not_made(name, place, data, tmp_path, canary):
    evil, named = payloads(str(canary))[name]
    path = write(tmp_path / 'a.pkl', PLACES[place](data, evil))
    assert re.search(named, refused(path)), refused(path)


@pytest.mark.parametrize('protocol', [0, 1, 2, 3, 4, 5])
def test_calls_are_not_made_in_any_protocol(protocol, tmp_path, canary):
    path = write(tmp_path / 'a.pkl', {'G': Call(os.system, f'touch {canary}')}, protocol)
    assert "refers to 'posix.system'" in refused(path)
    assert pickles.inspect(path).suspicious[0].startswith("it refers to 'posix.system'")


@pytest.mark.parametrize(
    'text',
    [
        b'cos\nsystem\n(S"touch %s"\ntR.',
        b'(S"touch %s"\nios\nsystem\n.',
        b'(cos\nsystem\nS"touch %s"\no.',
        b'cos\nsystem\nS"touch %s"\n\x85R.',
        b'\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x80touch %s\x85R.',
        b'cbuiltins\nexec\n(S"import os"\ntR0cos\nsystem\n(S"touch %s"\ntR.',
        b'c__builtin__\neval\n(S"touch %s"\ntR.',
        b'c os\nsystem\n(S"touch %s"\ntR.',
        b'cposix\nsystem\n(S"touch %s"\ntR.',
        b'ctorch._utils\n_rebuild_tensor_v2.__globals__\n(S"touch %s"\ntR.',
    ],
)
def test_calls_written_by_hand_are_not_made(text, tmp_path, canary):
    (tmp_path / 'a.pkl').write_bytes(text % str(canary).encode())
    assert re.search('refers to', refused(tmp_path / 'a.pkl'))


@pytest.mark.parametrize('protocol', [0, 2, 4])
@pytest.mark.parametrize('name', PAYLOADS)
def test_what_fickling_finds_is_refused(name, protocol, tmp_path, canary):
    """A scanner that others wrote. It cannot take the place of ours: it finds fault with every network of the host."""
    fickling = pytest.importorskip('fickling', reason='pip install fickling to run')
    evil, _ = payloads(str(canary))[name]
    path = write(tmp_path / 'a.pkl', evil, protocol)
    assert not fickling.is_likely_safe(str(path))
    refused(path)


def test_fickling_finds_fault_with_every_network(data, tmp_path):
    """For a host's classes are not in its lists."""
    fickling = pytest.importorskip('fickling', reason='pip install fickling to run')
    path = write(tmp_path / 'a.pkl', data)
    assert read(path) is None
    assert not fickling.is_likely_safe(str(path))


KNOWN = [
    'torch_utils.persistence _reconstruct_persistent_obj',
    'torch._utils _rebuild_tensor_v2',
    'torch._utils _rebuild_parameter',
    'torch.storage _load_from_bytes',
    'collections OrderedDict',
    'dnnlib.util EasyDict',
    'dnnlib.tflib.network Network',
    'numpy.core.multiarray scalar',
    'numpy.core.multiarray _reconstruct',
    'numpy._core.numeric _frombuffer',
    'numpy ndarray',
    'numpy dtype',
    'builtins set',
]
NONSENSE = [
    (),
    (1,),
    (None, None),
    ({},),
    ([],),
    (b'x' * 300,),
    ('f8',),
    ((1,), 2, 3),
    ('f8', b'x'),
    (1,) * 6,
    (1,) * 9,
]


@pytest.mark.parametrize('name', KNOWN)
def test_names_on_the_allowlist_take_no_nonsense(name, tmp_path):
    for args in NONSENSE:
        call = 'c{}\n{}\n'.format(*name.split()).encode() + pickle.dumps(args, 3)[2:-1]
        for use in (b'R', b'\x81}b', b'\x81(K\x01K\x02db', b'R(K\x01K\x02u', b'R(K\x01e', b'Rq\x01h\x01b', b'R}\x92'):
            (tmp_path / 'a.pkl').write_bytes(call + use + b'.')
            refused(tmp_path / 'a.pkl')


@pytest.mark.parametrize('name', KNOWN)
def test_nonsense_beside_a_good_network_ends_in_a_sentence_or_in_plain_values(name, data, tmp_path):
    """Elsewhere the value of the file is what is refused; here, the names themselves have to hold."""
    good = pickle.dumps({'G_ema': data['G_ema']}, 4)
    (tmp_path / 'a.pkl').write_bytes(good)
    assert read(tmp_path / 'a.pkl') is None
    sentences = 0
    for args in NONSENSE:
        call = 'c{}\n{}\n'.format(*name.split()).encode() + pickle.dumps(args, 3)[2:-1]
        for use in (b'R', b'\x81}b'):
            (tmp_path / 'a.pkl').write_bytes(good[:-1] + b'X\x04\x00\x00\x00more' + call + use + b's.')
            if read(tmp_path / 'a.pkl') is not None:
                sentences += 1
                continue
            loaded = pickles.load(tmp_path / 'a.pkl')
            assert isinstance(loaded['G_ema'], torch.nn.Module)
            assert not isinstance(loaded['more'], torch.nn.Module)
    assert sentences > 0


def test_source_text_is_not_run(data, tmp_path):
    canary = tmp_path / 'canary'

    def edit(path: str, meta: dict) -> None:
        meta['module_src'] = f'open({str(canary)!r}, "w").close()\n' + meta['module_src']

    path = write(tmp_path / 'a.pkl', edited(data, G=edit, D=edit, G_ema=edit))
    assert read(path) is None
    assert "its source code mentions 'open'" in pickles.inspect(path).suspicious
    assert not canary.exists()
    pickles.load(path, trust=True)
    assert canary.exists()  # So the text would have run.


def test_only_persistent_classes_of_known_modules_are_constructed(data, tmp_path):
    for name in ('Linear', 'torch.nn.Linear', 'persistence', 'EasyDict', '__builtins__', '\ud800', 'Generator\n', ''):

        def rename(path: str, meta: dict, name=name) -> None:
            meta['class_name'] = name

        assert 'which neither the host nor stylegan2_compress has' in refused(
            write(tmp_path / 'a.pkl', edited(data, G=rename))
        )


# --- constructor arguments and state ------------------------------------------------------------------------------

BIG = 10**12
ARGUMENTS = [
    ('G', {'img_resolution': 2**30}),
    ('G', {'img_resolution': 2**20}),
    ('G', {'img_resolution': 3}),
    ('G', {'z_dim': BIG}),
    ('G', {'w_dim': -1}),
    ('G', {'c_dim': 10**6}),
    ('G', {'img_channels': 10**6}),
    ('G', {'z_dim': 'x' * 1000}),
    ('G', {'z_dim': float('nan')}),
    ('G', {'unknown': 1}),
    ('G', {'self': 1}),
    ('G', {'synthesis_kwargs': {'channel_base': BIG, 'channel_max': BIG}}),
    ('G', {'synthesis_kwargs': {'channel_base': 10**6, 'channel_max': 10**6}}),
    ('G', {'synthesis_kwargs': {'channel_base': 1e300, 'channel_max': 1e300}}),
    ('G', {'synthesis_kwargs': {'kernel_size': 10**6}}),
    ('G', {'synthesis_kwargs': {'resample_filter': [1] * 100_000}}),
    ('G', {'synthesis_kwargs': {'resample_filter': []}}),
    ('G', {'synthesis_kwargs': {'activation': '__import__("os")'}}),
    ('G', {'synthesis_kwargs': {'num_fp16_res': 2**20, 'architecture': 'evil'}}),
    ('G', {'mapping_kwargs': {'num_layers': BIG}}),
    ('G', {'mapping_kwargs': {'num_layers': 10**6}}),
    ('G', {'mapping_kwargs': {'num_layers': 0}}),
    ('G', {'mapping_kwargs': {'embed_features': BIG, 'layer_features': BIG}}),
    ('G', {'mapping_kwargs': 7}),
    ('D', {'cmap_dim': BIG, 'c_dim': 1}),
    ('D', {'epilogue_kwargs': {'mbstd_num_channels': BIG}}),
    ('D', {'img_resolution': 10**300}),
]


@pytest.mark.parametrize('case', range(len(ARGUMENTS)))
def test_hostile_constructor_arguments_are_a_sentence(case, data, tmp_path):
    key, arguments = ARGUMENTS[case]
    kwargs = {**data[key]._init_kwargs, **arguments}
    path = write(tmp_path / 'a.pkl', edited(data, **{key: set_state('', '_init_kwargs', kwargs)}))
    with limited():
        said = refused(path)
    assert re.search('constructor argument|its arguments|which its|plain data|integer', said), said
    assert not re.search('memory|alloc', said, re.IGNORECASE), said  # It was found out before it was tried.


class limited:
    """Room for another gigabyte of memory and no more, where the system can be told so; and ten seconds.

    Seconds are those of an ordinary machine, which needs `ORDINARY` for the work in `slowness`. A busy or slow one gets
    more: it is asked when ten seconds are over.
    """

    ORDINARY = 1.0

    def __enter__(self):
        self.old = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path('/proc/self/statm').read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, self.old[1]))
        self.start = time_spent()

    def __exit__(self, *_):
        spent = time_spent() - self.start
        resource.setrlimit(resource.RLIMIT_AS, self.old)
        assert spent < 10 or spent < 10 * self.slowness()

    def slowness(self) -> float:
        """How many times as long as on an ordinary machine work takes that is as spread over memory as a pickle's."""
        start = time_spent()
        values = [[number, str(number)] for number in range(1_000_000)]
        random.Random(0).shuffle(values)
        sum(len(text) for _number, text in values)
        return (time_spent() - start) / self.ORDINARY


def time_spent() -> float:
    """Seconds that this process has computed; waiting for other processes does not count."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


STATES = [
    ('', 'synthesis', 'an attribute that hides a module'),
    ('', 'forward', 'an attribute that hides a method'),
    ('', 'to', 'an attribute that hides a method'),
    ('mapping.fc0', 'weight', 'an attribute that hides a parameter'),
    ('', '_orig_module_src', 'what the class has, and the host stores as the source code of the instance'),
    ('mapping.fc0', '_orig_module_src', 'likewise, of a part'),
    ('', '_orig_class_name', 'what the class has, and the host stores as its name'),
    ('', 'init_kwargs', 'a property'),
    ('', '_compiled_call_impl', 'what torch calls in the place of the network'),
    ('', '__module__', 'what Python reads'),
    ('', '__deepcopy__', 'what Python calls'),
]


@pytest.mark.parametrize(('path', 'name', 'what'), STATES)
def test_attributes_cannot_hide_members(path, name, what, data, tmp_path):
    def edit(where: str, meta: dict) -> None:
        if where == path:
            meta['state'][name] = 'x'

    path = write(tmp_path / 'a.pkl', edited(data, G=edit))
    assert f'.{name}' in refused(path)
    assert any(f'.{name}' in item for item in pickles.inspect(path).suspicious)


@pytest.mark.parametrize('name', ['_orig_module_src', '_orig_class_name', 'forward', '__deepcopy__'])
def test_attributes_in_safetensors_cannot_hide_members(name, data, tmp_path):
    path = tmp_path / 'a.safetensors'
    description, tensors = good_safetensors(data, path)
    for where in ('', 'synthesis.b4'):
        description['data']['G']['attributes'] = {where: {name: 'x'}}
        safetensors.torch.save_file(tensors, path, {'stylegan2_compress': json.dumps(description)})
        assert f'.{name}' in refused(path)
        with pytest.raises(UserError, match=rf'\.{name}'):
            pickles.inspect(path)


@pytest.mark.parametrize('suffix', ['.pkl', '.safetensors'])
def test_what_is_written_again_has_no_code_of_the_file(suffix, data, tmp_path, canary):
    """Also where the host, which runs the source text in pickles, opens it."""
    source = data['G']._orig_module_src + f'\nopen({str(canary)!r}, "w").close()\n'
    path, again = tmp_path / f'a{suffix}', tmp_path / 'again.pkl'
    if suffix == '.pkl':

        def edit(where: str, meta: dict) -> None:
            if not where:
                meta['state']['_orig_module_src'] = source

        write(path, edited(data, D=edit))
    else:
        description, tensors = good_safetensors(data, path)
        description['data']['G']['attributes'] = {'': {'_orig_module_src': source}}
        safetensors.torch.save_file(tensors, path, {'stylegan2_compress': json.dumps(description)})
    if read(path) is None:
        pickles.save(again, {**data, **{key: value for key, value in pickles.load(path).items() if value is not None}})
        pickles.load(again, trust=True)
    assert not canary.exists()


def test_constructor_arguments_are_those_that_constructed_the_network(data, tmp_path):
    """Whoever constructs it again calls the class of that name with them."""
    evil = {'class_name': 'torch.hub.load', 'rule': 'antigravity.Rule'}

    def edit(where: str, meta: dict) -> None:
        if where:
            meta['state']['_init_kwargs'] = evil

    from_pickle = pickles.load(write(tmp_path / 'a.pkl', edited(data, G=edit)))['G']
    path = tmp_path / 'a.safetensors'
    description, tensors = good_safetensors(data, path)
    description['data']['G']['attributes'] = {'': {'_init_kwargs': evil}, 'mapping': {'_init_kwargs': evil}}
    safetensors.torch.save_file(tensors, path, {'stylegan2_compress': json.dumps(description)})
    for G in (from_pickle, pickles.load(path)['G']):
        assert G._init_kwargs == data['G']._init_kwargs
        assert G.mapping._init_kwargs == data['G'].mapping._init_kwargs


@pytest.mark.parametrize('suffix', ['.pkl', '.safetensors'])
@pytest.mark.parametrize(
    'name', ['torch.hub.load', 'os.system', 'training.dataset.os.system', 'training.dataset.zipfile.ZipFile', 'system']
)
def test_what_is_no_data_set_is_not_named_as_one(name, suffix, data, tmp_path):
    """The host's calc_metrics.py would call it."""
    path = tmp_path / f'a{suffix}'
    pickles.save(path, {**data, 'training_set_kwargs': {'class_name': name, 'path': 'x'}})
    with pytest.warns(UserWarning, match=f'names {name!r} as the class of its data set'):
        assert pickles.load(path)['training_set_kwargs'] == {'path': 'x'}
    report = pickles.inspect(path)
    assert report.suspicious == [f'it names {name!r} as the class of its data set']
    assert report.training_set_kwargs == {'class_name': name, 'path': 'x'}


@pytest.mark.parametrize('name', ['training.dataset.ImageFolderDataset', 'stylegan2_compress.TeacherDataset', None, 7])
def test_data_sets_stay(name, data, tmp_path, recwarn):
    path = write(tmp_path / 'a.pkl', {**data, 'training_set_kwargs': {'class_name': name, 'path': 'x'}})
    assert pickles.load(path)['training_set_kwargs'] == {'class_name': name, 'path': 'x'}
    assert not recwarn
    assert not pickles.inspect(path).suspicious


@pytest.mark.parametrize(
    'edit',
    [
        lambda meta: meta.update(version=5),
        lambda meta: meta.update(version=float('nan')),
        lambda meta: meta.update(type='function'),
        lambda meta: meta.update(state=[]),
        lambda meta: meta.update(state={}),
        lambda meta: meta.pop('state'),
        lambda meta: meta.update(class_name=7),
        lambda meta: meta.update(module_src=None),
        lambda meta: meta['state'].pop('_parameters'),
        lambda meta: meta['state'].update(_modules=None),
        lambda meta: meta['state'].update(_modules={7: None, 'x': 7}),
        lambda meta: meta['state'].update(_modules={'a.b': meta['state']['_modules']}),
        lambda meta: meta['state'].update(_buffers={'x': 7}),
        lambda meta: meta['state'].update(_buffers={7: torch.zeros(1)}),
        lambda meta: meta['state'].update(_parameters={'x': torch.zeros(1)}),
        lambda meta: meta['state'].update(_forward_hooks={0: 'print'}),
        lambda meta: meta['state'].update(_init_args=None),
        lambda meta: meta['state'].update(_init_args=(1, 2, 3)),
        lambda meta: meta['state'].update(_init_kwargs={7: 7}),
        lambda meta: meta['state'].update(x=torch.zeros(1)),
        lambda meta: meta['state'].update({7: 7}),
    ],
    ids=range(21),
)
def test_records_that_make_no_sense_are_a_sentence(edit, data, tmp_path):
    def at_root(path: str, meta: dict) -> None:
        if path == '':
            edit(meta)

    refused(write(tmp_path / 'a.pkl', edited(data, G=at_root)))


# --- bombs --------------------------------------------------------------------------------------------------------


def module(class_name: str = 'MinibatchStdLayer', module_src: str = '', **state) -> Call:
    """A persistent object with as little state as possible."""
    state = {'_parameters': {}, '_buffers': {}, '_modules': {}, '_init_args': (4,), '_init_kwargs': {}, **state}
    meta = {'type': 'class', 'version': 6, 'module_src': module_src, 'class_name': class_name, 'state': state}
    return Call(torch_utils.persistence._reconstruct_persistent_obj, meta)


def storage(numel: object, body: bytes, written: int | None = None, key: object = '0', dtype: object = None) -> Call:
    """A storage of `numel` floats, of which `written` say how many there are, with `body` behind."""
    head = pickle.dumps(0x1950A86A20F9469CFC6C) + pickle.dumps(1001) + pickle.dumps({'little_endian': True})
    pickler = io.BytesIO()
    persistent = ('storage', dtype or torch.FloatStorage, key, 'cpu', numel, None)
    pickle.Pickler(pickler, 2).dump(persistent)
    head += pickler.getvalue()[:-1] + b'Q.' + pickle.dumps(['0'])
    written = numel if written is None else written
    return Call(torch.storage._load_from_bytes, head + struct.pack('<Q', written) + body)


def tensor(storage: object, offset: object, size: object, stride: object, grad: object = False, more=()) -> Call:
    """A tensor; `more` are its hooks and its metadata."""
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, grad, *(more or [OrderedDict()]))


def laughs(depth: int, container=list) -> list:
    """A list that unfolds to 10 ** depth items."""
    value = container([None])
    for _ in range(depth):
        value = container([value] * 10)
    return value


def modules_in_modules(depth: int) -> Call:
    """A module tree with 2 ** depth paths."""
    inner = module()
    for _ in range(depth):
        inner = module(_modules={'a': inner, 'b': inner})
    return inner


def a_module_in_itself() -> dict:
    """Its `_modules` contain it."""
    modules = {}
    modules['a'] = module(_modules=modules)
    return {'G': module(_modules=modules)}


def a_list_in_itself() -> list:
    """Its only item is itself."""
    value = []
    value.append(value)
    return value


def generator(**tensors) -> dict:
    """A file with a mapping network that has these as its tensors."""
    kwargs = {'z_dim': 1, 'c_dim': 0, 'w_dim': 10**5, 'num_ws': 1, 'num_layers': 1}
    return {'G': module('MappingNetwork', _init_args=(), _init_kwargs=kwargs, _buffers=tensors)}


FLOATS = b'\0' * 4000
ONE = storage(1000, FLOATS)
INTEGER = storage(1, bytes(8), dtype=torch.LongStorage)
COLLIDING = {i * ((1 << 61) - 1): None for i in range(1, 2000)}
SHARED = list(range(100_000))
GOOD = {'G': module()}  # The bombs in plain data need a network beside them to get that far.
CUT, NUMBER, MANY, EMPTY = 'it is cut off', 'number that cannot be parsed', 'more than .* opcodes', 'take more from'
UNFOLDS, NESTED, SHAPE, LARGER = (
    'unfolds to far more than the file',
    'nested more than',
    'without a valid shape',
    'larger than its storage',
)
LENGTH, NO_DATA = 'whose length is not the one declared', 'a tensor storage without data'

# What has to be said, and the bomb.
BOMBS = {
    # Opcodes by hand.
    'declared bytes': (CUT, b'\x8e' + struct.pack('<Q', 2**62)),
    'declared bytes, four': (CUT, b'B' + struct.pack('<I', 2**32 - 1)),
    'declared text': (CUT, b'\x8d' + struct.pack('<Q', 2**62)),
    'declared text, four': (CUT, b'X' + struct.pack('<I', 2**32 - 1)),
    'declared bytearray': (CUT, b'\x96' + struct.pack('<Q', 2**40)),
    'declared frame': ('holds a NoneType', b'\x95' + struct.pack('<Q', 2**63) + b'N.'),
    'declared integer': ('integer of 2147483647 bytes', b'\x8b' + struct.pack('<i', 2**31 - 1)),
    'negative integer': ('integer of 4294967295 bytes', b'\x8b' + struct.pack('<i', -1)),
    'long integer': ('integer of 1000000 bytes', b'\x8b' + struct.pack('<i', 10**6) + b'\x7f' * 10**6 + b'.'),
    'digits': (NUMBER, b'L' + b'9' * 60_000 + b'L\n.'),
    'more digits': (NUMBER, b'I' + b'9' * 10**6 + b'\n.'),
    'a line without end': (CUT, b'V' + b'x' * 10**6),
    'memo': ('holds a NoneType', b'Nr\xff\xff\xff\xff.'),
    'memo in text': ('holds a NoneType', b'Np4294967295\n.'),
    'memo of many with one hash': (
        'as no pickler does',
        b'N' + b''.join(b'p%d\n' % (i * ((1 << 61) - 1)) for i in range(1, 100_000)) + b'.',
    ),
    'memo that is not there': ('memo 4294967295', b'j\xff\xff\xff\xff.'),
    'out-of-band buffers': ('byte 0 is not an opcode', b'\x97\x98.'),
    'extension registry': ('byte 0 is not an opcode', b'\x82\x01.'),
    'persistent id': ('outside the file', b'U\x01xQ.'),
    'sets': (MANY, b'\x8f' * 3_000_000 + b'.'),
    'marks': (MANY, b'(' * 3_000_000),
    'tuples': (MANY, b')' + b'\x85' * 900_000 + b'.'),
    'deep tuples': ('holds a tuple', b')' + b'\x85' * 390_000 + b'.'),
    'lists': (MANY, b']' * 400_000 + b'a' * 399_999 + b'.'),
    'deep lists': ('holds a list', b']' * 190_000 + b'a' * 189_999 + b'.'),
    'dictionaries': (MANY, b'}N' * 300_000 + b'}' + b's' * 300_000 + b'.'),
    'duplicates': (MANY, b'N' + b'2' * 3_000_000 + b'.'),
    'nothing to take': (EMPTY, b's.'),
    'no mark': (EMPTY, b'Nt.'),
    'text that is none': ('not valid text', b'X\x02\0\0\0\xff\xff.'),
    'number that is none': (NUMBER, b'Fx\n.'),
    # Values with parts that are shared.
    'laughs': (UNFOLDS, GOOD | {'training_set_kwargs': {'path': laughs(20)}}),
    'deep laughs': (NESTED, GOOD | {'training_set_kwargs': {'path': laughs(40)}}),
    'laughs in tuples': (UNFOLDS, GOOD | {'training_set_kwargs': {'path': laughs(20, tuple)}}),
    'laughs as an argument': (UNFOLDS, {'G': module(_init_args=(laughs(20),))}),
    'laughs as an attribute': (UNFOLDS, {'G': module(group_size=laughs(20))}),
    'a long text many times': (UNFOLDS, GOOD | {'training_set_kwargs': {'path': ['x' * 10**5] * 100_000}}),
    'a list in itself': (NESTED, GOOD | {'training_set_kwargs': {'path': a_list_in_itself()}}),
    'a module in itself': ('modules nested without end', a_module_in_itself()),
    'modules in modules': ('modules nested without end', {'G': modules_in_modules(30)}),
    'many modules': ('modules nested without end', {'G': module(_modules={str(i): module() for i in range(3000)})}),
    'shared attributes': (UNFOLDS, {f'G{i}': module(x=SHARED) for i in range(15)} | {'G': module(x=SHARED)}),
    'many keys': ('holds a dict', {'G': module(), **{str(i): module() for i in range(1000)}}),
    'keys that collide': ('a key of type int', GOOD | {'training_set_kwargs': {'path': COLLIDING}}),
    'keys that are objects': ('a key of type tuple', GOOD | {'training_set_kwargs': {(1, 2): 3}}),
    'many sources': (
        'source code of more than 16 modules',
        {f'G{i}': module(module_src=f'# {i}') for i in range(19)} | GOOD,
    ),
    # Tensors.
    'a tensor over one float': (LARGER, generator(w_avg=tensor(storage(1, bytes(4)), 0, (10**5,), (0,)))),
    'overlapping rows': (LARGER, generator(w_avg=tensor(ONE, 0, (10**3, 10**3), (0, 1)))),
    'far away': (LARGER, generator(w_avg=tensor(ONE, 10**9, (1,), (1,)))),
    'a large step': (LARGER, generator(w_avg=tensor(ONE, 0, (2,), (10**12,)))),
    'a negative step': (SHAPE, generator(w_avg=tensor(ONE, 10, (2,), (-1,)))),
    'a negative size': (SHAPE, generator(w_avg=tensor(ONE, 0, (-1,), (1,)))),
    'an enormous size': (SHAPE, generator(w_avg=tensor(ONE, 0, (2**62, 2**62), (1, 1)))),
    'a size that is no number': (SHAPE, generator(w_avg=tensor(ONE, 0, ('x',), (1,)))),
    'a size that is no tuple': (SHAPE, generator(w_avg=tensor(ONE, 0, 7, (1,)))),
    'a gradient of integers': ('requires a gradient', generator(w_avg=tensor(INTEGER, 0, (1,), (1,), True))),
    'hooks of a tensor': ('with hooks', generator(w_avg=tensor(ONE, 0, (1,), (1,), False, [{0: 'x'}]))),
    'metadata of a tensor': ('with hooks', generator(w_avg=tensor(ONE, 0, (1,), (1,), False, [{}, {'conj': True}]))),
    'no storage': ('without storage', generator(w_avg=tensor(b'x', 0, (1,), (1,)))),
    'declared floats': (NO_DATA, generator(w_avg=tensor(storage(2**60, b''), 0, (10**5,), (1,)))),
    'many declared floats': (LENGTH, generator(w_avg=tensor(storage(2**40, FLOATS), 0, (10**5,), (1,)))),
    'fewer floats than declared': (LENGTH, generator(w_avg=tensor(storage(1000, FLOATS[:-4]), 0, (1000,), (1,)))),
    'more floats than declared': (LENGTH, generator(w_avg=tensor(storage(1000, FLOATS + b'\0'), 0, (1000,), (1,)))),
    'two counts of floats': (LENGTH, generator(w_avg=tensor(storage(1000, FLOATS, written=10), 0, (10,), (1,)))),
    'a count that is text': (NO_DATA, generator(w_avg=tensor(storage('1000', FLOATS, written=1000), 0, (10,), (1,)))),
    'another key': (NO_DATA, generator(w_avg=tensor(storage(1000, FLOATS, key='1'), 0, (10,), (1,)))),
    'a strange type': (
        "'torch.nn.*Linear'",
        generator(w_avg=tensor(storage(1, FLOATS, dtype=torch.nn.Linear), 0, (), ())),
    ),
    'the same bytes many times': (
        'more tensor data than bytes',
        generator(**{f'x{i}': tensor(ONE, 0, (1000,), (1,)) for i in range(1000)}),
    ),
    'parts of the same bytes': (
        'more tensor data than bytes',
        generator(**{f'x{i}': tensor(ONE, i, (1,), (1,)) for i in range(1000)}),
    ),
    'not of torch': ('that the host does not write', generator(w_avg=Call(torch.storage._load_from_bytes, b'N.N.N.'))),
    # Arrays.
    'objects in an array': ('array of objects', GOOD | {'training_set_kwargs': {'x': np.array([os.getcwd()], object)}}),
    'an enormous array': ("'numpy.empty'", GOOD | {'training_set_kwargs': {'x': Call(np.empty, (10**12,))}}),
    'a record array': ('array of objects', GOOD | {'training_set_kwargs': {'x': np.zeros(3, [('a', 'O')])}}),
}


@pytest.mark.parametrize('name', BOMBS)
def test_bombs_are_a_sentence(name, tmp_path):
    sentence, bomb = BOMBS[name]
    path = tmp_path / 'a.pkl'
    path.write_bytes(bomb) if isinstance(bomb, bytes) else write(path, bomb)
    with limited():
        said = refused(path)
    assert re.search(sentence, said), said


def test_the_bombs_are_made_of_parts_that_work(tmp_path):
    """Otherwise each of them could be refused for another reason than the one it is there for."""
    weight, bias = tensor(ONE, 0, (1000, 1), (1, 1)), tensor(storage(1000, FLOATS), 0, (1000,), (1,))
    parameters = {
        name: Call(torch._utils._rebuild_parameter, value, False, OrderedDict())
        for name, value in [('weight', weight), ('bias', bias)]
    }
    fc0 = module('FullyConnectedLayer', _init_args=(1, 1000), _parameters=parameters)
    data = generator(w_avg=tensor(storage(1000, FLOATS), 0, (1000,), (1,)))
    data['G'].args[0]['state'] |= {'_modules': {'fc0': fc0}, 'note': laughs(2)}
    data['G'].args[0]['state']['_init_kwargs']['w_dim'] = 1000
    data['D'] = module(x=SHARED, _modules={})
    path = write(tmp_path / 'a.pkl', {**data, 'training_set_kwargs': {'path': laughs(3)}})
    loaded = pickles.load(path)
    assert loaded['G'].fc0.weight.shape == (1000, 1)
    assert loaded['D'].x == SHARED


# --- files that are not whole -------------------------------------------------------------------------------------


def test_truncated_files_are_a_sentence(data, tmp_path):
    whole = write(tmp_path / 'a.pkl', data).read_bytes()
    rnd = random.Random(0)
    for size in [0, 1, 2, 3, 11, len(whole) - 1, *(rnd.randrange(len(whole)) for _ in range(300))]:
        (tmp_path / 'b.pkl').write_bytes(whole[:size])
        refused(tmp_path / 'b.pkl')


def test_a_file_that_shrinks_while_it_is_read_is_a_sentence(data, tmp_path, monkeypatch):
    path = write(tmp_path / 'a.pkl', data)
    size = path.stat().st_size
    fstat = os.fstat
    monkeypatch.setattr(os, 'fstat', lambda descriptor: os.stat_result([*fstat(descriptor)[:6], 2 * size, 0, 0, 0]))
    path.write_bytes(path.read_bytes()[: size - 100])
    refused(path)


FUZZ = """
import random, sys, time, warnings
from pathlib import Path
from stylegan2_compress import host
host.activate()
from stylegan2_compress import pickles
from stylegan2_compress.errors import UserError
import resource
warnings.simplefilter('ignore')
whole, scratch, flips = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), int(sys.argv[3])
pickles.load(sys.argv[1])
pages = int(Path('/proc/self/statm').read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30,) * 2)
rnd, refused = random.Random(0), 0
for i in range(flips):
    data = bytearray(whole)
    data[rnd.randrange(len(data))] ^= rnd.randrange(1, 256)
    scratch.write_bytes(data)
    try:
        pickles.load(scratch)
    except UserError as error:
        refused += 1
        assert chr(10) not in error.format_message()
    if i % 10 == 0:
        try:
            pickles.inspect(scratch).text()
        except UserError:
            pass
print('refused', refused, 'of', flips)
"""


@pytest.mark.parametrize(('suffix', 'flips'), [('.pkl', 4_000), ('.safetensors', 500)])
def test_thousands_of_flipped_bytes(suffix, flips, data, tmp_path):
    """In a process of its own with little memory, so that a crash or a blow-up would be seen; the seed is fixed.

    Without the source text, which is most of a small file: flips in that are the next test's.
    """

    def edit(path: str, meta: dict) -> None:
        meta['module_src'] = '# none'

    path, networks = tmp_path / f'a{suffix}', {'G_ema': data['G_ema'].mapping, 'training_set_kwargs': {'path': 'x'}}
    pickles.save(path, edited(networks, G_ema=edit) if suffix == '.pkl' else networks)
    done = subprocess.run(
        [sys.executable, '-c', FUZZ, str(path), str(tmp_path / f'b{suffix}'), str(flips)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert flips / 10 < int(done.stdout.split()[1]) < flips


def test_flipped_bytes_of_a_whole_snapshot(data, tmp_path):
    whole = write(tmp_path / 'a.pkl', data).read_bytes()
    rnd = random.Random(1)
    for _ in range(30):
        text = bytearray(whole)
        for _ in range(rnd.choice([1, 1, 5])):
            text[rnd.randrange(len(text))] = rnd.randrange(256)
        (tmp_path / 'b.pkl').write_bytes(text)
        read(tmp_path / 'b.pkl')


NAMES = [
    b'ctorch_utils.persistence\n_reconstruct_persistent_obj\n',
    b'ctorch._utils\n_rebuild_tensor_v2\n',
    b'ctorch._utils\n_rebuild_parameter\n',
    b'ctorch.storage\n_load_from_bytes\n',
    b'ccollections\nOrderedDict\n',
    b'cdnnlib.util\nEasyDict\n',
    b'cnumpy._core.multiarray\nscalar\n',
    b'cnumpy._core.multiarray\n_reconstruct\n',
    b'cnumpy\nndarray\n',
    b'cnumpy\ndtype\n',
    b'cdnnlib.tflib.network\nNetwork\n',
    b'cbuiltins\nset\n',
]
VALUES = [b'U\x05class', b'U\x05state', b'U\x02f8', b'U\x00', b'K\x01', b'K\x06', b'C\x04abcd', b'G' + bytes(8)]
OPCODES = [bytes([i]) for i in b'(.012NRabdelost}])\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94']
OPCODES += [b'h\x00', b'h\x01', b'q\x00', b'J\xff\xff\xff\xff']
SOUP = st.lists(st.sampled_from(NAMES + VALUES + OPCODES), max_size=40).map(b''.join)


@settings(max_examples=500, deadline=None)
@given(SOUP | st.binary(max_size=200) | st.binary(max_size=50).map(b'\x80\x04'.__add__))
def test_opcodes_in_any_order_are_a_sentence(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / 'soup.pkl'
    path.write_bytes(text + b'.')
    refused(path)


# --- TensorFlow files and safetensors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    'static_kwargs',
    [
        {'resolution': 2**30},
        {'resolution': 4096},
        {'fmap_base': 2**18, 'fmap_max': 2**18},
        {'fmap_max': BIG},
        {'mapping_layers': 10**5},
        {'resample_kernel': [1] * 100_000},
        {'nonlinearity': Call(os.getcwd)},
        {'resolution': 'x'},
    ],
    ids=range(8),
)
def test_hostile_arguments_of_tensorflow_networks_are_a_sentence(static_kwargs, data, tmp_path):
    static_kwargs = {'fmap_base': 16, 'fmap_max': 4, **static_kwargs}
    path = write_tensorflow(tmp_path / 'a.pkl', data['G'], data['D'], **static_kwargs)
    with limited():
        refused(path)


def good_safetensors(data: dict, path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Description and tensors of a good file, as earlier versions wrote it: a checksum would find any change."""
    pickles.save(path, {'G': data['G']})
    with safetensors.safe_open(path, 'pt') as file:
        description = json.loads(file.metadata()['stylegan2_compress'])
    del description['sha256']
    return description, safetensors.torch.load_file(path)


@pytest.mark.parametrize(
    'spoil',
    [
        lambda d, t: d.clear(),
        lambda d, t: d.update(version=2),
        lambda d, t: d.update(data=[]),
        lambda d, t: d.update(data={}),
        lambda d, t: d.update(data={'G': 7}),
        lambda d, t: d.update(data={'G': {'value': 7}}),
        lambda d, t: d.update(data={'G': {'value': {'!': 'builtins.eval', 'items': '1'}}}),
        lambda d, t: d.update(data={'G': {'value': {'!': 'numpy', 'dtype': 'O', 'bytes': '00' * 8}}}),
        lambda d, t: d.update(data={'G': {'value': {'!': ['numpy']}}}),
        lambda d, t: d.update(data={'G': {'value': {'!': 'dict', 'items': [[[1], 2]]}}}),
        lambda d, t: d.update(shared={'G.mapping.x': 'G.mapping.y'}),
        lambda d, t: d.update(shared={'G.mapping.fc0.bias': 'G.mapping.fc0.weight'}),
        lambda d, t: d.update(shared={'G.mapping.fc0.bias': ['G.mapping.fc0.weight']}),
        lambda d, t: d.update(shared=7),
        lambda d, t: d['data']['G'].update({'class': 'torch.nn.Linear'}),
        lambda d, t: d['data']['G'].update({'class': ['Generator']}),
        lambda d, t: d['data']['G'].update(args=7),
        lambda d, t: d['data']['G'].update(args=[1, 2]),
        lambda d, t: d['data']['G'].update(kwargs=None),
        lambda d, t: d['data']['G']['kwargs'].update(img_resolution=2**30),
        lambda d, t: d['data']['G']['kwargs'].update(z_dim=BIG),
        lambda d, t: d['data']['G']['kwargs'].update(mapping_kwargs={'num_layers': 10**6}),
        lambda d, t: d['data']['G']['kwargs'].update(mapping_kwargs={'num_layers': {'!': 'tuple', 'items': 7}}),
        lambda d, t: d['data']['G'].update(requires_grad=None),
        lambda d, t: d['data']['G'].update(attributes={'nowhere': {}}),
        lambda d, t: d['data']['G'].update(attributes={'': {'forward': 1}}),
        lambda d, t: d['data']['G'].update(attributes={'': 7}),
        lambda d, t: d['data']['G'].update(attributes={'': {'_modules': {}}}),
        lambda d, t: d['data']['G'].update(attributes={'': {'_forward_hooks': {'x': 'print'}}}),
        lambda d, t: t.pop('G.mapping.fc0.bias'),
        lambda d, t: t.update({'G.more': torch.zeros(1)}),
        lambda d, t: t.update({'G.mapping.fc0.bias': torch.zeros(3)}),
        lambda d, t: t.clear(),
    ],
    ids=range(33),
)
def test_safetensors_that_make_no_sense_are_a_sentence(spoil, data, tmp_path):
    path = tmp_path / 'a.safetensors'
    description, tensors = good_safetensors(data, path)
    spoil(description, tensors)
    safetensors.torch.save_file(tensors, path, {'stylegan2_compress': json.dumps(description)})
    with limited():
        refused(path)


@pytest.mark.parametrize('text', [None, '', '7', '{}', '[' * 10**5], ids=range(5))
def test_safetensors_of_others_are_a_sentence(text, tmp_path):
    metadata = {'format': 'pt'} if text is None else {'stylegan2_compress': text}
    safetensors.torch.save_file({'x': torch.zeros(1)}, tmp_path / 'a.safetensors', metadata)
    refused(tmp_path / 'a.safetensors')


def test_safetensors_with_values_nested_without_end_are_a_sentence(tmp_path):
    value = '[' * 900 + ']' * 900
    text = f'{{"version": 1, "shared": {{}}, "data": {{"G": {{"value": {value}}}}}}}'
    safetensors.torch.save_file({'x': torch.zeros(1)}, tmp_path / 'a.safetensors', {'stylegan2_compress': text})
    refused(tmp_path / 'a.safetensors')


def test_truncated_safetensors_are_a_sentence(data, tmp_path):
    pickles.save(tmp_path / 'a.safetensors', {'G': data['G']})
    whole = (tmp_path / 'a.safetensors').read_bytes()
    for size in [0, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1]:
        (tmp_path / 'b.safetensors').write_bytes(whole[:size])
        refused(tmp_path / 'b.safetensors')
