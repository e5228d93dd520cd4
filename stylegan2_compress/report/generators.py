"""The networks of a run: images of the same z from teacher and snapshots, and the cost of each."""

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import PIL.Image
import torch

from stylegan2_compress import files, images, pickles
from stylegan2_compress.errors import UserError
from stylegan2_compress.evaluation.samples import generate
from stylegan2_compress.host import devices, downloads, profiling
from stylegan2_compress.host.networks import require_generator
from stylegan2_compress.host.progress_bars import progress_bar
from stylegan2_compress.networks.masked import ScoreMaskedGenerator
from stylegan2_compress.report.reading import Run, results_beside
from stylegan2_compress.runs import inputs
from stylegan2_compress.runs.directory import RunDirectory
from stylegan2_compress.tickets import baking

COLUMNS = 6  # Images in a row, which fit the width of a phone.
SIDE = 128  # Pixels; larger images are scaled down.
SEED = 0


@dataclass(frozen=True)
class GeneratorSummary:
    """Images and cost of a generator."""

    kimg: int | None  # None for the teacher.
    file: str
    z_dim: int
    images: list[PIL.Image.Image]  # Of `COLUMNS` latents, which are the same for all generators.
    parameters: int
    macs: int
    kept: int | None  # Number of parameters of a masked network that are not zero.
    seconds: float | None  # For one image, if measured.
    results: dict[str, dict[str, float]]  # Of metrics, by name and setting, as far as they are on record.


@dataclass
class Pictures:
    """The generators of a run, and images."""

    teacher: GeneratorSummary | None = None
    students: list[GeneratorSummary] = field(default_factory=list)
    crop: tuple[str, list[PIL.Image.Image]] | None = None  # Instead of students: name and images of a fakes*.png.
    notes: list[str] = field(default_factory=list)
    measured_on: str | None = None  # The name of the device, if times were measured.


def open_networks(runs: list[Run], snapshots: int, latency: bool) -> list[Pictures]:
    """Open each run's teacher and some of its snapshots, and generate images.

    One network is loaded at a time, without executing code in its file. A file that cannot be opened becomes a note.

    Args:
        runs: the runs.
        snapshots: number of snapshots of each run, at most; the first and the last are among them.
        latency: whether to measure the time for an image, of the teachers and the last snapshots.
    """
    chosen = [spread(run.snapshots, snapshots) for run in runs]
    bar = progress_bar(total=sum(map(len, chosen)), unit='snapshot')
    device = devices.choose()
    teachers: dict[str, GeneratorSummary | None] = {}
    result = []
    for run, opened in zip(runs, chosen, strict=True):
        pictures = Pictures(measured_on=profiling.device_name(device) if latency else None)
        result.append(pictures)
        pictures.teacher = _teacher(run, pictures.notes, teachers, latency)
        for kimg, file in opened:
            measured = latency and file == opened[-1][1]
            if student := _summary(file, kimg, measured, f'The snapshot {file.name}', pictures.notes):
                pictures.students.append(student)
            bar.update()
        if pictures.teacher and any(student.z_dim != pictures.teacher.z_dim for student in pictures.students):
            pictures.notes.append('Teacher and student have a different z_dim, so their images are of different z.')
        if not pictures.students:
            pictures.crop = _crop(run, pictures.notes)
    bar.close()
    return result


def spread(items: list, most: int) -> list:
    """At most that many items, evenly spaced, with the first and the last; of one, the last."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / max(most - 1, 1))] for i in range(most)] if most > 1 else items[-1:]


def _teacher(
    run: Run, notes: list[str], known: dict[str, GeneratorSummary | None], latency: bool
) -> GeneratorSummary | None:
    """The teacher of a run, from `known` if another run has the same."""
    name = run.teacher
    if name is None:
        notes.append('The options name no teacher, so there are no images of one.')
        return None
    found = find_files(name, run)
    recorded = RunDirectory(run.path).read_inputs()
    had = recorded.get('loss_kwargs.teacher', recorded.get(inputs.TEACHER))
    digests = ((file, files.sha256(file)) for file in found)
    file, digest = next(((file, digest) for file, digest in digests if had in (None, digest)), (None, None))
    if file is None or digest is None:
        what = f'on this machine is another file than the run had ({found[0]})' if found else 'is not on this machine'
        notes.append(f'The teacher {name} {what}, so there are no images of it.')
        return None
    if digest not in known:  # Runs may name the same teacher in different ways.
        known[digest] = _summary(file, None, latency, f'The teacher {name}', notes)
    return known[digest]


def find_files(name: str, run: Run) -> list[str]:
    """The paths on this machine at which a file may be that a run's options name, the most likely one first.

    It is searched for under its name, relative to the directory in which the run was started, in the run directory and
    beside that. Of a URL or a published network, only the copy in the host's cache is used: nothing is downloaded for a
    report.
    """
    if downloads.is_remote(name):
        cached = downloads.cached_file(name)
        return [] if cached is None else [cached]
    started_in = RunDirectory(run.path).read_inputs().get(inputs.DIRECTORY)
    places = [Path(started_in, name)] if isinstance(started_in, str) else []
    places += [Path(name), run.path / Path(name).name, run.path.parent / Path(name).name]
    own, stated = run.path.resolve(), run.option('run_dir')
    if isinstance(stated, str) and own.parts[-len(Path(stated).parts) :] == Path(stated).parts:
        places.insert(0, Path(*own.parts[: -len(Path(stated).parts)], name))
    return [str(place) for place in places if _is_file(place)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # The name is too long, or contains a null character.
        return False


def _summary(
    file: str | os.PathLike, kimg: int | None, latency: bool, what: str, notes: list[str]
) -> GeneratorSummary | None:
    """Images and cost of the G_ema in a file; None, with a note, if it cannot be opened."""
    try:
        with warnings.catch_warnings(record=True) as warned:  # They become notes, the same one once for all snapshots.
            warnings.simplefilter('always', UserWarning)
            data = pickles.load(file)
        require_generator(str(file), data)
    except UserError as error:
        notes.append(f'{what} cannot be opened: {error.message}')
        return None
    subject = 'A snapshot' if kimg is not None else what
    notes += sorted({str(warning.message).replace(str(file), subject) for warning in warned} - set(notes))
    G = data['G_ema'].eval().requires_grad_(False)
    masked = isinstance(G, ScoreMaskedGenerator)
    if masked:
        G = baking.bake(G)
    batch, _labels = generate(G, COLUMNS, SEED)
    if G.img_resolution > SIDE:
        batch = torch.nn.functional.interpolate(batch, size=[SIDE, SIDE], mode='area')
    return GeneratorSummary(
        kimg=kimg,
        file=str(file),
        z_dim=G.z_dim,
        images=[images.grid(image, 1) for image in images.to_uint8(batch)[:, None]],
        parameters=profiling.parameters(G),
        macs=profiling.macs(G),
        kept=sum(int(parameter.count_nonzero()) for parameter in G.parameters()) if masked else None,
        seconds=profiling.measure(G.to(devices.choose()), batch=1).seconds if latency else None,
        results=results_beside(Path(file)),
    )


def _crop(run: Run, notes: list[str]) -> tuple[str, list[PIL.Image.Image]] | None:
    """Name and first images of the newest fakes*.png of a run; None, with a note, if there is none."""
    if not run.fakes:
        notes.append('There is no snapshot that can be opened, and no fakes*.png.')
        return None
    file = run.fakes[-1][1]
    try:
        with PIL.Image.open(file) as grid:
            side = _cell(grid.size, run.option('training_set_kwargs.resolution'))
            places = [(x, 0, x + side, side) for x in range(0, grid.width - side + 1, side)[:COLUMNS]]
            row = grid.convert('RGB')
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        notes.append(f'There is no snapshot that can be opened, and {file.name} cannot be read ({error}).')
        return None
    cells = [row.crop(place) for place in places]
    for cell in cells:
        cell.thumbnail((SIDE, SIDE), PIL.Image.Resampling.LANCZOS)
    notes.append(f'No snapshot can be opened: the images are the first ones in {file.name}, of other z.')
    return file.name, cells


def _cell(size: tuple[int, int], resolution: object) -> int:
    """Side of an image in a grid of the host, which has 7 to 32 columns and 4 to 32 rows, and is about 8K at most."""
    if isinstance(resolution, int) and resolution > 1 and not any(side % resolution for side in size):
        return resolution
    fitting = [side for side in (2**k for k in range(10, 1, -1))
               if size == (side * min(max(7680 // side, 7), 32), side * min(max(4320 // side, 4), 32))]  # fmt: skip
    return fitting[0] if fitting else min(size)
