"""The contents of network pickles, as the host writes them and with less."""

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from training.networks import Discriminator, Generator

from stylegan2_compress.host import datasets
from stylegan2_compress.host.networks import PLACEHOLDER


def network_snapshot(networks: dict, training_set_kwargs: dict) -> dict:
    """The contents of a network pickle: modules on the CPU, in eval mode, without gradients.

    Args:
        networks: G, D, G_ema and augment_pipe, copied. For a D that is None, the pickle has a placeholder.
        training_set_kwargs: of the host's dataset.
    """
    # The host's calc_metrics.py takes them for those of a data set that it can read.
    data: dict[str, Any] = {
        'training_set_kwargs': None if datasets.is_teachers(training_set_kwargs) else dict(training_set_kwargs)
    }
    for name, module in networks.items():
        data[name] = module and copy.deepcopy(module).eval().requires_grad_(False).cpu()
    if data['D'] is None:
        data['D'] = placeholder_discriminator(data['G'])
    return data


def generator_alone(data: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of a network pickle without what makes no images: G is G_ema, D a placeholder, and no augmentation.

    The host opens it, in a third of the size or less. It cannot be trained on: that takes the discriminator.

    Args:
        data: the contents of a network pickle, which the result shares G_ema with.
    """
    G_ema = data['G_ema']
    kept = dict(training_set_kwargs=data.get('training_set_kwargs'))
    return dict(kept, G=G_ema, D=placeholder_discriminator(G_ema), G_ema=G_ema, augment_pipe=None)


def with_three_networks(data: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of a network pickle that are enough to train without a discriminator.

    Args:
        data: the contents, whose G_ema stands for a G that is missing, and a placeholder for a D.
    """
    G_ema = data['G_ema']
    G = G_ema if data['G'] is None else data['G']
    return dict(data, G=G, D=placeholder_discriminator(G_ema) if data['D'] is None else data['D'])


def placeholder_discriminator(G: Generator) -> Discriminator:
    """The smallest discriminator for G's images, untrained: the host's loader refuses pickles without one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        D = Discriminator(
            c_dim=G.c_dim, img_resolution=G.img_resolution, img_channels=G.img_channels, **copy.deepcopy(PLACEHOLDER)
        )
    return D.eval().requires_grad_(False)


def space_for(snapshot_pkl: Path, to_come: int) -> str:
    """A line on how much space so many more snapshots of a size will take, and how much there is."""
    size, free = snapshot_pkl.stat().st_size, shutil.disk_usage(snapshot_pkl.parent).free
    line = f'A snapshot has {_readable(size)}; {to_come} more will take {_readable(size * to_come)}, and '
    if size * to_come < free:
        return f'{line}{_readable(free)} are free.'
    return f'{line}only {_readable(free)} are free: more ticks between them (--snap) take less.'


def _readable(nbytes: int) -> str:
    return f'{nbytes / 1e9:.1f} GB' if nbytes >= 1e9 else f'{nbytes / 1e6:.1f} MB'
