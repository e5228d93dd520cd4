"""The difference between any two methods of `quality.py`, in pairs of one seed, with its 95 % interval.

    python benchmarks/quality_differences.py both teacher-d --kimg 24 --trained-on 'full,1%,none'
    python benchmarks/quality_differences.py images-moments images --kimg 24 --trained-on none

Of several choices of training images, the mean of each seed over them is compared: it is one number per seed, since the
runs of a seed share their random numbers.
"""

import json
from pathlib import Path

import click
import numpy as np
from quality_methods import IN_WORDS, METHODS
from quality_report import FD, difference

KEYS = {FD: True, 'fd places': True, 'fd pixels': True, 'CAS': False, 'recognised': False}  # Relative, or in points.


@click.command()
@click.argument('method', type=click.Choice(list(METHODS)), metavar='METHOD')
@click.argument('other', type=click.Choice(list(METHODS)), metavar='OTHER')
@click.option('--results', default=str(Path(__file__).parent / 'cifar10' / 'results.json'), metavar='JSON')
@click.option('--ratio', default=0.95, show_default=True)
@click.option('--trained-on', default='full', show_default=True, metavar='A,B,…')
@click.option('--kimg', default=24, show_default=True)
@click.option('--other-kimg', type=int, help='Of the other method  [default: as many]')
def main(
    method: str, other: str, results: str, ratio: float, trained_on: str, kimg: int, other_kimg: int | None
) -> None:
    rows = [row for row in json.loads(Path(results).read_text()) if row.get('ratio') == ratio and 'seed' in row]
    settings = trained_on.split(',')
    ours = by_seed(rows, method, settings, kimg)
    theirs = by_seed(rows, other, settings, kimg if other_kimg is None else other_kimg)
    pairs = [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    if not pairs:
        raise click.UsageError(f'{results} has no seed of both {method} and {other} there.')
    print(f'{IN_WORDS[method]}, beside {IN_WORDS[other]}: {len(pairs)} pairs')
    for key, relative in KEYS.items():
        print(f'{key}: {difference(pairs, key, relative)}{"" if relative else " points"}')


def by_seed(rows: list[dict], method: str, settings: list[str], kimg: int) -> dict[int, dict[str, float]]:
    """What was measured of a method, by seed: of those that there are in all settings, the mean over them."""
    found: dict[int, list[dict]] = {}
    for row in rows:
        if (row['name'], row['kimg']) == (method, kimg) and row['trained_on'] in settings:
            found.setdefault(row['seed'], []).append(row)
    complete = {seed: own for seed, own in found.items() if len(own) == len(settings)}
    return {
        seed: {key: float(np.mean([row[key] for row in own])) for key in KEYS if all(key in row for row in own)}
        for seed, own in complete.items()
    }


if __name__ == '__main__':
    main()
