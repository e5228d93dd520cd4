"""`export --format web` in a headless Chromium: the host's pixels, every control, no network."""

import contextlib
import functools
import http.server
import importlib.util
import json
import threading

import numpy as np
import pytest
import torch
from chromium import BINARY, chromium
from commands import refused, run

from stylegan2_compress import pickles
from stylegan2_compress.errors import UserError
from stylegan2_compress.export import onnxruntime_web
from stylegan2_compress.export.options import FORMATS
from stylegan2_compress.images import to_uint8

MISSING = [package for package in FORMATS['web'].packages if importlib.util.find_spec(package) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f'pip install {" ".join(MISSING)} to run')
needs_browser = pytest.mark.skipif(BINARY is None, reason='install Chromium (Debian: apt-get install chromium) to run')


@pytest.fixture(scope='module')
def runtime():
    """ONNX Runtime Web is in the cache."""
    try:
        return onnxruntime_web.tarball()
    except UserError as error:
        pytest.skip(error.message)


@pytest.fixture(scope='module')
def networks(make_pickle):
    """Files of a student and its teacher, grey digits of three classes."""
    kind = dict(img_channels=1, c_dim=3, img_resolution=8)
    return make_pickle('student.pkl', **kind), make_pickle('teacher.pkl', seed=1, **kind)


@pytest.fixture(scope='module')
def page(networks, runtime, tmp_path_factory):
    """One file with both."""
    out = tmp_path_factory.mktemp('web') / 'page.html'
    student, teacher = networks
    printed = run('export', student, '--format', 'web', '--single-file', '--teacher', teacher, '--out', out)
    assert 'teacher: ONNX Runtime' in printed
    assert printed.startswith(f'{out}: page.html (')
    assert 'run.py' not in printed
    assert [path.name for path in out.parent.iterdir()] == ['page.html']
    return out


@pytest.fixture(scope='module')
def browser():
    with chromium() as tab:
        yield tab


@pytest.fixture
def tab(browser, page):
    return opened(browser, page)


def opened(browser, page, width=1280):
    browser.open(page, width)
    browser.wait('document.body.dataset.ready || document.getElementById("status").className')
    assert browser.evaluate('document.getElementById("status").className') == '', browser.evaluate(
        'document.body.innerText'
    )
    return browser


def choose(tab, **values):
    """Set controls as a user does, and wait for the picture."""
    for name, value in values.items():
        tab.evaluate(f'document.getElementById("{name}").value = {json.dumps(str(value))}')
    tab.evaluate('document.getElementById("status").textContent = ""')
    tab.evaluate('document.getElementById("controls").dispatchEvent(new Event("input"))')
    tab.wait('document.getElementById("status").textContent')


def pixels(tab, index=1):
    """The picture [C, H, W] in one of the canvases; the student's is the second."""
    data = tab.evaluate(f'Array.from(generators[{index}].canvas.getContext("2d").getImageData(0, 0, 8, 8).data)')
    return np.array(data, dtype=int).reshape(8, 8, 4).transpose(2, 0, 1)[:3]


def expected(file, seed=0, second=1, share=0.0, layer=None, psi=1.0, label=0):
    """The host's picture for these choices."""
    G = pickles.load(file)['G_ema']
    ws = []
    for each in (seed, second):
        z = torch.from_numpy(np.random.RandomState(each).randn(1, G.z_dim))
        ws.append(G.mapping(z, torch.eye(G.c_dim)[[label]] if G.c_dim else None, truncation_psi=psi))
    mixed = ws[0].lerp(ws[1], share)
    if layer is not None:
        mixed[:, layer:] = ws[1][:, layer:]
    return np.broadcast_to(to_uint8(G.synthesis(mixed, noise_mode='const', force_fp32=True))[0], [3, 8, 8]).astype(int)


def same(actual, image):
    return np.abs(actual - image).max() <= 1


@needs_onnx
@needs_browser
class TestPage:
    def test_pixels_are_the_hosts(self, tab, networks):
        student, teacher = networks
        assert same(pixels(tab, 1), expected(student))
        assert same(pixels(tab, 0), expected(teacher))
        assert not same(expected(student), expected(teacher))
        assert tab.evaluate('document.body.innerText').count(' ms') == 2
        assert tab.evaluate('[document.title, document.querySelector("h1").textContent]') == ['student.pkl'] * 2
        compared = 'In 100 pixels of an image, which were compared, this browser differs from each network by '
        assert compared in tab.evaluate('document.body.innerText')

    def test_every_control_does_what_the_host_does(self, tab, networks):
        start = dict(seed=0, second=1, interpolation=0, mixing=4, psi=1) | {'class': 0}
        before = pixels(tab)
        for controls, choices in [
            (dict(seed=7), dict(seed=7)),
            (dict(seed=4294967295), dict(seed=4294967295)),
            (dict(second=3, interpolation=1), dict(second=3, share=1.0)),
            (dict(second=3, interpolation=0.25), dict(second=3, share=0.25)),
            (dict(mixing=2), dict(layer=2)),
            (dict(mixing=0, second=9), dict(layer=0, second=9)),
            (dict(psi=0.3), dict(psi=0.3)),
            ({'class': 2}, dict(label=2)),
        ]:
            choose(tab, **{**start, **controls})
            assert same(pixels(tab), expected(networks[0], **choices)), controls
            assert same(pixels(tab, 0), expected(networks[1], **choices)), controls
            assert not same(pixels(tab), before), controls

    def test_buttons(self, tab):
        choose(tab, seed=3, second=4)
        tab.evaluate('document.getElementById("swap").click()')
        tab.wait('document.getElementById("status").textContent.startsWith("Image of seed 4,")')
        tab.evaluate('document.getElementById("random").click()')
        tab.wait('!document.getElementById("status").textContent.startsWith("Image of seed 4,")')
        before = pixels(tab)
        tab.evaluate('document.getElementById("walk").click()')
        tab.wait(
            'document.getElementById("seed").value !== "4" && document.getElementById("interpolation").value > 0.3'
        )
        assert not same(pixels(tab), before)
        tab.evaluate('document.getElementById("walk").click()')
        tab.wait('document.getElementById("status").textContent.includes("% of the way")')
        tab.evaluate('HTMLAnchorElement.prototype.click = function () { window.saved = [this.download, this.href]; }')
        tab.evaluate('document.getElementById("save").click()')
        tab.wait('window.saved')
        name, url = tab.evaluate('window.saved')
        assert name.startswith('seed-')
        assert name.endswith('.png')
        assert url.startswith('blob:')
        assert tab.complaints() == []

    def test_a_seed_that_is_none_changes_nothing(self, tab):
        before = pixels(tab)
        for text in ('', '-1', '1.5', '4294967296'):
            tab.evaluate(f'document.getElementById("seed").value = "{text}"')
            tab.evaluate('document.getElementById("controls").dispatchEvent(new Event("input"))')
            assert not tab.evaluate('document.getElementById("controls").checkValidity()')
        assert same(pixels(tab), before)
        assert tab.complaints() == []

    @pytest.mark.parametrize(('width', 'dark'), [(360, False), (1280, True)])
    def test_nothing_is_asked_of_the_network_and_it_fits(self, browser, page, width, dark):
        browser.open(page, width, dark=dark)
        browser.wait('document.body.dataset.ready')
        assert browser.complaints() == []
        assert [url for url in browser.requests() if not url.startswith('blob:')] == [page.resolve().as_uri()]
        assert browser.evaluate('document.documentElement.scrollWidth') == width

    def test_by_keyboard_and_screen_reader(self, tab):
        names = tab.evaluate(
            '[...document.querySelectorAll("input, select, button")].filter((node) => node.offsetParent)'
            '.map((node) => node.labels?.[0]?.textContent ?? node.textContent)'
        )
        assert names == [
            'Seed', 'Random', 'Second seed', 'Swap', 'From seed to second seed', 'Second seed’s styles from layer',
            'Truncation ψ', 'Class', 'Walk', 'Save as PNG',
        ]  # fmt: skip
        assert tab.evaluate('document.querySelector("canvas[role=img]").ariaLabel') == 'Image of seed 0, class 0, ψ 1'
        assert tab.evaluate('document.getElementById("mixing").ariaValueText') == 'none'
        assert tab.evaluate('document.querySelector("[role=status]").textContent') == 'Image of seed 0, class 0, ψ 1'
        tab.evaluate('document.getElementById("psi").focus()')
        before = pixels(tab)
        tab.send('Input.dispatchKeyEvent', type='keyDown', key='Home', code='Home', windowsVirtualKeyCode=36)
        tab.wait('document.getElementById("status").textContent.endsWith("ψ 0")')
        assert not same(pixels(tab), before)

    def test_what_does_not_work_in_another_runtime_is_said(self, tab, networks):
        """Both networks are opened and compared again; there is no WebGPU here, and the way back is the select."""
        alert = 'document.querySelector("[role=alert]")'
        choose(tab, runtime='webgpu')
        tab.wait(alert)
        assert 'This page does not work here: ' in tab.evaluate(f'{alert}.textContent')
        assert 'In 100 pixels' not in tab.evaluate('document.body.innerText')
        for index in (0, 1):
            tab.evaluate(f'generators[{index}].about.example.values[0] += 1')
            choose(tab, runtime='wasm')
            assert 'this browser computes other images, by ' in tab.evaluate(f'{alert}.textContent')
            tab.evaluate(f'generators[{index}].about.example.values[0] -= 1')
        choose(tab, runtime='wasm', seed=5)
        tab.wait('document.getElementById("status").textContent.startsWith("Image of seed 5,")')
        assert not tab.evaluate(f'{alert} || document.getElementById("status").className')
        assert 'In 100 pixels' in tab.evaluate('document.body.innerText')
        assert same(pixels(tab), expected(networks[0], seed=5))
        assert same(pixels(tab, 0), expected(networks[1], seed=5))
        assert tab.complaints() == []

    def test_a_page_that_does_not_work_says_so(self, browser, page, tmp_path):
        text = page.read_text()
        start = text.index('data-file="synthesis.onnx">') + 27
        broken = tmp_path / 'broken.html'
        broken.write_text(text[:start] + 'AAAA' + text[text.index('</script>', start) :])
        browser.open(broken, 1280)
        browser.wait('document.querySelector("[role=alert]")')
        assert 'This page does not work here: ' in browser.evaluate('document.body.innerText')


@pytest.fixture
def page_to_serve(make_pickle, runtime, tmp_path):
    """Of a generator of colours, without classes and truncation; what was printed."""
    file = make_pickle('colour.pkl', img_resolution=4, mapping_kwargs=dict(num_layers=1, w_avg_beta=None))
    out = tmp_path / 'page'
    return file, out, run('export', file, '--format', 'web', '--out', out)


@needs_onnx
def test_a_directory_for_servers(page_to_serve):
    file, out, printed = page_to_serve
    assert 'onnxruntime-web.wasm' in printed
    about = json.loads((out / 'export.json').read_text())
    assert {'index.html', 'page.js', 'page.css', 'page.json', 'run.py', 'mapping.onnx'} < set(about['files'])
    assert about['made_by']['page'].startswith('onnxruntime-web ')
    for path in out.iterdir():
        assert str(file.parent).encode() not in path.read_bytes()
    for name in ('index.html', 'page.js', 'page.css'):
        assert 'http' not in (out / name).read_text().replace('http-equiv', '')


@needs_onnx
@needs_browser
def test_a_directory_on_a_server_shows_only_the_controls_that_have_an_effect(page_to_serve, browser):
    _file, out, _printed = page_to_serve
    with served(out) as address:
        tab = opened(browser, address)
        shown = tab.evaluate('[...document.querySelectorAll(".field")].filter((node) => node.offsetParent).length')
        assert shown == 4
        assert all(url.startswith(address.removesuffix('index.html')) for url in tab.requests())
        assert tab.complaints() == []


@needs_onnx
@needs_browser
def test_a_page_with_webgpu_makes_the_same_images_where_there_is_none(networks, runtime, browser, tmp_path):
    """It has another script, for both. Which of them is the user's choice where the browser has WebGPU."""
    out = tmp_path / 'page'
    run('export', networks[0], '--format', 'web', '--webgpu', '--out', out)
    for name, content in onnxruntime_web.runtime(webgpu=True).items():
        assert (out / name).read_bytes() == content != onnxruntime_web.runtime()[name]
    with served(out) as address:
        tab = opened(browser, address)
        offered = tab.evaluate('document.getElementById("runtime").offsetParent !== null')
        assert offered == tab.evaluate('navigator.gpu !== undefined')
        choose(tab, seed=5, **{'class': 2})
        assert same(pixels(tab, 0), expected(networks[0], seed=5, label=2))
        assert tab.complaints() == []


@contextlib.contextmanager
def served(directory):
    """The address of the page in a directory, on a server of this machine."""
    handler = functools.partial(QuietHandler, directory=str(directory))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/index.html'
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


# --- What goes wrong --------------------------------------------------------------------------------------------------


@needs_onnx
def test_a_teacher_of_other_latents_is_refused(networks, make_pickle, runtime, tmp_path):
    other = make_pickle('other.pkl', z_dim=8, img_channels=1, c_dim=3, img_resolution=8)
    command = ['export', networks[0], '--format', 'web', '--teacher', other, '--out', tmp_path / 'x']
    assert 'other.pkl has z_dim 8, but ' in refused(*command, unchanged=tmp_path)


@needs_onnx
def test_without_npm(networks, tmp_path, monkeypatch):
    monkeypatch.setenv('STYLEGAN2_COMPRESS_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('PATH', '')
    out = tmp_path / 'x'
    sentence = refused('export', networks[0], '--format', 'web', '--out', out)
    assert 'install npm, which it is downloaded with, or put the file onnxruntime-web-' in sentence
    assert not out.exists()


@needs_onnx
def test_another_package_of_that_name(networks, tmp_path, monkeypatch):
    monkeypatch.setenv('STYLEGAN2_COMPRESS_CACHE', str(tmp_path / 'cache'))
    tarball = tmp_path / 'cache' / 'npm' / onnxruntime_web.NAME
    tarball.parent.mkdir(parents=True)
    tarball.write_bytes(b'other')
    sentence = refused('export', networks[0], '--format', 'web', '--out', tmp_path / 'x', unchanged=tmp_path)
    assert f'{tarball} is not the published onnxruntime-web' in sentence
