"""`evaluate`: measures generators side by side, and appends the results to files beside them."""

import contextlib
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from training.networks import Generator

from stylegan2_compress import distributed
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation import measuring, metrics, records
from stylegan2_compress.evaluation import samples as images
from stylegan2_compress.evaluation.base import Metric, Setting
from stylegan2_compress.evaluation.generators import open_generator, require_same_latents, resolve, sha256
from stylegan2_compress.evaluation.options import EvaluateOptions
from stylegan2_compress.evaluation.settings import SHA256
from stylegan2_compress.evaluation.tables import number, render
from stylegan2_compress.export import exported
from stylegan2_compress.export.record import RECORD
from stylegan2_compress.files import require_appendable
from stylegan2_compress.host import datasets, devices, downloads
from stylegan2_compress.host.networks import require_finite


@dataclass(frozen=True)
class Measured:
    """Results for one network file."""

    file: str
    values: dict[str, list[float]]  # By name, one for each repeat.


def evaluate(files: Sequence[str], data: str, metrics: str, trust: bool = False, **options) -> list[Measured]:
    """Measure G_ema of network files, and append every result to `metric-<name>.jsonl` beside its file.

    Args:
        files: network files, run directories, whose last snapshots count, URLs, and directories that `export` wrote.
            The first is the teacher for metrics that need one. Nothing is written beside URLs.
        data, metrics, options: the fields of `EvaluateOptions`.
        trust: run unknown code that the files contain.

    Raises:
        UserError: something cannot be measured or written; before anything is.
    """
    return measure(files, EvaluateOptions(data=data, metrics=metrics, **options), trust)


def measure(files: Sequence[str], options: EvaluateOptions, trust: bool = False) -> list[Measured]:
    """What `evaluate` does, with its options as one object."""
    device = devices.choose(options.device)
    files = list(dict.fromkeys(resolve(file) for file in files))
    processes = _number_of_processes(options, device, len(files))
    chosen = _metrics_of(options)
    training_set_kwargs, generators = _open(files, options, trust)
    _require_places(files, chosen, options.out)
    digests = {file: sha256(file) for file in files}
    teacher = files[0]
    setting = Setting(training_set_kwargs, device, generators[teacher], digests[teacher])
    for name, metric in zip(metrics.names(options.metrics), chosen, strict=True):
        metric.prepare(setting)
        if not metric.of_teacher and len(files) == 1:
            raise UserError(f'--metrics={name} compares other networks with the first one: name a second one.')

    tell_of_noise(generators, chosen)
    devices.set_backends()
    data = os.path.abspath(options.data)
    question = measuring.Question(options.metrics, options.samples, teacher, digests, data, training_set_kwargs, trust)
    measured = {file: Measured(file, {}) for file in files}
    with contextlib.ExitStack() as stack:
        for file, G in generators.items():
            stack.enter_context(images.required_to_be_finite(file, G))
            images.generate(G.to(device), 2, seed=0)  # One that makes none is found before another is measured.
            G.cpu()
        if processes > 1:
            if device.type == 'cuda':
                torch.cuda.empty_cache()  # The first of them is on the same GPU.
            answers = measuring.in_processes(question, files, options.seeds, processes, device)
        else:
            answers = _one_by_one(question, generators, options.seeds, chosen, device)
        for file, its_records in answers:
            for record in its_records:
                for name, value in _keep(record | {SHA256: digests[file]}, file, options.out).items():
                    measured[file].values.setdefault(name, []).append(value)
    return [measured[file] for file in files]


def _metrics_of(options: EvaluateOptions) -> list[Metric]:
    """The metrics that are named."""
    chosen = metrics.parse(options.metrics, options.samples)
    if options.mirror and not any(metric.mirrors for metric in chosen):
        raise UserError(f'--mirror changes none of --metrics={options.metrics}: leave it out.')
    return chosen


def _number_of_processes(options: EvaluateOptions, device: torch.device, files: int) -> int:
    """How many measure at a time, no more than there are files and seeds."""
    return min(distributed.number_of_processes(options.gpus, str(device)), files * options.repeats)


def _open(files: Sequence[str], options: EvaluateOptions, trust: bool) -> tuple[dict, dict[str, Generator]]:
    """Arguments of the host's data set, and G_ema of each file, which fit each other."""
    training_set, kwargs = datasets.open_training_set(options.data)
    if len(training_set) < 2:
        raise UserError(
            f'--data={options.data} has one image, and distributions are of several: name the data it is from.'
        )
    label_dim = training_set.label_dim if kwargs.use_labels else 0
    generators: dict[str, Generator] = {}
    for file in files:
        G = generators[file] = open_generator(file, trust)
        _check_data(file, G, options.data, training_set, label_dim)
        require_same_latents(file, G, files[0], generators[files[0]], 'evaluate them one by one')
        require_finite(file, G)
    return datasets.metric_dataset_kwargs(options.data, generators[files[0]], options.mirror), generators


def _require_places(files: Sequence[str], chosen: Sequence[Metric], out: str | None) -> None:
    """Refuse results that could not be written."""
    if out is not None:
        require_appendable(out)
        return
    for place in filter(None, map(_file_beside, files)):
        for metric in chosen:
            records.require_appendable(place, metric.name)


def _one_by_one(
    question: measuring.Question,
    generators: Mapping[str, Generator],
    seeds: Iterable[int],
    chosen: Sequence[Metric],
    device: torch.device,
) -> Iterator[tuple[str, Iterator[dict]]]:
    """What `measuring.in_processes` yields, measured in this process."""
    for file, G in generators.items():
        G.to(device)
        for seed in seeds:
            yield file, question.about(file, seed, chosen, G)
        G.cpu()


def tell_of_noise(generators: Mapping[str, Generator], chosen: Sequence[Metric]) -> None:
    """Say so where the numbers of an export and of a network are of images with different noise."""
    names = [metric.name for metric in chosen if metric.random_noise]
    export = next((file for file, G in generators.items() if isinstance(G, exported.Exported)), None)
    if names and export is not None and any(map(has_noise, generators.values())):
        print(
            f'{export} is an export, with its noise built in, and networks get random noise for {", ".join(names)}: '
            'these numbers differ even where the export is exact. --metrics=agreement compares images with constant '
            'noise.',
            file=sys.stderr,
        )


def has_noise(G: Generator) -> bool:
    """Whether noise inputs have an effect; not known of exports."""
    tensors = itertools.chain(G.named_parameters(), G.named_buffers())  # Masked generators do not train them.
    return any(name.endswith('noise_strength') and bool(value.any()) for name, value in tensors)


def _file_beside(file: str) -> str | None:
    """The file beside which results are written; of an export, they are written into it. None for a URL."""
    if exported.is_export(file):
        return os.path.join(file, RECORD)
    return None if downloads.is_remote(file) else file


def _keep(record: dict, file: str, out: str | None) -> dict[str, float]:
    """Results of a record, which is written to `out`, or beside the file, if it has a place."""
    if not np.isfinite(list(record['results'].values())).all():
        name = record['metric']
        raise UserError(f'--metrics={name} is no finite number of these images: choose another metric or data.')
    place = file if out else _file_beside(file)
    if place is not None:
        records.append(place, record, out)
    return record['results']


def _check_data(file: str, G: Generator, data: str, training_set, label_dim: int) -> None:
    """Refuse a generator whose images or labels are not like those of the data."""
    for what, mine, theirs in [
        ('images of resolution', G.img_resolution, training_set.resolution),
        ('image channels', G.img_channels, training_set.num_channels),
        ('label dimensions', G.c_dim, label_dim if G.c_dim else 0),
    ]:
        if mine != theirs:
            raise UserError(
                f'{file} has {what} {mine}, but --data={data} has {theirs}: use the data it was trained on.'
            )


def table(results: list[Measured]) -> str:
    """One line per file: mean and standard deviation over repeats, and the difference to the first file."""
    rows = []
    for result in results:
        row = {'network': result.file}
        for name, values in result.values.items():
            row[name] = _spread(values)
            first = results[0].values.get(name)
            if first and result is not results[0]:
                row[name] += f' ({_signed(float(np.mean(values) - np.mean(first)))})'
        rows.append(row)
    return render(rows, 'text')


def _spread(values: list[float]) -> str:
    """A single number, or mean ± standard deviation (of the sample) of several."""
    if len(values) == 1:
        return number(values[0])
    return f'{number(float(np.mean(values)))} ± {number(float(np.std(values, ddof=1)))}'


def _signed(value: float) -> str:
    return f'+{number(value)}' if value > 0 else number(value)
