"""`generate`: images of one network, or of several for the same z, as a grid, a directory or a film."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from training.networks import Generator

from stylegan2_compress import files, images
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation.generators import open_generator, require_same_latents, resolve
from stylegan2_compress.evaluation.samples import required_to_be_finite
from stylegan2_compress.export import exported
from stylegan2_compress.generation import films
from stylegan2_compress.generation.options import FILMS, IMAGE, GenerateOptions, image_path
from stylegan2_compress.host import devices
from stylegan2_compress.host.networks import require_average_of_w, require_finite
from stylegan2_compress.host.progress_bars import progress_bar

FRAMES = 25  # From one seed to the next.


def generate(networks: Sequence[str], options: GenerateOptions, force: bool = False, trust: bool = False) -> str:
    """Write images of generators (G_ema). A seed has the z, and the pixels, that it has in the host's generate.py.

    Args:
        networks: network files, names, URLs, run directories, whose last snapshots count, and directories that `export`
            wrote; several of `options.compare` only.
        options: what is written where.
        force: replace files that exist.
        trust: run unknown code that the files contain.

    Returns:
        A sentence on what was written.

    Raises:
        UserError: something cannot be shown or written. Then nothing is there that was not there before.
    """
    options.check_networks(networks)
    device = devices.choose(options.device)
    check_destination(networks, options, force)
    generators = open_all([resolve(network) for network in networks], options, trust)
    z, c = latents(*next(iter(generators.items())), options)
    with contextlib.ExitStack() as stack:
        for file, G in generators.items():
            stack.enter_context(required_to_be_finite(file, G.to(device)))
        stack.enter_context(devices.fitting_batch(options.images_at_a_time, device))
        if options.is_film:
            return write_film(generators, z, c, options)
        if options.is_grid:
            return write_picture(generators, z, c, options)
        return write_directory(generators, z, c, options)


# --- Before anything is written ---------------------------------------------------------------------------------------


def check_destination(networks: Sequence[str], options: GenerateOptions, force: bool) -> None:
    """Check that all files can be written, and that none of them exists unless `force` is given.

    Raises:
        UserError: otherwise.
    """
    if options.is_film or options.is_grid:
        file, endings = options.destination, FILMS if options.is_film else (IMAGE,)
        files.check_output(file, force, endings, inputs=networks)
        return
    files.require_writable_directory('--out', options.destination)
    for seed in options.seed_list:
        path = image_path(options.destination, seed)
        if os.path.exists(path):
            files.check_output(path, force, (IMAGE,), inputs=networks)
        else:
            files.expect_nothing_at(path)


def open_all(names: Sequence[str], options: GenerateOptions, trust: bool) -> dict[str, Any]:
    """Generators that go with the options and with each other, by their files.

    Raises:
        UserError: one does not.
    """
    generators: dict[str, Any] = {}
    for file in names:
        if file in generators:
            raise UserError(f'{file} is named twice: give another network to compare with.')
        G = generators[file] = open_generator(file, trust)
        require_same_latents(file, G, names[0], generators[names[0]], 'no z is for both')
        require_finite(file, G)
        require_average_of_w('--trunc', file, G, options.trunc)
        if isinstance(G, exported.Exported) and options.noise not in (None, G.noise):
            raise UserError(
                f'--noise={options.noise}: {file} is an export, which has its noise built in, {G.noise}: leave it out.'
            )
    return generators


def latents(file: str, G: Generator, options: GenerateOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """z [N, z_dim] of the seeds, as in the host's generate.py, and labels [N, c_dim].

    Raises:
        UserError: there is no class for a generator with labels, or one that it does not have.
    """
    seeds, classes = options.seed_list, options.class_list
    if not G.c_dim and classes is not None:
        raise UserError(f'--class={options.class_}: {file} has no labels, so leave it out.')
    if G.c_dim and (classes is None or max(classes) >= G.c_dim):
        last = G.c_dim - 1
        given = ' is missing' if classes is None else f'={options.class_}'
        raise UserError(
            f'--class{given}: {file} has {G.c_dim} classes, 0 to {last}; give one, or several that take turns, '
            f'such as --class=0-{last}.'
        )
    z = np.concatenate([np.random.RandomState(seed).randn(1, G.z_dim) for seed in seeds])
    c = torch.zeros([len(seeds), G.c_dim])
    if classes is not None:
        c[torch.arange(len(seeds)), torch.tensor(classes)[torch.arange(len(seeds)) % len(classes)]] = 1
    return torch.from_numpy(z).float(), c


# --- Images -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def pictures(G: Generator, z: torch.Tensor, c: torch.Tensor, options: GenerateOptions) -> Iterator[np.ndarray]:
    """Images [C, H, W] as uint8, one after the other. Random noise is that of the seed.

    The global random state is neither used nor changed.
    """
    device = next(G.buffers()).device
    kwargs = dict(truncation_psi=options.trunc, noise_mode=options.noise_mode, **devices.precision(device))
    size = options.images_at_a_time
    batches = zip(z.split(size), c.split(size), options.seed_list[::size], strict=True)
    with progress_bar(total=len(z), unit='image') as bar:
        for some_z, some_c, seed in batches:
            with devices.seeded(seed, device):
                batch = G(some_z.to(device), some_c.to(device), **kwargs)
            bar.update(len(batch))
            yield from images.to_uint8_as_the_host(batch)


def picture(image: np.ndarray) -> PIL.Image.Image:
    """An image [C, H, W] of 1 or 3 channels."""
    return images.grid(image[None], columns=1)


def write_directory(generators: dict, z: torch.Tensor, c: torch.Tensor, options: GenerateOptions) -> str:
    """A file for each seed; all of them appear when the last is made."""
    (G,) = generators.values()
    with files.collected(options.destination) as directory:
        for seed, image in zip(options.seed_list, pictures(G, z, c, options), strict=True):
            picture(image).save(image_path(os.fspath(directory), seed))
    return f'{options.destination}: {_counted(len(z))}'


def write_picture(generators: dict, z: torch.Tensor, c: torch.Tensor, options: GenerateOptions) -> str:
    """One grid, or a row for each generator."""
    grids = {}
    for file, G in generators.items():
        made = list(pictures(G, z, c, options))
        made += [np.full_like(made[0], 255)] * (-len(made) % options.columns)
        grids[file] = images.grid(np.stack(made), options.columns)
    sheet = below_each_other(grids) if options.compare else next(iter(grids.values()))
    with files.atomic_write(options.destination) as file:
        sheet.save(file, format='png')
    of_each = f' of each of {len(grids)} networks' if options.compare else ''
    return f'{options.destination}: {_counted(len(z))}{of_each}'


def _counted(number: int) -> str:
    return f'{number} image' if number == 1 else f'{number} images'


def write_film(generators: dict, z: torch.Tensor, c: torch.Tensor, options: GenerateOptions) -> str:
    """A walk; of several generators, the same one."""
    count = FRAMES if options.frames is None else options.frames
    walks = [walk(G, z, c, count, options) for G in generators.values()]
    frames = (
        below_each_other(dict(zip(generators, made, strict=True))) if options.compare else made[0]
        for made in zip(*walks, strict=True)
    )
    with progress_bar(frames, total=len(z) * count, unit='frame') as shown:
        films.write(options.destination, shown)
    return f'{options.destination}: {len(z) * count} frames, {len(z) * count / films.FRAMES_PER_SECOND:g} seconds'


@torch.no_grad()
def walk(
    G: Generator, z: torch.Tensor, c: torch.Tensor, count: int, options: GenerateOptions
) -> Iterator[PIL.Image.Image]:
    """Images on a smooth closed curve in W through those of z [N, z_dim], `count` for each z."""
    device = next(G.buffers()).device
    places = G.mapping(z.to(device), c.to(device), truncation_psi=options.trunc)
    for ws in films.closed_curve(places.cpu().double().numpy(), count, options.images_at_a_time):
        with devices.seeded(options.seed_list[0], device):  # Random noise stands still.
            ws = torch.from_numpy(ws).float().to(device)
            batch = G.synthesis(ws, noise_mode=options.noise_mode, **devices.precision(device))
        yield from map(picture, images.to_uint8_as_the_host(batch))


def below_each_other(panels: dict[str, PIL.Image.Image]) -> PIL.Image.Image:
    """Pictures below their names, those of a lower resolution enlarged."""
    width = max(panel.width for panel in panels.values())
    scaled = [
        (name, panel.resize((width, panel.height * width // panel.width), PIL.Image.Resampling.NEAREST))
        for name, panel in panels.items()
    ]
    return images.stacked(scaled)
