"""Commands of ours, run as a user runs them: those that succeed and those that refuse what they are given."""

import stat
from pathlib import Path

from bad_inputs import snapshot
from click.testing import CliRunner

from stylegan2_compress.cli import main


def run(*arguments: object) -> str:
    """What a command prints that succeeds; on stderr it has nothing to say."""
    result = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert result.stderr == ''
    return result.stdout


def refused(*arguments: object, unchanged: Path | None = None, usage: bool = False) -> str:
    """The one line on stderr in which a command refuses its arguments, and all that it prints.

    Below `unchanged` there is no file more or less than before, and none has been written to. With `usage`, click's
    lines on how the command is used may come first.
    """
    before = unchanged and contents(unchanged)
    result = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert 'Traceback' not in result.output
    assert result.stdout == ''
    hint, error, sentence = result.stderr.partition('Error: ')
    assert hint == '' or (usage and hint.startswith('Usage: ')), result.output
    assert sentence.count('\n') == 1, 'one line'
    assert sentence.endswith('\n')
    assert unchanged is None or contents(unchanged) == before
    return error + sentence


def contents(directory: Path) -> dict[str, tuple]:
    """Everything below a directory; when something was last put into a directory or taken out does not count."""
    return {name: facts[:2] if stat.S_ISDIR(facts[0]) else facts for name, facts in snapshot(directory).items()}
