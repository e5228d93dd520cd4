"""Curves: what is drawn together, and how it becomes SVG.

The pictures are whole without any script; the script of the page adds the values under the pointer.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from stylegan2_compress.report.markup import element
from stylegan2_compress.report.reading import Point, Run

MOST_POINTS = 400  # Per curve. A screen shows no more, and the file stays small.
COLORS = 8  # As many as the style sheet has; then they repeat.
WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 392, 10, 192  # The plot's edges in the picture.

REALS, FAKES = 'real images', 'generated images'
STUDENTS, TEACHERS = 'student’s discriminator', 'teacher’s discriminator'


@dataclass(frozen=True)
class Line:
    """One curve of one run."""

    run: str  # Empty where there is one run only.
    part: str  # Which of a chart's statistics; empty where there is one only.
    color: int  # Index into the style sheet's colours.
    dashes: int  # Index into its line styles; 0 is solid.
    points: list[Point]

    @property
    def label(self) -> str:
        return ', '.join(filter(None, (self.run, self.part)))


@dataclass(frozen=True)
class Chart:
    """Curves over the same axes, kimg across."""

    title: str
    caption: str
    lines: list[Line]


@dataclass(frozen=True)
class Section:
    """Charts under one heading; `folded` ones open on demand."""

    title: str
    text: str
    charts: list[Chart]
    folded: bool = False


@dataclass(frozen=True)
class _Plan:
    """Which statistics share a chart: (name in stats.jsonl, what it is in this chart)."""

    title: str
    caption: str
    statistics: tuple[tuple[str, str], ...]


_LOSSES = (
    _Plan('Generator loss', 'Where there is a discriminator: low when it takes the generator’s images for real.',
          (('Loss/G/loss', ''),)),
    _Plan('Discriminator loss', 'Low when real and generated images are easily told apart; NICKEL adds up its two.',
          (('Loss/D/loss', ''),)),
    _Plan('R1 penalty', 'Squared gradient of the discriminator’s score at real images, before its weight γ/2.',
          (('Loss/r1_penalty', STUDENTS), ('Loss/r1_penalty/teacher', TEACHERS))),
    _Plan('Path length penalty', 'How unevenly images change with the style vectors, before its weight.',
          (('Loss/pl_penalty', ''),)),
)  # fmt: skip
_SCORES = (
    _Plan('Scores of the discriminator', 'Mean logit; positive means taken for real. With NICKEL this is the student’s '
          'discriminator, trained from scratch.', (('Loss/scores/real', REALS), ('Loss/scores/fake', FAKES))),
    _Plan('Scores of the teacher’s discriminator', 'NICKEL’s second discriminator, which goes on from the teacher’s.',
          (('Loss/scores/real/teacher', REALS), ('Loss/scores/fake/teacher', FAKES))),
    _Plan('Signs of the scores', 'Mean sign of the logits: 1 for real and −1 for generated images would mean that the '
          'discriminator is always right.', (('Loss/signs/real', REALS), ('Loss/signs/fake', FAKES))),
    _Plan('Signs of the scores, teacher’s discriminator', 'Likewise.',
          (('Loss/signs/real/teacher', REALS), ('Loss/signs/fake/teacher', FAKES))),
)  # fmt: skip
_PROGRESS = (
    _Plan('Speed', 'Seconds per thousand images of training.', (('Timing/sec_per_kimg', ''),)),
    _Plan('Maintenance', 'Seconds between two ticks for snapshots and metrics.', (('Timing/maintenance_sec', ''),)),
    _Plan('Memory', 'GB.', (('Resources/cpu_mem_gb', 'process'), ('Resources/peak_gpu_mem_gb', 'GPU, peak'))),
    _Plan('Augmentation', 'Probability p.', (('Progress/augment', ''),)),
)
_PLANNED = {name for plan in (*_LOSSES, *_SCORES, *_PROGRESS) for name, _part in plan.statistics}
_UNINTERESTING = ('Progress/', 'Timing/total_', 'Timing/sec_per_tick', 'timestamp')


Curves = dict[str, list[Point]]


def sections(runs: Sequence[Run], labels: Sequence[str]) -> list[Section]:
    """Everything there is to draw about these runs, each known by its label; sections without curves are left out."""
    metrics = [run.metrics for run in runs]
    statistics = [_alive(run.statistics) for run in runs]
    names = [name for name in _names(statistics) if name not in _PLANNED]
    terms = [name for name in names if name.startswith('Loss/') and not name.endswith('/reg')]
    others = [name for name in names if name not in terms and not name.startswith(_UNINTERESTING)]
    names = labels if len(runs) > 1 else ['']
    built = [
        Section('Metrics', 'Of the snapshots, by the names they were measured under.',
                _charts(names, metrics, map(_as_named, _names(metrics)))),
        Section('Losses', 'Means over the images since the last point.', _charts(names, statistics, _LOSSES)),
        Section('Scores', 'What the discriminators make of real and of generated images. Two curves that run away '
                'from each other for good mean that the generator has lost.', _charts(names, statistics, _SCORES)),
        Section('Terms of the compression method', 'What it adds to the losses.',
                _charts(names, statistics, map(_term, terms))),
        Section('Speed and memory', 'What the run takes.', _charts(names, statistics, _PROGRESS), folded=True),
        Section('Everything else', 'The other statistics, by their names in the code; Timing/… are milliseconds.',
                _charts(names, statistics, map(_as_named, others)), folded=True),
    ]  # fmt: skip
    return [section for section in built if section.charts]


def _alive(curves: Curves) -> Curves:
    """Without those that are zero throughout: what a run does not use, it often reports as zero."""
    return {name: points for name, points in curves.items() if any(point.value for point in points)}


def _names(curves: Sequence[Curves]) -> list[str]:
    return sorted(set().union(*curves))


def _term(name: str) -> _Plan:
    """The chart of a statistic that a loss's term reports."""
    _loss, _slash, method = name.partition('/')
    method, _slash, what = method.partition('/')
    if method == 'DiME' and what != 'loss':
        caption = 'Between the moments of the student’s and of the teacher’s images in this embedding.'
        return _Plan(f'DiME distance: {what}', caption, ((name, ''),))
    if method == 'DiME':
        return _Plan('DiME loss', 'The distances in all embeddings, each times its weight λ.', ((name, ''),))
    if method == 'moments':
        return _Plan(
            f'Moment matching: {what}', 'Between generated and reference images, in all layers.', ((name, ''),)
        )
    if (method, what) == ('NICKEL', 'features'):
        caption = 'Between high frequencies in feature maps of the teacher’s generator and the student’s discriminator.'
        return _Plan('NICKEL feature distance', caption, ((name, ''),))
    return _as_named(name)


def _as_named(name: str) -> _Plan:
    return _Plan(name, '', ((name, ''),))


def _charts(names: Sequence[str], curves: Sequence[Curves], plans: Iterable[_Plan]) -> list[Chart]:
    """The planned charts for which there are curves, given by run; a single run has no name."""
    charts = [Chart(plan.title, plan.caption, _lines(names, curves, plan)) for plan in plans]
    return [chart for chart in charts if chart.lines]


def _lines(names: Sequence[str], curves: Sequence[Curves], plan: _Plan) -> list[Line]:
    """With one run, colours tell its curves apart; with several, colours are runs and dashes are the curves."""
    parts = [(name, part) for name, part in plan.statistics if any(name in own for own in curves)]
    lines = []
    for run_index, (run, own) in enumerate(zip(names, curves, strict=True)):
        for part_index, (name, part) in enumerate(parts):
            if name in own:
                color, dashes = (run_index, part_index) if len(names) > 1 else (part_index, 0)
                lines.append(Line(run, part if len(parts) > 1 else '', color % COLORS, dashes, thin(own[name])))
    return lines


def thin(points: list[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most that many points: neighbours are averaged, weighted by how many values each is the mean of."""
    if len(points) <= most:
        return points
    edges = [round(i * len(points) / most) for i in range(most + 1)]
    return [_mean(points[start:end]) for start, end in itertools.pairwise(edges)]


def _mean(points: list[Point]) -> Point:
    count = sum(point.count for point in points)
    return Point(points[-1].kimg, sum(point.value * (point.count / count) for point in points), count)


# --- Axes -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """A range of values on a range of the picture."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        low, high, value = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value / (high - low) - low / (high - low))

    def ticks(self) -> list[tuple[float, str]]:
        """Values to mark, and how they are written."""
        if self.logarithmic:
            return [(value, number(value)) for value in _logarithmic_ticks(self.low, self.high)]
        step = _round_step(self.low, self.high)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        form = f',.{digits}f' if digits < 5 and self.high < 1e7 else '.4g'
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(i * step, format(i * step, form).replace('-', '−')) for i in range(first, last + 1)]


def axes(chart: Chart) -> tuple[Axis, Axis]:
    """Across and up. A logarithmic scale where all is positive and the largest value dwarfs the smallest."""
    points = [point for line in chart.lines for point in line.points]
    across = Axis(min(0, *(p.kimg for p in points)), max(p.kimg for p in points) or 1, LEFT, RIGHT)
    low, high = min(point.value for point in points), max(point.value for point in points)
    if low > 0 and high / low > 30:
        return across, Axis(low / 1.1, high * 1.1, BOTTOM, TOP, logarithmic=True)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1
    bottom = 0 if 0 <= low < (high - low) * 0.5 else low - margin
    return across, Axis(bottom, high + margin, BOTTOM, TOP)


def _round_step(low: float, high: float, most: int = 6) -> float:
    """1, 2 or 5 times a power of ten, such that its multiples divide the range into at most that many parts."""
    magnitude = 10.0 ** math.floor(math.log10((high - low) / most))
    return next(m * magnitude for m in (1, 2, 5, 10) if (high - low) / (m * magnitude) <= most)


def _logarithmic_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    stride = math.ceil(len(decades) / 6)
    return [m * 10.0**d for d in decades[::stride] for m in steps if low <= m * 10.0**d <= high]


def number(value: float) -> str:
    """As short as it is still told apart: 1,143, 16.4, 0.0289, 2.5e-06."""
    if abs(value) >= 999.95:
        return f'{value:,.0f}' if abs(value) < 1e12 else f'{value:.3g}'
    return f'{value:.4g}'.replace('-', '−')


# --- Pictures ---------------------------------------------------------------------------------------------------------


def svg(chart: Chart) -> Element:
    across, up = axes(chart)
    parts = [element('title', chart.title), element('desc', description(chart))]
    for value, text in up.ticks():
        y = round(up.place(value), 1)
        parts.append(element('line', class_='grid', x1=LEFT, x2=RIGHT, y1=y, y2=y))
        parts.append(element('text', text, class_='tick', x=LEFT - 6, y=y + 4, text_anchor='end'))
    for value, text in across.ticks():
        x = round(across.place(value), 1)
        parts.append(element('line', class_='mark', x1=x, x2=x, y1=BOTTOM, y2=BOTTOM + 4))
        parts.append(element('text', text, class_='tick', x=x, y=BOTTOM + 17, text_anchor='middle'))
    parts.append(element('line', class_='axis', x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM))
    parts.append(element('text', 'kimg', class_='unit', x=RIGHT, y=HEIGHT - 4, text_anchor='end'))
    if up.logarithmic:
        parts.append(element('text', 'logarithmic scale', class_='unit', x=LEFT, y=HEIGHT - 4))
    for line in chart.lines:
        parts += _drawn(line, across, up)
    return element('svg', *parts, role='img', viewBox=f'0 0 {WIDTH} {HEIGHT}', tabindex=0)


def _drawn(line: Line, across: Axis, up: Axis) -> list[Element]:
    places = [(round(across.place(p.kimg), 1), round(up.place(p.value), 1)) for p in line.points]
    classes = f'curve color{line.color} dashes{line.dashes}'
    drawn = [element('polyline', class_=classes, points=' '.join(f'{x},{y}' for x, y in places))]
    if len(places) <= 12:
        drawn += [element('circle', class_=f'dot color{line.color}', cx=x, cy=y, r=2.6) for x, y in places]
    return drawn


def description(chart: Chart) -> str:
    """What the picture shows, in words."""
    return ' '.join(
        f'{line.label or chart.title}: from {number(line.points[0].value)} at {number(line.points[0].kimg)} kimg '
        f'to {number(line.points[-1].value)} at {number(line.points[-1].kimg)} kimg.'
        for line in chart.lines
    )


def data(chart: Chart) -> dict:
    """What the page's script needs to show values: the axes, and each curve's points in full precision."""
    across, up = axes(chart)
    return {
        'across': [across.low, across.high],
        'up': [up.low, up.high],
        'logarithmic': up.logarithmic,
        'lines': [
            {
                'label': line.label,
                'color': line.color,
                'dashes': line.dashes,
                'points': [[point.kimg, point.value] for point in line.points],
            }
            for line in chart.lines
        ],
    }
