"""The report in a headless Chromium, at phone and desktop width."""

import json
import math

import numpy as np
import PIL.Image
import pytest
from chromium import BINARY, chromium

from stylegan2_compress import report

pytestmark = pytest.mark.skipif(BINARY is None, reason='install Chromium (Debian: apt-get install chromium) to run')

LONG = '00000-' + 'averylongnamewithoutanyspaceordash' * 4
WIDTHS = (390, 1280)


@pytest.fixture(scope='module')
def browser():
    with chromium() as page:
        yield page


@pytest.fixture(scope='module')
def reports(tmp_path_factory):
    """Pages about one run and about three, with every kind of content, long words and hostile names."""
    directory = tmp_path_factory.mktemp('runs')
    for index, name in enumerate([LONG, '00001-short', '00002-<b onclick="document.title=1">x</b>']):
        run_dir = directory / name.replace('/', '\u2215')
        run_dir.mkdir()
        options = {
            'total_kimg': 40,
            'loss_kwargs': {'class_name': 'a.' + 'L' * 90, 'teacher': 'https://x.example/' + 'y' * 300},
        }
        options['numbers'] = list(range(index, 100))
        (run_dir / 'training_options.json').write_text(json.dumps(options))
        names = ['G/loss', 'D/loss', 'scores/real', 'scores/fake', 'scores/real/teacher', 'scores/fake/teacher']
        names += ['DiME/' + 'clip_rn50@' + 'z' * 80, f'DiME/x{index}']
        with open(run_dir / 'stats.jsonl', 'w') as file:
            for kimg in range(1, 31):
                record = {f'Loss/{name}': math.sin(kimg / 9 + i + index) for i, name in enumerate(names)}
                record['Progress/kimg'] = kimg
                record = {name: {'num': 1, 'mean': value, 'std': 0} for name, value in record.items()}
                file.write(json.dumps(record) + '\n')
        line = {'results': {'fid50k_full': 1e6 + index}, 'snapshot_pkl': 'network-snapshot-000010.pkl'}
        (run_dir / 'metric-fid50k_full.jsonl').write_text(json.dumps(line) + '\n')
        error = (
            'Traceback (most recent call last):\n  x\nRuntimeError: '
            + 'w' * 400
            + '</pre><script>document.title=2</script>\n'
        )
        (run_dir / 'log.txt').write_text(error)
        pixels = np.random.RandomState(0).randint(256, size=[512, 512, 3]).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(run_dir / 'fakes000010.png')
    runs = sorted(directory.iterdir())
    return {
        'one': report.write(runs[:1], out=str(directory / 'one.html'), snapshots=1),
        'three': report.write(runs, out=str(directory / 'three.html'), snapshots=1),
    }


@pytest.mark.parametrize('width', WIDTHS)
@pytest.mark.parametrize('which', ['one', 'three'])
def test_fits_the_width_without_complaints_or_requests(browser, reports, which, width):
    browser.open(reports[which], width)
    title = browser.evaluate('document.title')
    browser.evaluate('document.querySelectorAll("details").forEach((details) => { details.open = true; })')
    assert browser.evaluate('document.documentElement.scrollWidth') == width
    # What reaches beyond the page's edge must lie in something that scrolls by itself.
    outside = browser.evaluate(
        '[...document.querySelectorAll("body *")].filter((node) => !node.closest(".scroll")'
        ' && node.getBoundingClientRect().right > innerWidth + 0.5).map((node) => node.outerHTML.slice(0, 200))'
    )
    assert outside == []
    assert browser.evaluate('[...document.images].every((image) => image.naturalWidth > 0)')
    assert len(browser.evaluate('[...document.images].map((image) => image.width)')) in (6, 36)
    assert browser.requests() == [reports[which].resolve().as_uri()]
    assert browser.complaints() == []
    assert browser.evaluate('document.title') == title not in ('1', '2')


@pytest.mark.parametrize('width', [390, 800, 1280])
def test_no_chart_stands_alone_in_its_row(browser, reports, width):
    """The charts of each row take the whole width, however many there are."""
    browser.open(reports['three'], width)
    edges = browser.evaluate(
        '[...document.querySelectorAll(".charts")].filter((grid) => grid.offsetParent).map((grid) => {'
        ' const rows = {};'
        ' for (const chart of grid.children) {'
        '   const {top, right} = chart.getBoundingClientRect();'
        '   rows[top] = Math.max(rows[top] ?? 0, right);'
        ' }'
        ' return Object.values(rows).map((right) => grid.getBoundingClientRect().right - right); })'
    )
    assert len(edges) >= 3
    assert max(abs(edge) for rows in edges for edge in rows) < 1


@pytest.mark.parametrize('width', WIDTHS)
def test_values_appear_under_the_pointer_and_by_keys(browser, reports, width):
    browser.open(reports['three'], width)
    browser.evaluate('document.querySelectorAll(".plot")[0].scrollIntoView({block: "center", behavior: "instant"})')
    box = browser.evaluate('document.querySelectorAll(".plot")[0].getBoundingClientRect().toJSON()')
    shown = 'document.querySelectorAll(".plot")[0].querySelector(".tip:not([hidden])")?.innerText ?? null'
    assert browser.evaluate(shown) is None
    # The plot of the SVG goes from 52 to 392 of 400 units, for 0 to 30 kimg.
    browser.move_mouse(box['x'] + box['width'] * (52 + 340 * 12.1 / 30) / 400, box['y'] + box['height'] / 2)
    values = [f'{float(f"{math.sin(12 / 9 + index):.6g}")}'.replace('-', '−') for index in range(3)]
    assert browser.evaluate(shown).split() == ['12', 'kimg', *values]
    tip = browser.evaluate('document.querySelector(".tip:not([hidden])").getBoundingClientRect().toJSON()')
    assert tip['height'] < 0.6 * box['height']
    assert tip['left'] >= box['left']
    assert tip['right'] <= box['right']
    browser.move_mouse(2, 2)
    assert browser.evaluate(shown) is None
    browser.evaluate('document.querySelectorAll(".plot svg[tabindex]")[0].focus()')
    browser.press('ArrowLeft')
    browser.press('ArrowLeft')
    assert browser.evaluate(shown).startswith('10 kimg')
    browser.press('Escape')
    assert browser.evaluate(shown) is None


@pytest.mark.parametrize('dark', [False, True])
def test_text_stands_out_from_its_ground(browser, reports, dark):
    """WCAG's contrast of 4.5, for text, and 3 for curves, in both colour schemes."""
    browser.open(reports['three'], 1280, dark=dark)
    style = 'getComputedStyle(document.documentElement).getPropertyValue("--{}").trim()'

    def luminance(name):
        text = browser.evaluate(style.format(name)).lstrip('#')
        channels = [int(text[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(name, ground):
        low, high = sorted([luminance(name), luminance(ground)])
        return (high + 0.05) / (low + 0.05)

    assert (luminance('ground') < 0.1) == dark
    texts = [('text', 'mark'), ('bad', 'bad-ground'), ('link', 'ground')]
    texts += [(name, ground) for name in ('text', 'quiet') for ground in ('ground', 'card')]
    texts += [(name, 'card') for name in ('running', 'finished', 'stopped', 'crashed')]
    assert min(contrast(*pair) for pair in texts) >= 4.5
    assert min(contrast(f'color{index}', 'card') for index in range(8)) >= 3
