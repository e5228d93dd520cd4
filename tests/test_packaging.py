"""What setup.cfg and the README promise about an installation."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

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


def test_ci_runs_the_readmes_test_line():
    lines = [
        line
        for line in (ROOT / 'README.md').read_text().splitlines()
        if re.fullmatch(r'pip install .* && pytest', line)
    ]
    assert len(lines) == 1
    assert (ROOT / '.ci' / 'run').stat().st_mode & 0o111


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
