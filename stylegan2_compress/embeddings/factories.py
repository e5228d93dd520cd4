"""Networks built by code: `hub:REPO:ENTRY` and `module:pkg.mod:factory`."""

import importlib
import importlib.util
import os

import torch
from torch import nn

from stylegan2_compress.embeddings.preprocessing import LIKELY, Preprocessing
from stylegan2_compress.embeddings.specs import Spec
from stylegan2_compress.errors import UserError


def load_hub(spec: Spec, device: torch.device) -> tuple[nn.Module, Preprocessing]:
    """Load `hub:REPO:ENTRY`: a torch.hub repository on GitHub, `owner/name[:branch]`, or in a directory.

    The repository's code runs without confirmation: naming it in a spec is taken as trust.
    """
    repo, _, entry = spec.rest.rpartition(':')
    local = os.path.isdir(repo)
    try:
        source = 'local' if local else 'github'
        network = torch.hub.load(repo, entry, source=source, trust_repo=True)  # pyright: ignore[reportArgumentType]  # Documented.
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        where = f'directory {repo!r}' if local else f'https://github.com/{repo.partition(":")[0]}'
        raise UserError(
            f'Embedding {spec} cannot be loaded from {where} ({error}): check the entry point; without internet '
            'access, clone the repository elsewhere and use hub:DIRECTORY:ENTRY.'
        ) from error
    return _network(spec, network), LIKELY


def check_hub(spec: Spec) -> None:
    """Refuse a `hub:` spec without an entry point."""
    repo, _, entry = spec.rest.rpartition(':')
    if not entry or not (os.path.isdir(repo) or '/' in repo):
        raise UserError(f'Embedding {spec} names no repository and entry point: write hub:owner/name:ENTRY.')


def load_module(spec: Spec, device: torch.device) -> tuple[nn.Module, Preprocessing]:
    """Load `module:pkg.mod:factory`: call `factory()` of an importable module."""
    module, _, factory = spec.rest.partition(':')
    build = getattr(importlib.import_module(module), factory, None)
    if not callable(build):
        raise UserError(f'Embedding {spec} cannot be loaded: module {module!r} has no function {factory!r}.')
    return _network(spec, build()), LIKELY


def check_module(spec: Spec) -> None:
    """Refuse a `module:` spec whose module does not exist."""
    module, _, factory = spec.rest.partition(':')
    if not factory:
        raise UserError(f'Embedding {spec} names no factory: write module:package.module:function.')
    try:
        exists = importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        exists = False
    if not exists:
        raise UserError(f'Embedding {spec} cannot be loaded: there is no module {module!r} on the Python path.')


def _network(spec: Spec, network: object) -> nn.Module:
    if not isinstance(network, nn.Module):
        raise UserError(
            f'Embedding {spec} built a {type(network).__name__}: its function has to return a torch.nn.Module.'
        )
    return network
