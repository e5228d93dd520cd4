"""Runs in Weights & Biases (extra `wandb`). Imported when one is tracked, because it is optional and slow to import."""

import os
from collections.abc import Mapping

import numpy as np
import wandb

from stylegan2_compress.training_loops.trackers import PROJECT, NamedRun

SECONDS_TO_CONNECT = 30


class WandbRun(NamedRun):
    """A run that is sent where somebody is logged in and the server answers, and else written to the run directory."""

    name = 'wandb'

    def begin(self) -> None:
        """Start quietly; a line says where the run is."""
        os.environ.setdefault('WANDB_SILENT', 'true')
        mode = os.environ.get('WANDB_MODE') or ('online' if is_logged_in() else 'offline')
        try:
            self.run = self._init(mode)
        except wandb.Error:  # The server does not answer.
            self.run = self._init('offline')
        where = self.run.url or f'{self.run.dir.removesuffix("/files")}, off line; `wandb sync` sends it'
        print(f'Tracked by wandb: {where}')

    def _init(self, mode: str) -> wandb.Run:
        return wandb.init(
            project=os.environ.get('WANDB_PROJECT', PROJECT),
            name=self.title,
            id=self.run_id,
            resume='allow',
            dir=self.directory.path.resolve(),
            config=self.directory.read_options(),
            mode=mode,  # pyright: ignore[reportArgumentType]  # From the environment; wandb checks it.
            settings=wandb.Settings(
                silent=True, console='off', disable_git=True, save_code=False, init_timeout=SECONDS_TO_CONNECT
            ),
        )

    def write_scalars(self, values: Mapping[str, float], cur_nimg: int) -> None:
        self.run.log(dict(values), step=self._step(cur_nimg))

    def write_image(self, name: str, pixels: np.ndarray, cur_nimg: int) -> None:
        self.run.log({name: wandb.Image(pixels)}, step=self._step(cur_nimg))

    def _step(self, cur_nimg: int) -> int:
        """The number of images seen; or, of what is made up for when a run goes on, one more: no step is added to."""
        return max(cur_nimg, self.run.starting_step)

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


def is_logged_in() -> bool:
    """Whether wandb has credentials that its server accepts; nobody is asked for any."""
    try:
        return wandb.login(prompt=False, verify=True)
    except wandb.Error:
        return False
