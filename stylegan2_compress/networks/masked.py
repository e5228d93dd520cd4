"""Strong lottery tickets: networks whose weights never change, and scores that say which weights count.

The weights are buffers, so the host's training loops, which step every parameter, train scores only. In the forward
pass each masked weight is multiplied by its mask, which a rule derives from the scores (SLT, arXiv 2212.08311).

This file's text travels inside every pickle it makes (`torch_utils.persistence`) and runs where only the host is
installed. It therefore imports nothing but the host, torch, NumPy and the standard library, and annotations that
Python 3.8 cannot evaluate are quoted.
"""

import fnmatch
import hashlib
import math

import dnnlib
import numpy as np
import torch
from torch_utils import persistence
from torch_utils.ops import bias_act
from training import networks

# --- Random numbers that are the same everywhere --------------------------------------------------------------------


def stream(seed: int, name: str) -> np.random.Philox:
    """Philox-4x64-10 with the key (seed, first 8 bytes of SHA-256(name)), which NumPy specifies.

    Use only its `random_raw`: NumPy may change how it samples distributions.
    """
    word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], 'little')
    return np.random.Philox(key=np.array([seed, word], np.uint64))


def random_signs(rnd: np.random.Philox, count: int) -> np.ndarray:
    """Bits of the raw words, lowest first, as float32 of -1 and 1: [count]."""
    words = rnd.random_raw(-(-count // 64)).astype('<u8')
    bits = np.unpackbits(words.view(np.uint8), bitorder='little')[:count]
    return bits.astype(np.float32) * 2 - 1


def random_uniforms(rnd: np.random.Philox, count: int) -> np.ndarray:
    """The upper 24 bits of each raw word as a float32 in [0, 1): [count], exact."""
    return (rnd.random_raw(count) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


# Acklam's rational approximation of the normal distribution's quantiles; relative error 1.2e-9, below float32's.
_CENTRE = (
    (-3.969683028665376e1, 2.209460984245205e2, -2.759285104469687e2, 1.383577518672690e2, -3.066479806614716e1,
     2.506628277459239),
    (-5.447609879822406e1, 1.615858368580409e2, -1.556989798598866e2, 6.680131188771972e1, -1.328068155288572e1, 1.0),
)  # fmt: skip
_TAIL = (
    (-7.784894002430293e-3, -3.223964580411365e-1, -2.400758277161838, -2.549732539343734, 4.374664141464968,
     2.938163982698783),
    (7.784695709041462e-3, 3.224671290700398e-1, 2.445134137142996, 3.754408661907416, 1.0),
)  # fmt: skip


def random_normals(rnd: np.random.Philox, count: int) -> np.ndarray:
    """Standard normal numbers by inversion, one raw word each, as float32: [count].

    Uses only float64 operations that IEEE 754 rounds correctly (+, -, *, /, square root), one at a time. The last bit
    of a library's logarithm differs between libraries.
    """
    p = ((rnd.random_raw(count) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52  # (0, 1), symmetric about 1/2
    centred = p - 0.5
    square = centred * centred
    normals = _horner(_CENTRE[0], square) * centred / _horner(_CENTRE[1], square)
    tail = np.abs(centred) > 0.5 - 0.02425
    distance = np.sqrt(-2 * _log(0.5 - np.abs(centred[tail])))
    normals[tail] = -np.sign(centred[tail]) * _horner(_TAIL[0], distance) / _horner(_TAIL[1], distance)
    return normals.astype(np.float32)


def _horner(coefficients, x: np.ndarray) -> np.ndarray:
    total = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total


def _log(x: np.ndarray) -> np.ndarray:
    """log(m 2^e) = 2 artanh((m - 1) / (m + 1)) + e log 2, by artanh's series."""
    mantissa, exponent = np.frexp(x)  # [1/2, 1): the series' argument is at most 1/3
    ratio = (mantissa - 1) / (mantissa + 1)
    square = ratio * ratio
    series = _horner([1.0 / (2 * i + 1) for i in range(18, -1, -1)], square)
    return 2 * ratio * series + exponent * 0.6931471805599453


# --- Initialisations under the host's equalised learning rate --------------------------------------------------------


def fan_in(shape) -> int:
    """Inputs of one output: the product of all sizes but the first."""
    return max(int(np.prod(shape[1:])), 1)


def kaiming_scale(layer: torch.nn.Module, fan: float) -> np.float32:
    """Standard deviation of a stored weight that the layer's run-time factors turn into gain / √fan.

    gain is √2 before a rectifier and 1 elsewhere (He et al. 2015). At run time the host's layers multiply their weight
    by `weight_gain` and their activation by its own gain, √2 for lrelu; a convolution that demodulates takes any
    constant.
    """
    activation = getattr(layer, 'activation', 'linear')
    run_time = getattr(layer, 'weight_gain', 1.0) * bias_act.activation_funcs[activation].def_gain
    return np.float32((1.0 if activation == 'linear' else np.sqrt(2)) / np.sqrt(fan) / run_time)


def signed_constant(rnd: np.random.Philox, count: int, layer: torch.nn.Module, fan: float) -> np.ndarray:
    """± `kaiming_scale`: [count]."""
    return random_signs(rnd, count) * kaiming_scale(layer, fan)


def kaiming_normal(rnd: np.random.Philox, count: int, layer: torch.nn.Module, fan: float) -> np.ndarray:
    """N(0, `kaiming_scale`²): [count]. Where all inputs count, that is the host's initialisation."""
    return random_normals(rnd, count) * kaiming_scale(layer, fan)


# By name: weights [count] from (bits, count, layer, fan-in).
WEIGHT_INITS = {'signed-constant': signed_constant, 'kaiming-normal': kaiming_normal}

# By name: scores [count] from (bits, count, fan-in). Only magnitudes count, so of the symmetric distributions U(-b, b)
# the half above zero is sampled; where signs count too, weights start as they were drawn.
SCORE_INITS = {
    'kaiming-uniform': lambda rnd, count, fan: random_uniforms(rnd, count) / np.float32(np.sqrt(fan)),  # a = √5
    'uniform': lambda rnd, count, fan: random_uniforms(rnd, count) * np.float32(0.1),
    'unit': lambda rnd, count, fan: random_uniforms(rnd, count),  # U(0, 1), for gem-miner
}


# --- Masked modules -------------------------------------------------------------------------------------------------


class StraightThrough(torch.autograd.Function):
    """weight · mask forwards; backwards as if it were weight · score, for kept and dropped weights alike.

    Of signed rules, the mask is -1 where the score is negative.
    """

    @staticmethod
    def forward(ctx, score, weight, mask):
        ctx.save_for_backward(weight)
        return weight * mask

    @staticmethod
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        return weight * grad, None, None


class ScoreMasked(torch.nn.Module):
    """Any module with frozen weights of which only some count, and trainable scores that say which.

    The module is changed in place: its parameters become buffers, and each masked one gets a parameter of scores beside
    it, `weight_scores` beside `weight`. Calls, with all arguments, and attributes pass through to the module.

    Args:
        module: any module.
        names: dotted names of the parameters to mask; by default of all that are called `weight`.
        keep: fraction k of the weights that count, in (0, 1].
        rule: which ones count: a name in `RULES`, or what else `rule_of` takes.
        train_unmasked: whether parameters that are not masked stay parameters, which train, and each masked one gets a
            factor beside it, a scalar that trains, too (`weight_factor`).
        shares: by name, the fraction of this weight alone that counts, for rules that go layer by layer; by default k.
        rescale: whether weights that count are multiplied by what `rescaling` says of the layer, see `Rule.fewer`.

    Raises:
        ValueError: the module lacks one of the names, or there is no such rule.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        names=None,
        keep: float = 1.0,
        rule: str = 'edge-popup',
        train_unmasked: bool = False,
        shares: 'dict[str, float] | None' = None,
        rescale: bool = False,
    ):
        super().__init__()
        self.dense = module
        self.keep = keep
        self.rule = rule
        properties = rule_of(rule)
        parameters = dict(module.named_parameters())
        self.names = list(names) if names is not None else [n for n in parameters if n.split('.')[-1] == 'weight']
        if shares is not None:  # Else there is no such attribute, as in pickles of earlier versions.
            self.shares = shares
        if rescale:  # Likewise.
            self.rescale = True
        for name in self.names:
            if name not in parameters:
                raise ValueError(f'There is no parameter {name!r} to mask')
        for name, parameter in parameters.items():
            path, _dot, leaf = name.rpartition('.')
            owner = module.get_submodule(path)
            weight = parameter.detach()
            masked = name in self.names
            if properties.scored if masked else not train_unmasked:
                delattr(owner, leaf)
                owner.register_buffer(leaf, weight)
            if masked and properties.scored:
                owner.register_parameter(f'{leaf}_scores', torch.nn.Parameter(torch.ones_like(weight)))
                if train_unmasked:
                    owner.register_parameter(f'{leaf}_factor', torch.nn.Parameter(weight.new_ones([])))
            elif masked:
                owner.register_buffer(f'{leaf}_start', weight.clone())
            if masked and properties.alive:
                owner.register_buffer(f'{leaf}_alive', torch.ones_like(weight, dtype=torch.bool))
        properties.prepare(self)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == 'dense':  # Not constructed or unpickled yet.
                raise
            return getattr(self.dense, name)

    def share(self, name: str) -> float:
        """The fraction of one weight that counts, for rules that go layer by layer."""
        return self.__dict__.get('shares', {}).get(name, self.keep)

    def tensor(self, name: str, kind: str = '') -> torch.Tensor:
        """The weight of that name, or the tensor beside it: `_scores`, `_factor`, `_alive`, `_start`."""
        path, _dot, leaf = name.rpartition('.')
        return getattr(self.dense.get_submodule(path), leaf + kind)

    def trained(self) -> 'dict[str, torch.Tensor]':
        """By name, the parameters beside scores, and weights of a rule that trains them."""
        return {name: tensor for name, tensor in self.dense.named_parameters() if not name.endswith('_scores')}

    @torch.no_grad()
    def masks(self) -> 'dict[str, torch.Tensor]':
        """By name of the weight, which of its entries count: boolean tensors."""
        rule = rule_of(self.rule)
        return {name: rule.mask(self, name) for name in self.names}

    @torch.no_grad()
    def turned(self) -> 'dict[str, torch.Tensor]':
        """By name of the weight, which of its entries count with their sign turned: nothing but for signed rules."""
        if not rule_of(self.rule).signed:
            return {}
        return {name: mask & (self.tensor(name, '_scores') < 0) for name, mask in self.masks().items()}

    def masked_weights(self) -> 'dict[str, torch.Tensor]':
        """By name, the weights that the module runs with: weights times masks, and times factors if there are any."""
        masks = self.masks()
        weights = {name: self._masked_weight(name, mask) for name, mask in masks.items()}
        if self.__dict__.get('rescale', False):
            start = '' if rule_of(self.rule).scored else '_start'
            layers = [name for name in self.names if weights[name].dim() > 1]  # Biases are no sums of inputs.
            weights.update((name, weights[name] * rescaling(self.tensor(name, start), masks[name])) for name in layers)
        for name, tensor in self.trained().items():
            if name.endswith('_factor'):
                masked = name[: -len('_factor')]
                weights[masked] = weights[masked] * tensor
        return weights

    def _masked_weight(self, name: str, mask: torch.Tensor) -> torch.Tensor:
        if not rule_of(self.rule).scored:
            return self.tensor(name) * mask
        scores, weight = self.tensor(name, '_scores'), self.tensor(name)
        if rule_of(self.rule).signed:
            return StraightThrough.apply(scores, weight, torch.where(scores < 0, -mask.to(weight), mask))
        # The magnitude's gradient is the straight-through one; a score below zero gets it with its sign turned. (By way
        # of `abs`, a score of zero would get none.)
        return StraightThrough.apply(torch.where(scores < 0, -scores, scores), weight, mask)

    def forward(self, *args, **kwargs):
        return torch.func.functional_call(self.dense, self.masked_weights(), args, kwargs)


# --- Rules ----------------------------------------------------------------------------------------------------------

SCHEDULE_END = 0.9  # Share of a search after which scheduled rules mask no further; what is left trains for the rest.


class Rule:
    """Which weights count: the mask, how it changes over a search, and what the objective gains.

    Rules have no state. What a rule remembers is in tensors of the masked modules, which pickles and training states
    hold, and `prepare` registers what the flags below do not.

    Attributes:
        by_layer: whether each weight keeps a share of its own (`ScoreMasked.share`), instead of all one together.
        signed: whether weights that count do so with their sign turned where their score is negative.
        scored: whether masked weights are frozen and have a parameter of scores beside them (`weight_scores`). Without
            scores the weights themselves train, beside a copy of where they start (`weight_start`).
        alive: whether masked weights have a boolean buffer beside them (`weight_alive`), at first all true.
        scheduled: whether masks depend on the length of the search.
        scales_fan: whether about k n of n weights count from the start, for initialisations that go by fan-in.
        fewer: whether all n may count at first and fewer and fewer do. Random ones are then scaled up as they get
            fewer, so that signals keep their size through layers that do not normalise, such as mapping's.
        usual_scores: name in `SCORE_INITS` of the scores' usual initialisation.
    """

    by_layer = False
    signed = False
    scored = True
    alive = False
    scheduled = False
    scales_fan = False
    fewer = False
    usual_scores = 'uniform'

    def prepare(self, part: ScoreMasked) -> None:
        """Register buffers of the rule's own with a module whose weights were just masked."""

    def mask(self, part: ScoreMasked, name: str) -> torch.Tensor:
        """Which entries of the weight `part.tensor(name)` count: a boolean tensor of its shape."""
        raise NotImplementedError

    def update(self, parts: 'list[ScoreMasked]') -> None:
        """Compute what masks of all parts of a generator depend on together. Called without gradient before use."""

    def advance(self, parts: 'list[ScoreMasked]', progress: float) -> None:
        """Change masks, or what they depend on. Called without gradient before each step.

        Args:
            parts: the masked modules of one generator.
            progress: share of the search that is over, in [0, 1].
        """
        self.update(parts)

    def penalty(self, parts: 'list[ScoreMasked]') -> 'torch.Tensor | None':
        """What the objective gains: a scalar, or None for nothing."""
        return None


class EdgePopup(Rule):
    """The round(k n) scores of each layer that are largest in magnitude (Ramanujan et al., CVPR 2020).

    k is the layer's own where shares of layers differ, see `DENSITIES`.
    """

    by_layer = True
    scales_fan = True
    usual_scores = 'kaiming-uniform'

    def mask(self, part, name):
        scores = part.tensor(name, '_scores')
        return largest(scores.abs(), round(part.share(name) * scores.numel()))


class SignedEdgePopup(EdgePopup):
    """Edge-popup with masks of -1, 0 and 1 (Koster et al., ICLR 2022).

    The magnitude of a score says whether a weight counts, its sign whether as it is or with its sign turned. Scores
    start above zero, so that weights start as they were drawn.
    """

    signed = True


class GlobalEdgePopup(Rule):
    """The round(k n) scores of all layers together that are largest in magnitude.

    Each part has the common `threshold`, and in `ties` [weights] how many magnitudes that equal it count.
    """

    scales_fan = True
    usual_scores = 'uniform'  # With one threshold for all layers, scores have to start alike in all of them.

    def prepare(self, part):
        part.register_buffer('threshold', torch.full([], -1.0))  # Below every magnitude: all count.
        part.register_buffer('ties', torch.zeros([len(part.names)], dtype=torch.int64))

    def mask(self, part, name):
        return above(part.tensor(name, '_scores').abs(), part.threshold, part.ties[part.names.index(name)])  # pyright: ignore[reportArgumentType, reportIndexIssue]  # Buffers.

    @torch.no_grad()
    def update(self, parts):
        places = [(part, index) for part in parts for index in range(len(part.names))]
        values = [part.tensor(part.names[index], '_scores').abs().flatten() for part, index in places]
        flat = torch.cat(values)
        count = round(parts[0].keep * flat.numel())
        threshold, ties = threshold_of(flat, count) if count else (flat.new_full([], float('inf')), 0)
        for part in parts:
            part.threshold.copy_(threshold)  # pyright: ignore[reportCallIssue]  # A buffer.
        for (part, index), magnitudes in zip(places, values, strict=True):
            mine = (magnitudes == threshold).sum().clamp(max=ties)
            part.ties[index] = mine  # pyright: ignore[reportIndexIssue]  # A buffer.
            ties = ties - mine


class GemMiner(Rule):
    """Scores in [0, 1], rounded; in steps, the lowest of all layers are frozen to zero (Sreenivasan et al., 2022).

    The j-th of J steps leaves the fraction k^(j/J) of the weights, the last one k. Of these, scores that round to one
    count: at most k of the weights.
    """

    alive = True
    scheduled = True
    fewer = True
    usual_scores = 'unit'
    steps = 50
    weight = 5e-7  # Of the sum of squared scores in the objective.

    def mask(self, part, name):
        return part.tensor(name, '_alive') & (part.tensor(name, '_scores') > 0.5)

    def advance(self, parts, progress):
        for part in parts:
            for name in part.names:
                part.tensor(name, '_scores').clamp_(0, 1)
        leave_alive(parts, lambda part, name: part.tensor(name, '_scores'), fraction_left(parts, progress, self.steps))

    def penalty(self, parts):
        squares = [part.tensor(name, '_scores').square().sum() for part in parts for name in part.names]
        return self.weight * torch.stack(squares).sum()


class IterativeMagnitude(Rule):
    """The baseline: train weights; in rounds, drop the smallest of all layers and rewind the others to the start.

    Magnitudes are compared as the host's equalised learning rate makes them comparable, in units of those with which a
    layer starts (their root mean square).
    """

    scored = False
    alive = True
    scheduled = True
    fewer = True
    rounds = 10

    def mask(self, part, name):
        return part.tensor(name, '_alive')

    def advance(self, parts, progress):
        def magnitude(part, name):
            start = part.tensor(name, '_start').square().mean().sqrt()
            return part.tensor(name).abs() / torch.where(start > 0, start, 1)  # A teacher's biases may start at 0.

        if leave_alive(parts, magnitude, fraction_left(parts, progress, self.rounds)):
            for part in parts:
                for name in part.names:
                    part.tensor(name).copy_(part.tensor(name, '_start'))


RULES: 'dict[str, Rule]' = {
    'edge-popup': EdgePopup(),
    'signed-edge-popup': SignedEdgePopup(),
    'global-edge-popup': GlobalEdgePopup(),
    'gem-miner': GemMiner(),
    'imp': IterativeMagnitude(),
}


def rule_of(name: str) -> Rule:
    """The rule of a name: an entry of `RULES`, or an importable `module.Rule`, a class without arguments or an object.

    Raises:
        ValueError: there is no such rule, or it cannot be imported, or lacks something that `Rule` has.
    """
    existing = f'there are {", ".join(RULES)}, and importable names such as my_module.MyRule'
    if not isinstance(name, str) or (name not in RULES and '.' not in name):
        raise ValueError(f'the rule {name!r} does not exist: {existing}')
    if name in RULES:
        return RULES[name]
    try:
        rule = dnnlib.util.get_obj_by_name(name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f'the rule {name!r} cannot be imported ({error}): {existing}') from error
    missing = [member for member in dir(Rule) if not member.startswith('_') and not hasattr(rule, member)]
    if missing:
        raise ValueError(f'{name!r} is not a rule, because it has no {", ".join(missing)}')
    return rule() if isinstance(rule, type) else rule


def rescaling(weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """√(Σ w² / Σ m w²) of a layer's weights w and their mask m: a scalar. Of signed constants, √(all / that count)."""
    squares = weight.square()
    total, left = squares.sum(), (squares * mask).sum()
    return torch.where(left > 0, total / left, 1).sqrt()


def largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Boolean mask of the `count` largest entries of a tensor, and of equal ones the first in order."""
    if count <= 0 or count >= values.numel():
        return torch.full_like(values, count > 0, dtype=torch.bool)
    return above(values, *threshold_of(values.flatten(), count))


def threshold_of(flat: torch.Tensor, count: int) -> 'tuple[torch.Tensor, torch.Tensor]':
    """The smallest of the `count` largest values, and how many that are equal to it are among them."""
    if flat.is_cuda:
        threshold = kth_largest_by_bits(flat, count)
    elif flat.device.type != 'cpu':
        threshold = flat.kthvalue(flat.numel() - count + 1).values
    else:
        place = flat.numel() - count
        threshold = torch.as_tensor(np.partition(flat.detach().numpy(), place)[place])  # Half the time of `kthvalue`.
    return threshold, count - (flat > threshold).sum()


def kth_largest_by_bits(flat: torch.Tensor, count: int) -> torch.Tensor:
    """The `count`-th largest of float32 values of which at least as many are not negative.

    Like integers, such floats are in the order of their bits, of which each of 31 passes over the values finds one.
    Nothing waits for the device. On CUDA, `kthvalue` leaves a vector to a single multiprocessor.
    """
    bits = flat.contiguous().view(torch.int32)
    found = bits.new_zeros([])
    for place in range(30, -1, -1):
        candidate = found + 2**place
        found = torch.where((bits >= candidate).sum() >= count, candidate, found)
    return found.view(torch.float32)


def above(values: torch.Tensor, threshold: torch.Tensor, ties: torch.Tensor) -> torch.Tensor:
    """Boolean mask of all entries that are larger than a threshold and of the first `ties` that are equal to it."""
    equal = values == threshold
    if values.device.type == 'cpu' and equal.sum() == ties:  # Elsewhere, nobody should wait for the sum.
        return values >= threshold
    equal &= (equal.flatten().cumsum(0) <= ties).reshape(values.shape)
    return (values > threshold) | equal


def fraction_left(parts: 'list[ScoreMasked]', progress: float, steps: int) -> float:
    """k^(j/J) after j of J equal steps, of which the last one is at `SCHEDULE_END`."""
    done = int(steps * min(progress / SCHEDULE_END, 1) + 1e-9)
    return parts[0].keep ** (done / steps)


def leave_alive(parts: 'list[ScoreMasked]', value, fraction: float) -> bool:
    """Leave exactly round(fraction n) of all n weights alive: of those that are, the ones with the largest values.

    Args:
        parts: the masked modules of one generator.
        value: `value(part, name)` returns what to compare, at least 0, in the shape of the weight.
        fraction: in [0, 1].

    Returns:
        Whether that changed anything.
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


# --- Shares of layers -----------------------------------------------------------------------------------------------


def uniform(shapes: 'dict[str, torch.Size]', keep: float) -> 'dict[str, float]':
    """The same share of each layer."""
    return dict.fromkeys(shapes, keep)


def erdos_renyi_kernel(shapes: 'dict[str, torch.Size]', keep: float) -> 'dict[str, float]':
    """Larger shares of small layers: in proportion to the sum of a weight's sides over their product, 1 at the most.

    All together keep the share `keep`. This is the Erdős–Rényi kernel distribution of sparse training (Evci et al.,
    ICML 2020): a connection costs a large layer less than a small one, which has few of them for each output. Vectors,
    such as biases, keep `keep`.
    """
    shares = uniform(shapes, keep)
    left = {name: shape for name, shape in shapes.items() if len(shape) > 1}
    budget = keep * sum(shape.numel() for shape in left.values())
    while left:
        scale = budget / sum(sum(shape) for shape in left.values())
        full = [name for name, shape in left.items() if scale * sum(shape) >= shape.numel()]
        if not full:
            shares.update((name, scale * sum(shape) / shape.numel()) for name, shape in left.items())
            break
        for name in full:
            shares[name] = 1.0
            budget -= left.pop(name).numel()
    return shares


def erdos_renyi_odds(shapes: 'dict[str, torch.Size]', keep: float) -> 'dict[str, float]':
    """The same, of the odds that a weight is kept: share / (1 - share), so that no layer's share is 1 unless all are.

    For small shares there is no difference. But a layer that keeps all of its weights, which do not train, has nothing
    to find.
    """
    shares = uniform(shapes, keep)
    layers = {name: shape for name, shape in shapes.items() if len(shape) > 1}
    odds = {name: sum(shape) / shape.numel() for name, shape in layers.items()}
    if not layers or keep == 1:
        return shares

    def scaled(scale: float) -> 'dict[str, float]':
        return {name: scale * odds[name] / (1 + scale * odds[name]) for name in layers}

    # Ticket files rely on it: sums that no order changes, and nothing but what all machines compute alike.
    even, budget = keep / (1 - keep), keep * sum(shape.numel() for shape in layers.values())
    low, high = even / max(odds.values()), even / min(odds.values())
    for _ in range(100):
        middle = (low + high) / 2
        kept = math.fsum(share * layers[name].numel() for name, share in scaled(middle).items())
        low, high = (middle, high) if kept < budget else (low, middle)
    shares.update(scaled(high))
    return shares


# By name, from the shapes of all masked weights and the share of them that counts: the share of each.
DENSITIES = {'uniform': uniform, 'erk': erdos_renyi_kernel, 'erk-odds': erdos_renyi_odds}


# --- Generators -----------------------------------------------------------------------------------------------------


@persistence.persistent_class
class ScoreMaskedMapping(ScoreMasked):
    """The host's mapping network, masked.

    Args:
        names, keep, rule, train_unmasked, shares, rescale: as in `ScoreMasked`.
        kwargs: the arguments of the host's `MappingNetwork`.
    """

    def __init__(
        self, names, keep: float, rule: str, train_unmasked: bool = False, shares=None, rescale: bool = False, **kwargs
    ):
        super().__init__(networks.MappingNetwork(**kwargs), names, keep, rule, train_unmasked, shares, rescale)


@persistence.persistent_class
class ScoreMaskedSynthesis(ScoreMasked):
    """The host's synthesis network, masked.

    It computes in FP32, as the published search does: before FP16 convolutions, the host divides each filter by its
    largest weight, which of a filter that the mask leaves empty is 0. In FP32 such a filter puts out 0.

    Args:
        names, keep, rule, train_unmasked, shares, rescale: as in `ScoreMasked`.
        kwargs: the arguments of the host's `SynthesisNetwork`. `num_fp16_res` is ignored.
    """

    def __init__(
        self, names, keep: float, rule: str, train_unmasked: bool = False, shares=None, rescale: bool = False, **kwargs
    ):
        dense = networks.SynthesisNetwork(**{**kwargs, 'num_fp16_res': 0})
        super().__init__(dense, names, keep, rule, train_unmasked, shares, rescale)


@persistence.persistent_class
class ScoreMaskedGenerator(networks.Generator):
    """The host's generator with random weights that never change, of which only those with high scores count.

    The losses call `mapping` and `synthesis` separately, and each is masked on its own. Constants, noise strengths and
    biases are not masked by default.

    Args:
        z_dim, c_dim, w_dim, img_resolution, img_channels, mapping_kwargs, synthesis_kwargs: as in the host's
            `Generator`; of precision see `ScoreMaskedSynthesis`.
        keep: fraction k of the masked weights that count, in (0, 1].
        rule: which ones count, see `ScoreMasked`.
        masked: patterns (`fnmatch`) of the weights to mask, in names such as mapping.fc0.weight,
            synthesis.b8.conv1.affine.weight or synthesis.b8.torgb.bias.
        unmasked: patterns of exceptions.
        seed: of weights and scores: a whole number from 0 to 2^64 - 1.
        weight_init: a name in `WEIGHT_INITS`; with None the caller puts weights in.
        scale_fan: whether fan-in means the k n inputs that are left. Without it signals shrink by √k in each layer
            that does not normalise: eight layers of mapping at k = 0.1 leave a ten-thousandth. By default what the
            rule's `scales_fan` says.
        score_init: a name in `SCORE_INITS`; by default the rule's `usual_scores`.
        teacher: SHA-256 of the network file that the weights come from, if they are not random.
        train_unmasked: whether what is not masked trains: biases, constants, noise strengths, and a factor of each
            masked weight. That is no longer a search without a weight update.
        density: how the weights that count are shared out among layers, for rules that go layer by layer: a name in
            `DENSITIES`.

    Raises:
        ValueError: a pattern matches nothing, nothing is left to mask, there is no such rule, or it does not go layer
            by layer and `density` is not `uniform`.
    """

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        mapping_kwargs: dict = {},
        synthesis_kwargs: dict = {},
        keep: float = 0.1,
        rule: str = 'edge-popup',
        masked=('*weight',),
        unmasked=(),
        seed: int = 0,
        weight_init: 'str | None' = 'signed-constant',
        scale_fan: 'bool | None' = None,
        score_init: 'str | None' = None,
        teacher: 'str | None' = None,
        train_unmasked: bool = False,
        density: str = 'uniform',
    ):
        super().__init__(
            z_dim,
            c_dim,
            w_dim,
            img_resolution,
            img_channels,
            mapping_kwargs=mapping_kwargs,
            synthesis_kwargs=synthesis_kwargs,
        )
        properties = rule_of(rule)
        if density != 'uniform' and not properties.by_layer:
            raise ValueError(f'the rule {rule} compares all weights together and takes no density {density}')
        parameters = dict(self.named_parameters())
        names = names_to_mask(list(parameters), masked, unmasked)
        by_part = {
            part: [name.partition('.')[2] for name in names if name.partition('.')[0] == part]
            for part in ('mapping', 'synthesis')
        }
        shares: dict = {}
        if density != 'uniform':
            of_all = DENSITIES[density]({name: parameters[name].shape for name in names}, keep)
            shares = {part: {name: of_all[f'{part}.{name}'] for name in by_part[part]} for part in by_part}
        # A teacher's mapping layers, whose weights do not count by fan-in, would lose most of what depends on z.
        rescale = dict(
            mapping=properties.fewer or weight_init is None, synthesis=properties.fewer and weight_init is not None
        )
        self.mapping = ScoreMaskedMapping(  # pyright: ignore[reportAttributeAccessIssue]  # In the place of the dense one.
            by_part['mapping'],
            keep,
            rule,
            train_unmasked,
            shares.get('mapping'),
            rescale['mapping'],
            z_dim=z_dim,
            c_dim=c_dim,
            w_dim=w_dim,
            num_ws=self.num_ws,
            **mapping_kwargs,
        )
        self.synthesis = ScoreMaskedSynthesis(  # pyright: ignore[reportAttributeAccessIssue]  # Likewise.
            by_part['synthesis'],
            keep,
            rule,
            train_unmasked,
            shares.get('synthesis'),
            rescale['synthesis'],
            w_dim=w_dim,
            img_resolution=img_resolution,
            img_channels=img_channels,
            **synthesis_kwargs,
        )
        if weight_init is not None:
            scale_fan = properties.scales_fan if scale_fan is None else scale_fan
            self._init_weights(seed, WEIGHT_INITS[weight_init], scale_fan)
        if properties.scored:
            self._init_scores(seed, SCORE_INITS[score_init or properties.usual_scores])
        self.update_masks()

    @property
    def parts(self) -> 'list[ScoreMasked]':
        """The masked modules: mapping and synthesis."""
        return [self.mapping, self.synthesis]  # pyright: ignore[reportReturnType]  # Replaced in `__init__`.

    @torch.no_grad()
    def update_masks(self) -> None:
        """Bring masks that depend on all scores together up to date with the scores."""
        if not next(self.parameters()).is_meta:  # In a network of shapes without data there is nothing to compare.
            rule_of(self.mapping.rule).update(self.parts)

    def forward(self, *args, **kwargs):
        self.update_masks()  # Averaged scores, say, have no threshold yet.
        return super().forward(*args, **kwargs)

    def masks(self) -> 'dict[str, torch.Tensor]':
        """By name in the generator, which entries of a masked weight count: boolean tensors."""
        return {**_prefixed('mapping', self.mapping.masks()), **_prefixed('synthesis', self.synthesis.masks())}

    def turned(self) -> 'dict[str, torch.Tensor]':
        """By name in the generator, which entries count with their sign turned: nothing but for signed rules."""
        return {**_prefixed('mapping', self.mapping.turned()), **_prefixed('synthesis', self.synthesis.turned())}

    def masked_weights(self) -> 'dict[str, torch.Tensor]':
        """By name in the generator, masked weights times masks."""
        mapping, synthesis = (part.masked_weights() for part in self.parts)
        return {**_prefixed('mapping', mapping), **_prefixed('synthesis', synthesis)}

    def trained(self) -> 'dict[str, torch.Tensor]':
        """By name in the generator, what trains beside scores: nothing without `train_unmasked`, but for `imp`."""
        return {**_prefixed('mapping', self.mapping.trained()), **_prefixed('synthesis', self.synthesis.trained())}

    def tensors(self):
        """(name, part, layer, leaf) of every tensor that a dense generator has, by its name there.

        `getattr(layer, leaf)` is the tensor, which may be None, and `part` the masked module that it belongs to.
        """
        for part_name, part in zip(('mapping', 'synthesis'), self.parts, strict=True):
            for path, layer in part.dense.named_modules():
                for leaf in [*layer._parameters, *layer._buffers]:
                    if not leaf.endswith(('_scores', '_factor', '_alive', '_start')):
                        yield '.'.join(filter(None, [part_name, path, leaf])), part, layer, leaf

    @torch.no_grad()
    def _init_weights(self, seed, init, scale_fan):
        """Weights by `init`, constants and noise maps N(0, 1), masked biases too; other biases as the host's layers."""
        is_trained = not rule_of(self.mapping.rule).scored
        for name, part, layer, leaf in self.tensors():
            tensor = getattr(layer, leaf)
            in_part = name.partition('.')[2]
            is_masked = in_part in part.names
            if tensor is None or tensor.is_meta:
                continue
            rnd, count = stream(seed, name), tensor.numel()
            if leaf == 'weight':
                share = part.share(in_part) if scale_fan and is_masked else 1
                fan = fan_in(tensor.shape) * share
                if is_trained and not hasattr(layer, 'weight_gain'):
                    fan = 1  # Demodulation takes any constant, but Adam's steps are meant for the host's, which is 1.
                values = init(rnd, count, layer, fan)
            elif leaf in ('const', 'noise_const'):
                values = random_normals(rnd, count)
            elif leaf == 'bias' and is_masked and not tensor.any():
                # A mask on zeros would mean nothing: as large as the standard deviation of a weight at run time.
                values = random_signs(rnd, count) / np.float32(
                    np.sqrt(fan_in(layer.weight.shape)) * getattr(layer, 'bias_gain', 1)
                )
            else:
                continue
            tensor.copy_(torch.from_numpy(values).reshape(tensor.shape))
            if hasattr(layer, f'{leaf}_start'):
                getattr(layer, f'{leaf}_start').copy_(tensor)

    @torch.no_grad()
    def _init_scores(self, seed, init):
        for name, _part, layer, leaf in self.tensors():
            scores = getattr(layer, f'{leaf}_scores', None)
            if scores is not None and not scores.is_meta:
                values = init(stream(seed, f'{name}_scores'), scores.numel(), fan_in(scores.shape))
                scores.copy_(torch.from_numpy(values).reshape(scores.shape))


def names_to_mask(names, masked, unmasked) -> 'list[str]':
    """The names that match a pattern in `masked` and none in `unmasked`.

    Raises:
        ValueError: a pattern matches nothing, or nothing is left.
    """
    for pattern in [*masked, *unmasked]:
        if not fnmatch.filter(names, pattern):
            weights = [name for name in names if name.endswith('weight')]
            raise ValueError(f'no weight has a name like {pattern!r}; there are {weights[0]}, {weights[-1]}, …')
    chosen = [
        name
        for name in names
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in masked)
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in unmasked)
    ]
    if not chosen:
        raise ValueError(f'no weight is left to mask: {list(unmasked)} exempts all')
    return chosen


def _prefixed(prefix, values):
    return {f'{prefix}.{name}': value for name, value in values.items()}
