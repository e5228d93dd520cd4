"""Tables as text, Markdown, CSV or JSON."""

import csv
import io
import json

FORMATS = ('text', 'markdown', 'csv', 'json')


def render(rows: list[dict[str, object]], form: str) -> str:
    """Rows as text. Columns are all keys, each behind the one it follows where it first appears; None is an empty cell.

    Text and Markdown shorten numbers, CSV and JSON do not.

    Args:
        rows: values by column.
        form: one of `FORMATS`.
    """
    columns = _columns(rows)
    if form == 'json':
        return json.dumps(rows, indent=2)
    if form == 'csv':
        out = io.StringIO()
        writer = csv.DictWriter(out, columns, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue().rstrip('\n')
    cells = [columns, *([_short(row.get(name)) for name in columns] for row in rows)]
    if form == 'markdown':
        lines = [f'| {" | ".join(cell.replace("|", "&#124;") for cell in line)} |' for line in cells]
        return '\n'.join([lines[0], f'| {" | ".join(["---"] * len(columns))} |', *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return '\n'.join('  '.join(map(str.ljust, line, widths)).rstrip() for line in cells)


def _columns(rows: list[dict[str, object]]) -> list[str]:
    columns: list[str] = []
    for row in rows:
        place = 0
        for name in row:
            if name not in columns:
                columns.insert(place, name)
            place = columns.index(name) + 1
    return columns


def _short(value: object) -> str:
    if value is None:
        return ''
    if isinstance(value, float):
        return number(value)
    return f'{value:,}' if isinstance(value, int) else str(value)


def number(value: float) -> str:
    """Four significant digits at most: 0.01234, 3.142, 12.35, 1235."""
    return f'{value:.0f}' if abs(value) >= 1000 else f'{value:.4g}'
