"""torch."""

import torch


def load(path, threads=0):
    """A network as a function, from inputs by name to the output."""
    torch.set_num_threads(threads or torch.get_num_threads())
    module = torch.export.load(path).module()

    def run(inputs):
        with torch.inference_mode():
            return module(**{name: torch.from_numpy(value) for name, value in inputs.items()}).numpy()

    return run
