"""stylegan2-compress: compress StyleGAN2 generators inside NVIDIA's stylegan2-ada-pytorch ("the host").

The names below are what `--loss=stylegan2_compress.NAME`, `G_kwargs` and `D_kwargs` accept, and what Python code starts
from (`pickles`, `distill`, `find_ticket`). They are resolved on first use, because the modules behind them import the
host, which has to be found and repaired first. Names of losses that are joined by `+` are a loss with the methods of
all: `--loss=stylegan2_compress.NICKELLoss+ImageDistillationLoss`.
"""

import importlib
import sys

from stylegan2_compress.version import __version__ as __version__

_HOME = {
    'AdversarialLoss': 'stylegan2_compress.losses.adversarial',
    'DiMELoss': 'stylegan2_compress.losses.dime',
    'DistanceLoss': 'stylegan2_compress.losses.dime',
    'DualDiscriminator': 'stylegan2_compress.networks.dual',
    'GCCLoss': 'stylegan2_compress.losses.gcc',
    'ITGCLoss': 'stylegan2_compress.losses.itgc',
    'ImageDistillationLoss': 'stylegan2_compress.losses.images',
    'MomentMatchingLoss': 'stylegan2_compress.losses.moment_matching',
    'NICKELLoss': 'stylegan2_compress.losses.nickel',
    'NickelDimeLoss': 'stylegan2_compress.losses.nickel',
    'PrunedGenerator': 'stylegan2_compress.networks.pruned',
    'RegressionLoss': 'stylegan2_compress.losses.images',
    'ScoreMaskedGenerator': 'stylegan2_compress.networks.masked',
    'StyleKDLoss': 'stylegan2_compress.losses.stylekd',
    'TeacherDataset': 'stylegan2_compress.distributions.teacher_dataset',
    'distill': 'stylegan2_compress.compression.distill',
    'extend_train': 'stylegan2_compress.compression.train_py',
    'find_ticket': 'stylegan2_compress.compression.find_ticket',
    'pickles': 'stylegan2_compress',  # A module.
}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]  # One list of names is enough.

# Checkouts that an earlier version patched call `stylegan2_compress.options.extend_train`.
options = sys.modules[f'{__name__}.options'] = sys.modules[__name__]


def __getattr__(name: str):
    parts = name.split('+')  # NICKELLoss+ImageDistillationLoss has the methods of both.
    for part in parts:
        if part not in _HOME:
            raise AttributeError(f'module {__name__!r} has no attribute {part!r}')
        if parts.count(part) > 1:
            raise AttributeError(f'{name} names {part} more than once')
    # Only here, so that importing the package costs nothing.
    from stylegan2_compress import host

    host.activate()
    if _HOME[parts[0]] == __name__:
        return importlib.import_module(f'{__name__}.{name}')
    found = [getattr(importlib.import_module(_HOME[part]), part) for part in parts]
    if len(found) == 1:
        return found[0]
    from stylegan2_compress.losses.method_loss import combined  # Imports the host, too.

    return combined(name, found, with_discriminator=__getattr__('AdversarialLoss'))


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
