"""The `stylegan2-compress` command: a table of sub-commands, whose modules are imported when they are asked for.

Nothing here imports torch, so that `--help`, and refusals of what needs no look at a file, come at once.
"""

import contextlib
import difflib
import importlib
import os
import signal
import sys
import threading
from typing import Any, NoReturn

import click

from stylegan2_compress.runs.output import NO_SPACE, STANDARD, send_nowhere
from stylegan2_compress.version import __version__

COMMANDS = {
    'compare': 'evaluation:compare',
    'convert': 'networks:convert',
    'distill': 'training:distill',
    'evaluate': 'evaluation:evaluate',
    'export': 'export:export',
    'find-ticket': 'training:find_ticket',
    'generate': 'generation:generate',
    'host': 'host:host',
    'inspect': 'networks:inspect',
    'patch': 'host:patch',
    'profile': 'networks:profile',
    'prune': 'networks:prune',
    'quickstart': 'training:quickstart',
    'report': 'report:report',
    'run-host': 'scripts:run_host',
    'stats': 'statistics:stats',
    'teachers': 'networks:teachers',
    'ticket': 'tickets:ticket',
}


class Commands(click.Group):
    """A group that imports the commands of `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _colon, function = COMMANDS[cmd_name].partition(':')
        return getattr(importlib.import_module(f'{__name__}.{module}'), function)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and (alike := difflib.get_close_matches(args[0], COMMANDS, n=1)):
            ctx.fail(f'There is no command {args[0]!r}; did you mean {alike[0]}?')
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        open_missing_streams()
        if threading.current_thread() is threading.main_thread():
            end_with_signals()
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            if error.filename is not None or error.errno not in NO_SPACE:
                raise
            with contextlib.suppress(OSError):
                print(f'Error: {error.strerror}, for a file or for what is printed: make room.', file=sys.stderr)
            send_nowhere(STANDARD)  # What is left in buffers, when Python ends.
            sys.exit(2)


def open_missing_streams() -> None:
    """Let what is printed go nowhere where standard streams are closed, and no file that is written be one of them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Gets the lowest free number, which is this one.
    for name in ('stdout', 'stderr'):
        for each in (name, f'__{name}__'):
            if getattr(sys, each) is None:
                setattr(sys, each, open(os.devnull, 'w'))  # noqa: SIM115  (open as long as the process lives)


def end_with_signals() -> None:
    """Let signals that end a process do so as errors do: temporary files are deleted. (Runs save their state.)"""

    def end(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    for name in ('SIGTERM', 'SIGHUP'):  # Windows has no SIGHUP.
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


@click.group(cls=Commands, context_settings={'help_option_names': ['-h', '--help'], 'max_content_width': 120})
@click.version_option(__version__, prog_name='stylegan2-compress')
def main() -> None:
    """Compress StyleGAN2 generators: pruning, distillation with DiME and NICKEL, lottery tickets, evaluation."""
