"""Which channels matter: functions from a generator to one score vector per feature map; the higher, the sooner kept.

All of them judge a channel by the weights that read it, see `graph.readers`.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from stylegan2_compress.errors import UserError
from stylegan2_compress.pruning import graph

ContentMask = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class CriterionOptions:
    """What the criteria that look at images need to know.

    The gradient that a score is made of is that of a whole batch, so scores depend on the batch size a little. The
    published runs use 400 samples in batches of 8 for `content-aware`, 5000 in batches of 5 for `diversity`.

    Attributes:
        samples: Number of images.
        batch: Images at a time.
        seed: Seed of everything drawn at random.
        content_mask: From images [N, C, H, W] in [−1, 1] to masks [N, 1, H, W] that are 1 where the content is that
            `content-aware` must preserve and 0 elsewhere; None means everywhere.
    """

    samples: int = 400
    batch: int = 8
    seed: int = 0
    content_mask: ContentMask | None = None


Scores = dict[str, torch.Tensor]
Criterion = Callable[[torch.nn.Module, CriterionOptions], Scores]


def l1(G: torch.nn.Module, options: CriterionOptions) -> Scores:
    """Mean absolute value of the weights that read a channel."""
    return {name: reader.weight.detach().abs().mean(dim=[0, 2, 3]) for name, reader in graph.readers(G).items()}


def l1_styled(G: torch.nn.Module, options: CriterionOptions) -> Scores:
    """Mean absolute value of the weights that read a channel, once modulated: times the mean |style| of 1000 latents.

    Not from a paper. StyleGAN2 convolves with weight · style, and `l1` does not see that a style lets hardly any of a
    channel through.
    """
    ws = _random_ws(G, 1000, torch.Generator().manual_seed(options.seed))[:, 0]
    styles = {name: reader.affine(ws).detach().abs().mean(dim=0) for name, reader in graph.readers(G).items()}
    return {name: magnitude * styles[name] for name, magnitude in l1(G, options).items()}


def random(G: torch.nn.Module, options: CriterionOptions) -> Scores:
    """Uniform draws: the baseline that says what choosing is worth."""
    rnd = torch.Generator().manual_seed(options.seed)
    return {name: torch.rand(width, generator=rnd) for name, width in graph.widths(G).items()}


def content_aware(G: torch.nn.Module, options: CriterionOptions) -> Scores:
    """Content-Aware GAN Compression (CVPR 2021).

    Mean absolute gradient, over the weights that read a channel, of the L1 distance between an image and the same image
    with salt and pepper on 5 % of its content's pixels. Summed over batches.

    Raises:
        UserError: The content mask fails, is not [N, 1, H, W], or is empty on all images.
    """
    G, weights = _differentiable(G)
    rnd = torch.Generator().manual_seed(options.seed)
    scores = {name: torch.zeros(width) for name, width in graph.widths(G).items()}
    some_content = False
    for ws in _sampled_ws(G, options, rnd):
        image = G.synthesis(ws, noise_mode='const', force_fp32=True)
        mask = _content(image.detach(), options.content_mask)
        some_content = some_content or bool(mask.any())
        hit = mask & (torch.rand(mask.shape, generator=rnd) < 0.05).to(mask.device)
        salt_or_pepper = (torch.randint(2, mask.shape, generator=rnd) * 2 - 1).to(image)
        distance = (torch.where(hit, salt_or_pepper, image.detach()) - image).abs().sum()
        for name, gradient in _mean_absolute_gradients(distance, weights).items():
            scores[name] += gradient
    if not some_content:
        raise UserError(f'The content mask is empty on all {options.samples} images: nothing is left to preserve.')
    return scores


def diversity(G: torch.nn.Module, options: CriterionOptions) -> Scores:
    """Diversity-aware channel pruning (CVPR 2024).

    Variance, over ten directions in W, of the mean absolute gradient (over the weights that read a channel) of the L1
    distance between an image and the one a step of length 5 along the direction, which counts as constant. Summed over
    batches, each with its own directions: principal components of W, drawn by the variance they explain. The step is
    as long as in the authors' StyleGAN2 code.
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


def load_content_mask(path: str | Path, device: torch.device | str = 'cpu') -> ContentMask:
    """A content mask from a TorchScript file.

    Raises:
        UserError: There is no such file, or it is not TorchScript.
    """
    if not Path(path).is_file():
        raise UserError(f'There is no content mask file {path}.')
    try:
        return torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise UserError(f'The content mask {path} is not a TorchScript file: write it with torch.jit.save.') from error


def _content(images: torch.Tensor, content_mask: ContentMask | None) -> torch.Tensor:
    shape = [images.shape[0], 1, *images.shape[2:]]
    if content_mask is None:
        return torch.ones(shape, dtype=torch.bool, device=images.device)
    try:
        with torch.no_grad():
            mask = content_mask(images)
    except RuntimeError as error:
        raise UserError(f'The content mask fails on images {list(images.shape)}: {error}') from error
    if list(mask.shape) != shape:
        raise UserError(
            f'The content mask has shape {list(mask.shape)} for images of {list(images.shape)}: not {shape}.'
        )
    return mask > 0.5


def _sampled_ws(G: torch.nn.Module, options: CriterionOptions, rnd: torch.Generator) -> Iterator[torch.Tensor]:
    """Latents [N, num_ws, w_dim] in batches until there are `options.samples`, with a progress bar."""
    sizes = [min(options.batch, options.samples - start) for start in range(0, options.samples, options.batch)]
    for n in tqdm(sizes, desc='Scoring channels', unit='batch', disable=None, leave=False):
        yield _random_ws(G, n, rnd)


def _random_ws(G: torch.nn.Module, n: int, rnd: torch.Generator) -> torch.Tensor:
    """Latents of `n` random z, and of random classes where the generator has any."""
    device = G.synthesis.b4.const.device
    z = torch.randn([n, G.z_dim], generator=rnd).to(device)
    c = torch.zeros([n, G.c_dim])
    if G.c_dim > 0:
        c[torch.arange(n), torch.randint(G.c_dim, [n], generator=rnd)] = 1
    return G.mapping(z, c.to(device), skip_w_avg_update=True).detach()


def _principal_components(G: torch.nn.Module, rnd: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors [w_dim, w_dim], one a row, and the variances of W along them, from 10,000 latents."""
    variances, columns = torch.linalg.eigh(_random_ws(G, 10_000, rnd)[:, 0].cpu().double().T.cov())
    return columns.T, variances.clamp(min=0)


def _differentiable(G: torch.nn.Module) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A copy of `G` in eval mode, and those of its weights that get gradients: the ones that read each feature map."""
    G = copy.deepcopy(G).eval().requires_grad_(False)
    return G, {name: reader.weight.requires_grad_(True) for name, reader in graph.readers(G).items()}


def _mean_absolute_gradients(distance: torch.Tensor, weights: dict[str, torch.Tensor]) -> Scores:
    """Per feature map, the mean over a channel's weights [out, channel, k, k] of |d distance / d weight|."""
    gradients = torch.autograd.grad(distance, list(weights.values()), retain_graph=True)
    return {name: grad.abs().mean(dim=[0, 2, 3]).cpu() for name, grad in zip(weights, gradients, strict=True)}
