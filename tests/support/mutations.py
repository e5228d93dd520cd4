"""Files with a few bytes that are wrong, and whether reading them runs anything."""

import contextlib
import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from stylegan2_compress import pickles
from stylegan2_compress.errors import UserError

with contextlib.suppress(ImportError):  # Imported late, it compiles annotations; older versions of torch have none.
    importlib.import_module('torch.utils.serialization.config')

# What Python announces before code from a file could do harm. Modules that are imported late come from files.
_DANGEROUS = ('os.system', 'os.exec', 'os.posix_spawn', 'subprocess.Popen', 'pickle.')
_watching = False
_seen: list[str] = []


def _hook(event: str, args: tuple) -> None:
    if not _watching:
        return
    if event == 'exec':
        harm = not Path(getattr(args[0], 'co_filename', '')).is_file()
    elif event == 'compile':
        harm = not (isinstance(args[1], str) and Path(args[1]).is_file())
    else:
        harm = event.startswith(_DANGEROUS)
    if harm:
        _seen.append(f'{event} {args}'[:200])


sys.addaudithook(_hook)  # Hooks stay as long as the process; this one looks only inside `nothing_runs`.


@contextlib.contextmanager
def nothing_runs() -> Iterator[None]:
    """Code that is run, compiled or unpickled in the block, and is not a file's, fails the test."""
    global _watching
    _seen.clear()
    _watching = True
    try:
        yield
    finally:
        _watching = False
    assert not _seen, _seen


def mutated(whole: bytes, seed: int = 0) -> Iterator[bytes]:
    """Endless copies: some bytes replaced, a part doubled, or the end cut off."""
    rnd = random.Random(seed)
    while True:
        text = bytearray(whole)
        kind = rnd.randrange(10)
        if kind == 0:
            del text[rnd.randrange(len(text)) :]
        elif kind == 1:
            start = rnd.randrange(len(text))
            text[start:start] = text[start : start + rnd.randrange(1, 50)]
        else:
            for _ in range(rnd.choice([1, 1, 1, 2, 5, 20])):
                text[rnd.randrange(len(text))] = rnd.randrange(256)
        yield bytes(text)


def count_refused(path: Path, count: int = 500) -> int:
    """How many of `count` mutated copies of a file are refused, each with a sentence and without running anything."""
    whole, scratch = path.read_bytes(), path.with_name(f'mutated{path.suffix}')
    refused = 0
    for number, text in zip(range(count), mutated(whole), strict=False):
        scratch.write_bytes(text)
        with nothing_runs():
            try:
                pickles.load(scratch)
            except UserError as error:
                refused += 1
                said = error.format_message()
                assert said.endswith('.'), said
                assert '\n' not in said
                said.encode()
            if number % 10 == 0:
                with contextlib.suppress(UserError):
                    pickles.inspect(scratch).text().encode()
    return refused
