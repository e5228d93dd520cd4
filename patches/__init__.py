"""Everything that changes the host: one module per run-time repair, and `train.patch`.

A repair is a module with three sentences (`WHAT` it does, `WHY` the host needs it, in which `VERSIONS`) and two
functions: `needed()` tries whether the host fails here, `apply()` mends it in this process. A new one is a file here
and its name in `REPAIRS`. They import the host, so `apply_needed` imports them, when it is on `sys.path`.
"""

import importlib
from types import ModuleType

REPAIRS = (
    'infinite_sampler',
    'zip_per_process',
    'adam_betas',
    'conv2d_gradfix',
    'grid_sample_gradfix',
    'plugin_import',
    'cuda_plugins',
    'ddp_buffers',
    'upfirdn2d_on_cpu',
    'modulated_conv_on_cpu',
    'bias_act_on_cpu',
    'conv_layers_on_cpu',
    'metrics_on_cpu',
    'distances_on_cpu',
    'statistics_in_single_precision',
    'ppl_in_fp32',
    'percentile',
    'sqrtm',
)

_applied: dict[str, ModuleType] = {}


class With:
    """A module in which some names mean something else, for the one module of the host that is given it."""

    def __init__(self, module: object, **others: object):
        self._module = module
        vars(self).update(others)

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)


def apply_needed() -> list[ModuleType]:
    """Apply the repairs that the host needs here and has not had yet; return all that are in force."""
    for name in REPAIRS:
        if name not in _applied:
            repair = importlib.import_module(f'{__name__}.{name}')
            if repair.needed():
                repair.apply()
                _applied[name] = repair
    return list(_applied.values())
