"""The data set of a network file, `training_set_kwargs`: the name of a class, and the arguments to call it with.

A name says which code runs: without `--data`, the host's calc_metrics.py calls whatever has it, `torch.hub.load` for
one. So only names of data sets stay.
"""

import sys
from typing import Any

from training.dataset import Dataset

from stylegan2_compress.host.datasets import TEACHERS_IMAGES


def foreign_class(training_set_kwargs: dict[Any, Any] | None) -> str | None:
    """What a file names as the class of its data set, if it is neither the host's, nor ours, nor an imported one."""
    name = (training_set_kwargs or {}).get('class_name')
    if not isinstance(name, str) or name == TEACHERS_IMAGES:  # The host calls only what has a name.
        return None
    module, _dot, attribute = name.rpartition('.')
    found = vars(sys.modules[module]).get(attribute) if module in sys.modules else None
    return None if isinstance(found, type) and issubclass(found, Dataset) else name


def without_class(training_set_kwargs: dict[Any, Any]) -> dict[Any, Any]:
    """The other arguments, in a dictionary of the same type."""
    others = [(name, value) for name, value in training_set_kwargs.items() if name != 'class_name']
    return type(training_set_kwargs)(others)
