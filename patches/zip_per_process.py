"""Every process reads a zipped data set through a file handle of its own."""

import multiprocessing
import os
import zipfile

from training.dataset import ImageFolderDataset

WHAT = 'ImageFolderDataset: forked DataLoader workers open the zip themselves'
WHY = (
    'The handle opened by the constructor is inherited by every forked worker, and they all move its one file offset: '
    'zipfile.BadZipFile (Bad CRC-32), or silently another image.'
)
VERSIONS = 'all of them, where processes can fork (not on Windows)'


def needed() -> bool:
    """Whether workers can be forked at all."""
    return 'fork' in multiprocessing.get_all_start_methods()


def apply() -> None:
    """Let `_get_zipfile` forget a handle that another process opened."""
    open_zipfile = ImageFolderDataset._get_zipfile

    def _get_zipfile(self: ImageFolderDataset) -> zipfile.ZipFile:
        if getattr(self, '_zipfile_pid', None) != os.getpid():
            self._zipfile = None  # Closes this process's copy of the descriptor only.
            self._zipfile_pid = os.getpid()  # pyright: ignore[reportAttributeAccessIssue]  # Ours.
        return open_zipfile(self)

    ImageFolderDataset._get_zipfile = _get_zipfile
