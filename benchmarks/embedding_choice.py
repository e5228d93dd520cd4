"""Which embedding sees what is wrong with a student? By known damages of a teacher's images, weak to strong.

    python benchmarks/embedding_choice.py --embedding efficientnet_lite0@size=32 --embedding inception [--teacher PKL]

Each damage has six strengths. For each embedding and estimator of DiME's, two numbers per damage, the mean of the first
and the least of the second over damages at the end:

* rank: Spearman's correlation between strength and distance, with `--samples` images; 1 if a distance never falls while
  a damage grows.
* seen: how far the distances of batches of `--batch` images at the middle strength are from those of undamaged ones, in
  standard deviations. Below 1, a step of training cannot tell the two apart.

The reference is `--samples` other images of the teacher's. Damages change images (noise, blur, contrast) or which
images there are (truncation, and for teachers with labels fewer classes); a distance should see both kinds.
"""

from collections.abc import Callable

import click

STRENGTHS = range(1, 7)


@click.command()
@click.option(
    '--embedding',
    'specs',
    multiple=True,
    default=('efficientnet_lite0@size=32',),
    show_default=True,
    help='Repeatable.',
)
@click.option('--estimators', default='moments,squared-moments,rbf', show_default=True)
@click.option('--teacher', metavar='PKL', help="[default: the quickstart's]")
@click.option('--samples', default=1024, show_default=True, help='Images per distance, and of the reference.')
@click.option('--batch', default=16, show_default=True, help='Images per step of training.')
def main(specs: tuple[str, ...], estimators: str, teacher: str | None, samples: int, batch: int) -> None:
    from stylegan2_compress import host

    host.activate(host.find_or_fetch().path)
    from stylegan2_compress import embeddings, pickles
    from stylegan2_compress.quickstart import run as quickstart

    G = (pickles.load(teacher) if teacher else quickstart.load_teacher())['G_ema'].eval().requires_grad_(False)
    damages = damages_for(G)
    print('| embedding | estimator |' + ''.join(f' {name} |' for name in damages) + ' rank | seen |')
    print('| --- | --- |' + ' --- |' * (len(damages) + 2))
    for spec in specs:
        embedding = embeddings.load(spec, 'cpu')
        features = Features(G, embedding, damages, samples)
        for estimator in estimators.split(','):
            cells, ranks, seen = [], [], []
            for name in damages:
                rank, deviations = features.judge(estimator, name, batch)
                cells.append(f'{rank:.2f}, {deviations:.1f}')
                ranks.append(rank)
                seen.append(deviations)
            mean = sum(ranks) / len(ranks)
            print(f'| `{spec}` | `{estimator}` | {" | ".join(cells)} | {mean:.2f} | {min(seen):.1f} |', flush=True)


def damages_for(G) -> dict[str, Callable]:
    """By name, functions from a seed, a number of images and a strength to images of the teacher's, in batches."""
    import torch
    from torch.nn.functional import avg_pool2d, pad

    def made(seed: int, count: int, classes: int = G.c_dim, psi: float = 1.0):
        rnd = torch.Generator().manual_seed(seed)
        for start in range(0, count, 64):
            here = min(64, count - start)
            z = torch.randn([here, G.z_dim], generator=rnd)
            labels = torch.randint(max(classes, 1), [here], generator=rnd)
            c = torch.eye(G.c_dim)[labels] if G.c_dim else torch.zeros([here, 0])
            yield G(z, c, truncation_psi=psi, force_fp32=True)

    def noise(seed, count, strength):
        rnd = torch.Generator().manual_seed(-1 - seed)
        for x in made(seed, count):
            yield x + 0.04 * strength * torch.randn(x.shape, generator=rnd)

    def blur(seed, count, strength):
        for x in made(seed, count):
            soft = avg_pool2d(pad(x, (1, 1, 1, 1), mode='reflect'), 3, stride=1)
            yield x.lerp(soft, strength / max(STRENGTHS))

    def contrast(seed, count, strength):
        return (x * (1 - 0.08 * strength) for x in made(seed, count))

    def classes(seed, count, strength):
        return made(seed, count, classes=round(G.c_dim * (1 - 0.08 * strength)))

    def truncation(seed, count, strength):
        return made(seed, count, psi=1 - 0.08 * strength)

    found = dict(noise=noise, blur=blur, contrast=contrast, truncation=truncation)
    return found | (dict(classes=classes) if G.c_dim > 2 else {})


class Features:
    """An embedding's features of the reference, and of undamaged and damaged images."""

    def __init__(self, G, embedding, damages: dict[str, Callable], samples: int):
        import torch

        def embed(damage, seed, *strength):
            with torch.no_grad():
                return torch.cat([embedding(x) for x in damage(seed, samples, *strength)])

        nothing = lambda seed, count: damages['contrast'](seed, count, 0)  # noqa: E731
        self.reference, self.undamaged = embed(nothing, 0), embed(nothing, 1)
        self.damaged = {
            name: [embed(damage, 1, strength) for strength in STRENGTHS] for name, damage in damages.items()
        }

    def judge(self, estimator: str, damage: str, batch: int) -> tuple[float, float]:
        """Rank correlation of strength and distance; deviations between batches with the damage and without."""
        import numpy as np
        from scipy.stats import spearmanr

        distance = distance_of(estimator, self.reference)
        by_strength = [float(distance(x)) for x in [self.undamaged, *self.damaged[damage]]]
        rank = spearmanr([0, *STRENGTHS], by_strength).statistic
        middle = self.damaged[damage][len(STRENGTHS) // 2 - 1]
        without, with_it = (
            np.array([float(distance(part)) for part in x.split(batch) if len(part) == batch])
            for x in (self.undamaged, middle)
        )
        deviation = np.sqrt((without.var(ddof=1) + with_it.var(ddof=1)) / 2)
        return float(rank), float((with_it.mean() - without.mean()) / deviation)


def distance_of(estimator: str, reference) -> Callable:
    """An estimator's distance from the reference, as DiME computes it."""
    from stylegan2_compress.distributions.statistics import Statistics
    from stylegan2_compress.losses.estimators import ESTIMATORS

    chosen = ESTIMATORS[estimator]
    double = reference.double()
    statistics = Statistics(m1=double.mean(0), m2=double.square().mean(0), bank=reference)
    return chosen.build(*([True] if chosen.has_bank else []), statistics)


if __name__ == '__main__':
    main()
