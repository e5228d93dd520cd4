"""How metrics are called: the number of images is part of the name."""

import re

HOST_SAMPLES = 50000


def count_text(samples: int) -> str:
    """5000 is 5k, as the host writes it, and 1500 is 1.5k: what follows the k is another number."""
    return f'{samples / 1000:.9g}k'


def host_name(metric: str, samples: int) -> str:
    """A metric of the host's, when it looks at so many generated images: fid50k_full is fid5k_full at 5,000."""
    if samples == HOST_SAMPLES:
        return metric
    if '50k' in metric:
        return metric.replace('50k', count_text(samples), 1)
    return f'{metric}_{count_text(samples)}'  # The path lengths have no number in their names.


def slug(spec: str) -> str:
    """An embedding's spec as part of a file name: without the directories that it may name."""
    without_directories = re.sub(r'(^torchscript:|=)[^@]*[/\\]', r'\1', spec)
    return re.sub(r'[^\w.+=@-]', '_', without_directories)
