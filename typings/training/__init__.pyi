from typing import Any

from . import augment as augment
from . import dataset as dataset
from . import loss as loss
from . import networks as networks

def __getattr__(name: str) -> Any: ...
