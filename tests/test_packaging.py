"""What setup.cfg and the README promise about an installation."""

import configparser
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(ROOT / 'setup.cfg')
    return parser


def test_every_package_is_installed():
    """An editable install finds packages that setup.cfg forgets; a real one does not."""
    ours = {
        '.'.join(path.parent.relative_to(ROOT).parts) for path in (ROOT / 'stylegan2_compress').rglob('__init__.py')
    }
    ours |= {'stylegan2_compress.training_loops', 'stylegan2_compress.patches'}
    assert set(setup_cfg()['options']['packages'].split()) == ours


def test_every_data_file_is_installed():
    data = setup_cfg()['options.package_data']
    for package, folder in [
        ('stylegan2_compress', ROOT / 'stylegan2_compress'),
        ('stylegan2_compress.patches', ROOT / 'patches'),
    ]:
        patterns = data[package].split()
        installed = {path for pattern in patterns for path in folder.glob(pattern)}
        others = {path for path in folder.rglob('*') if path.is_file() and path.suffix not in ('.py', '.pyc')}
        assert others <= installed


STAND_IN = """#!/bin/sh
echo "$(basename "$0") $*" >> "$WRITTEN"
[ "$2" != venv ] || { mkdir -p "$3/bin" && touch "$3/bin/activate"; }
"""


@pytest.mark.skipif(os.name == 'nt', reason='a script of bash')
def test_ci_runs_the_readmes_test_line(tmp_path):
    lines = [
        line
        for line in (ROOT / 'README.md').read_text().splitlines()
        if re.fullmatch(r'pip install .* && pytest', line)
    ]
    assert len(lines) == 1
    for name in ('python3', 'pip', 'pytest', 'ruff', 'pyright', 'mkdocs'):  # Each writes down what it is given.
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)
    environment = dict(os.environ, PATH=f'{tmp_path}:{os.environ["PATH"]}', WRITTEN=str(tmp_path / 'written'))
    subprocess.run([ROOT / '.ci' / 'run'], env=environment, check=True, stdout=subprocess.DEVNULL)
    written = (tmp_path / 'written').read_text().splitlines()
    assert written[0].startswith('python3 -m venv ')
    assert written[1].split() == shlex.split(lines[0].partition('&&')[0])
    assert written[2] == 'pytest '
    assert [line.split()[0] for line in written[3:]] == ['ruff', 'ruff', 'pyright', 'mkdocs']


def test_help_is_quick_and_needs_no_torch():
    script = (
        'import sys\n'
        'from stylegan2_compress.cli import main\n'
        'main(["--help"], standalone_mode=False)\n'
        'print("torch" in sys.modules)\n'
    )
    result = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == 'False'
    commands = (
        'host run-host patch inspect convert prune profile stats distill find-ticket ticket generate evaluate compare '
        'export report quickstart'
    )
    for command in commands.split():
        assert re.search(rf'^  {command} ', result.stdout, flags=re.MULTILINE)
