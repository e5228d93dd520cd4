"""What runs, `evaluate` and `stats` show in a terminal, in a pseudo-terminal."""

import os
import re
import sys
import threading
import time
import warnings

import pytest
import torch
from tiny_runs import EMBEDDING, loop_arguments

from stylegan2_compress import pickles
from stylegan2_compress.compression.options import StatsOptions
from stylegan2_compress.compression.stats import write_statistics
from stylegan2_compress.evaluation.evaluate import evaluate
from stylegan2_compress.runs.directory import RunDirectory
from stylegan2_compress.training_loops.distillation import training_loop
from stylegan2_compress.training_loops.monitor import Monitor

pty = pytest.importorskip('pty')
termios = pytest.importorskip('termios')


@pytest.fixture
def terminal(monkeypatch):
    """Replaces the terminal by one of 100 columns; a function that ends it and returns what was written to it."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, 100)) if hasattr(termios, 'tcsetwinsize') else set_size(theirs)
    written = []

    def read():
        try:
            while text := os.read(ours, 1 << 16):
                written.append(text)
        except OSError:  # How Linux says that the other end is closed.
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    file = open(theirs, 'w')  # noqa: SIM115
    monkeypatch.setattr(sys, '__stderr__', file)

    def end():
        file.close()
        reader.join(10)
        return b''.join(written).decode()

    yield end
    os.close(ours)


def set_size(descriptor):
    """As `termios.tcsetwinsize`, of Python 3.11."""
    import fcntl
    import struct

    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack('HHHH', 30, 100, 0, 0))


@pytest.mark.usefixtures('small_grids')
def test_the_bar_goes_from_start_to_end_and_no_further(terminal, tmp_path, make_dataset_zip, capsys):
    """The last step goes beyond the end: five of 16 images are 80, and 70 were asked for."""
    arguments = loop_arguments(tmp_path / 'run', make_dataset_zip(tmp_path, n=8), total_kimg=0.07)
    with warnings.catch_warnings():
        warnings.simplefilter('error', category=UserWarning)  # Such as tqdm's, of more than 100 %.
        training_loop(**arguments)
    shown = terminal()
    states = re.findall(r'(\d+)% \|.*?\| (\d+\.\d)/0.07 kimg, (.*?) left', shown)
    percents = [int(percent) for percent, _kimg, _left in states]
    assert percents[0] == 0
    assert percents == sorted(percents)
    assert percents[-1] == 100
    assert not [left for _percent, _kimg, left in states if left.startswith('-')]
    assert max(len(line) for line in re.split(r'[\r\n]', re.sub(r'\x1b\[[0-9;]*[A-Za-z]', '', shown))) <= 100
    assert 'images/s, ' in shown
    printed = capsys.readouterr().out
    assert len(re.findall(r'^tick \d', printed, re.MULTILINE)) == 3
    assert 'left' not in printed  # That is in the bar.


@pytest.mark.usefixtures('small_grids')
def test_the_first_step_foretells_no_end(tmp_path, make_dataset_zip, capsys):
    training_loop(**loop_arguments(tmp_path / 'run', make_dataset_zip(tmp_path, n=8), total_kimg=0.07))
    lines = re.findall(r'^  .*images/s.*$', capsys.readouterr().out, re.MULTILINE)
    assert [line.endswith(' left') for line in lines] == [False, True, True]


def test_evaluate_and_stats_show_how_far_they_are(
    terminal, tmp_path, make_dataset_zip, make_generator, make_discriminator, monkeypatch
):
    monkeypatch.setattr(sys, 'stderr', sys.__stderr__)  # Here: pytest sets it between a fixture and its test.
    monkeypatch.setenv('STYLEGAN2_COMPRESS_CACHE', str(tmp_path / 'cache'))
    data, G = str(make_dataset_zip(tmp_path, n=12)), make_generator()
    pickles.save(tmp_path / 'a.pkl', dict(G=G, D=make_discriminator(), G_ema=G))
    evaluate([str(tmp_path / 'a.pkl')], data, f'fd:{EMBEDDING}', samples=12, device='cpu')
    write_statistics(StatsOptions(data=data, embeddings=(EMBEDDING,), out=str(tmp_path / 'a.npz'), device='cpu'))
    shown = terminal()
    for what in ('data features', 'generator features', 'Reference statistics'):
        assert re.search(rf'{what}\S*: +0%', shown), what
        assert not re.search(rf'{what}\S*: +10[1-9]%', shown), what


def test_the_time_that_is_left_counts_what_is_between_ticks(tmp_path, monkeypatch, capsys):
    """Snapshots and metrics come again: a tick of 10 s after 30 s of them, twice, makes 40 s for the third."""
    now, said = [0.0], []
    monkeypatch.setattr(time, 'time', lambda: now[0])
    monitor = Monitor(RunDirectory(tmp_path), 4, torch.device('cpu'))
    monitor.begin()
    monitor.bar.disable = True
    with monitor:
        for cur_nimg, between in [(0, 30), (1000, 30), (2000, 30), (3000, 0)]:
            now[0] += 10
            monitor._show_losses({}, cur_nimg or 16)
            said.append(capsys.readouterr().out.strip())
            monitor.tick_start_nimg, monitor.tick_start = cur_nimg or 16, now[0]
            now[0] += between
            monitor.count_as_maintenance(between)
    assert 'left' not in said[0]
    assert [text.rpartition(', ')[2] for text in said[1:]] == ['30s left', '50s left', '30s left']
