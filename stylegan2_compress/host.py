"""Where the host (NVlabs/stylegan2-ada-pytorch) is: find it, fetch it, put it on `sys.path`, repair it."""

import os
import sys
from pathlib import Path


def activate(host=None):
    """Skeleton: the real thing is being written."""
    path = Path(host or os.environ['STYLEGAN2_ADA_PYTORCH'])
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    return path
