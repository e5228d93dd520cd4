"""Mask rules over the length of a search: what happens to masks between steps, and what the objective gains."""

import torch

from stylegan2_compress.networks.masked import ScoreMasked, largest, set_global_threshold

UNTIL = 0.9  # Of a search: when rules that mask in steps have come to their last one; the rest is for what is left.


class EdgePopup:
    """Top k by score in each layer, from the first step on (Ramanujan et al., CVPR 2020).

    Attributes:
        scheduled: whether masks depend on how long the search is going to be.
    """

    scheduled = False

    def advance(self, parts: list[ScoreMasked], progress: float) -> None:
        """Called without gradient before each step.

        Args:
            parts: the masked modules of one generator.
            progress: share of the search that is over, in [0, 1].
        """

    def penalty(self, parts: list[ScoreMasked]) -> torch.Tensor | None:
        """What is added to the objective."""


class GlobalEdgePopup(EdgePopup):
    """Top k by score over all layers."""

    def advance(self, parts, progress):
        set_global_threshold(parts)


class GemMiner(EdgePopup):
    """Scores in [0, 1], rounded; in steps, the lowest of all layers are frozen to zero (Sreenivasan et al., 2022).

    The j-th of J steps leaves the fraction k^(j/J) of the weights, the last one k. What is left and rounds to one
    counts: at most k of the weights.
    """

    scheduled = True
    steps = 50
    weight = 5e-7  # Of the sum of squared scores in the objective.

    def advance(self, parts, progress):
        for part in parts:
            for name in part.names:
                part.tensor(name, '_scores').clamp_(0, 1)
        leave_alive(parts, lambda part, name: part.tensor(name, '_scores'), fraction_left(parts, progress, self.steps))

    def penalty(self, parts):
        squares = [part.tensor(name, '_scores').square().sum() for part in parts for name in part.names]
        return self.weight * torch.stack(squares).sum()


class IterativeMagnitude(EdgePopup):
    """The baseline: train weights; in rounds, drop the smallest of all layers and rewind the others to the start.

    Magnitudes are compared as the host's equalised learning rate makes them comparable, in units of a layer's initial
    standard deviation.
    """

    scheduled = True
    rounds = 10

    def advance(self, parts, progress):
        def magnitude(part, name):
            layer = part.dense.get_submodule(name.rpartition('.')[0])
            return part.tensor(name).abs() * getattr(layer, 'bias_gain', 1)  # The learning rate's multiplier.

        if leave_alive(parts, magnitude, fraction_left(parts, progress, self.rounds)):
            for part in parts:
                for name in part.names:
                    part.tensor(name).copy_(part.tensor(name, '_start'))


RULES = {
    'edge-popup': EdgePopup(),
    'global-edge-popup': GlobalEdgePopup(),
    'gem-miner': GemMiner(),
    'imp': IterativeMagnitude(),
}


def fraction_left(parts: list[ScoreMasked], progress: float, steps: int) -> float:
    """k^(j/J) after j of J equal steps, of which the last one comes at `UNTIL`."""
    done = int(steps * min(progress / UNTIL, 1) + 1e-9)
    return parts[0].keep ** (done / steps)


def leave_alive(parts: list[ScoreMasked], value, fraction: float) -> bool:
    """Let only a fraction of all weights, exactly round(fraction n), stay alive: those with the largest values.

    Returns whether that changed anything.
    """
    alive = [part.tensor(name, '_alive') for part in parts for name in part.names]
    count = round(fraction * sum(mask.numel() for mask in alive))
    if int(sum(mask.sum() for mask in alive)) <= count:
        return False
    values = torch.cat([value(part, name).flatten() for part in parts for name in part.names])
    flat = torch.cat([mask.flatten() for mask in alive])
    left = largest(values.masked_fill(~flat, -1), count)
    for mask, mine in zip(alive, left.split([mask.numel() for mask in alive]), strict=True):
        mask.copy_(mine.reshape(mask.shape))
    return True
