"""The table of commands: help and early refusals come without torch."""

import os
import signal
import subprocess
import sys

import click
import pytest

from stylegan2_compress.cli import COMMANDS, main

HEAVY = ('torch', 'numpy', 'scipy', 'PIL', 'tqdm', 'dnnlib', 'stylegan2_compress.pickles', 'stylegan2_compress.losses')


def imported_by(*command_lines: list[str], exit_code: int) -> set[str]:
    """What of `HEAVY` a new process has imported after these commands, each of which ends with that status."""
    script = (
        'import sys\n'
        'from click.testing import CliRunner\n'
        'from stylegan2_compress.cli import main\n'
        f'for line in {list(command_lines)!r}:\n'
        '    result = CliRunner().invoke(main, line)\n'
        f'    assert result.exit_code == {exit_code}, (line, result.output, result.exception)\n'
        f'print(*(name for name in {HEAVY!r} if name in sys.modules))\n'
    )
    result = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_help_of_every_command_comes_without_torch():
    lines = [['--help'], *([name, '--help'] for name in COMMANDS), ['ticket', 'bake', '--help']]
    assert imported_by(*lines, exit_code=0) == set()


def test_refusals_that_need_no_file_come_without_torch(tmp_path):
    distill = ['distill', '--teacher', 't.pkl', '--data', 'd.zip', '--outdir', str(tmp_path / 'runs')]
    search = ['find-ticket', '--data', 'd.zip', '--outdir', str(tmp_path / 'runs')]
    prune = ['prune', '--teacher', 't.pkl', '--out', str(tmp_path / 's.pkl')]
    lines = [
        [*distill, '--kimg', '0'],
        [*distill, '--student', 's.pkl', '--ratio', '0.5'],
        [*distill, '--lr', 'nan'],
        [*distill[:-1], '/dev/null/runs'],
        [*search, '--keep', '0'],
        [*search, '--reference', 'teacher'],
        [*search, '--teacher', 't.pkl', '--z-dim', '8'],
        prune,
        [*prune, '--ratio', '0.5', '--mask', 'm.pt'],
        ['stats', '--out', str(tmp_path / 's.npz')],
        ['convert', 'a.pkl', 'b.txt'],
        ['export', 'a.pkl', '--format', 'tflite'],
        ['export', 'a.pkl', '--format', 'onnx', '--batch', '0'],
        ['generate', 'a.pkl', '--out', 'a.jpg'],
        ['generate', 'a.pkl', 'b.pkl', '--out', 'a.png'],
        ['ticket', 'save', 'a.pkl', 'a.ticket', '--network', 'D'],
    ]
    assert imported_by(*lines, exit_code=2) == set()


@pytest.mark.parametrize('name', COMMANDS)
def test_every_entry_of_the_table_is_a_command_of_that_name(name):
    command = main.get_command(click.Context(main), name)
    assert isinstance(command, click.Command)
    assert command.name == name


def test_a_command_that_does_not_exist():
    assert main.get_command(click.Context(main), 'compress') is None


SAVE_AND_WAIT = """
import sys, time
import click
from stylegan2_compress import cli, files

@click.command()
def wait():
    with files.collected(sys.argv[2]) as directory, files.atomic_write(sys.argv[3]):
        (directory / 'a').write_bytes(b'')
        click.echo('ready')
        time.sleep(60)

cli.main.add_command(wait)
cli.Commands.get_command = lambda self, ctx, name: self.commands[name]
cli.main(['wait'])
"""


@pytest.mark.skipif(os.name == 'nt', reason='Windows has no signals')
@pytest.mark.parametrize('number', [signal.SIGTERM, getattr(signal, 'SIGHUP', None)])
def test_a_signal_that_ends_a_command_leaves_no_temporary_files(tmp_path, number):
    command = [sys.executable, '-c', SAVE_AND_WAIT, 'wait', str(tmp_path / 'images'), str(tmp_path / 'a.png')]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'ready\n'
        assert len(list(tmp_path.iterdir())) == 2
        process.send_signal(number)
        assert process.wait(timeout=60) == 128 + number
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == 'nt', reason='closes descriptors in a shell')
def test_streams_may_be_closed(tmp_path):
    """As in `nohup … >&- 2>&- &`; and what is written next is not taken for standard output."""
    script = (
        'import os, sys; from stylegan2_compress.cli import main\n'
        'main(["teachers"], standalone_mode=False)\n'
        'print("out"); print("err", file=sys.stderr)\n'
        f'assert open({str(tmp_path / "file")!r}, "w").fileno() > 2'
    )
    done = subprocess.run(['sh', '-c', '"$0" -c "$1" <&- >&- 2>&-', sys.executable, script], check=False)
    assert done.returncode == 0
    assert (tmp_path / 'file').read_bytes() == b''


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='this system has no /dev/full')
def test_a_full_disk_is_one_sentence():
    with open('/dev/full', 'w') as full:
        command = [sys.executable, '-m', 'stylegan2_compress', 'teachers']
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == 'Error: No space left on device, for a file or for what is printed: make room.\n'
