"""Ctrl-C, SIGTERM and SIGHUP: the step is finished and the state saved before the run ends."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

from stylegan2_compress.runs import signals


class Interrupted(KeyboardInterrupt):
    """A signal came `Interruption.at_once`. Code that goes on after any error leaves Ctrl-C alone."""


class Interruption:
    """A context in which `signals.STOPPING` are only recorded. A second Ctrl-C interrupts at once.

    Attributes:
        signal: the name of the last signal, or None.
    """

    signal: str | None = None
    _raising = False

    def __enter__(self) -> 'Interruption':
        self.previous = {}
        if threading.current_thread() is threading.main_thread():  # Others may set no handlers.
            for number in signals.to_handle():
                self.previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *_exception) -> None:
        # A process that was started for the run is about to end, and may be sent the same signal once more: by whoever
        # sent it to all, and by the one that started it.
        is_ending = self.signal is not None and multiprocessing.parent_process() is not None
        for number, handler in self.previous.items():
            signal.signal(number, signal.SIG_IGN if is_ending and number != signal.SIGINT else handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A context that a signal ends by raising `Interrupted`, also one that has come before."""
        self._raising = True
        try:
            if self.signal is not None:
                raise Interrupted
            yield
        finally:
            self._raising = False

    def _record(self, number: int, _frame) -> None:
        self.signal = signal.Signals(number).name
        if self.signal == 'SIGHUP':
            signals.leave_the_terminal()
        if self._raising:
            self._raising = False
            raise Interrupted
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with contextlib.suppress(OSError):  # The same Ctrl-C may have ended who reads it.
                os.write(2, b'\nFinishing the step; Ctrl-C again stops at once, without saving.\n')
