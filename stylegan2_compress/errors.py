"""What ends a command: bad input that the user can mend, and a run that was asked to stop."""

import click


class UserError(click.ClickException):
    """Bad input, told in one sentence that names the option or file, its value and the way out.

    Raised anywhere below the command line, it ends a command with `Error: <sentence>` and exit status 2: in our own
    commands and in the host's patched `train.py` alike, because both are click commands.
    """

    exit_code = 2


class DivergedError(UserError):
    """Training cannot go on: a loss or a term was not finite for too many steps in a row.

    Raised by a loss's `accumulate_gradients`. A training loop that knows better saves a snapshot before it passes the
    error on.
    """


class Stopped(click.ClickException):
    """A run ended early because it was asked to, with everything saved: a sentence and exit status 0."""

    exit_code = 0

    def show(self, file=None) -> None:
        click.echo(self.format_message(), file=file)
