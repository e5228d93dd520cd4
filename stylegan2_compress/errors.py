"""The one exception that means "the user can mend this"."""

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
