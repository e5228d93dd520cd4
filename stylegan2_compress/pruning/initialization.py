"""Initialisations of a pruned generator's weights before it is trained."""

from collections.abc import Callable

import torch
from training.networks import Generator

Initialization = Callable[[Generator], None]


def svs(G: Generator) -> None:
    """Singular value scaling (AAAI 2025), in place: reduces the dominance of a few singular vectors after pruning.

    The singular values of every weight of the synthesis network (convolutions, style affines, toRGB), as a matrix
    [out, rest], are replaced by their square roots; every bias b becomes b / √‖b‖ unless it is zero. The constant
    input, noise strengths and the mapping network do not change. The images do: the generator has to be trained again.
    """
    with torch.no_grad():
        for name, parameter in G.synthesis.named_parameters():
            kind = name.rpartition('.')[2]
            if kind == 'weight':
                U, S, Vh = torch.linalg.svd(parameter.flatten(start_dim=1), full_matrices=False)
                parameter.copy_((U @ (S.sqrt()[:, None] * Vh)).reshape(parameter.shape))
            elif kind == 'bias' and parameter.any():
                parameter.div_(parameter.norm().sqrt())


INITIALIZATIONS: dict[str, Initialization] = {
    'none': lambda G: None,
    'svs': svs,
}
