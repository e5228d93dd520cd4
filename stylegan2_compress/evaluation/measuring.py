"""Measuring network files one after another, or in several processes that each measure some of them."""

import concurrent.futures
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from training.networks import Generator

from stylegan2_compress import host
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation import metrics, records, samples
from stylegan2_compress.evaluation.base import Metric, Setting
from stylegan2_compress.evaluation.generators import open_generator, sha256
from stylegan2_compress.host import devices
from stylegan2_compress.host.progress_bars import progress_bar


@dataclass(frozen=True)
class Question:
    """What is asked of every file.

    Attributes:
        metric_names, samples: see `metrics.parse`.
        teacher: the first file.
        sha256: of each file, when it was looked at first.
        data: its absolute path.
        training_set_kwargs: arguments of the host's data set for it.
        trust: run unknown code that files contain.
    """

    metric_names: str
    samples: int | None
    teacher: str
    sha256: Mapping[str, str]
    data: str
    training_set_kwargs: dict
    trust: bool

    def about(self, file: str, seed: int, chosen: Sequence[Metric], G: Generator) -> Iterator[dict[str, Any]]:
        """Records of all metrics of a generator with one seed."""
        for metric in chosen:
            if metric.of_teacher or file != self.teacher:
                yield records.measured(metric, G, seed, data=self.data)


# --- Several processes ------------------------------------------------------------------------------------------------


def in_processes(
    question: Question, files: Sequence[str], seeds: Sequence[int], processes: int, device: torch.device
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield (file, records) for every file and seed, in order; each is measured by one of several processes.

    Every number is measured as by one process, and so is the same.

    Args:
        question: what is asked.
        files, seeds: of whom.
        processes: how many, each with a GPU of its own if the device is CUDA.
        device: where to compute.

    Raises:
        UserError: from a process, or one was ended from outside.
    """
    jobs = [(file, seed) for file in files for seed in seeds]
    context = multiprocessing.get_context('spawn')
    places = context.SimpleQueue()
    for number in range(processes):
        places.put(f'cuda:{number}' if device.type == 'cuda' else str(device))
    threads = max((os.cpu_count() or 1) // processes, 1) if 'OMP_NUM_THREADS' not in os.environ else None
    start = str(host.activate().path), question, places, threads
    pool = concurrent.futures.ProcessPoolExecutor(processes, context, _start, start)
    others = set(multiprocessing.active_children())
    try:
        results = [pool.submit(_answer, *job) for job in jobs]
        for (file, _seed), result in zip(progress_bar(jobs, desc='networks'), results, strict=True):
            yield file, result.result()
        pool.shutdown()  # They end by themselves: killed, they would leave semaphores behind.
    except concurrent.futures.BrokenExecutor as error:
        raise UserError(
            f'--gpus={processes}: a process was ended from outside, for lack of memory perhaps; try fewer.'
        ) from error
    finally:
        for each in set(multiprocessing.active_children()) - others:  # After an error, some are still measuring.
            each.kill()
        pool.shutdown(cancel_futures=True)


class _Worker:
    """What a process keeps between files: metrics that are prepared, and the generators it has opened last."""

    def __init__(self, question: Question, device: torch.device):
        self.question = question
        self.device = device
        self.teacher = self._open(question.teacher)
        self.chosen = metrics.parse(question.metric_names, question.samples)
        setting = Setting(question.training_set_kwargs, device, self.teacher, question.sha256[question.teacher])
        for metric in self.chosen:
            metric.prepare(setting)
        self.file, self.G = question.teacher, self.teacher

    def answer(self, file: str, seed: int) -> list[dict[str, Any]]:
        if file != self.file:
            is_teacher = file == self.question.teacher
            self.G = self.teacher if is_teacher else self._open(file)
            self.file = file
        G = self.G.to(self.device)
        with samples.required_to_be_finite(file, G):
            answers = list(self.question.about(file, seed, self.chosen, G))
        G.cpu()
        return answers

    def _open(self, file: str) -> Generator:
        """The generator of a file, hours perhaps after the first look at it: a run may go on beside.

        Raises:
            UserError: it is another file by now.
        """
        G = open_generator(file, self.question.trust)
        if sha256(file) != self.question.sha256[file]:
            raise UserError(f'{file} was replaced while it was measured: measure a copy of it.')
        return G


_worker: _Worker  # Of a process that `_start` began.


def _start(host_dir: str, question: Question, places, threads: int | None) -> None:
    """Begin a process. It is silent: progress is shown, and errors are told, by the one that started it."""
    global _worker
    sys.stdout = sys.stderr = open(os.devnull, 'w')  # noqa: SIM115 (for as long as the process lives)
    host.activate(host_dir)
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device(places.get())
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    devices.set_backends()
    _worker = _Worker(question, device)


def _answer(file: str, seed: int) -> list[dict[str, Any]]:
    return _worker.answer(file, seed)
