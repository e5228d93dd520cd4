"""Where the methods stand: students of one teacher, cut in the same way, trained by each method on as many images.

    python benchmarks/quality.py --data cifar10.zip --outdir runs/quality                 # hours on one core
    python benchmarks/quality.py --data cifar10.zip --outdir runs/quality --smoke         # does it run: a minute

Needs a labelled dataset zip in the host's format, any. In turn: trains a classifier on its labels
(`image_classifier.py`), whose features measure everything and train nothing; trains a teacher with the host's own loss,
unless `--teacher` names one; prunes it; trains a student for each ratio and method; measures the snapshots; and writes
`table.md`, `results.json`, `curves.png` and `images-*.png` into the output directory, after every student anew.

Started again with the same `--outdir`, it goes on where it was: what is finished is not done again, and what was
interrupted is continued exactly. With a larger `--kimg`, finished students are trained further.
"""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import image_classifier
import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch

from stylegan2_compress import host


@dataclass(frozen=True)
class Method:
    """One row of the table per ratio."""

    loss: str
    start: str = 'teacher'  # Where D starts: the teacher's, or from scratch.
    embeds: bool = False  # Takes DiME's arguments.
    layers: bool = False  # Takes an embedding that shows its layers.


METHODS = {
    'adversarial': Method('AdversarialLoss', start='scratch'),
    'teacher-d': Method('AdversarialLoss'),
    'images': Method('ImageDistillationLoss', layers=True),
    'dime': Method('DiMELoss', embeds=True),
    'nickel': Method('NICKELLoss', start='scratch'),
    'both': Method('NickelDimeLoss', start='scratch', embeds=True),
}
IN_WORDS = {
    'adversarial': 'adversarial only, D from scratch',
    'teacher-d': "adversarial only, the teacher's D",
    'images': 'L1 and perceptual distance to the teacher’s images',
    'dime': 'DiME',
    'nickel': 'NICKEL',
    'both': 'NICKEL and DiME',
}


@dataclass(frozen=True)
class Settings:
    """All that decides what comes out; `settings.json` in the output directory keeps it."""

    data: str
    teacher: str | None
    teacher_kimg: int
    channel_base: int
    channel_max: int
    epochs: int
    ratios: tuple[float, ...]
    methods: tuple[str, ...]
    criterion: str
    kimg: int
    batch: int
    lr: float
    gamma: float
    ema_kimg: float
    embedding: str
    weight: float
    statistics: int
    samples: int
    also: tuple[str, ...]
    mirror: bool
    seed: int
    device: str | None


# What `--smoke` puts in the place of the defaults.
SMOKE = dict(teacher_kimg=1, channel_base=64, channel_max=8, epochs=1, ratios=(0.5,), kimg=1, batch=16)
SMOKE.update(methods=('adversarial', 'both'), statistics=64, samples=64)


def numbers(_context, _parameter, text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(','))


def specs(_context, _parameter, text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(',')))


def method_names(_context, _parameter, text: str) -> tuple[str, ...]:
    names = tuple(text.split(','))
    for name in names:
        if name not in METHODS:
            raise click.BadParameter(f'{name} is none of {", ".join(METHODS)}.')
    return names


@click.command()
@click.option('--data', required=True, metavar='ZIP', help='Labelled dataset in the host’s format.')
@click.option('--outdir', required=True, metavar='DIR', help='Everything goes there; used again to go on.')
@click.option('--teacher', metavar='PKL', help='A teacher that exists  [default: train one]')
@click.option('--teacher-kimg', default=150, show_default=True, help='Else: length of its training.')
@click.option('--channel-base', default=1024, show_default=True, help='Else: its width; D has half of it.')
@click.option('--channel-max', default=64, show_default=True, help='Else: its channels at most.')
@click.option('--epochs', default=6, show_default=True, help='Of the classifier.')
@click.option('--ratios', default='0.7,0.8,0.9,0.95', show_default=True, callback=numbers)
@click.option('--methods', default=','.join(METHODS), show_default=True, callback=method_names)
@click.option('--criterion', default='l1-styled', show_default=True, help='Of pruning; one start for all methods.')
@click.option('--kimg', default=24, show_default=True, help='Length of each student’s training.')
@click.option('--batch', default=16, show_default=True)
@click.option('--lr', default=0.004, show_default=True)
@click.option('--gamma', default=0.02, show_default=True, help='Weight of the R1 penalty.')
@click.option('--ema-kimg', default=1.0, show_default=True)
@click.option('--embedding', default='efficientnet_lite0@size=32', show_default=True, help='Of DiME and of `images`.')
@click.option('--weight', default=1.0, show_default=True, help='DiME’s weight λ.')
@click.option('--statistics', default=10000, show_default=True, help='Teacher images that DiME’s moments are of.')
@click.option('--samples', default=5000, show_default=True, help='Images that each number is of.')
@click.option('--also', default='', callback=specs, help='Embeddings for further Fréchet distances, such as inception.')
@click.option('--mirror/--no-mirror', default=True, show_default=True)
@click.option('--seed', default=0, show_default=True)
@click.option('--device', help='[default: CUDA where there is one]')
@click.option('--minutes', type=float, help='Start no further training after so many minutes  [default: no limit]')
@click.option('--smoke', is_flag=True, help='Tiny: shows that it runs, the numbers mean nothing.')
def main(outdir: str, minutes: float | None, smoke: bool, **options) -> None:
    settings = Settings(**{**options, **(SMOKE if smoke else {})})
    host.activate(host.find_or_fetch().path)
    outdir = Path(outdir)
    outdir.mkdir(parents=True, exist_ok=True)
    (outdir / 'settings.json').write_text(json.dumps(asdict(settings), indent=2))
    end = time.time() + 60 * (math.inf if minutes is None else minutes)

    if not (outdir / 'classifier.json').exists():
        image_classifier.train(settings.data, str(outdir), settings.epochs, settings.seed)
    teacher = Path(settings.teacher) if settings.teacher else train_teacher(settings, outdir)
    ruler = Ruler(settings, outdir, teacher)
    ruler.measure('teacher', None, teacher, 0)
    for ratio in settings.ratios:
        starts = write_starts(settings, outdir, teacher, ratio)
        ruler.measure('pruned', ratio, starts['teacher'], 0)
        for name in settings.methods:
            if time.time() > end:
                print(f'Stopped after {minutes:g} minutes; the same command goes on.')
                return
            for snapshot in train_student(settings, outdir, teacher, starts[METHODS[name].start], ratio, name):
                ruler.measure(name, ratio, snapshot, kimg_of(snapshot))
            ruler.write_report()


# --- Training ---------------------------------------------------------------------------------------------------------


def train_teacher(settings: Settings, outdir: Path) -> Path:
    """The last snapshot of a StyleGAN2 of a few hundred thousand parameters, trained with the host's loss."""
    from stylegan2_compress import options, recipes, runs

    finished = last_snapshot(outdir / 'teacher', settings.teacher_kimg)
    if finished:
        return finished
    desc, args = recipes.host_arguments(
        settings.data,
        kimg=settings.teacher_kimg,
        batch=settings.batch,
        gamma=settings.gamma,
        aug='noaug',
        cond=True,
        mirror=settings.mirror,
        seed=settings.seed,
        workers=1,
        fp32=True,
        snap=1,
    )
    args.G_kwargs.update(z_dim=64, w_dim=64)
    args.G_kwargs.synthesis_kwargs.update(channel_base=settings.channel_base, channel_max=settings.channel_max)
    args.D_kwargs.update(channel_base=settings.channel_base // 2, channel_max=settings.channel_max)
    args.D_kwargs.epilogue_kwargs = dict(mbstd_group_size=8)
    args.loss_kwargs.update(pl_weight=0, style_mixing_prob=0)  # As the host's configuration for 32×32, --cfg=cifar.
    args.G_opt_kwargs.lr = args.D_opt_kwargs.lr = settings.lr
    args.update(ema_kimg=5, kimg_per_tick=5, state_kimg=5)
    desc, args = options.compress(desc, args, loop=options.OUR_LOOP, device=settings.device)
    runs.continue_or_start(str(outdir / 'teacher'), desc, args, resume='latest')
    return last_snapshot(outdir / 'teacher', settings.teacher_kimg)


def last_snapshot(outdir: Path, kimg: int) -> Path | None:
    """The snapshot with which a training of that length ended, in whichever run directory below `outdir`."""
    return next(iter(outdir.glob(f'*/network-snapshot-{kimg:06d}.pkl')), None)


def write_starts(settings: Settings, outdir: Path, teacher: Path, ratio: float) -> dict[str, Path]:
    """The pruned teacher as every method starts from it: with the teacher's D, and with a D from scratch."""
    from stylegan2_compress import pickles, pruning

    paths = {start: outdir / f'ratio{ratio:g}' / f'start-{start}.pkl' for start in ('teacher', 'scratch')}
    if not all(path.exists() for path in paths.values()):
        data = pickles.load(teacher)
        widths = pruning.widths_for_ratio(data['G_ema'], ratio)
        student = pruning.make_student(data, widths, settings.criterion)
        paths['teacher'].parent.mkdir(parents=True, exist_ok=True)
        pickles.save(paths['teacher'], student)
        torch.manual_seed(settings.seed)
        D = student['D']
        student['D'] = type(D)(*D.init_args, **D.init_kwargs).eval().requires_grad_(False)
        pickles.save(paths['scratch'], student)
    return paths


def train_student(settings: Settings, outdir: Path, teacher: Path, start: Path, ratio: float, name: str) -> list[Path]:
    """Snapshots of one student's training, which is run unless it is finished."""
    from stylegan2_compress.distillation import distill

    method = METHODS[name]
    loss_args = ['style_mixing_prob=0']
    if method.embeds:
        loss_args += [
            f'embeddings={settings.embedding}',
            f'weights={settings.weight}',
            f'samples={settings.statistics}',
        ]
    if method.layers:
        loss_args += [f'embedding={settings.embedding}']
    directory = outdir / f'ratio{ratio:g}' / name
    if last_snapshot(directory, settings.kimg) is None:
        distill(
            str(teacher),
            settings.data,
            str(directory),
            student=str(start),
            loss=f'stylegan2_compress.{method.loss}',
            loss_args=tuple(loss_args),
            kimg=settings.kimg,
            batch=settings.batch,
            gamma=settings.gamma,
            lr=settings.lr,
            ema_kimg=settings.ema_kimg,
            pl_weight=0,
            mirror=settings.mirror,
            kimg_per_tick=settings.kimg / 3,
            snap=1,
            state_kimg=1,
            resume='latest',
            seed=settings.seed,
            workers=1,
            device=settings.device,
        )
    run_dir = last_snapshot(directory, settings.kimg).parent
    return [path for path in sorted(run_dir.glob('network-snapshot-*.pkl')) if kimg_of(path)]


def kimg_of(snapshot: Path) -> int:
    return int(snapshot.stem.rpartition('-')[2])


# --- Measuring --------------------------------------------------------------------------------------------------------


class Ruler:
    """Measures generators in the classifier's features, remembers what it measured, and writes the report."""

    def __init__(self, settings: Settings, outdir: Path, teacher: Path):
        from stylegan2_compress import devices, embeddings, recipes
        from stylegan2_compress.evaluation import features

        self.settings, self.outdir, self.teacher = settings, outdir, teacher
        self.device = devices.choose(settings.device)
        training_set, self.training_set_kwargs = recipes.open_training_set(settings.data)
        spec = f'torchscript:{outdir / "classifier.pt"}'
        self.embedding = embeddings.load(f'{spec}@size={training_set.resolution}', self.device)
        self.head = torch.jit.load(outdir / 'classifier.pt').head
        self.reals = features.of_data(self.embedding, self.training_set_kwargs, self.device)
        self.others = {spec: embeddings.load(spec, self.device) for spec in settings.also}
        self.path = outdir / 'results.json'
        self.rows = json.loads(self.path.read_text()) if self.path.exists() else []
        if not self.rows:
            order = np.random.default_rng(settings.seed).permutation(len(self.reals))
            count = min(settings.samples, len(order) // 2)
            half, rest = self.reals[order[:count]], self.reals[order[count:]]
            self._add(dict(name='data', ratio=None, kimg=0, file=None, **self._distances(half, rest)))

    def measure(self, name: str, ratio: float | None, pkl: Path, kimg: int) -> None:
        """Add a row for a snapshot, unless there is one."""
        from stylegan2_compress import pickles, profiling
        from stylegan2_compress.evaluation import features, samples
        from stylegan2_compress.evaluation.distances import frechet_distance

        if any(row['file'] == str(pkl) for row in self.rows):
            return
        G = pickles.load(pkl)['G_ema'].to(self.device)
        count, seed = self.settings.samples, self.settings.seed + 1
        c = samples.draw_labels(self.training_set_kwargs, G.c_dim, count, seed)
        fakes = list(samples.fakes(G, samples.latents(G, count, seed), c, noise_seed=seed))
        seen = features.embed(self.embedding, fakes, self.device, count, name)
        found = self._distances(seen, self.reals)
        classes = self.head(torch.from_numpy(seen)).argmax(1)
        found['recognised'] = (classes == c.argmax(1)).float().mean().item() if G.c_dim else None
        for spec, embedding in self.others.items():
            reals = features.of_data(embedding, self.training_set_kwargs, self.device)
            found[f'fd {spec}'] = frechet_distance(features.embed(embedding, fakes, self.device, count, name), reals)
        found.update(parameters=profiling.parameters(G), macs=profiling.macs(G))
        self._add(dict(name=name, ratio=ratio, kimg=kimg, file=str(pkl), **found))

    def _distances(self, features: np.ndarray, reals: np.ndarray) -> dict[str, float]:
        from stylegan2_compress.evaluation import distances

        some = reals[np.random.default_rng(0).permutation(len(reals))[: len(features)]]
        density, coverage = distances.density_coverage(some, features, device=self.device)
        fd = distances.frechet_distance(features, reals)
        return dict(frechet_distance=fd, density=density, coverage=coverage)

    def _add(self, row: dict) -> None:
        print(json.dumps(row), flush=True)
        self.rows.append(row)
        self.path.write_text(json.dumps(self.rows, indent=1))

    def write_report(self) -> None:
        """Table, curves and images of what has been measured so far."""
        (self.outdir / 'table.md').write_text(table(self.rows))
        for ratio in sorted({row['ratio'] for row in self.rows if row['ratio'] is not None}):
            mine = [row for row in self.rows if row['ratio'] == ratio]
            draw_curves(mine, f'ratio {ratio:g}', self.outdir / f'curves-{ratio:g}.png')
            last = {row['name']: row for row in [*self.rows[1:2], *mine]}
            draw_images(list(last.values()), self.outdir / f'images-{ratio:g}.png')


def table(rows: list[dict]) -> str:
    """The last snapshots as Markdown, the best of each ratio in bold."""
    others = list(dict.fromkeys(key for row in rows for key in row if key.startswith('fd ')))
    titles = ['ratio', 'MACs', '', 'thousand images', 'Fréchet distance', 'recognised', 'density', 'coverage', *others]
    lines = [f'| {" | ".join(titles)} |', f'| {" | ".join(["---"] * len(titles))} |']
    last = {(row['ratio'], row['name']): row for row in rows}
    for (ratio, name), row in last.items():
        rivals = [other['frechet_distance'] for (its_ratio, _), other in last.items() if its_ratio == ratio]
        best = ratio is not None and row['frechet_distance'] == min(rivals)
        fd = f'{row["frechet_distance"]:.2f}'
        cells = [
            '' if ratio is None else f'{ratio:g}',
            f'{row["macs"]:,}' if 'macs' in row else '',
            IN_WORDS.get(name, name),
            f'{row["kimg"]}' if row['kimg'] else '',
            f'**{fd}**' if best else fd,
            '' if row.get('recognised') is None else f'{row["recognised"]:.1%}',
            f'{row["density"]:.2f}',
            f'{row["coverage"]:.2f}',
            *(f'{row[key]:.2f}' if key in row else '' for key in others),
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


COLOURS = ('#4269d0', '#efb118', '#ff725c', '#6cc5b0', '#3ca951', '#a463f2')


def draw_curves(
    rows: list[dict], title: str, path: Path, width: int = 560, height: int = 360, margin: int = 48
) -> None:
    """Fréchet distance, on a logarithmic axis, over thousands of images: one line per method."""
    rows = [row for row in rows if row['name'] in METHODS]
    if not rows:
        return
    heights = [math.log10(row['frechet_distance']) for row in rows]
    low, high, longest = min(heights), max(heights) + 1e-3, max(row['kimg'] for row in rows)
    picture = PIL.Image.new('RGB', (width + 200, height), 'white')
    draw = PIL.ImageDraw.Draw(picture)

    def place(kimg: float, distance: float) -> tuple[float, float]:
        up = (math.log10(distance) - low) / (high - low)
        return margin + kimg / longest * (width - 2 * margin), height - margin - up * (height - 2 * margin)

    draw.rectangle([margin, margin, width - margin, height - margin], outline='#888')
    draw.text((margin, 8), f'{title}: Frechet distance over thousand images', fill='black')
    for kimg in sorted({row['kimg'] for row in rows}):
        draw.text((place(kimg, 10**low)[0] - 6, height - margin + 6), str(kimg), fill='black')
    for distance in (10**low, 10 ** ((low + high) / 2), 10**high):
        draw.text((4, place(0, distance)[1] - 6), f'{distance:.3g}', fill='black')
    for index, name in enumerate(METHODS):
        points = [place(row['kimg'], row['frechet_distance']) for row in rows if row['name'] == name]
        draw.line(points, fill=COLOURS[index], width=2)
        for x, y in points:
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=COLOURS[index])
        if points:
            draw.text((width, margin + 16 * index), name, fill=COLOURS[index])
    picture.save(path)


def draw_images(rows: list[dict], path: Path, columns: int = 20) -> None:
    """The same latents through each generator: one generator per row, named on the left."""
    from stylegan2_compress import images, pickles
    from stylegan2_compress.evaluation import samples

    strips = []
    for row in rows:
        fakes, _labels = samples.generate(pickles.load(row['file'])['G_ema'], columns, seed=0)
        strips.append(images.grid(images.to_uint8(fakes), columns=columns))
    wide, high = strips[0].width * 2, strips[0].height * 2
    picture = PIL.Image.new('RGB', (wide + 90, high * len(strips)), 'white')
    draw = PIL.ImageDraw.Draw(picture)
    for index, (row, strip) in enumerate(zip(rows, strips, strict=True)):
        draw.text((4, index * high + high // 2 - 6), row['name'], fill='black')
        picture.paste(strip.resize((wide, high), PIL.Image.Resampling.NEAREST), (90, index * high))
    picture.save(path)


if __name__ == '__main__':
    main()
