"""Names of metrics, which include the number of images."""

import re

HOST_SAMPLES = 50000


def count_text(samples: int) -> str:
    """5000 as 5k, as in the host's names, and 1500 as 1.5k (a digit after the k would be another parameter)."""
    return f'{samples / 1000:.9g}k'


def host_name(metric: str, samples: int) -> str:
    """Name of one of the host's metrics at a number of generated images: fid50k_full is fid5k_full at 5,000."""
    if samples == HOST_SAMPLES:
        return metric
    if '50k' in metric:
        return metric.replace('50k', count_text(samples), 1)
    return f'{metric}_{count_text(samples)}'  # The names of path lengths have no number.


def more_is_better(result: str) -> bool:
    """Whether larger values of a result, by its name, are better; of distances, less is."""
    return result.endswith(('_precision', '_recall', '_density', '_coverage', '_readable')) or bool(
        re.fullmatch(r'is[\d.]+k_mean', result)
    )


def slug(spec: str) -> str:
    """An embedding's spec as part of a file name: without the directories of paths in it."""
    without_directories = re.sub(r'(^torchscript:|=)[^@]*[/\\]', r'\1', spec)
    return re.sub(r'[^\w.+=@-]', '_', without_directories)
