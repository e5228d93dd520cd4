"""Pruning criteria: functions from a generator to a score vector per feature map; channels of high score are kept.

All of them score a channel by the weights that read it, see `graph.readers`.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from training.networks import Generator

from stylegan2_compress.errors import UserError
from stylegan2_compress.host.progress_bars import progress_bar
from stylegan2_compress.pruning import graph
from stylegan2_compress.pruning.content import ContentMask, content


@dataclass(frozen=True)
class CriterionOptions:
    """Options of criteria that sample or generate images.

    Scores are computed from the gradient of a whole batch, so they depend slightly on the batch size. The published
    runs use 400 samples in batches of 8 for `content-aware`, 5000 in batches of 5 for `diversity`.

    Attributes:
        samples: number of images.
        batch: images at a time.
        seed: seed of everything drawn at random.
        content_mask: from images [N, C, H, W] in [−1, 1] to masks [N, 1, H, W], 1 on the content that `content-aware`
            has to preserve and 0 elsewhere; None is 1 everywhere.
        device: where `make_student` gives the generator to the criterion.
    """

    samples: int = 400
    batch: int = 8
    seed: int = 0
    content_mask: ContentMask | None = None
    device: torch.device = field(default_factory=lambda: torch.device('cpu'))


Scores = dict[str, torch.Tensor]
Criterion = Callable[[Generator, CriterionOptions], Scores]


def l1(G: Generator, options: CriterionOptions) -> Scores:
    """Mean absolute value of the weights that read a channel."""
    return {name: reader.weight.detach().abs().mean(dim=[0, 2, 3]) for name, reader in graph.readers(G).items()}


def l1_styled(G: Generator, options: CriterionOptions) -> Scores:
    """Mean absolute value of the modulated weights that read a channel: `l1` times the mean |style| of 1000 latents.

    Not from a paper. StyleGAN2 convolves with weight · style, and `l1` ignores that the styles of a channel may be
    close to zero.
    """
    ws = _random_ws(G, 1000, torch.Generator().manual_seed(options.seed))[:, 0]
    styles = {name: reader.affine(ws).detach().abs().mean(dim=0) for name, reader in graph.readers(G).items()}
    return {name: magnitude * styles[name] for name, magnitude in l1(G, options).items()}


def random(G: Generator, options: CriterionOptions) -> Scores:
    """Uniform random scores: the baseline for other criteria."""
    rnd = torch.Generator().manual_seed(options.seed)
    return {name: torch.rand(width, generator=rnd) for name, width in graph.widths(G).items()}


def content_aware(G: Generator, options: CriterionOptions) -> Scores:
    """Content-Aware GAN Compression (CVPR 2021).

    Mean absolute gradient, over the weights that read a channel, of the L1 distance between an image and the same image
    with salt and pepper on 5 % of its content's pixels. Summed over batches.

    Raises:
        UserError: the content mask fails, is not [N, 1, H, W], or is empty on all images.
    """
    G, weights = _differentiable(G)
    rnd = torch.Generator().manual_seed(options.seed)
    scores = {name: torch.zeros(width) for name, width in graph.widths(G).items()}
    some_content = False
    for ws in _sampled_ws(G, options, rnd):
        image = G.synthesis(ws, noise_mode='const', force_fp32=True)
        mask = content(image.detach(), options.content_mask)
        some_content = some_content or bool(mask.any())
        hit = mask & (torch.rand(mask.shape, generator=rnd) < 0.05).to(mask.device)
        salt_or_pepper = (torch.randint(2, mask.shape, generator=rnd) * 2 - 1).to(image)
        distance = (torch.where(hit, salt_or_pepper, image.detach()) - image).abs().sum()
        for name, gradient in _mean_absolute_gradients(distance, weights).items():
            scores[name] += gradient
    if not some_content:
        raise UserError(f'The content mask is empty on all {options.samples} images: there is nothing to preserve.')
    return scores


def diversity(G: Generator, options: CriterionOptions) -> Scores:
    """Diversity-aware channel pruning (CVPR 2024).

    Variance, over ten directions in W, of the mean absolute gradient (over the weights that read a channel) of the L1
    distance between an image and the image after a step of length 5 along the direction, the latter without gradient.
    Summed over batches. The directions of a batch are principal components of W, drawn with probabilities proportional
    to the variance they explain. The length of the step is that of the authors' StyleGAN2 code.
    """
    G, weights = _differentiable(G)
    rnd = torch.Generator().manual_seed(options.seed)
    directions, variances = _principal_components(G, rnd)
    scores = {name: torch.zeros(width) for name, width in graph.widths(G).items()}
    for ws in _sampled_ws(G, options, rnd):
        image = G.synthesis(ws, noise_mode='const', force_fp32=True)
        gradients = []
        for k in torch.multinomial(variances, 10, replacement=True, generator=rnd):
            with torch.no_grad():
                moved = G.synthesis(ws + 5 * directions[k].to(ws), noise_mode='const', force_fp32=True)
            gradients.append(_mean_absolute_gradients((moved - image).abs().mean(), weights))
        for name in scores:
            scores[name] += torch.stack([gradient[name] for gradient in gradients]).var(dim=0, unbiased=False)
    return scores


CRITERIA: dict[str, Criterion] = {
    'l1': l1,
    'l1-styled': l1_styled,
    'random': random,
    'content-aware': content_aware,
    'diversity': diversity,
}


def _sampled_ws(G: Generator, options: CriterionOptions, rnd: torch.Generator) -> Iterator[torch.Tensor]:
    """Batches of latents [N, num_ws, w_dim], `options.samples` in all, with a progress bar."""
    sizes = [min(options.batch, options.samples - start) for start in range(0, options.samples, options.batch)]
    for n in progress_bar(sizes, desc='Scoring channels', unit='batch'):
        yield _random_ws(G, n, rnd)


def _random_ws(G: Generator, n: int, rnd: torch.Generator) -> torch.Tensor:
    """Latents [n, num_ws, w_dim] of random z, and of random classes if the generator has classes."""
    device = G.synthesis.b4.const.device
    z = torch.randn([n, G.z_dim], generator=rnd).to(device)
    c = torch.zeros([n, G.c_dim])
    if G.c_dim > 0:
        c[torch.arange(n), torch.randint(G.c_dim, [n], generator=rnd)] = 1
    return G.mapping(z, c.to(device), skip_w_avg_update=True).detach()


def _principal_components(G: Generator, rnd: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors [w_dim, w_dim], one a row, and the variances of W along them, from 10,000 latents."""
    variances, columns = torch.linalg.eigh(_random_ws(G, 10_000, rnd)[:, 0].cpu().double().T.cov())
    return columns.T, variances.clamp(min=0)


def _differentiable(G: Generator) -> tuple[Generator, dict[str, torch.Tensor]]:
    """A copy of `G` in eval mode, and its weights that get gradients: those that read each feature map."""
    G = copy.deepcopy(G).eval().requires_grad_(False)
    return G, {name: reader.weight.requires_grad_(True) for name, reader in graph.readers(G).items()}


def _mean_absolute_gradients(distance: torch.Tensor, weights: dict[str, torch.Tensor]) -> Scores:
    """Per feature map, the mean over a channel's weights [out, channel, k, k] of |d distance / d weight|."""
    gradients = torch.autograd.grad(distance, list(weights.values()), retain_graph=True)
    return {name: grad.abs().mean(dim=[0, 2, 3]).cpu() for name, grad in zip(weights, gradients, strict=True)}
