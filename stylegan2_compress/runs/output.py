"""What a run prints when nobody reads it any more, as after a Ctrl-C that ended `tee`, too: it is in the log alone."""

import errno
import os
import select
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, TextIO

STANDARD = (1, 2)  # The descriptors of standard output and error.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)  # Left on a disk, or of a quota.


@contextmanager
def may_be_closed() -> Iterator[None]:
    """A context in which, and after which, printing to a closed pipe or terminal is no error."""
    try:
        with redirect_stdout(_Unread(sys.stdout)):  # pyright: ignore[reportArgumentType]
            yield
    finally:
        leave_what_is_closed()


class _Unread:
    """A text stream that may be closed at its other end."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _unless_closed():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _unless_closed():
            self._stream.flush()


@contextmanager
def _unless_closed() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):  # Of a pipe, and of a terminal.
            raise
        leave_what_is_closed()


def leave_what_is_closed() -> None:
    """Let standard output and error go nowhere, from now on, where nobody reads them."""
    if not hasattr(select, 'poll'):  # As on Windows.
        return
    poll = select.poll()
    for descriptor in STANDARD:
        poll.register(descriptor, 0)
    closed = select.POLLERR | select.POLLHUP
    send_nowhere([descriptor for descriptor, event in poll.poll(0) if event & closed])


def send_nowhere(descriptors: Iterable[int]) -> None:
    """Let what is written to these descriptors go nowhere."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in descriptors:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)
