"""Objects by their importable names, as the host's class-name registry finds them."""

import importlib

from stylegan2_compress.errors import UserError


def import_named(name: str, option: str, kind: str, existing: str):
    """The object of an importable dotted name, or a sentence that says which exist."""
    module_name, _dot, attribute = name.rpartition('.')
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f'{option}={name} cannot be imported as {kind} ({error}); there are {existing}.') from error
