"""The table of commands: help and early refusals come without torch."""

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
