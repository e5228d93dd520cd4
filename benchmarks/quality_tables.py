"""The tables of students in Markdown files, of what `quality.py` measured; `docs/tables.py` puts them in."""

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

from quality_methods import IN_WORDS
from quality_report import FD, SEEN, difference, differences, grouped, interval, over_settings, pairs, spread

from stylegan2_compress.evaluation.tables import render

RESULTS = Path(__file__).parent / 'cifar10' / 'results.json'
SEEN_OF_CIFAR10 = SEEN | {'1%': '500 images'}


@dataclass(frozen=True)
class Asked:
    """What a table is to show.

    Attributes:
        measured: a row per seed, by what students see, thousands of images and method.
        at: thousands of images.
        settings: what students see.
        methods: which.
        beside: which others they are compared with.
    """

    measured: dict[tuple[str, int, str], list[dict]]
    at: tuple[int, ...]
    settings: list[str]
    methods: list[str]
    beside: list[str]

    def rows(self, setting: str, kimg: int, method: str) -> list[dict]:
        """One for each seed; none if it was not measured."""
        return self.measured.get((setting, kimg, method), [])


def table(kind: str, of: str, rows: list[dict] | None = None) -> str:
    """Markdown.

    Args:
        kind: one of `KINDS`.
        of: ratio, thousands of images, what students see, methods, and those to compare with:
            `0.95; 48; full 1% none; nickel both images; beside images`.
        rows: what was measured; by default, what is in `RESULTS`.
    """
    ratio, kimg, settings, methods, beside = (part.split() for part in of.split(';'))
    at = tuple(map(int, kimg))
    groups = grouped(json.loads(RESULTS.read_text()) if rows is None else rows, at)
    measured = {
        (setting, of_kimg, name): sorted(own, key=lambda row: row['seed'])
        for (of_ratio, setting, of_kimg, name), own in groups.items()
        if of_ratio == float(ratio[0]) and 'seed' in own[0]
    }
    lines = KINDS[kind](Asked(measured, at, settings, methods, beside[1:]))
    header, rule, *body = render(lines, 'markdown').splitlines()
    return '\n'.join([header, rule, *(re.sub(r'(\d)%', r'\1 %', line.replace('-', '−')) for line in body)])


def students(asked: Asked) -> list[dict]:
    """A line for each setting and method: each seed, and the differences to others in pairs of one seed."""
    (kimg,) = asked.at
    lines = []
    for setting in asked.settings:
        seen = SEEN_OF_CIFAR10[setting]
        for method in asked.methods:
            own = asked.rows(setting, kimg, method)
            if not own:
                continue
            line = {
                'what students see': seen,
                'loss': IN_WORDS[method],
                'Fréchet distance': spread(own, FD, '{:.2f}'),
                'each': ', '.join(f'{row[FD]:.2f}' for row in own),
            }
            for other in asked.beside:
                if other != method:
                    paired = pairs(own, asked.rows(setting, kimg, other))
                    line[f'beside {IN_WORDS[other]}'] = difference(paired, FD, relative=True)
            lines.append(line | {'CAS': spread(own, 'CAS', '{:.1%}')})
            seen = ''
    return lines


def overview(asked: Asked) -> list[dict]:
    """A line for each method, with a column for each setting: distances, and CAS in brackets."""
    (kimg,) = asked.at

    def cell(setting: str, method: str) -> str:
        own = asked.rows(setting, kimg, method)
        cas = f' ({spread(own, "CAS", "{:.1%}").partition(" ")[0]})' if own else ''
        return distance(asked, setting, kimg, method) + cas

    return [
        {'loss': IN_WORDS[method], **{SEEN_OF_CIFAR10[setting]: cell(setting, method) for setting in asked.settings}}
        for method in asked.methods
    ]


def progress(asked: Asked) -> list[dict]:
    """A line for each method, with a column for each number of images: distances in one setting."""
    (setting,) = asked.settings
    return [
        {'loss': IN_WORDS[method], **{f'{kimg} thousand': distance(asked, setting, kimg, method) for kimg in asked.at}}
        for method in asked.methods
    ]


def together(asked: Asked) -> list[dict]:
    """A line for each method beside each other and number of images: differences of the means over all settings."""

    def of_each_seed(kimg: int, method: str) -> list[dict]:
        return over_settings([asked.rows(setting, kimg, method) for setting in asked.settings])

    lines = []
    for method, other in itertools.product(asked.methods, asked.beside):
        names = f'{IN_WORDS[method]}, beside {IN_WORDS[other]}'
        for kimg in asked.at if method != other else ():
            paired = pairs(of_each_seed(kimg, method), of_each_seed(kimg, other))
            if paired:
                lines.append({'': names, 'thousand images': str(kimg), **differences(paired)})
                names = ''
    return lines


KINDS = {each.__name__: each for each in (students, overview, progress, together)}


def distance(asked: Asked, setting: str, kimg: int, method: str) -> str:
    """Mean and standard deviation, in bold where the interval of the difference to the one other is below 0."""
    (other,) = asked.beside
    own = asked.rows(setting, kimg, method)
    if not own:
        return '–'
    paired = pairs(own, asked.rows(setting, kimg, other))
    is_nearer = paired and sum(interval(paired, FD, relative=True)) < 0
    found = spread(own, FD, '{:.2f}')
    return f'**{found}**' if is_nearer else found
