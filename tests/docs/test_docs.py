"""Documents say what the code does: tables, links, command lines, examples."""

import ast
import configparser
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from tiny_runs import EMBEDDING

from stylegan2_compress.cli import main

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted(ROOT.glob('docs/*.md'))]
MEASURED = sorted(ROOT.glob('benchmarks/*.md'))  # Their command lines are those of scripts.
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.DOTALL | re.MULTILINE)
CONTEXT = click.Context(main)
OTHERS = {'--help', '--requeue', '--rdzv-id'}  # Of every command, of sbatch, of torchrun.

each_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
each_file = pytest.mark.parametrize('page', [*PAGES, *MEASURED], ids=lambda page: f'{page.parent.name}/{page.name}')


def tables():
    spec = importlib.util.spec_from_file_location('tables', ROOT / 'docs' / 'tables.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(page):
    """A page's text without its fenced blocks."""
    return FENCE.sub('', page.read_text())


def blocks(page, language):
    """The fenced blocks in a language; '' is that of command lines."""
    return [text for found, text in FENCE.findall(page.read_text()) if found == language]


# --- Tables -----------------------------------------------------------------------------------------------------------


@each_file
def test_tables_are_current(page):
    text = page.read_text()
    assert tables().filled(text) == text, 'run: python docs/tables.py'


def test_check_tells_a_table_that_is_not_current(tmp_path, monkeypatch, capsys):
    module, page = tables(), tmp_path / 'page.md'
    page.write_text('<!-- repairs -->\n| old |\n<!-- end -->\n')
    monkeypatch.setattr(module, 'PAGES', [page])
    assert module.main(['--check']) == 1
    assert 'page.md' in capsys.readouterr().out
    assert '| old |' in page.read_text()
    assert module.main([]) == 0
    assert '| old |' not in page.read_text()
    assert 'InfiniteSampler' in page.read_text()
    assert module.main(['--check']) == 0


def test_tables_of_students_are_seen():
    shown = [page for page in tables().PAGES if re.search('<!-- (students|overview): ', page.read_text())]
    assert [page.name for page in shown] == ['README.md', 'README.md', 'quality.md']


def test_the_measured_table_is_the_same_everywhere():
    def rows(path):
        return re.findall(r'^\| (?:teacher|pruned|distilled) \|.*$', (ROOT / path).read_text(), re.MULTILINE)

    assert len(rows('README.md')) == 3
    assert rows('README.md') == rows('docs/quickstart.md')


# --- Links ------------------------------------------------------------------------------------------------------------


def anchors(page):
    """Anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r'^#+ (.+)$', prose(page), re.MULTILINE)
    return {re.sub(r'\s+', '-', re.sub(r'[^\w\s-]', '', heading).strip().lower()) for heading in headings}


@each_file
def test_links_and_images_resolve(page):
    for target in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
        if re.match(r'[a-z]+:', target):
            continue
        path, _hash, anchor = target.partition('#')
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), target
        assert file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / 'mkdocs.yml').read_text()
    for page in ROOT.glob('docs/*.md'):
        assert re.search(rf'- {re.escape(page.name)}$', navigation, re.MULTILINE), page.name
        if page.name != 'index.md':
            assert f'](docs/{page.name})' in (ROOT / 'README.md').read_text(), page.name
    for page in MEASURED:
        assert re.search(rf'[ :]benchmarks/{re.escape(page.name)}$', navigation, re.MULTILINE), page.name
        if page.name != 'README.md':
            assert f']({page.name})' in (ROOT / 'benchmarks' / 'README.md').read_text(), page.name


def test_every_script_of_the_benchmarks_is_in_their_table():
    table = (ROOT / 'benchmarks' / 'README.md').read_text().partition('\n## All pages\n')[2]
    scripts = [path.name for path in ROOT.glob('benchmarks/*.py') if "__name__ == '__main__'" in path.read_text()]
    assert [name for name in scripts if f'`{name}`' not in table] == []
    assert set(re.findall(r'`(\w+\.py)`', table)) <= set(scripts)


def test_the_readme_is_short():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 150


# --- Command lines ----------------------------------------------------------------------------------------------------


def command_lines(page):
    """The arguments of each command line of ours that a page shows, and of each that it mentions."""
    for block in blocks(page, ''):
        for line in block.replace('\\\n', ' ').splitlines():
            for part in re.split(r' && | \| |; ', line):
                found = re.search(r'(?:^|\s)(?:stylegan2-compress|-m stylegan2_compress)(\s.*)', part)
                if found and not part.lstrip().startswith('#'):
                    yield [word for word in shlex.split(found[1], comments=True) if word != '&']
    for code in re.findall(r'`([^`\n]+)`', prose(page)):
        words = code.replace('\\|', '|').split()
        if words[0] == 'stylegan2-compress':
            yield words[1:]
        elif words[0] in main.list_commands(CONTEXT) and (len(words) == 1 or words[1].startswith('-')):
            yield words


def refuse_unknown(words):
    command = main
    while isinstance(command, click.Group) and words and not words[0].startswith('-'):
        assert words[0] in command.list_commands(CONTEXT), words
        command, words = command.get_command(CONTEXT, words[0]), words[1:]
    known = {name for option in command.params for name in [*option.opts, *option.secondary_opts]}
    if command.name == 'run-host':  # What follows the script is the script's.
        words = words[: next((index for index, word in enumerate(words) if word.endswith('.py')), None)]
    options = [word.partition('=')[0] for word in words if re.match(r'--?[a-z]', word)]
    assert set(options) <= known | {'--help', '-h', '--version'}, f'{words} of {command.name}'


@each_page
def test_command_lines_are_of_commands_and_options_that_exist(page):
    for words in command_lines(page):
        refuse_unknown(words)


@pytest.mark.parametrize('words', ['distil', 'distill --losses=x', 'ticket boil', 'prune --ratio 0.5 --kimg 1'])
def test_other_command_lines_are_found_out(words):
    with pytest.raises(AssertionError):
        refuse_unknown(words.split())


def test_command_lines_are_seen():
    assert sum(1 for page in PAGES for _words in command_lines(page)) > 50


@each_page
def test_options_that_are_mentioned_exist(page):
    ticket = main.get_command(CONTEXT, 'ticket')
    commands = [group.get_command(CONTEXT, name) for group in (main, ticket) for name in group.list_commands(CONTEXT)]
    known = {name for command in commands for option in command.params for name in option.opts}
    for code in re.findall(r'`(--[^`\n]+)`', prose(page)):
        for option in re.findall(r'(?<![\w-])--[a-z][a-z0-9-]*', code):
            assert option in known | OTHERS, code


def lines_of(heading):
    """The lines of commands in the README below a heading, one each."""
    part = (ROOT / 'README.md').read_text().partition(f'\n## {heading}\n')[2].partition('\n## ')[0]
    text = ''.join(block for language, block in FENCE.findall(part) if not language)
    return text.replace('\\\n', ' ').splitlines()


@pytest.mark.checkout
def test_the_readmes_lines_run_as_they_are(tmp_path, make_generator, make_discriminator, make_dataset_zip, monkeypatch):
    """Those of ours, one after the other; another embedding stands for the downloads."""
    from stylegan2_compress import embeddings, pickles
    from stylegan2_compress.runs import launch

    checkout = tmp_path / 'stylegan2-ada-pytorch'
    checkout.mkdir()
    shutil.copy(Path(os.environ['STYLEGAN2_ADA_PYTORCH'], 'train.py'), checkout)
    G, D = make_generator(), make_discriminator()
    for directory in (tmp_path, checkout):
        pickles.save(directory / 'ffhq256.pkl', dict(G=G, D=D, G_ema=G))
        make_dataset_zip(directory, name='ffhq256.zip')
    load, started = embeddings.load, []
    monkeypatch.setattr(embeddings, 'load', lambda _spec, device: load('module:tiny_embeddings:tiny@size=16', device))
    monkeypatch.setattr(launch, 'run', lambda args: started.append(args['loss_kwargs']['class_name']))
    monkeypatch.chdir(tmp_path)
    ran = []
    for line in lines_of('Compress your own generator'):
        words = shlex.split(line, comments=True)
        if words[0] == 'cd':
            monkeypatch.chdir(words[1])
        if words[0] == 'stylegan2-compress':
            result = CliRunner().invoke(main, words[1:], catch_exceptions=False)
            assert result.exit_code == 0, f'{line}: {result.output}'
            ran.append(words[1])
    assert ran == ['host', 'distill', 'patch', 'prune', 'patch']
    assert started == ['stylegan2_compress.DiMELoss']


def test_the_readme_installs_what_its_distillation_needs():
    from stylegan2_compress.embeddings.presets import PRESETS
    from stylegan2_compress.losses.dime import PAPER_EMBEDDINGS

    (extras,) = re.findall(r'pip install .*"\.\[([\w,]+)\]"', '\n'.join(lines_of('Compress your own generator')))
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    texts = [setup['options.extras_require'][extra] for extra in extras.split(',')]
    installed = set(re.findall(r'^[\w-]+', '\n'.join(texts), re.MULTILINE))
    looked_through = [*PAPER_EMBEDDINGS, 'efficientnet_lite0']  # The latter by image distillation and tickets.
    assert {package for name in looked_through for package in PRESETS[name].packages} <= installed


def test_the_table_of_extras_has_them_all():
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    packages = {name: set(text.split('\n')) for name, text in setup['options.extras_require'].items()}
    table = (ROOT / 'docs' / 'index.md').read_text().partition('| extra | adds |')[2].partition('\n\n')[0]
    rows = [line.split('|')[1:3] for line in table.splitlines()[2:]]
    assert sorted(re.findall(r'`(\w+)`', ' '.join(names for names, _adds in rows))) == sorted(packages)
    ((_name, adds),) = [row for row in rows if row[0].strip() == '`test`']
    assert set(re.findall(r'`(\w+)`', adds)) == {name for name in packages if not packages[name] <= packages['test']}


def test_the_row_of_export_has_all_formats():
    from stylegan2_compress.export.options import FORMATS

    (row,) = re.findall(r'^\| `export` \|.*$', (ROOT / 'docs' / 'commands.md').read_text(), re.MULTILINE)
    names = re.sub(r'\W', '', row).lower().replace('browsers', 'web')
    assert [name for name in FORMATS if name not in names] == []


@each_page
def test_nothing_is_installed_from_where_it_is_not(page):
    assert not re.search(r'pip install [^&\n]*stylegan2-compress', page.read_text())


# --- Python -----------------------------------------------------------------------------------------------------------


@each_page
def test_what_examples_import_exists(page):
    for block in blocks(page, 'python'):
        for node in ast.walk(ast.parse(block)):
            # `Util` is content-aware-gan-compression's: that example runs in a checkout of it.
            if isinstance(node, ast.ImportFrom) and not node.module.startswith('Util.'):
                module = importlib.import_module(node.module)
                for name in node.names:
                    if not hasattr(module, name.name):
                        importlib.import_module(f'{node.module}.{name.name}')


def test_the_readmes_python_runs_by_itself(tmp_path, make_generator):
    """In a new process, where nobody has activated the host; `distill` is only looked up."""
    from stylegan2_compress import pickles

    (block,) = blocks(ROOT / 'README.md', 'python')
    pickles.save(tmp_path / 'ffhq256.pkl', dict(G=None, D=None, G_ema=make_generator()))
    script = block.replace('run_dir = distill(', 'dict(') + 'print(distill.__name__, G.z_dim)'
    result = subprocess.run([sys.executable, '-c', script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stdout == 'distill 16\n', result.stderr


def examples():
    """The modules that `extending.md` shows with the command lines below them, by the headings that they are below."""
    for part in (ROOT / 'docs' / 'extending.md').read_text().split('\n## ')[1:]:
        found = FENCE.findall(part)
        lines = [text for language, text in found if language == '']
        for text in (text for language, text in found if language == 'python'):
            yield pytest.param(text, lines[0] if lines else None, id=part.splitlines()[0])


SHORT = {  # For networks and runs of a test.
    'distill': '--kimg 1 --batch 200 --device cpu --workers 0',
    'find-ticket': f'--kimg 1 --batch 200 --channel-max 8 --embedding {EMBEDDING} --eval-embedding {EMBEDDING} '
    '--eval-samples 8 --device cpu --workers 0',
    'evaluate': '--samples 10 --device cpu',
    'prune': '',
}


@pytest.mark.usefixtures('small_grids')
@pytest.mark.parametrize(('example', 'line'), list(examples()))
def test_examples_of_extensions_work_as_their_commands_say(
    example, line, tmp_path, monkeypatch, make_generator, make_discriminator, make_dataset_zip
):
    """On networks of 16 pixels."""
    from stylegan2_compress import pickles

    (tmp_path / 'my_module.py').write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'my_module', raising=False)
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module('my_module')
    if line is None:  # A repair.
        assert {'WHAT', 'WHY', 'VERSIONS', 'needed', 'apply'} <= vars(module).keys()
        return
    make_dataset_zip(tmp_path, n=12)
    G, D = make_generator().eval(), make_discriminator().eval()
    networks = dict(G=G, D=D, G_ema=G, training_set_kwargs=None, augment_pipe=None)
    for name in ('teacher.pkl', 'student.pkl')[: 1 if ' prune ' in line else 2]:
        pickles.save(tmp_path / name, networks)
    torch.save(torch.nn.Sequential(torch.nn.Conv2d(3, 64, 7, stride=4)).state_dict(), tmp_path / 'my_weights.pt')
    words = shlex.split(line.replace('\\\n', ' '))
    assert words[:2] == ['PYTHONPATH=.', 'stylegan2-compress']
    command, given = words[2], [*words[3:], *SHORT[words[2]].split()]
    if '--loop' in line:
        given += ['--loss-arg', f'embeddings={EMBEDDING}']
    if command == 'distill' and '--loss ' not in line:
        given += ['--loss-arg', 'samples=16']
    result = CliRunner().invoke(main, [command, *given], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    written = {'distill': 'runs/*/network-snapshot-*.pkl', 'find-ticket': 'runs/*/*.ticket', 'prune': 'student.pkl'}
    if command == 'evaluate':
        assert result.stdout.count('brightness10') > 0
    else:
        assert list(tmp_path.glob(written[command]))


# --- Files about the project ------------------------------------------------------------------------------------------


def test_citation_has_the_version_and_both_papers():
    text = (ROOT / 'CITATION.cff').read_text()
    version = re.search(r"__version__ = '(.+)'", (ROOT / 'stylegan2_compress' / 'version.py').read_text())[1]
    assert f'\nversion: {version}\n' in text
    for paper in ['2405.11614', '2212.08311']:
        assert text.count(paper) == 1
        assert paper in (ROOT / 'README.md').read_text()
