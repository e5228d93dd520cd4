"""The tables of students in Markdown files, of what `quality.py` measured; `docs/tables.py` puts them in."""

import itertools
import json
import re
from pathlib import Path

from quality_methods import IN_WORDS
from quality_report import FD, SEEN, difference, differences, grouped, interval, over_settings, pairs, spread

from stylegan2_compress.evaluation.tables import render

RESULTS = Path(__file__).parent / 'cifar10' / 'results.json'
SEEN_OF_CIFAR10 = SEEN | {'1%': '500 images'}
Measured = dict[tuple[str, int, str], list[dict]]  # A row per seed, by what students see, kimg and method.


def table(kind: str, of: str, rows: list[dict] | None = None) -> str:
    """Markdown.

    Args:
        kind: `students`, which has each seed, and the differences to some of the methods in pairs of one seed;
            `overview`, which has distances alone, with CAS in brackets; `progress`, which has those of one setting
            after several numbers of images (both bold where the interval of the difference to one method is below 0);
            or `together`, which has the differences of means over all settings, by each judge.
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
    kinds = {'students': students, 'overview': overview, 'progress': progress, 'together': together}
    lines = kinds[kind](measured, at, settings, methods, beside[1:])
    header, rule, *body = render(lines, 'markdown').splitlines()
    return '\n'.join([header, rule, *(re.sub(r'(\d)%', r'\1 %', line.replace('-', '−')) for line in body)])


def students(
    measured: Measured, at: tuple[int, ...], settings: list[str], methods: list[str], beside: list[str]
) -> list[dict]:
    """A line for each setting and method."""
    (kimg,) = at
    lines = []
    for setting in settings:
        seen = SEEN_OF_CIFAR10[setting]
        for method in methods:
            own = measured.get((setting, kimg, method))
            if not own:
                continue
            line = {
                'what students see': seen,
                'loss': IN_WORDS[method],
                'Fréchet distance': spread(own, FD, '{:.2f}'),
                'each': ', '.join(f'{row[FD]:.2f}' for row in own),
            }
            for other in beside:
                if other != method:
                    paired = pairs(own, measured.get((setting, kimg, other), []))
                    line[f'beside {IN_WORDS[other]}'] = difference(paired, FD, relative=True)
            lines.append(line | {'CAS': spread(own, 'CAS', '{:.1%}')})
            seen = ''
    return lines


def overview(
    measured: Measured, at: tuple[int, ...], settings: list[str], methods: list[str], beside: list[str]
) -> list[dict]:
    """A line for each method, with a column for each setting."""
    (kimg,), (other,) = at, beside

    def cell(setting: str, method: str) -> str:
        own = measured.get((setting, kimg, method))
        cas = f' ({spread(own, "CAS", "{:.1%}").partition(" ")[0]})' if own else ''
        return distance(measured, setting, kimg, method, other) + cas

    return [
        {'loss': IN_WORDS[m], **{SEEN_OF_CIFAR10[setting]: cell(setting, m) for setting in settings}} for m in methods
    ]


def progress(
    measured: Measured, at: tuple[int, ...], settings: list[str], methods: list[str], beside: list[str]
) -> list[dict]:
    """A line for each method, with a column for each number of images."""
    (setting,), (other,) = settings, beside
    return [
        {'loss': IN_WORDS[m], **{f'{kimg} thousand': distance(measured, setting, kimg, m, other) for kimg in at}}
        for m in methods
    ]


def together(
    measured: Measured, at: tuple[int, ...], settings: list[str], methods: list[str], beside: list[str]
) -> list[dict]:
    """A line for each method beside each of the others and number of images: differences of means over settings."""

    def of_each_seed(kimg: int, name: str) -> list[dict]:
        return over_settings([measured.get((setting, kimg, name), []) for setting in settings])

    lines = []
    for method, other in itertools.product(methods, beside):
        names = f'{IN_WORDS[method]}, beside {IN_WORDS[other]}'
        for kimg in at if method != other else ():
            paired = pairs(of_each_seed(kimg, method), of_each_seed(kimg, other))
            if paired:
                lines.append({'': names, 'thousand images': str(kimg), **differences(paired)})
                names = ''
    return lines


def distance(measured: Measured, setting: str, kimg: int, method: str, other: str) -> str:
    """Mean and standard deviation, in bold where it is nearer than the other method."""
    own = measured.get((setting, kimg, method))
    if not own:
        return '–'
    paired = pairs(own, measured.get((setting, kimg, other), []))
    is_nearer = paired and sum(interval(paired, FD, relative=True)) < 0
    found = spread(own, FD, '{:.2f}')
    return f'**{found}**' if is_nearer else found
