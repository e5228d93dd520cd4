"""What commands share: options that several have, and the way to the function that does the work."""

import importlib
from collections.abc import Callable

import click

NETWORK_FILES = ('.pkl', '.safetensors', '.pt', '.pth')  # What `pickles.save` writes, by the ending of the name.

host_option = click.option('--host', 'host_dir', metavar='DIR', help='Checkout of stylegan2-ada-pytorch.')
force_option = click.option('--force', is_flag=True, help='Replace the file to write if it exists.')
json_option = click.option('--json', 'as_json', is_flag=True, help='As JSON, for machines.')
trust_option = click.option('--trust', is_flag=True, help='Run unknown code that the files contain.')


def load(function: str, host_dir: str | None = None) -> Callable:
    """The function that does a command's work, such as 'compression.distill:distill', with the host active.

    Raises:
        UserError: there is no host, see `host.activate`.
    """
    load_light('host:activate')(host_dir)
    return load_light(function)


def load_light(function: str) -> Callable:
    """A function of this package that needs no host yet.

    Modules are imported here and not at the top of a command's file, since most of them import torch and the host.
    """
    module, _colon, name = function.partition(':')
    return getattr(importlib.import_module(f'stylegan2_compress.{module}'), name)
