"""What `quality.py` writes of its rows: tables, curves and images."""

import itertools
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import PIL.ImageDraw
import scipy.stats
from matplotlib.ticker import LogLocator
from quality_methods import FULL, IN_WORDS, METHODS, NONE, OTHERS

matplotlib.use('agg')  # Where there is no screen, too.

FD = 'frechet_distance'
# What methods are compared in, and whether relatively or in points.
JUDGES = {FD: True, 'fd places': True, 'fd pixels': True, 'CAS': False, 'recognised': False}
COLOURS = {  # Grey for what others do, blue for the paper's, warm ones for moments.
    'teacher-d': 'silver',
    'images': 'dimgrey',
    'nickel': 'tab:cyan',
    'both': 'tab:blue',
    'both-rbf': 'navy',
    'both-by-label': 'slateblue',
    'images-moments': 'tab:orange',
    'images-moments-light': 'tab:red',
    'regression-moments': 'tab:pink',
    'regression-moments-data': 'tab:brown',
}
OTHER_COLOURS = ('tab:green', 'tab:olive', 'limegreen', 'teal', 'darkkhaki')  # Of the rest.
SEEN = {FULL: 'all of the data', NONE: 'no data'}

Groups = dict[tuple[float | None, str, int | None, str], list[dict]]  # Ratio, training images, kimg, method.


def grouped(rows: list[dict], at: tuple[int, ...] | None) -> Groups:
    """The rows of a table, of one student per seed: the last snapshots of each method, or those after `at` kimg."""
    groups = {}
    for row in rows:
        groups.setdefault((row.get('ratio'), setting_of(row), row.get('kimg'), row['name']), []).append(row)
    last = {}
    for ratio, trained_on, kimg, name in groups:
        last[ratio, trained_on, name] = max(kimg or 0, last.get((ratio, trained_on, name), 0))

    def is_shown(ratio, trained_on, kimg, name) -> bool:
        return kimg is None or (kimg in at if at else kimg == last[ratio, trained_on, name])

    def place(key) -> tuple:
        ratio, trained_on, kimg, name = key
        names = ['data', 'teacher', 'pruned', *METHODS]
        return ratio or 0, trained_on not in ('', FULL), trained_on, kimg or 0, names.index(name)

    def by_seed(rows: list[dict]) -> list[dict]:
        return sorted(rows, key=lambda row: row.get('seed', 0))

    return {key: by_seed(groups[key]) for key in sorted(groups, key=place) if is_shown(*key)}


def tables(shown: Groups) -> str:
    """Markdown: both tables, with what bold means."""
    bold = 'Bold: the least mean of its ratio, training images and length, whether or not a difference is shown.'
    return f'{bold}\n\n{table(shown)}\n\n{comparison(shown)}\n'


def table(shown: Groups) -> str:
    """Markdown: mean and standard deviation over seeds, the nearest of each setting in bold."""
    from stylegan2_compress.evaluation.tables import render

    others = sorted({key for rows in shown.values() for row in rows for key in row if key.startswith('fd ')})
    lines = []
    for (ratio, trained_on, kimg, name), rows in shown.items():
        best = 'seed' in rows[0] and mean(rows, FD) == min(
            mean(other, FD) for key, other in shown.items() if key[:3] == (ratio, trained_on, kimg)
        )
        fd = spread(rows, FD, '{:.2f}')
        lines.append(
            {
                'ratio': '' if ratio is None else f'{ratio:g}',
                'trained on': trained_on,
                'kimg': str(kimg or ''),
                '': IN_WORDS.get(name, name) + (f', {rows[0]["macs"]:,} MACs' if name in ('teacher', 'pruned') else ''),
                'seeds': str(len(rows)) if 'seed' in rows[0] else '',
                'Fréchet distance': f'**{fd}**' if best else fd,
                'each': ', '.join(f'{row[FD]:.2f}' for row in rows) if len(rows) > 1 else '',
                **{key: spread(rows, key, '{:.3g}') for key in others},
                'CAS': spread(rows, 'CAS', '{:.1%}'),
                'recognised': spread(rows, 'recognised', '{:.1%}'),
                'coverage': spread(rows, 'coverage', '{:.2f}'),
                's per thousand': seconds(rows),
            }
        )
    return render(lines, 'markdown')


def comparison(shown: Groups) -> str:
    """Markdown: each method beside one of `OTHERS` after as many images, seed by seed; empty without any.

    That is the nearest to the data, over these seeds, of those that have the most of the method's seeds.
    """
    from stylegan2_compress.evaluation.tables import render

    lines = []
    for (ratio, trained_on, kimg, name), rows in shown.items():
        others = [shown[key] for key in shown if key[:3] == (ratio, trained_on, kimg) and key[3] in OTHERS]
        if 'seed' not in rows[0] or name in OTHERS or not others:
            continue
        paired = [pairs(rows, one) for one in others]
        most = max(map(len, paired))
        if most == 0:
            continue
        nearest = min((p for p in paired if len(p) == most), key=lambda p: mean([other for _, other in p], FD))
        lines.append(
            {
                'ratio': f'{ratio:g}',
                'trained on': trained_on,
                'kimg': str(kimg),
                'beside the best other (95 %)': f'{IN_WORDS[name]}, beside {IN_WORDS[nearest[0][1]["name"]]}',
                'pairs': str(len(nearest)),
                **differences(nearest),
            }
        )
    return render(lines, 'markdown') if lines else ''


def pairs(rows: list[dict], others: list[dict]) -> list[tuple[dict, dict]]:
    """Rows of the same seed."""
    return [(row, other) for row in rows for other in others if row['seed'] == other['seed']]


def over_settings(settings: list[list[dict]]) -> list[dict]:
    """Of rows of one method for each setting: for every seed that is in all settings, one row of the means over them.

    It is one number per seed, since the runs of a seed share their random numbers.
    """
    by_seed: dict[int, list[dict]] = {}
    for row in itertools.chain(*settings):
        by_seed.setdefault(row['seed'], []).append(row)
    return [
        {'seed': seed} | {judge: mean(own, judge) for judge in JUDGES if all(judge in row for row in own)}
        for seed, own in sorted(by_seed.items())
        if len(own) == len(settings)
    ]


def differences(pairs: list[tuple[dict, dict]]) -> dict[str, str]:
    """By each judge, see `difference`."""
    return {
        ('Fréchet distance' if judge == FD else judge) + ('' if relative else ', points'): difference(
            pairs, judge, relative
        )
        for judge, relative in JUDGES.items()
    }


def difference(pairs: list[tuple[dict, dict]], key: str, relative: bool) -> str:
    """The mean difference in per cent of the others' mean or in points, and of several pairs its 95 % interval.

    Empty without pairs, or where it was not measured.
    """
    if not pairs or not all(key in row for pair in pairs for row in pair):
        return ''
    middle, half = interval(pairs, key, relative)
    form, unit = ('{:+.0f}', ' %') if relative else ('{:+.1f}', '')
    if len(pairs) == 1:
        return form.format(middle) + unit
    return f'{form}{unit} [{form}, {form}]'.format(middle, middle - half, middle + half)


def interval(pairs: list[tuple[dict, dict]], key: str, relative: bool) -> tuple[float, float]:
    """The mean difference, as `difference` has it, and half of the width of its 95 % interval; NaN of one pair."""
    ours, theirs = np.array([[row[key] for row in pair] for pair in pairs]).T
    scale = 100 / theirs.mean() if relative else 100
    half = scipy.stats.t.ppf(0.975, len(pairs) - 1) * scipy.stats.sem(ours - theirs) if len(pairs) > 1 else np.nan
    return scale * (ours - theirs).mean(), scale * half


def seconds(rows: list[dict]) -> str:
    """The median of training times per thousand images, of the rows that have them."""
    times = [row['sec_per_kimg'] for row in rows if 'sec_per_kimg' in row]
    return f'{np.median(times):.2g}' if times else ''


def file_of(row: dict, outdir: Path) -> Path | str | None:
    """The file that a row was measured of, if it is still there; a teacher's is elsewhere, and may be a URL."""
    file = row.get('file')
    if file is not None and (outdir / file).exists():
        return outdir / file
    return file if row['name'] == 'teacher' else None


def setting_of(row: dict) -> str:
    """What the student of a row was trained on; empty of what was not trained here."""
    return row.get('trained_on', FULL) if 'seed' in row else ''


def mean(rows: list[dict], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def spread(rows: list[dict], name: str, form: str) -> str:
    """Mean and, of several, standard deviation; nothing where it was not measured."""
    if any(name not in row for row in rows):
        return ''
    deviation = float(np.std([row[name] for row in rows], ddof=1)) if len(rows) > 1 else None
    return form.format(mean(rows, name)) + ('' if deviation is None else f' ± {form.format(deviation)}')


def draw_curves(rows: list[dict], ratio: float, path: Path) -> None:
    """Fréchet distance over images at one ratio, a panel for each choice of training images.

    Lines through means, and bands of a standard deviation, of the methods that have five seeds in a panel, or the most
    where none has: after as many images as all of them were measured, and beyond that as three were.
    """
    students = [row for row in rows if row.get('ratio') == ratio and 'seed' in row]
    panels: dict[str, dict[str, dict[int, list[float]]]] = {}
    for (_ratio, trained_on, kimg, name), some in grouped(students, tuple(row['kimg'] for row in students)).items():
        panels.setdefault(trained_on, {}).setdefault(name, {})[kimg] = [row[FD] for row in some]
    names = [name for name in METHODS if any(name in curves for curves in panels.values())]
    colours = dict(zip((name for name in names if name not in COLOURS), itertools.cycle(OTHER_COLOURS))) | COLOURS
    figure, axes = plt.subplots(
        1, len(panels), sharey=True, squeeze=False, figsize=(4.5 * len(panels), 5.5), layout='constrained'
    )
    for panel, (trained_on, curves) in zip(axes[0], panels.items(), strict=True):
        most = max(len(values) for curve in curves.values() for values in curve.values())
        enough, least = min(5, most), min(3, most)
        for name, curve in curves.items():
            own = max(map(len, curve.values()))
            if own < enough:
                continue
            by_all = max(kimg for kimg, values in curve.items() if len(values) == own)
            curve = {
                kimg: values
                for kimg, values in curve.items()
                if len(values) == own or (kimg > by_all and len(values) >= least)
            }
            middle = np.array([np.mean(values) for values in curve.values()])
            deviation = np.array([np.std(values, ddof=min(1, least - 1)) for values in curve.values()])
            panel.plot(curve.keys(), middle, '.-', color=colours[name], label=IN_WORDS[name])
            panel.fill_between(
                curve.keys(), middle - deviation, middle + deviation, color=colours[name], alpha=0.12, linewidth=0
            )
        teacher = mean([row for row in rows if row['name'] == 'teacher'], FD)
        panel.axhline(teacher, color='black', ls=':', label='the teacher itself')
        panel.set(title=SEEN.get(trained_on, f'{trained_on} of the data'), xlabel='thousand images', yscale='log')
        panel.set_xscale('log', base=2)
        panel.xaxis.set_major_formatter('{x:g}')
    axes[0, 0].set_ylabel(f'Fréchet distance, ratio {ratio:g}')
    axes[0, 0].yaxis.set_major_formatter('{x:g}')
    axes[0, 0].yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 8)))
    axes[0, 0].yaxis.set_minor_formatter('')
    labels = {label: line for panel in axes[0] for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(labels.values(), labels.keys(), loc='outside lower center', ncols=max(len(panels) - 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_images(outdir: Path, rows: list[dict], path: Path, columns: int = 20) -> None:
    """The same latents through each generator whose file is still there: one per row, named on the left."""
    from stylegan2_compress import images, pickles
    from stylegan2_compress.evaluation import samples

    strips = []
    for row in rows:
        file = file_of(row, outdir)
        if file is None:
            continue
        G = pickles.load(file)['G_ema']
        fakes, _labels = samples.generate(G, columns, seed=0)
        strips.append((row['name'], images.grid(images.to_uint8(fakes), columns=columns)))
    wide, high = strips[0][1].width * 2, strips[0][1].height * 2
    margin = 12 + 6 * max(len(name) for name, _strip in strips)  # The default font's letters are up to 6 wide.
    picture = PIL.Image.new('RGB', (wide + margin, high * len(strips)), 'white')
    draw = PIL.ImageDraw.Draw(picture)
    for index, (name, strip) in enumerate(strips):
        draw.text((4, index * high + high // 2 - 6), name, fill='black')
        picture.paste(strip.resize((wide, high), PIL.Image.Resampling.NEAREST), (margin, index * high))
    picture.save(path)
