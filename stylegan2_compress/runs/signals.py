"""The signals that ask a run to save its state and end."""

import os
import signal

from stylegan2_compress.runs import output

_NAMES = ('SIGINT', 'SIGTERM', 'SIGHUP')  # Ctrl-C; schedulers; a terminal that is closed (Windows has none of these).
STOPPING = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


def to_handle() -> list[signal.Signals]:
    """Those of `STOPPING` that nobody had ignored before: nohup does so with SIGHUP."""
    return [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]


def leave_the_terminal() -> None:
    """Let what is printed from now on go nowhere, where it went to a terminal: writing to a closed one is an error."""
    output.send_nowhere(filter(os.isatty, output.STANDARD))
