"""All metrics by name."""

from collections.abc import Callable
from functools import partial

from metrics import metric_main

from stylegan2_compress import registry
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation.agreement import Agreement
from stylegan2_compress.evaluation.base import Metric
from stylegan2_compress.evaluation.embedding_metrics import DensityCoverage, FrechetDistance, KernelDistance
from stylegan2_compress.evaluation.host_metrics import HostMetric

# DINOv2 ViT-L/14, as in Stein et al., NeurIPS 2023, but with transformers' interpolation of positions: numbers are not
# those of their code.
DINOV2 = 'hf:facebook/dinov2-large'

# Metrics by name, built from the number of images, after the spec of an embedding for the names that end in :EMBEDDING.
METRICS: dict[str, Callable[..., Metric]] = {
    **{name: partial(HostMetric, name) for name in metric_main.list_valid_metrics()},
    'fd:EMBEDDING': FrechetDistance,
    'kd:EMBEDDING': KernelDistance,
    'dc:EMBEDDING': DensityCoverage,
    'agreement:EMBEDDING': Agreement,
    'agreement': partial(Agreement, None),
    'fd_dinov2': partial(FrechetDistance, DINOV2),
    'kd_dinov2': partial(KernelDistance, DINOV2),
}


def names(text: str) -> list[str]:
    """The names in a comma-separated list, as they were given."""
    return [name.strip() for name in text.split(',')]


def parse(text: str, samples: int | None) -> list[Metric]:
    """Metrics from their names, separated by commas; in this order.

    Args:
        text: names of `METRICS`, or importable dotted names of subclasses of `Metric`.
        samples: number of images that each generates, instead of its own number.

    Raises:
        UserError: a name does not exist, or two names have the same results.
    """
    metrics = [_metric(name, samples) for name in names(text)]
    called = [metric.name for metric in metrics]
    for name in called:
        if called.count(name) > 1:
            raise UserError(f'--metrics={text} has two whose results are called {name}: evaluate them one by one.')
    return metrics


def _metric(name: str, samples: int | None) -> Metric:
    kind, _colon, spec = name.partition(':')
    if spec and f'{kind}:EMBEDDING' in METRICS:
        return METRICS[f'{kind}:EMBEDDING'](spec, samples)
    build = registry.lookup('--metrics', name, METRICS)
    metric = build(samples) if name in METRICS or _is_metric(build) else None
    if metric is None or not isinstance(getattr(metric, 'name', None), str):
        raise UserError(
            f'--metrics={name} is not a metric: name a subclass of stylegan2_compress.evaluation.base.Metric whose '
            'instances have a `name`.'
        )
    return metric


def _is_metric(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Metric)
