"""Training loops by name."""

from stylegan2_compress.registry import import_named

HOST_LOOP = 'training.training_loop.training_loop'
OUR_LOOP = 'stylegan2_compress.training_loops.distillation.training_loop'


def run_loop(rank: int, loop: str = HOST_LOOP, **args) -> None:
    """Run the training loop that the arguments name; without a name, the host's.

    Raises:
        UserError: there is no such loop.
    """
    import_named('--loop', loop, (HOST_LOOP, OUR_LOOP))(rank=rank, **args)
