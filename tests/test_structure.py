"""The plan of the package: who may import whom, what lies at the root, what is written once."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = 'stylegan2_compress'

# From below to above: a file imports only from lines before its own, or from its own.
LAYERS = [
    ['version'],
    ['errors'],
    ['images', 'arguments'],
    ['files', 'caches', 'registry'],
    ['distributed'],
    ['patches'],
    ['networks'],
    ['host'],
    ['embeddings'],
    ['pruning'],
    ['pickles'],
    ['runs'],
    ['tickets'],
    ['export'],
    ['distributions'],
    ['losses'],
    ['evaluation'],
    ['generation'],
    ['training_loops'],
    ['compression'],
    ['report'],
    ['quickstart'],
    ['cli'],
    ['__main__'],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# Imports inside functions, each with its reason in a comment there.
IMPORTS_INSIDE_FUNCTIONS = 12


def modules() -> dict[str, ast.Module]:
    """Syntax trees by dotted name, of everything that is installed."""
    trees = {}
    for directory, prefix in [(PACKAGE, PACKAGE), ('training_loops', f'{PACKAGE}.training_loops'),
                              ('patches', f'{PACKAGE}.patches')]:  # fmt: skip
        for path in (ROOT / directory).rglob('*.py'):
            parts = path.relative_to(ROOT / directory).with_suffix('').parts
            name = '.'.join([prefix, *(part for part in parts if part != '__init__')])
            trees[name] = ast.parse(path.read_text(encoding='utf-8'))
    return trees


MODULES = modules()


def imported(name: str, tree: ast.AST) -> set[str]:
    """The modules of this package that one of them imports, anywhere in its text."""
    targets = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            targets |= {f'{node.module}.{alias.name}' for alias in node.names}
    return {closest(target) for target in targets if target.split('.')[0] == PACKAGE} - {name}


def closest(target: str) -> str:
    """The module that a dotted name is, or is in."""
    while target not in MODULES:
        target = target.rpartition('.')[0]
    return target


GRAPH = {name: imported(name, tree) for name, tree in MODULES.items()}


def layer(name: str) -> str:
    """The package or root module that a module belongs to; '' is the package itself."""
    return name.removeprefix(PACKAGE).lstrip('.').partition('.')[0]


def test_nobody_imports_from_above():
    upward = [
        f'{name} imports {target}'
        for name, targets in GRAPH.items()
        for target in targets
        if layer(name) and layer(target) and LEVEL[layer(target)] > LEVEL[layer(name)]
    ]
    assert upward == []


def test_there_is_no_cycle():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]):
        assert name not in path, ' -> '.join([*path[path.index(name) :], name])
        if name not in done:
            for target in GRAPH[name] - {PACKAGE}:
                visit(target, (*path, name))
            done.add(name)

    for name in GRAPH:
        visit(name, ())


def test_a_cycle_would_be_seen(monkeypatch):
    first, second = f'{PACKAGE}.errors', f'{PACKAGE}.arguments'
    monkeypatch.setitem(GRAPH, first, {second})
    with pytest.raises(AssertionError, match=r'errors -> |arguments -> '):
        test_there_is_no_cycle()
    with pytest.raises(AssertionError):
        test_nobody_imports_from_above()


def test_few_modules_at_the_root():
    names = [path.stem for path in (ROOT / PACKAGE).glob('*.py')]
    assert len(names) <= 10, names
    assert set(names) - {'__init__'} <= set(LEVEL)


def test_few_imports_inside_functions_and_each_has_a_reason():
    without_reason, count = [], 0
    for name, tree in MODULES.items():
        lines = source_of(name).splitlines()
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef):
                continue
            for node in ast.walk(function):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    count += 1
                    nearby = lines[max(node.lineno - 3, 0) : node.lineno]
                    if not any('#' in line for line in nearby):
                        without_reason.append(f'{name}:{node.lineno}')
    assert without_reason == [], count
    assert count <= IMPORTS_INSIDE_FUNCTIONS


def source_of(name: str) -> str:
    parts = name.split('.')[1:]
    base = ROOT / PACKAGE
    if parts and parts[0] in ('training_loops', 'patches'):
        base, parts = ROOT / parts[0], parts[1:]
    path = base.joinpath(*parts)
    return (path / '__init__.py' if path.is_dir() else path.with_suffix('.py')).read_text(encoding='utf-8')


@pytest.mark.parametrize(
    ('pattern', 'allowed'),
    [
        (r'__mro__\[1\]', {f'{PACKAGE}.host.networks'}),
        (r'type\([^()]*(\[[^]]*\])?\)\.__name__ *([!=]=|in |not in )', {f'{PACKAGE}.host.networks'}),
        (r"'force_fp32': ", {f'{PACKAGE}.host.devices', f'{PACKAGE}.patches.ppl_in_fp32'}),
        (r'torch\.distributed', {f'{PACKAGE}.distributed'}),
        (r'is_available\(\) else', {f'{PACKAGE}.distributed', f'{PACKAGE}.host.devices'}),
        (r'inspect\.signature\(\w*(DiME|NICKEL|Loss)', set()),
    ],
)
def test_it_is_decided_in_one_place(pattern, allowed):
    users = {name for name in MODULES if re.search(pattern, source_of(name))}
    assert users <= allowed


def test_every_option_of_a_command_is_written_once():
    """Options that several commands have stand in cli/shared.py or in a dataclass of options that others extend.

    Two commands of a file have no option of one name with two meanings, and no two files declare one alike.
    """
    seen: dict[str, list[str]] = {}
    everywhere: dict[str, str] = {}
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith('click.option'):
                option = next((arg.value for arg in node.args if isinstance(arg, ast.Constant)), None)
                if option is None:
                    continue  # Made of a dataclass.
                seen.setdefault(f'{option} in {name}', []).append(ast.unparse(node))
                assert everywhere.setdefault(ast.unparse(node), name) == name, f'{option} in {name}'
    for where, calls in seen.items():
        assert len(set(calls)) == len(calls), f'{where}: {calls}'


# What Python has only on POSIX systems. A run needs none of it: it is asked for, or does without.
POSIX_MODULES = {'fcntl', 'grp', 'posix', 'pty', 'pwd', 'resource', 'syslog', 'termios', 'tty'}
POSIX_NAMES = {
    'os': [
        'chown',
        'fork',
        'forkpty',
        'getegid',
        'geteuid',
        'getgid',
        'getpgid',
        'getuid',
        'killpg',
        'lchown',
        'mkfifo',
        'nice',
        'sched_getaffinity',
        'setsid',
        'statvfs',
        'sync',
        'sysconf',
        'uname',
        'wait',
    ],
    'signal': [
        'SIGALRM',
        'SIGCHLD',
        'SIGHUP',
        'SIGKILL',
        'SIGQUIT',
        'SIGUSR1',
        'SIGUSR2',
        'alarm',
        'pause',
        'setitimer',
    ],
}


def test_nothing_is_needed_that_windows_lacks():
    needed = []
    for name, tree in MODULES.items():
        tried = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in tried:
                modules = {alias.name for alias in node.names} | {getattr(node, 'module', None)}
                needed += [f'{name} imports {module}' for module in modules & POSIX_MODULES]
            module = node.value.id if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) else ''
            if module in POSIX_NAMES and node.attr in POSIX_NAMES[module]:
                needed.append(f'{name} uses {module}.{node.attr}')
    assert needed == []
