"""`evaluate`: generators measured side by side, the results kept beside them."""

import os
import time
from dataclasses import dataclass

import dnnlib
import numpy as np
import torch

from stylegan2_compress import pickles
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation import metrics, records
from stylegan2_compress.evaluation.base import Metric, Setting
from stylegan2_compress.evaluation.tables import number, render
from stylegan2_compress.host import datasets, devices
from stylegan2_compress.host.networks import require_generator


@dataclass(frozen=True)
class Measured:
    """Results of a file: values by name, one for each repeat."""

    file: str
    values: dict[str, list[float]]


def evaluate(
    files: list[str],
    data: str,
    metric_names: str,
    samples: int | None = None,
    repeats: int = 1,
    seed: int = 0,
    mirror: bool = False,
    device: str | None = None,
    trust: bool = False,
) -> list[Measured]:
    """Measure G_ema of network files, and append every result to `metric-<name>.jsonl` beside its file.

    Args:
        files: network files or URLs; the first is the teacher where a metric needs one. Nothing is written for URLs.
        data: directory or zip in the host's format, that all are compared with.
        metric_names: see `metrics.parse`.
        samples: how many images each metric generates, instead of its own number.
        repeats: how often each metric is computed, with the seeds `seed`, `seed + 1`, …
        seed: of the first.
        mirror: whether the host's metrics of 50,000 images (those without `_full`) see mirrored data as well.
        device: 'cpu', 'cuda', 'cuda:1'; CUDA where there is one by default.
        trust: run unknown code that the files contain.

    Raises:
        UserError: before anything is measured or written, for anything that could not be.
    """
    chosen = metrics.parse(metric_names, samples)
    torch_device = devices.choose(device)
    training_set, kwargs = datasets.open_training_set(data)
    generators = []
    for file in files:
        contents = pickles.load(file, trust=trust)
        require_generator(file, contents)
        generators.append(contents['G_ema'].eval().requires_grad_(False))
        check(file, generators[-1], generators[0], files[0], training_set, kwargs.use_labels, data)
        if not is_url(file) and not os.access(os.path.dirname(os.path.abspath(file)), os.W_OK):
            raise UserError(
                f'{file} is in a directory that cannot be written to; copy it to where results may be kept.'
            )
    setting = Setting(dataset_kwargs(data, generators[0], mirror), torch_device, generators[0])
    for metric in chosen:
        metric.prepare(setting)

    # As the host's calc_metrics.py.
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    found = []
    for file, G in zip(files, generators, strict=True):
        G = G.to(torch_device)
        values = {}
        for repeat in range(repeats):
            for metric in chosen:
                if file != files[0] or metric.of_teacher:
                    results = measure(metric, G, seed + repeat, None if is_url(file) else file, data)
                    for name, value in results.items():
                        values.setdefault(name, []).append(value)
        G.cpu()
        found.append(Measured(file, values))
    return found


def measure(metric: Metric, G: torch.nn.Module, seed: int, file: str | None, data: str) -> dict[str, float]:
    """One metric with one seed; the record goes beside the file, if that is a local one."""
    start = time.time()
    results = metric.measure(G, seed)
    seconds = time.time() - start
    if file is not None:
        record = dict(
            results=results,
            metric=metric.name,
            total_time=seconds,
            total_time_str=dnnlib.util.format_time(seconds),
            num_gpus=1,
            seed=seed,
            data=data,
            **metric.facts(),
        )
        records.append(file, record)
    return results


def is_url(file: str) -> bool:
    return dnnlib.util.is_url(file, allow_file_urls=True)


def dataset_kwargs(data: str, G: torch.nn.Module, mirror: bool) -> dict:
    """What the host's calc_metrics.py makes of its options: in this order, which its cache depends on."""
    kwargs = dnnlib.EasyDict(class_name='training.dataset.ImageFolderDataset', path=data)
    kwargs.update(resolution=G.img_resolution, use_labels=G.c_dim != 0)
    if mirror:
        kwargs.xflip = True
    return kwargs


def check(file: str, G, teacher, teacher_file: str, training_set, has_labels: bool, data: str) -> None:
    """Refuse a generator that makes other images than the data holds, or takes other latents than the first."""
    labels = training_set.label_dim if has_labels else 0
    for what, mine, theirs in [
        ('images of resolution', G.img_resolution, training_set.resolution),
        ('image channels', G.img_channels, training_set.num_channels),
        ('label dimensions', G.c_dim, labels if G.c_dim else 0),
    ]:
        if mine != theirs:
            raise UserError(
                f'{file} has {what} {mine}, but --data={data} has {theirs}; name the data it was trained on.'
            )
    if (G.z_dim, G.c_dim) != (teacher.z_dim, teacher.c_dim):
        raise UserError(
            f'{file} takes z of {G.z_dim} and labels of {G.c_dim} numbers, but {teacher_file} takes {teacher.z_dim} '
            f'and {teacher.c_dim}; evaluate them one by one.'
        )


def table(found: list[Measured]) -> str:
    """A line for each file, with the mean and standard deviation of repeats and the difference to the first file."""
    rows = []
    for measured in found:
        row = {'network': measured.file}
        for name, values in measured.values.items():
            row[name] = spread(values)
            first = found[0].values.get(name)
            if first and measured is not found[0]:
                row[name] += f' ({number_with_sign(np.mean(values) - np.mean(first))})'
        rows.append(row)
    return render(rows, 'text')


def spread(values: list[float]) -> str:
    """One number, or mean ± standard deviation (of the sample) of several."""
    if len(values) == 1:
        return number(values[0])
    return f'{number(np.mean(values))} ± {number(np.std(values, ddof=1))}'


def number_with_sign(value: float) -> str:
    return f'+{number(value)}' if value > 0 else number(value)
