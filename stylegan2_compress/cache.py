"""Where we keep what can be made again: a copy of the host, teacher statistics."""

import os
from pathlib import Path


def cache_dir(*parts: str) -> Path:
    """Return a path in our cache, whether or not it exists: `cache_dir('statistics')`.

    `STYLEGAN2_COMPRESS_CACHE` names the cache itself. Otherwise it is `stylegan2-compress` in the place that the
    platform keeps caches: `%LOCALAPPDATA%`, `$XDG_CACHE_HOME` or `~/.cache`.
    """
    own = os.environ.get('STYLEGAN2_COMPRESS_CACHE')
    if own:
        return Path(own, *parts)
    conventional = os.environ.get('LOCALAPPDATA' if os.name == 'nt' else 'XDG_CACHE_HOME')
    return Path(conventional or Path.home() / '.cache', 'stylegan2-compress', *parts)
