from typing import Any

from . import persistence as persistence

def __getattr__(name: str) -> Any: ...
