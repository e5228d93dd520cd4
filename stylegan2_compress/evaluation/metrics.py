"""All metrics by name."""

from metrics import metric_main

from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation.agreement import Agreement
from stylegan2_compress.evaluation.base import Metric
from stylegan2_compress.evaluation.embedding_metrics import DensityCoverage, FrechetDistance, KernelDistance
from stylegan2_compress.evaluation.host_metrics import HostMetric

IN_EMBEDDINGS = {'fd': FrechetDistance, 'kd': KernelDistance, 'dc': DensityCoverage, 'agreement': Agreement}
SHORT = {  # Stein et al., NeurIPS 2023: Fréchet distance in DINOv2 ViT-L/14.
    'fd_dinov2': 'fd:hf:facebook/dinov2-large',
    'kd_dinov2': 'kd:hf:facebook/dinov2-large',
}


def parse(text: str, samples: int | None) -> list[Metric]:
    """Metrics from their names, separated by commas.

    Args:
        text: names of the host's, `fd:SPEC`, `kd:SPEC`, `dc:SPEC`, `agreement`, `agreement:SPEC`, `fd_dinov2`.
        samples: how many images each generates, instead of its own number.

    Raises:
        UserError: for a name that does not exist, or two that mean the same.
    """
    found = [_metric(name.strip(), samples) for name in text.split(',')]
    names = [metric.name for metric in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f'--metrics={text} has two whose results are called {name}; evaluate them one by one.')
    return found


def _metric(name: str, samples: int | None) -> Metric:
    name = SHORT.get(name, name)
    kind, _colon, spec = name.partition(':')
    if metric_main.is_valid_metric(name):
        return HostMetric(name, samples)
    if kind in IN_EMBEDDINGS and (spec or name == 'agreement'):
        return IN_EMBEDDINGS[kind](spec or None, samples)
    known = [*metric_main.list_valid_metrics(), *(f'{kind}:EMBEDDING' for kind in IN_EMBEDDINGS), 'agreement', *SHORT]
    raise UserError(f'--metrics={name} does not exist; there are {", ".join(known)}.')
