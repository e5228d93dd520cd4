"""Exceptions that end a command: user errors, diverged training, and a run that was asked to stop."""

import click


class UserError(click.ClickException):
    """Bad input. The message is one sentence that names the option or file, its value and the way out.

    Raised anywhere, it ends a command with `Error: <message>` and exit status 2, in our own commands and in the host's
    patched `train.py`: both are click commands.
    """

    exit_code = 2


class DivergedError(UserError):
    """Training has diverged: a loss or a term was not finite for too many steps in a row.

    Raised by a loss's `accumulate_gradients`. Our training loops save a snapshot before they pass the error on.
    """


class Stopped(click.ClickException):
    """A run was asked to stop and ended early, with everything saved: a message and exit status 0."""

    exit_code = 0

    def show(self, file=None) -> None:
        click.echo(self.format_message(), file=file)
