"""The difference between any two methods of `quality.py`, in pairs of one seed, with its 95 % interval.

    python benchmarks/quality_differences.py both teacher-d --kimg 24 --trained-on 'full,1%,none'
    python benchmarks/quality_differences.py images-moments images --kimg 24 --trained-on none

Of several choices of training images, the mean of each seed over them is compared.
"""

import json
from pathlib import Path

import click
from quality_methods import IN_WORDS, METHODS
from quality_report import differences, over_settings, pairs


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

    def of_each_seed(name: str, after: int) -> list[dict]:
        own = [row for row in rows if (row['name'], row['kimg']) == (name, after)]
        return over_settings([[row for row in own if row['trained_on'] == one] for one in trained_on.split(',')])

    paired = pairs(of_each_seed(method, kimg), of_each_seed(other, kimg if other_kimg is None else other_kimg))
    if not paired:
        raise click.UsageError(f'{results} has no seed of both {method} and {other} there.')
    print(f'{IN_WORDS[method]}, beside {IN_WORDS[other]}: {len(paired)} pairs')
    for judge, found in differences(paired).items():
        print(f'{judge}: {found}')


if __name__ == '__main__':
    main()
