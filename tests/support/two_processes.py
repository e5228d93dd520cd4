"""Tests of what several processes exchange, in two that begin as copies of the test's. See `forked`."""

import tempfile
from collections.abc import Callable

import torch

from stylegan2_compress import distributed


def in_two_processes(function: Callable, *args: object) -> None:
    """Call `function(rank, *args)` in two processes of one group, and wait for their end."""
    with tempfile.TemporaryDirectory() as directory:
        torch.multiprocessing.start_processes(
            _in_group,
            (f'{directory}/store', function, args),
            nprocs=2,
            daemon=True,  # Else pytest would wait for those that hang, after the test has been given up.
            start_method='fork',
        )


def _in_group(rank: int, store: str, function: Callable, args: tuple) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=2)
    function(rank, *args)
    distributed.leave()
