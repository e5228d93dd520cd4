"""Fills the tables in Markdown files from the code, and from what was measured: `python docs/tables.py [--check]`.

A table is between a comment that says what it shows and `<!-- end -->`:

    <!-- options: package.module:Class -->   the arguments of a dataclass, as `arguments.table` writes them
    <!-- command: distill -->                the options of a command
    <!-- repairs -->                         what is repaired in the host
    <!-- teachers -->                        published networks by name
    <!-- students: … -->                     students of the quality benchmark, see `benchmarks/quality_tables.py`
    <!-- overview: … -->                     the same in short
    <!-- progress: … -->                     the same over thousands of images
    <!-- together: … -->                     differences over several settings together

`--check` writes nothing, and exits with status 1 if a table is not current.
"""

import ast
import functools
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent
PATCHES, BENCHMARKS = ROOT / 'patches', ROOT / 'benchmarks'
PAGES = [ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md')), *sorted(BENCHMARKS.glob('*.md'))]


def options(of: str) -> str:
    """The arguments of the dataclass `package.module:Class`."""
    from stylegan2_compress import host
    from stylegan2_compress.arguments import table

    host.find_or_fetch()
    host.activate()  # The modules of losses import it.
    module, _colon, name = of.partition(':')
    return table(getattr(importlib.import_module(module), name))


def command(of: str) -> str:
    """The options of a command. Its help has defaults in brackets at the end, where click does not show them."""
    from stylegan2_compress.cli import main

    lines = ['| option | meaning | default |', '| --- | --- | --- |']
    for option in main.get_command(click.Context(main), of).params:
        if not isinstance(option, click.Option):
            continue
        meaning, _bracket, default = option.help.partition('  [default: ')
        name = max(option.opts, key=len) if option.is_flag else f'{max(option.opts, key=len)} {metavar(option)}'
        in_help = default.removesuffix(']').replace('*', r'\*')
        default = in_help or ('required' if option.required else shown_default(option))
        lines.append(f'| `{cell(name)}` | {cell(meaning.removesuffix("."))} | {cell(default)} |')
    return '\n'.join(lines)


def metavar(option: click.Option) -> str:
    names = {'integer': 'N', 'integer range': 'N', 'float': 'NUMBER', 'boolean': 'BOOL'}
    return option.metavar or names.get(option.type.name, option.type.name.upper())


def shown_default(option: click.Option) -> str:
    values = option.default if isinstance(option.default, (list, tuple)) else [option.default]
    return '' if option.is_flag or not option.show_default else ', '.join(f'`{value}`' for value in values)


def cell(text: str) -> str:
    return text.replace('|', '\\|')


def repairs(of: None) -> str:
    """What each repair does and in which versions, in the order in which they are applied."""
    lines = ['| repair | versions |', '| --- | --- |']
    for name in constants(PATCHES / '__init__.py')['REPAIRS']:
        about = constants(PATCHES / f'{name}.py')
        lines.append('| {WHAT} | {VERSIONS} |'.format(**about))
    return '\n'.join(lines)


def teachers(of: None) -> str:
    """Published networks by name, with what is known of each."""
    from stylegan2_compress.host.teachers import TEACHERS

    lines = ['| name | pixels | data | labels | written by | file |', '| --- | --- | --- | --- | --- | --- |']
    for name, teacher in TEACHERS.items():
        cells = [
            f'`{name}`',
            f'{teacher.resolution}',
            teacher.data,
            f'{teacher.labels or ""}',
            teacher.written_by,
            f'[{teacher.url.rpartition("/")[2]}]({teacher.url})',
        ]
        lines.append(f'| {" | ".join(cells)} |'.replace('|  |', '| |'))
    return '\n'.join(lines)


def measured() -> dict[str, Callable[[str], str]]:
    """The tables of what students of the quality benchmark were measured at, by kind."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))
    quality_tables = importlib.import_module('quality_tables')
    return {kind: functools.partial(quality_tables.table, kind) for kind in quality_tables.KINDS}


def constants(path: Path) -> dict:
    """The constants that a module assigns, read without importing it."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


def filled(text: str) -> str:
    """The text of a page with current tables."""
    tables = {each.__name__: each for each in (options, command, repairs, teachers)} | measured()
    block = rf'(<!-- (?P<kind>{"|".join(tables)})(?:: (?P<of>[^\n]+))? -->\n).*?(<!-- end -->)'

    def with_table(match: re.Match) -> str:
        return match[1] + tables[match['kind']](match['of']) + '\n' + match[4]

    return re.sub(block, with_table, text, flags=re.DOTALL)


def main(arguments: list[str]) -> int:
    if arguments not in ([], ['--check']):
        print(__doc__, file=sys.stderr)
        return 2
    stale = []
    for page in PAGES:
        text = page.read_text()
        current = filled(text)
        if current != text:
            stale.append(page.name)
            if not arguments:
                page.write_text(current)
    if stale:
        print(f'{"Not current" if arguments else "Rewritten"}: {", ".join(stale)}.')
    return 1 if stale and arguments else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
