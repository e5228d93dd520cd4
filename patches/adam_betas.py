"""Optimizers get floats for their betas."""

import functools

import dnnlib
import torch

WHAT = 'dnnlib.util.construct_class_by_name: betas=[0, 0.99] reaches the optimizer as floats'
WHY = (
    'The host writes its first beta as the integer 0, and passes it on as it is where lazy regularization is off; '
    "torch's Adam refuses: betas must be either both floats or both Tensors."
)
VERSIONS = 'recent torch releases; seen with 2.13, not with 2.4'


def needed() -> bool:
    """Whether torch's Adam, made as the host makes it, refuses an integer beside a float."""
    try:
        dnnlib.util.construct_class_by_name([torch.zeros([1])], class_name='torch.optim.Adam', betas=[0, 0.99])
    except ValueError:
        return True
    return False


def apply() -> None:
    """Mend it where every optimizer, in whichever training loop, is made."""
    construct = dnnlib.util.construct_class_by_name

    @functools.wraps(construct)
    def construct_class_by_name(*args, class_name: str | None = None, **kwargs) -> object:
        if 'betas' in kwargs:
            kwargs['betas'] = [float(beta) if isinstance(beta, int) else beta for beta in kwargs['betas']]
        return construct(*args, class_name=class_name, **kwargs)

    dnnlib.util.construct_class_by_name = construct_class_by_name
