"""Whether the source code of a class in a file means something else than the local source code."""

import functools
import hashlib
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field

_MAX_SOURCE = 1 << 17  # Characters; the host's networks.py has 37,000.

# Two classes of the host from PyPI have more options than NVIDIA's. They are off by default and NVIDIA's constructors
# refuse them, so with arguments that both take the classes are the same: digest on PyPI -> digest at NVIDIA.
_SAME = {
    'c6e17601c7b8d4e9bcb4013902cc279d747f61adc9e7409ee6daf81144fa2283':  # Generator
    'f1d2855fd10e6efec716ce999e45d5f390174ac5a79e915c648ea99ff37e139d',
    '6db55e69c675537aedaafc17d5d534bea9af186e9f08f0144d8727cb96b276ca':  # Discriminator
    '9bdaf0c6df22be0eb76db4a55cabcd8db3abe82fbd229beb308ad433bc675c61',
}  # fmt: skip

# Names with which source code can reach more than a network needs.
_UNUSUAL = {
    '__builtins__',
    '__globals__',
    '__import__',
    '__subclasses__',
    'breakpoint',
    'compile',
    'eval',
    'exec',
    'open',
}
_USUAL_IMPORTS = {
    'collections',
    'dnnlib',
    'fnmatch',
    'functools',
    'hashlib',
    'math',
    'numpy',
    'scipy',
    'torch',
    'torch_utils',
    'training',
    'typing',
}


@dataclass
class _Definition:
    """The statements that define one name of a module, without layout, comments and docstrings."""

    text: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)  # All, decorators included.
    head: set[str] = field(default_factory=set)  # Of the first line, which names the base classes.

    def digest(self) -> str:
        """A hash that is equal for definitions that mean the same."""
        digest = hashlib.sha256('\n'.join(self.text).encode(errors='replace')).hexdigest()
        return _SAME.get(digest, digest)


def differ(class_name: str, first: str, second: str) -> bool:
    """Whether two module sources define `class_name`, or something of its module that it uses, differently.

    Comments, docstrings, layout, imports and whatever the class does not use are ignored. So are the persistent
    classes that it constructs: they have records of their own. The sources are split into tokens, neither run nor
    compiled (compiling hostile source code can crash the interpreter). A source that cannot be split, or without such a
    class, differs.
    """
    if first == second:
        return False
    return max(len(first), len(second)) > _MAX_SOURCE or _differ(class_name, first, second)


@functools.lru_cache(maxsize=256)
def _differ(class_name: str, first: str, second: str) -> bool:
    ours, theirs = _definitions(first), _definitions(second)
    todo, seen = {class_name}, set()
    while todo:
        name = todo.pop()
        if name not in ours or name not in theirs or ours[name].digest() != theirs[name].digest():
            return True
        seen.add(name)
        constructed = {name for name, other in ours.items() if 'persistent_class' in other.tokens}
        used = (ours[name].tokens & theirs[name].tokens) - constructed | ours[name].head
        todo |= (used & (ours.keys() | theirs.keys())) - seen
    return False


def digest(class_name: str, source: str) -> str:
    """A hash of a class and of all in its module that it uses; '' if the source has no such class.

    What `differ` ignores does not count.
    """
    return '' if len(source) > _MAX_SOURCE else _digest(class_name, source)


@functools.lru_cache(maxsize=256)
def _digest(class_name: str, source: str) -> str:
    definitions = _definitions(source)
    if class_name not in definitions:
        return ''
    used = _used(class_name, definitions)
    text = '\n'.join(f'{name} {definitions[name].digest()}' for name in sorted(used))
    return hashlib.sha256(text.encode(errors='replace')).hexdigest()[:32]


def _used(class_name: str, definitions: dict[str, _Definition]) -> set[str]:
    """The names of a class and of what it uses, without the persistent classes that it constructs."""
    constructed = {name for name, other in definitions.items() if 'persistent_class' in other.tokens}
    todo, seen = {class_name}, set()
    while todo:
        name = todo.pop()
        definition = definitions[name]
        seen.add(name)
        todo |= ((definition.tokens - constructed | definition.head) & definitions.keys()) - seen
    return seen


def unusual_names(source: str) -> set[str]:
    """Names that a module's source code imports or mentions and a network does not need; a hint, not a proof."""
    try:
        lines = [tokens for _, tokens in _logical_lines(source[:_MAX_SOURCE])]
    except (tokenize.TokenError, SyntaxError, ValueError):
        return {'invalid Python'}
    imported = (
        {tokens[1] for tokens in lines if tokens[0] in ('import', 'from') and len(tokens) > 1}
        - {'.', '..'}
        - _USUAL_IMPORTS
    )
    return imported | {token for tokens in lines for token in tokens if token in _UNUSUAL}


@functools.lru_cache(maxsize=16)
def _definitions(source: str) -> dict[str, _Definition]:
    """A module's functions, classes and variables by name; none if the source cannot be split into tokens."""
    definitions: dict[str, _Definition] = {}
    decorators: list[tuple[int, list[str]]] = []
    definition = _Definition()
    try:
        for depth, tokens in _logical_lines(source):
            if depth == 0 and tokens[0] == '@':
                decorators.append((depth, tokens))
                continue
            if depth == 0:
                name = tokens[1] if tokens[0] in ('class', 'def') and len(tokens) > 1 else tokens[0]
                definition = definitions.setdefault(name, _Definition())
                definition.head.update(tokens)
            for line_depth, line in [*decorators, (depth, tokens)]:
                definition.text.append(f'{line_depth} {"".join(line)}')
                definition.tokens.update(line)
            decorators = []
    except (tokenize.TokenError, SyntaxError, ValueError):
        return {}
    return {name: value for name, value in definitions.items() if name not in ('import', 'from')}


def _logical_lines(source: str) -> Iterator[tuple[int, list[str]]]:
    """Indentation depth and tokens of each logical line that is not a docstring."""
    depth, tokens, types = 0, [], set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.INDENT:
            depth += 1
        elif token.type == tokenize.DEDENT:
            depth -= 1
        elif token.type == tokenize.NEWLINE:
            if types - {tokenize.STRING}:  # A line of only strings is a docstring.
                yield depth, tokens
            tokens, types = [], set()
        elif token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER):
            tokens.append(token.string)
            types.add(token.type)
