"""What may be done to a pruned generator's weights before it is trained again."""

from collections.abc import Callable

import torch


def svs(G: torch.nn.Module) -> None:
    """Singular value scaling (AAAI 2025), in place: pruning leaves a few singular vectors dominant; this levels them.

    Every weight of the synthesis network (convolutions, style affines, toRGB), as a matrix [out, rest], gets the square
    roots of its singular values; every bias b becomes b / √‖b‖, a zero one stays zero. The constant input, noise
    strengths and the mapping network are left as they are. The image changes: this is a start for training, nothing to
    look at.
    """
    with torch.no_grad():
        for name, parameter in G.synthesis.named_parameters():
            kind = name.rpartition('.')[2]
            if kind == 'weight':
                U, S, Vh = torch.linalg.svd(parameter.flatten(start_dim=1), full_matrices=False)
                parameter.copy_((U @ (S.sqrt()[:, None] * Vh)).reshape(parameter.shape))
            elif kind == 'bias' and parameter.any():
                parameter.div_(parameter.norm().sqrt())


INITIALIZATIONS: dict[str, Callable[[torch.nn.Module], None]] = {
    'none': lambda G: None,
    'svs': svs,
}
