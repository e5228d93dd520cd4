"""The page: one self-contained HTML file about runs, for phones and desktops, light and dark."""

import base64
import dataclasses
import hashlib
import io
import json
import os
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element

from stylegan2_compress.evaluation.names import more_is_better
from stylegan2_compress.report import charts
from stylegan2_compress.report.charts import Chart, Line, Section
from stylegan2_compress.report.markup import document, element
from stylegan2_compress.report.reading import GENERATOR, Run, duration
from stylegan2_compress.version import __version__

if TYPE_CHECKING:
    import PIL.Image

    from stylegan2_compress.report.generators import GeneratorSummary, Pictures

PIXELATED = 64  # Images up to this side are scaled up without interpolation, and stored without loss.
DASH = '–'


def build(runs: Sequence[Run], pictures: Sequence['Pictures | None'], directory: Path = Path()) -> bytes:
    """The HTML file about these runs.

    Args:
        runs: the runs.
        pictures: generators and images of each; None if its networks were not opened.
        directory: where the file will lie, which links to exports start from.
    """
    labels = short_names([run.name for run in runs])
    drawn = charts.sections(runs, labels)
    title = runs[0].name if len(runs) == 1 else f'{len(runs)} runs: {", ".join(labels)}'
    parts = {
        'runs': ('Run' if len(runs) == 1 else 'Runs', _run_cards(runs, labels, pictures, directory)),
        'costs': ('Size and quality', _costs(runs, labels, pictures)),
        'images': ('Images', _images(runs, labels, pictures)),
        'curves': ('Curves', _curves(drawn)),
        'options': ('Options', _options(runs, labels)),
    }
    parts = {name: part for name, part in parts.items() if part[1] is not None}
    body = element(
        'body',
        element(
            'header',
            element('p', GENERATOR, class_='kicker'),
            element('h1', title),
            element('p', _introduction(runs), class_='lead'),
            element('nav', *(element('a', heading, href=f'#{name}') for name, (heading, _) in parts.items())),
        ),
        element('main', *(_section(name, heading, content) for name, (heading, content) in parts.items())),
        element(
            'footer',
            f'Created {time.strftime("%Y-%m-%d %H:%M")} by stylegan2-compress {__version__}. This file contains '
            'everything shown and loads nothing from elsewhere.',
        ),
        _chart_data(drawn),
        element('script', _asset('page.js')),
    )
    return document(element('html', _head(title), body, lang='en'))


def _head(title: str) -> Element:
    style, script = _asset('page.css'), _asset('page.js')
    # If something in a run's files got into the page as markup, this would keep it from running or loading anything.
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return element(
        'head',
        element('meta', charset='utf-8'),
        element('meta', http_equiv='Content-Security-Policy', content=policy),
        element('meta', name='viewport', content='width=device-width, initial-scale=1'),
        element('meta', name='generator', content=GENERATOR),
        element('meta', name='color-scheme', content='light dark'),
        element('title', title),
        element('link', rel='icon', href='data:,'),  # Otherwise browsers request one from the server.
        element('style', style),
    )


def _asset(name: str) -> str:
    return (resources.files('stylegan2_compress.report') / name).read_text(encoding='utf-8')


def _hash(text: str) -> str:
    return 'sha256-' + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _section(name: str, heading: str, content: Element) -> Element:
    return element('section', element('h2', heading), content, id=name)


def _introduction(runs: Sequence[Run]) -> str:
    if all(_class(run.option('G_kwargs.class_name')) == 'ScoreMaskedGenerator' for run in runs):
        what = 'A lottery ticket is searched for: training decides which weights of a StyleGAN2 generator are kept.'
    elif any(run.teacher for run in runs):
        what = (
            'A small StyleGAN2 generator, the student, is trained to generate the images of a large one, the teacher.'
        )
    else:
        what = 'A StyleGAN2 generator is trained.'
    return f'{what} The length of training is given in kimg, thousands of images.'


def short_names(names: Sequence[str]) -> list[str]:
    """Short names by which runs can be distinguished: the parts between dashes that not all names have."""
    parts = [name.split('-') for name in names]
    common = set(parts[0]).intersection(*parts[1:]) if len(names) > 1 else set()
    short = ['-'.join(part for part in own if part not in common) for own in parts]
    if all(short) and len(set(short)) == len(short):
        return short
    return [f'{number}: {name}' for number, name in enumerate(names, 1)]


# --- Runs -------------------------------------------------------------------------------------------------------------


def _run_cards(
    runs: Sequence[Run], labels: Sequence[str], pictures: Sequence['Pictures | None'], directory: Path
) -> Element:
    cards = []
    for index, (run, label, seen) in enumerate(zip(runs, labels, pictures, strict=True)):
        heading = [_sample(Line('', '', index % charts.COLORS, 0, [])), ' ', label] if len(runs) > 1 else ['State']
        notes = run.notes + (seen.notes if seen else [])
        cards.append(
            element(
                'article',
                element('h3', *heading, ' ', element('span', run.state.word, class_=f'state {run.state.word}')),
                element('p', run.name, class_='path') if len(runs) > 1 else None,
                element('p', run.state.sentence),
                _progress(run),
                element('pre', run.state.error) if run.state.error else None,
                element(
                    'dl', *(element('div', element('dt', name), element('dd', text)) for name, text in _facts(run))
                ),
                _exports(run, directory),
                element('ul', *(element('li', note) for note in notes), class_='notes') if notes else None,
                class_='card',
            )
        )
    return element('div', *cards, class_='cards')


def _exports(run: Run, directory: Path) -> Element | None:
    """Links to the exports in the run directory."""
    if not run.exports:
        return None
    links = []
    for path in run.exports:
        address = urllib.parse.quote(os.path.relpath(path, directory).replace(os.sep, '/'))
        name = path.name if path.parent == run.path else path.parent.name
        links += [', ' if links else 'Exports: ', element('a', name, href=address)]
    return element('p', *links, class_='links')


def _progress(run: Run) -> Element | None:
    if run.kimg is None or run.total_kimg is None:
        return None
    return element(
        'progress',
        value=f'{run.kimg:g}',
        max=f'{run.total_kimg:g}',
        aria_label=f'{run.kimg:g} of {run.total_kimg:g} kimg',
    )


def _facts(run: Run) -> list[tuple[str, str]]:
    """Names and values of the main options, as far as they are known."""
    batch, batch_gpu, num_gpus = (run.option(name) for name in ('batch_size', 'batch_gpu', 'num_gpus'))
    split = f', {batch_gpu} at a time' if batch_gpu not in (None, batch) else ''
    split += f', {num_gpus} processes' if num_gpus not in (None, 1) else ''
    facts = [
        ('Loss', _class(run.option('loss_kwargs.class_name'))),
        ('Embeddings', run.option('loss_kwargs.embeddings')),
        ('Teacher', run.teacher),
        ('Generator', _class(run.option('G_kwargs.class_name'))),
        ('Training images', run.option('training_set_kwargs.path')),
        ('Resolution', run.option('training_set_kwargs.resolution')),
        ('Batch', None if batch is None else f'{_text(batch)}{split}'),
        ('Learning rate', run.option('G_opt_kwargs.lr')),
        ('R1 γ', run.option('loss_kwargs.r1_gamma')),
        ('Device', run.option('device')),
        ('Time', None if run.seconds is None else duration(run.seconds)),
    ]
    return [(name, _text(value)) for name, value in facts if value is not None]


def _class(name: object) -> str | None:
    """The last part of a dotted name."""
    return name.rpartition('.')[2] if isinstance(name, str) else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- Size and quality -------------------------------------------------------------------------------------------------


def _costs(runs: Sequence[Run], labels: Sequence[str], pictures: Sequence['Pictures | None']) -> Element | None:
    """A table with a row for each teacher and for the newest snapshot of each run."""
    metrics = sorted({name for run in runs for name in [*run.metrics, *run.start]})
    measured = next((seen.measured_on for seen in pictures if seen), None)
    unknown: list[Element | str] = [DASH] * (2 + bool(measured))
    rows = []
    for name, teacher in _teachers(pictures).items():
        rows.append([name, *_counts(teacher, None, measured), *_results(_as_measured(teacher, runs), metrics)])
    for run, label, seen in zip(runs, labels, pictures, strict=True):
        teacher = seen.teacher if seen else None
        student = seen.students[-1] if seen and seen.students else None
        if run.start:
            name = f'{label}: before training' if len(runs) > 1 else 'Before training'
            counts = _counts(student, teacher, measured) if student else unknown
            rows.append([name, *counts, *_results(run.start, metrics)])
        if student or run.metrics:
            name = 'Student' if run.teacher else 'Generator'
            name = f'{name}, {student.kimg} kimg' if student else name
            name = f'{label}: {name}' if len(runs) > 1 else name
            counts = _counts(student, teacher, measured) if student else unknown
            rows.append([name, *counts, *(_metric(run, metric) for metric in metrics)])
    if not rows:
        return None
    heads = ['Generator', 'Parameters', 'MACs per image', *(['Time per image'] if measured else []), *metrics]
    text = 'MACs: multiply-accumulates for one image, counted as in the GAN compression papers.'
    if measured:
        text += f' Time: for one image at batch size 1, on this machine ({measured}).'
    if metrics:
        text += ' Metrics: of the newest evaluated snapshot, and of the best one.'
    return element('div', element('p', text), _table(heads, rows, kind='numbers'))


def _teachers(pictures: Sequence['Pictures | None']) -> dict[str, 'GeneratorSummary']:
    """The teachers of all runs, each once; several are named by their files."""
    files = {Path(seen.teacher.file): seen.teacher for seen in pictures if seen and seen.teacher}
    names = ['Teacher'] if len(files) == 1 else [f'Teacher {name}' for name in short_paths(list(files))]
    return dict(zip(names, files.values(), strict=True))


def short_paths(paths: Sequence[Path]) -> list[str]:
    """The ends of different paths, just long enough to tell them apart."""
    names = [path.name for path in paths]
    count = 1
    while len(set(names)) < len(names):
        count += 1
        names = [Path(*path.parts[-count:]).as_posix() for path in paths]
    return names


def _counts(
    generator: 'GeneratorSummary', teacher: 'GeneratorSummary | None', measured: str | None
) -> list[Element | str]:
    def cell(name: str, form, less: str, more: str) -> Element | str:
        value, reference = getattr(generator, name), getattr(teacher, name, None)
        if value is None:
            return DASH
        if name == 'parameters' and generator.kept is not None:
            return element('span', form(value), element('small', f'{form(generator.kept)} kept by the mask'))
        if not reference or value == reference:
            return form(value)
        factor = f'{reference / value:.1f}× {less}' if value < reference else f'{value / reference:.1f}× {more}'
        return element('span', form(value), element('small', factor))

    cells = [cell(name, '{:,}'.format, 'fewer', 'more') for name in ('parameters', 'macs')]
    if measured:
        cells.append(cell('seconds', lambda seconds: f'{seconds * 1000:.1f} ms', 'faster', 'slower'))
    return cells


def _as_measured(teacher: 'GeneratorSummary', runs: Sequence[Run]) -> dict[str, float]:
    """The results of a teacher that were measured as those of the runs: with the same data, say."""
    wanted = {name: {run.settings[name] for run in runs if name in run.settings} for name in teacher.results}
    return {
        name: by_setting[setting]
        for name, by_setting in teacher.results.items()
        for setting in by_setting
        if wanted[name] == {setting}
    }


def _results(results: Mapping[str, float], names: Sequence[str]) -> list[str]:
    return [charts.number(results[name]) if name in results else DASH for name in names]


def _metric(run: Run, name: str) -> Element | str:
    points = run.metrics.get(name)
    if not points:
        return DASH
    last = points[-1]
    best = (max if more_is_better(name) else min)(points, key=lambda point: point.value)
    where = f'at {last.kimg} kimg'
    if best.value != last.value and not name.endswith('_std'):  # The spread of a score is no score.
        where += f'; best {charts.number(best.value)} at {best.kimg}'
    return element('span', charts.number(last.value), element('small', where))


def _table(
    heads: Sequence[str],
    rows: Sequence[Sequence[Element | str]],
    marked: frozenset[int] = frozenset(),
    kind: str = 'text',
) -> Element:
    """A table whose first column contains the names of the rows. If it is wider than the page, it scrolls by itself."""
    head = element('tr', *(element('th', text, scope='col') for text in heads))
    body = [
        element(
            'tr',
            element('th', row[0], scope='row'),
            *(element('td', cell) for cell in row[1:]),
            class_='differs' if index in marked else None,
        )
        for index, row in enumerate(rows)
    ]
    table = element('table', element('thead', head), element('tbody', *body), class_=kind)
    return element('div', table, class_='scroll', tabindex=0, role='region', aria_label=f'Table: {", ".join(heads)}')


# --- Images -----------------------------------------------------------------------------------------------------------


def _images(runs: Sequence[Run], labels: Sequence[str], pictures: Sequence['Pictures | None']) -> Element | None:
    shown = {label: seen for label, seen in zip(labels, pictures, strict=True) if seen}
    teachers = _teachers(pictures)
    rows = [_row(name, teacher.images, 'teacher') for name, teacher in teachers.items()]
    through_time = {label: _through_time(seen) for label, seen in shown.items() if seen.students or seen.crop}
    sources = 'the teacher and the student' if teachers else 'the generator'
    text = f'Each column shows images of one latent z from {sources} (G_ema), '
    if len(runs) == 1:
        rows += [row for own in through_time.values() for row in own]
        text += 'from the start of training to its end.'
        return element('div', element('p', text), element('div', *rows, class_='strips')) if rows else None
    rows += [_row(label, *_newest(seen)) for label, seen in shown.items() if label in through_time]
    if not rows:
        return None
    blocks = [element('div', element('h3', label), *own, class_='strips') for label, own in through_time.items()]
    return element(
        'div',
        element('p', f'{text}at the end of training.'),
        element('div', *rows, class_='strips named'),
        element('details', element('summary', 'Through training'), element('div', *blocks, class_='blocks')),
    )


def _through_time(seen: 'Pictures') -> list[Element]:
    """A row for each snapshot of a run."""
    rows = [_row(f'{each.kimg} kimg', each.images, f'at {each.kimg} kimg') for each in seen.students]
    return rows + [_row(name, pictures, name) for name, pictures in filter(None, [seen.crop])]


def _newest(seen: 'Pictures') -> tuple[Sequence['PIL.Image.Image'], str]:
    """The images of a run's last snapshot, and what they are of."""
    if seen.students:
        return seen.students[-1].images, f'at {seen.students[-1].kimg} kimg'
    assert seen.crop is not None
    return seen.crop[1], seen.crop[0]


def _row(caption: str, pictures: Sequence['PIL.Image.Image'], whose: str) -> Element:
    cells = [_image(picture, f'{whose}, image {index}') for index, picture in enumerate(pictures, 1)]
    return element('figure', element('figcaption', caption), element('div', *cells, class_='row'))


def _image(picture: 'PIL.Image.Image', alt: str) -> Element:
    small = picture.height <= PIXELATED
    file = io.BytesIO()
    settings: dict[str, Any] = dict(format='PNG', optimize=True) if small else dict(format='JPEG', quality=88)
    picture.save(file, **settings)
    uri = f'data:image/{"png" if small else "jpeg"};base64,{base64.b64encode(file.getvalue()).decode()}'
    pixelated = 'pixelated' if small else None
    return element('img', src=uri, alt=alt, width=picture.width, height=picture.height, class_=pixelated)


# --- Curves -----------------------------------------------------------------------------------------------------------


def _curves(drawn: Sequence[Section]) -> Element | None:
    if not drawn:
        return None
    text = 'Point at a curve for its values, or use the arrow keys. The numbers below a chart are the newest values.'
    return element('div', element('p', text), *map(_chart_section, drawn))


def _chart_section(section: Section) -> Element:
    grid = element('div', *map(_chart, section.charts), class_='charts')
    if section.folded:
        return element('details', element('summary', section.title), element('p', section.text), grid)
    return element('div', element('h3', section.title), element('p', section.text), grid)


def _chart(chart: Chart) -> Element:
    caption = element('span', chart.caption) if chart.caption else None
    return element(
        'figure',
        element('figcaption', element('strong', chart.title), caption),
        element('div', charts.svg(chart), class_='plot'),
        element('ul', *_legend(chart.lines), class_='legend'),
        class_='chart',
    )


def _legend(lines: Sequence[Line]) -> list[Element]:
    """The meaning of each colour and line style, with the newest values: an entry for each run, or for each part."""
    parts = {line.part: line for line in lines if line.run and line.part}
    entries = [element('li', _sample(line, 'plain'), element('span', part)) for part, line in parts.items()]
    for run in dict.fromkeys(line.run for line in lines):
        own = [line for line in lines if line.run == run]
        for group in [own] if run else [[line] for line in own]:
            newest = ', '.join(charts.number(line.points[-1].value) for line in group)
            solid = dataclasses.replace(group[0], dashes=0)
            name = run or group[0].part or f'at {charts.number(group[0].points[-1].kimg)} kimg'
            entries.append(element('li', _sample(solid), element('span', name), element('b', newest)))
    return entries


def _sample(line: Line, color: str | None = None) -> Element:
    stroke = element(
        'line', class_=f'curve {color or f"color{line.color}"} dashes{line.dashes}', x1=1, x2=23, y1=5, y2=5
    )
    return element('svg', stroke, class_='sample', viewBox='0 0 24 10', aria_hidden='true')


def _chart_data(drawn: Sequence[Section]) -> Element:
    """The values of the curves for the page's script, in the order of the page."""
    content = {
        'frame': {
            'width': charts.WIDTH,
            'height': charts.HEIGHT,
            'left': charts.LEFT,
            'right': charts.RIGHT,
            'top': charts.TOP,
            'bottom': charts.BOTTOM,
        },
        'charts': [charts.data(chart) for section in drawn for chart in section.charts],
    }
    text = json.dumps(content, separators=(',', ':'), allow_nan=False).replace('<', '\\u003c')
    return element('script', text, type='application/json', id='chart-data')


# --- Options ----------------------------------------------------------------------------------------------------------


def _options(runs: Sequence[Run], labels: Sequence[str]) -> Element | None:
    flat = [flatten(run.options) for run in runs]
    names = list(dict.fromkeys(name for options in flat for name in options if name != 'run_dir'))
    if not names:
        return None
    rows = _option_rows(flat, names)
    given = list(dict.fromkeys(name for run in runs for name in run.chosen))
    chosen = _option_rows([run.chosen for run in runs], given)
    heads = ['Option', *(labels if len(runs) > 1 else ['Value'])]
    all_of_them = f'All {len(rows)} arguments of the training loop{"s" * (len(runs) > 1)}'
    text = 'What the options, the teacher and the defaults make together (training_options.json).'
    parts = []
    if chosen:
        parts += [
            element('p', 'Chosen; everything else follows from these:'),
            _table(heads, chosen, _differing(chosen)),
        ]
    if len(runs) > 1:
        differing = [rows[index] for index in sorted(_differing(rows))]
        text += ' Differences are marked.'
        if not differing:
            parts.append(element('p', 'The runs have the same options.'))
        elif not chosen:
            parts += [element('p', 'The runs differ in these options:'), _table(heads, differing)]
    parts.append(
        element('details', element('summary', all_of_them), element('p', text), _table(heads, rows, _differing(rows)))
    )
    return element('div', *parts)


def _option_rows(options: Sequence[Mapping[str, str]], names: Sequence[str]) -> list[list[str]]:
    """A row for each name, with its value in each run."""
    return [[name, *(each.get(name, DASH) for each in options)] for name in names]


def _differing(rows: Sequence[Sequence[str]]) -> frozenset[int]:
    """Which rows have different values."""
    return frozenset(index for index, row in enumerate(rows) if len(set(row[1:])) > 1)


def flatten(options: dict, prefix: str = '') -> dict[str, str]:
    """Nested options by dotted names, as text."""
    flat = {}
    for name, value in options.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f'{prefix}{name}.'))
        else:
            flat[f'{prefix}{name}'] = _text(value)
    return flat
