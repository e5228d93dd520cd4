"""Ctrl-C and SIGTERM: the step is finished and the state saved before the run ends."""

import os
import signal
import threading


class Interruption:
    """A context in which SIGINT and SIGTERM are only recorded. A second Ctrl-C interrupts at once.

    Attributes:
        signal: the name of the last signal, or None.
    """

    signal: str | None = None

    def __enter__(self) -> 'Interruption':
        self.previous = {}
        if threading.current_thread() is threading.main_thread():  # Others may set no handlers.
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *_exception) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, _frame) -> None:
        self.signal = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.write(2, b'\nFinishing the step; Ctrl-C again stops at once, without saving.\n')
