"""Strong lottery tickets: networks whose weights never change, and scores that say which of them count.

The weights are buffers, so that the host's training loops, which step every parameter, train scores only. In the
forward pass each masked weight is multiplied with its mask, which the scores decide (SLT, arXiv 2212.08311).
"""

import fnmatch
import hashlib

import numpy as np
import torch
from torch_utils import persistence
from torch_utils.ops import bias_act
from training import networks

# --- Random numbers that are the same everywhere --------------------------------------------------------------------


def stream(seed, name):
    """Philox-4x64-10 with the key (seed, first 8 bytes of SHA-256(name)): NumPy's bit generators are specified.

    Only `random_raw` is used of it, because NumPy may change how its distributions are drawn.
    """
    word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], 'little')
    return np.random.Philox(key=np.array([seed, word], np.uint64))


def random_signs(rnd, count):
    """Bits of the raw words, lowest first, as float32 of -1 and 1: [count]."""
    words = rnd.random_raw(-(-count // 64)).astype('<u8')
    bits = np.unpackbits(words.view(np.uint8), bitorder='little')[:count]
    return bits.astype(np.float32) * 2 - 1


def random_uniforms(rnd, count):
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


def random_normals(rnd, count):
    """Standard normal numbers by inversion, one raw word each, as float32: [count].

    Only float64 operations that IEEE 754 rounds correctly take part (+, -, *, /, square root), one at a time: no
    library's logarithm, whose last bit is its own business.
    """
    p = ((rnd.random_raw(count) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52  # (0, 1), symmetric about 1/2
    centred = p - 0.5
    square = centred * centred
    normals = _horner(_CENTRE[0], square) * centred / _horner(_CENTRE[1], square)
    tail = np.abs(centred) > 0.5 - 0.02425
    distance = np.sqrt(-2 * _log(0.5 - np.abs(centred[tail])))
    normals[tail] = -np.sign(centred[tail]) * _horner(_TAIL[0], distance) / _horner(_TAIL[1], distance)
    return normals.astype(np.float32)


def _horner(coefficients, x):
    total = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total


def _log(x):
    """log(m 2^e) = 2 artanh((m - 1) / (m + 1)) + e log 2, by artanh's series."""
    mantissa, exponent = np.frexp(x)  # [1/2, 1): the series' argument is at most 1/3
    ratio = (mantissa - 1) / (mantissa + 1)
    square = ratio * ratio
    series = _horner([1.0 / (2 * i + 1) for i in range(18, -1, -1)], square)
    return 2 * ratio * series + exponent * 0.6931471805599453


# --- Initialisations, right under the host's equalised learning rate -------------------------------------------------


def fan_in(shape):
    """Inputs of one output: product of all sizes but the first."""
    return max(int(np.prod(shape[1:])), 1)


def kaiming_scale(layer, fan):
    """What a stored weight must be so that, times all that the layer multiplies with at run time, it is gain / √fan.

    gain is √2 before a rectifier and 1 elsewhere (He et al. 2015). At run time the host's layers multiply their weight
    with `weight_gain` and their activation with its own gain, which for lrelu is that √2; a convolution that
    demodulates takes any constant.
    """
    activation = getattr(layer, 'activation', 'linear')
    run_time = getattr(layer, 'weight_gain', 1.0) * bias_act.activation_funcs[activation].def_gain
    return np.float32((1.0 if activation == 'linear' else np.sqrt(2)) / np.sqrt(fan) / run_time)


def signed_constant(rnd, count, layer, fan):
    return random_signs(rnd, count) * kaiming_scale(layer, fan)


def kaiming_normal(rnd, count, layer, fan):
    return random_normals(rnd, count) * kaiming_scale(layer, fan)


def gaussian(rnd, count, layer, fan):
    return random_normals(rnd, count)


# By name: weights [count] from (bits, count, layer, fan-in). Gaussian ones are N(0, 1) before the run-time gain.
WEIGHT_INITS = {'signed-constant': signed_constant, 'kaiming-normal': kaiming_normal, 'gaussian': gaussian}

# By name: magnitudes [count] of scores from (bits, count, fan-in). Only magnitudes count, so that of the symmetric
# distributions U(-b, b) the half above zero is drawn.
SCORE_INITS = {
    'kaiming-uniform': lambda rnd, count, fan: random_uniforms(rnd, count) / np.float32(np.sqrt(fan)),  # a = √5
    'uniform': lambda rnd, count, fan: random_uniforms(rnd, count) * np.float32(0.1),
    'unit': lambda rnd, count, fan: random_uniforms(rnd, count),  # U(0, 1), for gem-miner
}

# By rule. With one threshold for all layers, scores have to start alike in all of them.
USUAL_SCORES = {'edge-popup': 'kaiming-uniform', 'global-edge-popup': 'uniform', 'gem-miner': 'unit'}


# --- Masks ----------------------------------------------------------------------------------------------------------

RULES = ('edge-popup', 'global-edge-popup', 'gem-miner', 'imp')


class StraightThrough(torch.autograd.Function):
    """weight * mask forwards; backwards as if it were weight * score, for kept and dropped weights alike."""

    @staticmethod
    def forward(ctx, score, weight, mask):
        ctx.save_for_backward(weight)
        return weight * mask

    @staticmethod
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        return weight * grad, None, None


def largest(values, count):
    """Boolean mask of the `count` largest of a tensor, and of equal ones the first in order."""
    if count <= 0 or count >= values.numel():
        return torch.full_like(values, count > 0, dtype=torch.bool)
    return from_threshold(values, *threshold_of(values.flatten(), count))


def threshold_of(flat, count):
    """The smallest of the `count` largest values, and how many that are equal to it are among them."""
    threshold = flat.kthvalue(flat.numel() - count + 1).values
    return threshold, count - (flat > threshold).sum()


def from_threshold(values, threshold, ties):
    """Boolean mask of all that is larger than a threshold and of the first `ties` that are equal to it."""
    equal = (values == threshold).flatten()
    return (values > threshold) | (equal & (equal.cumsum(0) <= ties)).reshape(values.shape)


class ScoreMasked(torch.nn.Module):
    """Any module with frozen weights of which only some count, and trainable scores that say which.

    The module is changed in place: its parameters become buffers, and next to each masked one stands a parameter of
    scores, `weight_scores` next to `weight`. Calls, with all arguments, and attributes pass through to the module.

    Args:
        module: any.
        names: of the parameters to mask, dotted; by default all that are called `weight`.
        keep: which fraction k of the weights counts, in (0, 1].
        rule: which ones do.
            edge-popup: in each tensor the round(k n) whose scores are largest in magnitude.
            global-edge-popup: likewise, in all tensors together; `set_global_threshold` has to be called whenever
                scores have changed.
            gem-miner: those whose score rounds to 1, if they are `alive`.
            imp: those that are `alive`; there are no scores, the weights themselves train.
    """

    def __init__(self, module, names=None, keep=1.0, rule='edge-popup'):
        super().__init__()
        self.dense = module
        self.keep = keep
        self.rule = rule
        parameters = dict(module.named_parameters())
        self.names = list(names) if names is not None else [n for n in parameters if n.split('.')[-1] == 'weight']
        for name in self.names:
            if name not in parameters:
                raise ValueError(f'There is no parameter {name!r} to mask')
        for name, parameter in parameters.items():
            path, _dot, leaf = name.rpartition('.')
            owner = module.get_submodule(path)
            weight = parameter.detach()
            if name not in self.names or rule != 'imp':
                delattr(owner, leaf)
                owner.register_buffer(leaf, weight)
            if name not in self.names:
                continue
            if rule != 'imp':
                owner.register_parameter(f'{leaf}_scores', torch.nn.Parameter(torch.ones_like(weight)))
            else:
                owner.register_buffer(f'{leaf}_start', weight.clone())
            if rule in ('gem-miner', 'imp'):
                owner.register_buffer(f'{leaf}_alive', torch.ones_like(weight, dtype=torch.bool))
        if rule == 'global-edge-popup':
            self.register_buffer('threshold', torch.full([], -1.0))  # Below every magnitude: all count.
            self.register_buffer('ties', torch.zeros([len(self.names)], dtype=torch.int64))

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == 'dense':  # Not there yet, or half unpickled.
                raise
            return getattr(self.dense, name)

    def tensor(self, name, kind=''):
        """The weight of that name, or what stands next to it: `_scores`, `_alive`, `_start`."""
        path, _dot, leaf = name.rpartition('.')
        return getattr(self.dense.get_submodule(path), leaf + kind)

    @torch.no_grad()
    def masks(self):
        """By name of the weight, which of its entries count: boolean tensors."""
        return {name: self._mask(name, index) for index, name in enumerate(self.names)}

    def _mask(self, name, index):
        if self.rule == 'imp':
            return self.tensor(name, '_alive')
        scores = self.tensor(name, '_scores')
        if self.rule == 'gem-miner':
            return self.tensor(name, '_alive') & (scores > 0.5)
        if self.rule == 'global-edge-popup':
            return from_threshold(scores.abs(), self.threshold, self.ties[index])
        return largest(scores.abs(), round(self.keep * scores.numel()))

    def masked_weights(self):
        """By name, weights times masks: what the module runs with."""
        masks = self.masks()
        if self.rule == 'imp':
            return {name: self.tensor(name) * mask for name, mask in masks.items()}
        # The magnitude's gradient is the straight-through one; a score below zero sees it with its sign turned.
        return {
            name: StraightThrough.apply(self.tensor(name, '_scores').abs(), self.tensor(name), mask)
            for name, mask in masks.items()
        }

    def forward(self, *args, **kwargs):
        return torch.func.functional_call(self.dense, self.masked_weights(), args, kwargs)


@torch.no_grad()
def set_global_threshold(parts):
    """Find the threshold of global-edge-popup for modules that share it.

    Args:
        parts: of `ScoreMasked`, whose order breaks ties; the first ones' `keep` counts.
    """
    places = [(part, index) for part in parts for index in range(len(part.names))]
    values = [part.tensor(part.names[index], '_scores').abs().flatten() for part, index in places]
    flat = torch.cat(values)
    count = round(parts[0].keep * flat.numel())
    threshold, ties = threshold_of(flat, count) if count else (flat.new_full([], float('inf')), 0)
    for part in parts:
        part.threshold.copy_(threshold)
    for (part, index), magnitudes in zip(places, values, strict=True):
        mine = (magnitudes == threshold).sum().clamp(max=ties)
        part.ties[index] = mine
        ties = ties - mine


# --- Generators -----------------------------------------------------------------------------------------------------


@persistence.persistent_class
class ScoreMaskedMapping(ScoreMasked):
    """The host's mapping network, masked.

    Args:
        names, keep, rule: of `ScoreMasked`.
        kwargs: of the host's `MappingNetwork`.
    """

    def __init__(self, names, keep, rule, **kwargs):
        super().__init__(networks.MappingNetwork(**kwargs), names, keep, rule)


@persistence.persistent_class
class ScoreMaskedSynthesis(ScoreMasked):
    """The host's synthesis network, masked. Arguments likewise."""

    def __init__(self, names, keep, rule, **kwargs):
        super().__init__(networks.SynthesisNetwork(**kwargs), names, keep, rule)


@persistence.persistent_class
class ScoreMaskedGenerator(networks.Generator):
    """The host's generator with random weights that never change, of which only those with high scores count.

    `mapping` and `synthesis` work alone, as the losses need them. Constants, noise strengths and biases are never
    masked by default.

    Args:
        z_dim, c_dim, w_dim, img_resolution, img_channels, mapping_kwargs, synthesis_kwargs: of the host's `Generator`.
        keep: which fraction k of the masked weights counts, in (0, 1].
        rule: see `ScoreMasked`.
        masked: patterns (`fnmatch`) of the weights to mask, in names such as mapping.fc0.weight,
            synthesis.b8.conv1.affine.weight or synthesis.b8.torgb.bias.
        unmasked: patterns of exceptions.
        seed: of weights and scores: a whole number below 2^64.
        weight_init: a name in `WEIGHT_INITS`; None leaves weights to whoever loads them.
        scale_fan: whether fan-in means the k n inputs that are left. Without it signals shrink by √k in each layer
            that does not normalise: eight layers of mapping at k = 0.1 leave a ten-thousandth. By default so for the
            rules that mask from the start.
        score_init: a name in `SCORE_INITS`; by default the one that goes with the rule.
        teacher: SHA-256 of the network file that the weights come from, if they are not random.

    Raises:
        ValueError: a pattern matches nothing, or nothing is left to mask.
    """

    def __init__(
        self,
        z_dim,
        c_dim,
        w_dim,
        img_resolution,
        img_channels,
        mapping_kwargs={},
        synthesis_kwargs={},
        keep=0.1,
        rule='edge-popup',
        masked=('*weight',),
        unmasked=(),
        seed=0,
        weight_init='signed-constant',
        scale_fan=None,
        score_init=None,
        teacher=None,
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
        names = choose([name for name, _parameter in self.named_parameters()], masked, unmasked)
        of_part = {
            part: [name.partition('.')[2] for name in names if name.partition('.')[0] == part]
            for part in ('mapping', 'synthesis')
        }
        self.mapping = ScoreMaskedMapping(
            of_part['mapping'],
            keep,
            rule,
            z_dim=z_dim,
            c_dim=c_dim,
            w_dim=w_dim,
            num_ws=self.num_ws,
            **mapping_kwargs,
        )
        self.synthesis = ScoreMaskedSynthesis(
            of_part['synthesis'],
            keep,
            rule,
            w_dim=w_dim,
            img_resolution=img_resolution,
            img_channels=img_channels,
            **synthesis_kwargs,
        )
        if weight_init is not None:
            scale_fan = rule.endswith('edge-popup') if scale_fan is None else scale_fan
            self._draw_weights(seed, WEIGHT_INITS[weight_init], keep if scale_fan else 1)
        if rule != 'imp':
            self._draw_scores(seed, SCORE_INITS[score_init or USUAL_SCORES[rule]])
        self.update_masks()

    @property
    def parts(self):
        return [self.mapping, self.synthesis]

    def update_masks(self):
        """Make masks that depend on all scores together those of the scores as they are now."""
        if self.mapping.rule == 'global-edge-popup' and not self.mapping.threshold.is_meta:
            set_global_threshold(self.parts)

    def forward(self, *args, **kwargs):
        self.update_masks()  # Averaged scores, say, whose threshold nobody else has looked for.
        return super().forward(*args, **kwargs)

    def tensors(self):
        """(name, part, layer, leaf) of everything that a dense generator has, under its name there."""
        for part_name, part in zip(('mapping', 'synthesis'), self.parts, strict=True):
            for path, layer in part.dense.named_modules():
                for leaf in [*layer._parameters, *layer._buffers]:
                    if not leaf.endswith(('_scores', '_alive', '_start')):
                        yield '.'.join(filter(None, [part_name, path, leaf])), part, layer, leaf

    @torch.no_grad()
    def _draw_weights(self, seed, init, fan_scale):
        """Weights by `init`, constants and noise maps N(0, 1), masked biases too; other biases as the host's layers."""
        for name, part, layer, leaf in self.tensors():
            tensor = getattr(layer, leaf)
            is_masked = name.partition('.')[2] in part.names
            if tensor is None or tensor.is_meta:
                continue
            rnd, count = stream(seed, name), tensor.numel()
            if leaf == 'weight':
                values = init(rnd, count, layer, fan_in(tensor.shape) * (fan_scale if is_masked else 1))
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
    def _draw_scores(self, seed, init):
        for name, _part, layer, leaf in self.tensors():
            scores = getattr(layer, f'{leaf}_scores', None)
            if scores is not None and not scores.is_meta:
                values = init(stream(seed, f'{name}_scores'), scores.numel(), fan_in(scores.shape))
                scores.copy_(torch.from_numpy(values).reshape(scores.shape))


def choose(names, masked, unmasked):
    """The names that match a pattern in `masked` and none in `unmasked`.

    Raises:
        ValueError: A pattern matches nothing, or nothing is left.
    """
    for pattern in [*masked, *unmasked]:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f'no weight has a name like {pattern!r}; there are {names[0]}, {names[-1]}, …')
    chosen = [
        name
        for name in names
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in masked)
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in unmasked)
    ]
    if not chosen:
        raise ValueError(f'no weight is left to mask: {list(unmasked)} exempts all')
    return chosen
