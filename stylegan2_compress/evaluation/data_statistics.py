"""What the host's metrics keep of a data set in its cache: only as long as it is of the data that is there now."""

import contextlib
import functools
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

import dnnlib
from metrics import metric_utils

from stylegan2_compress import files
from stylegan2_compress.errors import UserError
from stylegan2_compress.host import datasets, downloads

MARK = '.data'  # Ends the name of the file that says of which data the statistics beside it are.
Files = list[tuple[str, int, int]]  # Name, size, and when it was changed.


@contextlib.contextmanager
def of_the_data() -> Iterator[None]:
    """Make the host's metrics compute statistics anew where those in its cache are of other data at the same path.

    The host finds them by the path as it was given: those of `data.zip` in one directory by `data.zip` in another. They
    are taken if a mark beside them names the same files. The host's own tools leave none.
    """
    compute = functools.partial(_compute, metric_utils.compute_feature_stats_for_dataset)
    with mock.patch.object(metric_utils, 'compute_feature_stats_for_dataset', compute):
        yield


def _compute(compute, opts, detector_url, detector_kwargs, **more):
    if not opts.cache or opts.rank != 0:
        return compute(opts, detector_url, detector_kwargs, **more)
    given = inspect.signature(compute).bind(opts, detector_url, detector_kwargs, **more).arguments
    keys = dict(
        dataset_kwargs=opts.dataset_kwargs,
        detector_url=detector_url,
        detector_kwargs=detector_kwargs,
        stats_kwargs=given.get('stats_kwargs', {}),
    )
    digest = hashlib.md5(repr(sorted(keys.items())).encode()).hexdigest()  # As the host names them.
    data = _files(opts.dataset_kwargs)
    for cached in _cached(digest):
        if not _is_of(cached, data):
            cached.unlink(missing_ok=True)
    stats = compute(opts, detector_url, detector_kwargs, **more)
    for cached in _cached(digest):
        with contextlib.suppress(UserError), files.atomic_write(_mark(cached)) as file:  # No run ends for a mark.
            file.write(_identity(data).encode())
    return stats


def _cached(digest: str) -> list[Path]:
    return list(Path(dnnlib.make_cache_dir_path(downloads.STATISTICS)).glob(f'*-{digest}.pkl'))


def _mark(cached: Path) -> Path:
    return cached.with_name(cached.name + MARK)


def _is_of(cached: Path, data: Files) -> bool:
    """Whether statistics are of the files that a data set has now."""
    try:
        return _mark(cached).read_text() == _identity(data)
    except FileNotFoundError:
        return False


def _files(dataset_kwargs: Mapping) -> Files:
    """Of a data set, or the network that makes it."""
    path = dataset_kwargs['path']
    place = Path(downloads.local_file(path) if datasets.is_teachers(dataset_kwargs) else path)
    members = [file for file in place.rglob('*') if file.is_file()] if place.is_dir() else [place]
    about = [(file.relative_to(place).as_posix(), file.stat()) for file in members]
    return sorted((name, status.st_size, status.st_mtime_ns) for name, status in about)


def _identity(data: Files) -> str:
    """Contents are not read: of a directory of faces, that takes longer than their statistics."""
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()
