"""How strongly each of DiME's estimators pulls at images: the norm of its gradient, for a weight of one.

    python benchmarks/estimator_weights.py --embedding efficientnet_lite0@size=32

The images are of the pruned teacher, the reference is 2048 of the teacher's. `moments` with its weight of 20 is what
the others' default weights are measured by. Beside it stand the adversarial loss, against the teacher's discriminator,
and what is left of each distance where there is none: on images of the teacher itself.
"""

import os
import tempfile

import click


@click.command()
@click.option('--embedding', 'spec', default='efficientnet_lite0@size=32', show_default=True)
@click.option('--teacher', metavar='PKL', help="[default: the quickstart's]")
@click.option('--ratio', default=0.7, show_default=True, help='Of the pruned start.')
@click.option('--criterion', default='l1', show_default=True, help='Likewise.')
@click.option('--batch', default=16, show_default=True, help='Images that a distance is of.')
@click.option('--batches', default=3, show_default=True, help='To average over.')
def main(spec, teacher, ratio, criterion, batch, batches):
    from stylegan2_compress import host

    host.activate(host.find_or_fetch().path)
    import torch

    from stylegan2_compress import embeddings, pickles, pruning
    from stylegan2_compress.distributions import sources, statistics
    from stylegan2_compress.losses.estimators import ESTIMATORS
    from stylegan2_compress.quickstart import run as quickstart

    networks, embedding = pickles.load(teacher) if teacher else quickstart.load_teacher(), embeddings.load(spec, 'cpu')
    G, D = networks['G_ema'].eval().requires_grad_(False), networks['D']
    student = pruning.make_student(networks, pruning.widths_for_ratio(G, ratio), criterion)['G_ema']
    with tempfile.TemporaryDirectory() as directory:
        file = os.path.join(directory, 'teacher.pkl')
        pickles.save(file, networks)
        source = sources.TeacherImages(file)
        (reference,) = statistics.reference_statistics(source, [embedding], samples=2048, bank=2048)

    distances = {
        name: estimator.build(*([True] if estimator.has_bank else []), reference)
        for name, estimator in ESTIMATORS.items()
    }

    def measure(generator: torch.nn.Module) -> dict[str, torch.Tensor]:
        """By loss, [2]: its value and the norm of its gradient with respect to images of this generator."""
        found = []
        for seed in range(batches):
            torch.manual_seed(seed)
            z, c = torch.randn(batch, G.z_dim), labels(batch, G.c_dim)
            images = generator(z, c, force_fp32=True).detach().requires_grad_(True)
            features = embedding(images)
            losses = {'adversarial': torch.nn.functional.softplus(-D(images, c, force_fp32=True)).mean()}
            losses |= {name: distance(features) for name, distance in distances.items()}
            norms = [torch.autograd.grad(loss, images, retain_graph=True)[0].norm() for loss in losses.values()]
            found.append(torch.stack([torch.stack(list(losses.values())), torch.stack(norms)], dim=1).detach())
        return dict(zip(losses, torch.stack(found).mean(0), strict=True))

    of_student, of_teacher = measure(student), measure(G)
    wanted = of_student['moments'][1] * ESTIMATORS['moments'].weight
    print('             of the pruned start  of the teacher itself  as strong as')
    print('estimator    distance  gradient   distance  gradient     moments at  default')
    for name in of_student:
        (distance, norm), (floor, floor_norm) = of_student[name], of_teacher[name]
        weight = f'{ESTIMATORS[name].weight:9g}' if name in ESTIMATORS else ''
        numbers = f'{distance:8.4f}  {norm:8.4f}   {floor:8.4f}  {floor_norm:8.4f}     {wanted / norm:10.3f}'
        print(f'{name:12s} {numbers}{weight}')


def labels(count: int, c_dim: int):
    """[count, c_dim]: random classes."""
    import torch

    return torch.eye(c_dim)[torch.randint(c_dim, (count,))] if c_dim else torch.zeros([count, 0])


if __name__ == '__main__':
    main()
