"""Does one batch's gradient point where the population's does? On a toy, by estimator, batch and memory.

    python benchmarks/gradient_cosines.py

The reference is a mixture of ten Gaussians in 128 dimensions; the generator scales and shifts samples of the same
mixture, entry by entry, and its weights are off by normal numbers of the size `--off`. Printed is
the mean cosine, over `--trials`, between the gradient of its weights in one step and that of a very large batch. The
estimators are those of DiME, with a bank of 2048; the memory is of images that the same generator made before.
"""

import click

DIM, COMPONENTS, BANK = 128, 10, 2048
POPULATION = {'moments': 2**17, 'squared-moments': 2**17, 'rbf': 2**13}  # Kernels look at all pairs.


@click.command()
@click.option('--off', default='1,0.1,0.03', show_default=True, help='How far the generator is from the reference.')
@click.option('--batches', default='16,64', show_default=True, help='Images per step.')
@click.option('--memories', default='0,256,1024,4096', show_default=True, help='Images that count together.')
@click.option('--trials', default=40, show_default=True)
def main(off: str, batches: str, memories: str, trials: int) -> None:
    from stylegan2_compress import host

    host.activate(host.find_or_fetch().path)
    print('| estimator | batch | memory | ' + ' | '.join(f'off by {each}' for each in off.split(',')) + ' |')
    print('| --- | --- | --- |' + ' --- |' * len(off.split(',')))
    for estimator in POPULATION:
        toys = [Toy(estimator, float(each)) for each in off.split(',')]
        for batch in map(int, batches.split(',')):
            for memory in map(int, memories.split(',')):
                if memory == 0 or memory > batch:
                    cosines = ' | '.join(f'{toy.cosine(batch, memory, trials):.2f}' for toy in toys)
                    print(f'| `{estimator}` | {batch} | {memory or "none"} | {cosines} |', flush=True)


class Toy:
    """The mixture, a generator that is off, and the direction in which it should go."""

    def __init__(self, estimator: str, off: float):
        import torch

        self.rnd = torch.Generator().manual_seed(0)
        self.centres = self.normal(COMPONENTS, DIM)
        self.scales = 0.2 + 0.6 * torch.rand([COMPONENTS, DIM], generator=self.rnd)
        self.weight = 1 + off * self.normal(DIM)
        self.bias = off * self.normal(DIM)
        self.estimator = estimator
        population = POPULATION[estimator]
        self.wanted = self.gradient(self.distance(population), population)
        self.in_a_run = self.distance(2**17, BANK)

    def normal(self, *shape: int):
        import torch

        return torch.randn(shape, generator=self.rnd)

    def sample(self, count: int):
        """Vectors [count, DIM] of the mixture."""
        import torch

        which = torch.randint(COMPONENTS, [count], generator=self.rnd)
        return self.centres[which] + self.scales[which] * self.normal(count, DIM)

    def distance(self, samples: int, bank: int | None = None):
        """The estimator with a reference of so many samples."""
        from stylegan2_compress.distributions.moments import moments
        from stylegan2_compress.distributions.statistics import Statistics
        from stylegan2_compress.losses.estimators import ESTIMATORS

        entry, y = ESTIMATORS[self.estimator], self.sample(samples)
        reference = Statistics(*moments(y.double()), bank=y[:bank])
        return entry.build(*([True] if entry.has_bank else []), reference)

    def gradient(self, distance, batch: int, memory: int = 0):
        """Of all weights of the generator, as one vector."""
        import torch

        weights = [self.weight.clone().requires_grad_(), self.bias.clone().requires_grad_()]
        made = self.sample(max(batch, memory)) * weights[0] + weights[1]
        value = distance(made[:batch], made[batch:].detach())
        return torch.cat([each.flatten() for each in torch.autograd.grad(value, weights)])

    def cosine(self, batch: int, memory: int, trials: int) -> float:
        import torch

        found = [self.gradient(self.in_a_run, batch, memory) for _ in range(trials)]
        return float(torch.stack([torch.cosine_similarity(each, self.wanted, dim=0) for each in found]).mean())


if __name__ == '__main__':
    main()
