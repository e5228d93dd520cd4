"""Commands of ours, run as a user runs them: those that succeed and those that refuse what they are given."""

from pathlib import Path

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

    Below `unchanged` there is no file more or less than before. With `usage`, click's lines on how the command is used
    may come first.
    """
    before = unchanged and sorted(unchanged.rglob('*'))
    result = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert 'Traceback' not in result.output
    assert result.stdout == ''
    hint, error, sentence = result.stderr.partition('Error: ')
    assert hint == '' or (usage and hint.startswith('Usage: ')), result.output
    assert sentence.count('\n') == 1, 'one line'
    assert sentence.endswith('\n')
    assert unchanged is None or sorted(unchanged.rglob('*')) == before
    return error + sentence
