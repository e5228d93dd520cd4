"""How strongly each of DiME's estimators pulls at images: the norm of its gradient, for a weight of one.

    python benchmarks/estimator_weights.py --embedding efficientnet_lite0@size=32

The images are 16 of the quickstart's pruned start, the reference 2048 of its teacher's. `moments` with its weight of 20
is what the others' default weights are measured by.
"""

import os
import tempfile

import click


@click.command()
@click.option('--embedding', 'spec', default='efficientnet_lite0@size=32', show_default=True)
@click.option('--ratio', default=0.7, show_default=True, help='Of the pruned start.')
@click.option('--batches', default=3, show_default=True, help='Of 16 images, to average over.')
def main(spec, ratio, batches):
    from stylegan2_compress import host

    host.activate(host.find_or_fetch().path)
    import torch

    from stylegan2_compress import embeddings, pickles, pruning, quickstart, references
    from stylegan2_compress.losses.dime import ESTIMATORS

    teacher, embedding = quickstart.load_teacher(), embeddings.load(spec, 'cpu')
    G = teacher['G_ema']
    student = pruning.make_student(teacher, pruning.widths_for_ratio(G, ratio))['G_ema']
    with tempfile.TemporaryDirectory() as directory:
        file = os.path.join(directory, 'teacher.pkl')
        pickles.save(file, teacher)
        (reference,) = references.statistics_of(references.TeacherImages(file, G), [embedding], samples=2048, bank=2048)
    norms = {name: [] for name in ESTIMATORS}
    for seed in range(batches):
        torch.manual_seed(seed)
        z, c = torch.randn(16, G.z_dim), torch.eye(G.c_dim)[torch.randint(G.c_dim, (16,))]
        images = student(z, c, force_fp32=True).detach().requires_grad_(True)
        features = embedding(images)
        for name, estimator in ESTIMATORS.items():
            distance = estimator.build(*([True] if estimator.has_bank else []), reference)
            (gradient,) = torch.autograd.grad(distance(features), images, retain_graph=True)
            norms[name].append(float(gradient.norm()))
    strength = {name: sum(found) / len(found) for name, found in norms.items()}
    wanted = strength['moments'] * ESTIMATORS['moments'].weight
    print('estimator  gradient at weight 1  as strong as moments at  default')
    for name, estimator in ESTIMATORS.items():
        print(f'{name:9s}  {strength[name]:20.4f}  {wanted / strength[name]:23.3f}  {estimator.weight:7g}')


if __name__ == '__main__':
    main()
