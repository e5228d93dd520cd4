"""Progress bars."""

import io
import sys

import dnnlib

from stylegan2_compress.host.progress_bars import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bars_are_on_terminals_alone(tmp_path, monkeypatch):
    """Not in the log of a run, whose Logger stands in for sys.stderr."""
    with dnnlib.util.Logger(str(tmp_path / 'log.txt')):
        monkeypatch.setattr(sys, '__stderr__', io.StringIO())
        assert list(progress_bar(range(3), desc='nowhere')) == [0, 1, 2]
        assert sys.__stderr__.getvalue() == ''
        monkeypatch.setattr(sys, '__stderr__', Terminal())
        assert list(progress_bar(range(3), desc='seen')) == [0, 1, 2]
        assert list(progress_bar(range(3), desc='of others', shown=False)) == [0, 1, 2]
        assert 'seen' in sys.__stderr__.getvalue()
        assert 'others' not in sys.__stderr__.getvalue()
        monkeypatch.setattr(sys, '__stderr__', None)
        assert list(progress_bar(range(3), desc='nowhere')) == [0, 1, 2]
    assert (tmp_path / 'log.txt').read_text() == ''
