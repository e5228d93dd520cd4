"""The tables of students in Markdown files, of what `quality.py` measured; `docs/tables.py` puts them in."""

import json
import re
from pathlib import Path

from quality_methods import IN_WORDS
from quality_report import FD, SEEN, difference, grouped, interval, pairs, spread

from stylegan2_compress.evaluation.tables import render

RESULTS = Path(__file__).parent / 'cifar10' / 'results.json'
SEEN_OF_CIFAR10 = SEEN | {'1%': '500 images'}
Measured = dict[tuple[str, str], list[dict]]  # Rows of one student per seed, by what they see and method.


def table(kind: str, of: str, rows: list[dict] | None = None) -> str:
    """Markdown.

    Args:
        kind: `students`, which has each seed, and the differences to some of the methods in pairs of one seed; or
            `overview`, which has distances alone, with CAS in brackets, in bold where the interval of the difference
            to one method is below 0.
        of: ratio, thousands of images, what students see, methods, and those to compare with:
            `0.95; 48; full 1% none; nickel both images; beside images`.
        rows: what was measured; by default, what is in `RESULTS`.
    """
    ratio, kimg, settings, methods, beside = (part.split() for part in of.split(';'))
    groups = grouped(json.loads(RESULTS.read_text()) if rows is None else rows, (int(kimg[0]),))
    measured = {
        (setting, name): sorted(own, key=lambda row: row['seed'])
        for (of_ratio, setting, _kimg, name), own in groups.items()
        if of_ratio == float(ratio[0]) and 'seed' in own[0]
    }
    lines = {'students': students, 'overview': overview}[kind](measured, settings, methods, beside[1:])
    header, rule, *body = render(lines, 'markdown').splitlines()
    return '\n'.join([header, rule, *(re.sub(r'(\d)%', r'\1 %', line.replace('-', '−')) for line in body)])


def students(measured: Measured, settings: list[str], methods: list[str], beside: list[str]) -> list[dict]:
    """A line for each setting and method."""
    lines = []
    for setting in settings:
        seen = SEEN_OF_CIFAR10[setting]
        for method in methods:
            own = measured.get((setting, method))
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
                    paired = pairs(own, measured.get((setting, other), []))
                    line[f'beside {IN_WORDS[other]}'] = difference(paired, FD, relative=True)
            lines.append(line | {'CAS': spread(own, 'CAS', '{:.1%}')})
            seen = ''
    return lines


def overview(measured: Measured, settings: list[str], methods: list[str], beside: list[str]) -> list[dict]:
    """A line for each method, with a column for each setting."""
    (other,) = beside

    def cell(setting: str, method: str) -> str:
        own = measured.get((setting, method))
        if not own:
            return '–'
        paired = pairs(own, measured.get((setting, other), []))
        is_nearer = paired and sum(interval(paired, FD, relative=True)) < 0
        distance, cas = spread(own, FD, '{:.2f}'), spread(own, 'CAS', '{:.1%}').partition(' ')[0]
        return f'**{distance}** ({cas})' if is_nearer else f'{distance} ({cas})'

    return [
        {'loss': IN_WORDS[m], **{SEEN_OF_CIFAR10[setting]: cell(setting, m) for setting in settings}} for m in methods
    ]
