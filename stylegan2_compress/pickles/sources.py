"""Does a class's source text in a file say something else than the local one?"""

import functools
import hashlib
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field

_MAX_SOURCE = 1 << 17  # Characters; the host's networks.py has 37,000.

# Two classes of the host from PyPI have options more than NVIDIA's. They are off by default and NVIDIA's constructors
# refuse them, so for arguments that both take these classes are the same: digest on PyPI -> digest at NVIDIA.
_SAME = {
    'c6e17601c7b8d4e9bcb4013902cc279d747f61adc9e7409ee6daf81144fa2283':  # Generator
    'f1d2855fd10e6efec716ce999e45d5f390174ac5a79e915c648ea99ff37e139d',
    '6db55e69c675537aedaafc17d5d534bea9af186e9f08f0144d8727cb96b276ca':  # Discriminator
    '9bdaf0c6df22be0eb76db4a55cabcd8db3abe82fbd229beb308ad433bc675c61',
}  # fmt: skip


# Names with which Python source gets at more than a network needs.
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
        """The same for definitions that mean the same."""
        digest = hashlib.sha256('\n'.join(self.text).encode(errors='replace')).hexdigest()
        return _SAME.get(digest, digest)


def differ(class_name: str, first: str, second: str) -> bool:
    """Whether two module sources define `class_name`, or something that it uses of its module, differently.

    Comments, docstrings, layout, imports and whatever the class does not use are left out. So are the persistent
    classes that it constructs: they are on record themselves. The texts are cut into tokens, neither run nor compiled
    (compiling hostile text can crash the interpreter). A text that cannot be cut, or without such a class, differs.
    """
    if first == second:
        return False
    return max(len(first), len(second)) > _MAX_SOURCE or _differ(class_name, first, second)


@functools.lru_cache(maxsize=256)
def _differ(class_name: str, first: str, second: str) -> bool:
    first, second = _definitions(first), _definitions(second)
    todo, seen = {class_name}, set()
    while todo:
        name = todo.pop()
        if name not in first or name not in second or first[name].digest() != second[name].digest():
            return True
        seen.add(name)
        constructed = {name for name, other in first.items() if 'persistent_class' in other.tokens}
        used = (first[name].tokens & second[name].tokens) - constructed | first[name].head
        todo |= (used & (first.keys() | second.keys())) - seen
    return False


def unusual_names(source: str) -> set[str]:
    """What a module's source imports or mentions that a network does not need; a hint, no proof of anything."""
    try:
        lines = [tokens for _, tokens in _logical_lines(source[:_MAX_SOURCE])]
    except (tokenize.TokenError, SyntaxError, ValueError):
        return {'what is no Python'}
    imported = (
        {tokens[1] for tokens in lines if tokens[0] in ('import', 'from') and len(tokens) > 1}
        - {'.', '..'}
        - _USUAL_IMPORTS
    )
    return imported | {token for tokens in lines for token in tokens if token in _UNUSUAL}


@functools.lru_cache(maxsize=16)
def _definitions(source: str) -> dict[str, _Definition]:
    """A module's functions, classes and variables by name."""
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
    depth, tokens, types = 0, [], set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.INDENT:
            depth += 1
        elif token.type == tokenize.DEDENT:
            depth -= 1
        elif token.type == tokenize.NEWLINE:
            if types - {tokenize.STRING}:  # A line of strings alone is a docstring.
                yield depth, tokens
            tokens, types = [], set()
        elif token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER):
            tokens.append(token.string)
            types.add(token.type)
