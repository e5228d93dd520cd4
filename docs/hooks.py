"""Files outside `docs/` that the site shows, and links that lead to them.

Links in the Markdown files are relative to the repository, so that they work wherever the repository is read. In the
site, `docs/` and the repository's root are one directory.
"""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
HOME = 'quickstart.md'  # Has what other pages look for in the README: its measured table.
SHOWN = [
    'CONTRIBUTING.md',
    'CHANGELOG.md',
    'benchmarks/cifar10/table.md',
    'examples/compress_a_stylegan2.ipynb',
    *sorted(ROOT.glob('benchmarks/*.md')),
    *sorted(ROOT.glob('benchmarks/*.png')),
]


def on_files(files, config):
    for path in SHOWN:
        uri = (ROOT / path).relative_to(ROOT).as_posix()
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrite links from where a file is in the repository to where it is in the site."""
    in_repository = PurePosixPath(page.file.src_uri if page.file.generated_by else f'docs/{page.file.src_uri}')

    def rewritten(match):
        target, hash_sign, anchor = match[1].partition('#')
        if not target or re.match(r'[a-z]+:', target):
            return match[0]
        path = normpath(in_repository.parent / target)
        path = HOME if path == 'README.md' else path.removeprefix('docs/')
        return f']({relpath(path, PurePosixPath(page.file.src_uri).parent)}{hash_sign}{anchor})'

    return re.sub(r'\]\(([^)\s]+)\)', rewritten, markdown)
