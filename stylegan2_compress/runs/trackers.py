"""The trackers there are, for `--track`. Nothing here imports torch, or any of them."""

import importlib.util

from stylegan2_compress.errors import UserError

TRACKERS = {
    'wandb': 'stylegan2_compress.training_loops.wandb_runs:WandbRun',
    'trackio': 'stylegan2_compress.training_loops.trackio_runs:TrackioRun',
}


def require_tracker(name: str | None) -> None:
    """Check that the package of a tracker is installed, which has its name.

    Raises:
        UserError: it is not.
    """
    if name is not None and importlib.util.find_spec(name) is None:
        raise UserError(f'--track={name} needs the package {name}: pip install {name}.')
