"""Fills the tables of students in Markdown files from cifar10/results.json.

    python benchmarks/quality_tables.py [--check]

A table is between a comment that says what it shows and `<!-- end -->`:

    <!-- students: 0.95; 48; full 1% none; nickel both images; beside images -->
    <!-- overview: 0.95; 48; full 1% none; nickel both images; beside images -->

Of this ratio, after so many thousands of images, by what they see and by method: each seed, and the differences to some
of the methods in pairs of one seed; or distances alone, with CAS in brackets, in bold where the interval of the
difference to one method is below 0. `--check` writes nothing, and exits with status 1 if a table is not current.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from quality_methods import FULL, IN_WORDS, NONE
from quality_report import FD, difference, interval, spread

from stylegan2_compress.evaluation.tables import render

DIRECTORY = Path(__file__).parent
PAGES = (DIRECTORY.parent / 'README.md', *sorted(DIRECTORY.glob('*.md')))
BLOCK = re.compile(r'(<!-- (?P<kind>students|overview): (?P<of>[^\n]+) -->\n).*?(<!-- end -->)', re.DOTALL)
SEEN = {FULL: 'all of the data', '1%': '500 images', NONE: 'no data'}

Seeds = dict[int, dict]  # A row of results.json by seed.
Find = Callable[[str, str], Seeds]  # Those of a setting and a method.


def students(find: Find, settings: list[str], methods: list[str], beside: list[str]) -> list[dict]:
    """A line for each setting and method."""
    lines = []
    for setting in settings:
        for method in methods:
            own = find(setting, method)
            if own:
                lines.append(
                    {
                        'what students see': SEEN[setting],
                        'loss': IN_WORDS[method],
                        'Fréchet distance': spread(list(own.values()), FD, '{:.2f}'),
                        'each': ', '.join(f'{row[FD]:.2f}' for row in own.values()),
                        **{
                            f'beside {IN_WORDS[other]}': difference(pairs(own, find(setting, other)), FD, relative=True)
                            for other in beside
                            if other != method
                        },
                        'CAS': spread(list(own.values()), 'CAS', '{:.1%}'),
                    }
                )
    for line, before in reversed(list(zip(lines[1:], lines, strict=False))):
        if line['what students see'] == before['what students see']:
            line['what students see'] = ''
    return lines


def overview(find: Find, settings: list[str], methods: list[str], beside: list[str]) -> list[dict]:
    """A line for each method, with a column for each setting."""
    (other,) = beside

    def cell(setting: str, method: str) -> str:
        own = find(setting, method)
        if not own:
            return '–'
        rows, paired = list(own.values()), pairs(own, find(setting, other))
        is_nearer = paired and sum(interval(paired, FD, relative=True)) < 0
        distance, cas = spread(rows, FD, '{:.2f}'), spread(rows, 'CAS', '{:.1%}').partition(' ')[0]
        return f'**{distance}** ({cas})' if is_nearer else f'{distance} ({cas})'

    return [{'loss': IN_WORDS[m], **{SEEN[setting]: cell(setting, m) for setting in settings}} for m in methods]


def pairs(own: Seeds, theirs: Seeds) -> list[tuple[dict, dict]]:
    """Rows of the same seed."""
    return [(row, theirs[seed]) for seed, row in own.items() if seed in theirs]


def table(kind: str, of: str, rows: list[dict]) -> str:
    """The table that a comment asks for."""
    ratio, kimg, settings, methods, beside = (part.split() for part in of.split(';'))

    def find(setting: str, method: str) -> Seeds:
        key = float(ratio[0]), setting, method, int(kimg[0])
        found = [r for r in rows if 'seed' in r and (r['ratio'], r['trained_on'], r['name'], r['kimg']) == key]
        return {row['seed']: row for row in sorted(found, key=lambda row: row['seed'])}

    lines = {'students': students, 'overview': overview}[kind](find, settings, methods, beside[1:])
    header, rule, *body = render(lines, 'markdown').splitlines()
    return '\n'.join([header, rule, *(re.sub(r'(\d)%', r'\1 %', line.replace('-', '−')) for line in body)])


def filled(text: str, rows: list[dict]) -> str:
    """The text of a page with current tables."""
    return BLOCK.sub(lambda match: f'{match[1]}{table(match["kind"], match["of"], rows)}\n{match[4]}', text)


def main(arguments: list[str]) -> int:
    if arguments not in ([], ['--check']):
        print(__doc__, file=sys.stderr)
        return 2
    rows = json.loads((DIRECTORY / 'cifar10' / 'results.json').read_text())
    stale = []
    for page in PAGES:
        text = page.read_text()
        if filled(text, rows) != text:
            stale.append(page.name)
            if not arguments:
                page.write_text(filled(text, rows))
    if stale:
        print(f'{"Not current" if arguments else "Rewritten"}: {", ".join(stale)}.')
    return 1 if stale and arguments else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
