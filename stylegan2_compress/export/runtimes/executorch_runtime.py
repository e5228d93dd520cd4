# pyright: reportMissingImports=false
"""ExecuTorch, with XNNPACK."""

import torch
from executorch.extension.pybindings import portable_lib
from executorch.runtime import Runtime


def load(path, threads=0):
    """A network as a function, from inputs by name, in the order of `export.json`, to the output."""
    if threads not in (0, portable_lib._threadpool_get_thread_count()):
        portable_lib._unsafe_reset_threadpool(threads)  # Unsafe while networks run.
    method = Runtime.get().load_program(path).load_method('forward')
    return lambda inputs: method.execute([torch.from_numpy(value) for value in inputs.values()])[0].numpy()
