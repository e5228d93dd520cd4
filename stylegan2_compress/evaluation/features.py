"""Features of the images of a data set (cached) and of generators."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import dnnlib
import numpy as np
import torch
from training.networks import Generator

from stylegan2_compress import caches, files
from stylegan2_compress.embeddings import Embedding
from stylegan2_compress.evaluation import samples
from stylegan2_compress.host import datasets
from stylegan2_compress.host.progress_bars import progress_bar

CACHE = 'features'  # The directory in our cache.


@torch.no_grad()
def embed(
    embedding: Embedding, images: Iterable[torch.Tensor], device: torch.device, count: int, label: str
) -> np.ndarray:
    """Features of batches of images, with a progress bar.

    Args:
        embedding: on the device.
        images: batches [N, C, H, W] in [-1, 1].
        device: where to compute.
        count: number of images.
        label: of the progress bar.

    Returns:
        [count, dim] float32.
    """
    features = []
    with progress_bar(total=count, desc=label, unit='img') as bar:
        for batch in images:
            features.append(embedding(batch.to(device)).float().cpu().numpy())
            bar.update(len(batch))
    return np.concatenate(features)


def data_features(embedding: Embedding, training_set_kwargs: dict, device: torch.device) -> np.ndarray:
    """Features [N, dim] of all images of a data set, without mirrored ones; cached by the data's fingerprint."""
    key = json.dumps(
        {
            'data': datasets.fingerprint(training_set_kwargs['path']),
            'resolution': training_set_kwargs['resolution'],
            'embedding': embedding.spec,
            'fingerprint': embedding.fingerprint,
            'library': embedding.library,
        }
    )
    name = f'{hashlib.sha256(key.encode()).hexdigest()}.npz'
    result = _read(caches.cache_dir(CACHE, name), key)
    if result is None:
        training_set = dnnlib.util.construct_class_by_name(
            **{**training_set_kwargs, 'max_size': None, 'xflip': False, 'use_labels': False}
        )
        result = embed(embedding, samples.reals(training_set), device, len(training_set), 'data features')
        caches.try_to_cache(CACHE, name, lambda path: _write(path, key, result))
    return result


def _write(path: Path, key: str, features: np.ndarray) -> None:
    with files.atomic_write(path) as file:
        np.savez(file, key=key, features=features)


def _read(path: Path, key: str) -> np.ndarray | None:
    """Features in the file `path`, or None if it is missing, damaged or of something else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return file['features'] if str(file['key']) == key else None
    except files.DAMAGED_NPZ:
        return None


def generator_features(
    embedding: Embedding, G: Generator, labels: torch.Tensor, seed: int, device: torch.device
) -> np.ndarray:
    """Features [count, dim] of a generator's images, one for each of the labels [count, c_dim]."""
    images = samples.fakes(G, samples.latents(G, len(labels), seed), labels, noise_seed=seed)
    return embed(embedding, images, device, len(labels), 'generator features')
