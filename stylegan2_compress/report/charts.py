"""Curves: which are drawn in the same chart, and the charts as SVG.

The charts are complete without the page's script, which adds the values under the pointer.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from stylegan2_compress.report.markup import element
from stylegan2_compress.report.reading import Point, Run

MOST_POINTS = 400  # Per curve: screens show no more, and the file stays small.
COLORS = 8  # The number in the style sheet; more curves use them again.
WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 392, 10, 192  # Edges of the plot in the SVG.

REALS, FAKES = 'real images', 'generated images'
STUDENTS, TEACHERS = 'student’s discriminator', 'teacher’s discriminator'


@dataclass(frozen=True)
class Line:
    """One curve of one run."""

    run: str  # Empty in reports on one run.
    part: str  # Which of the chart's statistics; empty if it has only one.
    color: int  # Index of a colour in the style sheet.
    dashes: int  # Index of a line style there; 0 is solid.
    points: list[Point]

    @property
    def label(self) -> str:
        return ', '.join(filter(None, (self.run, self.part)))


@dataclass(frozen=True)
class Chart:
    """Curves over the same axes, with kimg on the horizontal one."""

    title: str
    caption: str
    lines: list[Line]


@dataclass(frozen=True)
class Section:
    """Charts under a heading; a `folded` section is closed at first."""

    title: str
    text: str
    charts: list[Chart]
    folded: bool = False


@dataclass(frozen=True)
class _Plan:
    """The statistics of a chart: their names in stats.jsonl and their labels in the chart."""

    title: str
    caption: str
    statistics: tuple[tuple[str, str], ...]


_LOSSES = (
    _Plan('Generator loss', 'In runs with a discriminator: low if it classifies generated images as real.',
          (('Loss/G/loss', ''),)),
    _Plan('Discriminator loss', 'Low if it tells real and generated images apart; with NICKEL, the sum of both.',
          (('Loss/D/loss', ''),)),
    _Plan('R1 penalty', 'Squared gradient of the discriminator’s score at real images, before its weight γ/2.',
          (('Loss/r1_penalty', STUDENTS), ('Loss/r1_penalty/teacher', TEACHERS))),
    _Plan('Path length penalty', 'How unevenly images change with the latents w, before its weight.',
          (('Loss/pl_penalty', ''),)),
)  # fmt: skip
_SCORES = (
    _Plan('Scores of the discriminator', 'Mean logit; positive means classified as real. With NICKEL this is the '
          'student’s discriminator, trained from scratch.', (('Loss/scores/real', REALS), ('Loss/scores/fake', FAKES))),
    _Plan('Scores of the teacher’s discriminator', 'NICKEL’s second discriminator, which starts as the teacher’s.',
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
    """All charts of these runs, in sections; those without curves are left out."""
    metrics = [_several(_with_start(run)) for run in runs]
    statistics = [_nonzero(run.statistics) for run in runs]
    names = [name for name in _names(statistics) if name not in _PLANNED]
    terms = [name for name in names if name.startswith('Loss/') and not name.endswith('/reg')]
    others = [name for name in names if name not in terms and not name.startswith(_UNINTERESTING)]
    names = labels if len(runs) > 1 else ['']
    built = [
        Section('Metrics', 'Of the snapshots, by the names of the metrics.',
                _charts(names, metrics, map(_as_named, _names(metrics)))),
        Section('Losses', 'Means over the images since the last point.', _charts(names, statistics, _LOSSES)),
        Section('Scores', 'Outputs of the discriminators for real and for generated images. If the two curves diverge '
                'and stay apart, the generator no longer learns from the discriminator.',
                _charts(names, statistics, _SCORES)),
        Section('Terms of the compression method', 'The terms that it adds to the losses.',
                _charts(names, statistics, map(_term, terms))),
        Section('Speed and memory', 'Time and memory that the run needs.', _charts(names, statistics, _PROGRESS),
                folded=True),
        Section('Other statistics', 'By their names in the code; Timing/… are milliseconds.',
                _charts(names, statistics, map(_as_named, others)), folded=True),
    ]  # fmt: skip
    return [section for section in built if section.charts]


def _with_start(run: Run) -> Curves:
    """The metrics of a run's snapshots, and where its start was measured, that first."""
    begun = {name: [Point(0, value)] for name, value in run.start.items()}
    return {name: begun.get(name, []) + points for name, points in run.metrics.items()}


def _several(curves: Curves) -> Curves:
    """The curves of more than one point: a single number is in the table already."""
    return {name: points for name, points in curves.items() if len(points) > 1}


def _nonzero(curves: Curves) -> Curves:
    """The curves that are not zero everywhere: runs often report zeros for what they do not use."""
    return {name: points for name, points in curves.items() if any(point.value for point in points)}


def _names(curves: Sequence[Curves]) -> list[str]:
    return sorted(set().union(*curves))


def _term(name: str) -> _Plan:
    """The chart of a statistic that a term of a loss reports."""
    _loss, _slash, method = name.partition('/')
    method, _slash, what = method.partition('/')
    if what.startswith('spread/'):
        caption = 'Of the student’s features within a batch, in units of the reference’s: near 0, images are alike.'
        return _Plan(f'Spread: {what.removeprefix("spread/")}', caption, ((name, ''),))
    if what.startswith('weight/'):
        caption = 'λ of the distance in this embedding, which follows the gradients (balance).'
        return _Plan(f'{method} weight: {what.removeprefix("weight/")}', caption, ((name, ''),))
    if method == 'DiME':
        caption = 'Of the student’s features from the reference’s in this embedding.'
        return _Plan(f'DiME distance: {what}', caption, ((name, ''),))
    if method == 'moments':
        return _Plan(
            f'Moment matching: {what}', 'Between generated and reference images, in all layers.', ((name, ''),)
        )
    if (method, what) == ('NICKEL', 'features'):
        caption = 'Between high frequencies of feature maps of the teacher’s generator and the student’s discriminator.'
        return _Plan('NICKEL feature distance', caption, ((name, ''),))
    return _as_named(name)


def _as_named(name: str) -> _Plan:
    return _Plan(name, '', ((name, ''),))


def _charts(names: Sequence[str], curves: Sequence[Curves], plans: Iterable[_Plan]) -> list[Chart]:
    """The planned charts that have curves.

    Args:
        names: labels of the runs; '' for a single run.
        curves: curves of each run.
        plans: the charts.
    """
    charts = [Chart(plan.title, plan.caption, _lines(names, curves, plan)) for plan in plans]
    return [chart for chart in charts if chart.lines]


def _lines(names: Sequence[str], curves: Sequence[Curves], plan: _Plan) -> list[Line]:
    """The curves of a chart.

    Colours distinguish the statistics of one run. With several runs, colours distinguish runs and dashes statistics.
    """
    parts = [(name, part) for name, part in plan.statistics if any(name in own for own in curves)]
    lines = []
    for run_index, (run, own) in enumerate(zip(names, curves, strict=True)):
        for part_index, (name, part) in enumerate(parts):
            if name in own:
                color, dashes = (run_index, part_index) if len(names) > 1 else (part_index, 0)
                lines.append(Line(run, part if len(parts) > 1 else '', color % COLORS, dashes, thin(own[name])))
    return lines


def thin(points: list[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most that many points: means of neighbours, weighted by their counts."""
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
    """The mapping from a range of values to a range of coordinates in the SVG."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """The coordinate of a value."""
        low, high, value = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value / (high - low) - low / (high - low))

    def ticks(self) -> list[tuple[float, str]]:
        """Values to mark, and their labels."""
        if self.logarithmic:
            return [(value, number(value)) for value in _logarithmic_ticks(self.low, self.high)]
        step = _round_step(self.low, self.high)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        digits += round(step * 10**digits, 6) % 1 != 0  # 2.5 and its like have one more.
        form = f',.{digits}f' if digits < 5 and self.high < 1e7 else '.4g'
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(i * step, format(i * step, form).replace('-', '−')) for i in range(first, last + 1)]


def axes(chart: Chart) -> tuple[Axis, Axis]:
    """The horizontal and the vertical axis.

    The vertical one is logarithmic if all values are positive and span more than a factor of 30.
    """
    points = [point for line in chart.lines for point in line.points]
    across = Axis(min(0, *(p.kimg for p in points)), max(p.kimg for p in points) or 1, LEFT, RIGHT)
    low, high = min(point.value for point in points), max(point.value for point in points)
    if low > 0 and high / low > 30:
        return across, Axis(low / 1.1, high * 1.1, BOTTOM, TOP, logarithmic=True)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1
    bottom = 0 if 0 <= low < (high - low) * 0.5 else low - margin
    return across, Axis(bottom, high + margin, BOTTOM, TOP)


def _round_step(low: float, high: float, most: int = 7) -> float:
    """The smallest 1, 2, 2.5 or 5 times a power of ten whose multiples divide the range into at most that many parts.

    No two of these are further apart than a factor of 2, so that at least three multiples are in the range.
    """
    magnitude = 10.0 ** math.floor(math.log10((high - low) / most))
    return next(m * magnitude for m in (1, 2, 2.5, 5, 10) if (high - low) / (m * magnitude) <= most)


def _logarithmic_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in the range; where they are few, 2 and 5 times these as well. Of many, every second or third."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    powers = [10.0**d for d in decades if low <= 10.0**d <= high]
    if len(powers) < 4:
        return [m * 10.0**d for d in decades for m in (1, 2, 5) if low <= m * 10.0**d <= high]
    return powers[:: math.ceil(len(powers) / 6)]


def number(value: float) -> str:
    """A number with about four significant digits: 1,143, 16.4, 0.0289, 2.5e-06."""
    if abs(value) >= 999.95:
        return f'{value:,.0f}' if abs(value) < 1e12 else f'{value:.3g}'
    return f'{value:.4g}'.replace('-', '−')


# --- SVG --------------------------------------------------------------------------------------------------------------


def svg(chart: Chart) -> Element:
    """The chart as an SVG element."""
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
    """A text description of the chart."""
    return ' '.join(
        f'{line.label or chart.title}: from {number(line.points[0].value)} at {number(line.points[0].kimg)} kimg '
        f'to {number(line.points[-1].value)} at {number(line.points[-1].kimg)} kimg.'
        for line in chart.lines
    )


def data(chart: Chart) -> dict:
    """What the page's script needs to show values: the axes, and the points of each curve in full precision."""
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
