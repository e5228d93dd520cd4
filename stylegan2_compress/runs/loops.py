"""Training loops by name."""

from stylegan2_compress.registry import import_named

HOST_LOOP = 'training.training_loop.training_loop'
OUR_LOOP = 'stylegan2_compress.training_loops.distillation.training_loop'


def run_loop(rank: int, loop: str = HOST_LOOP, **args) -> None:
    """Run the training loop that the arguments name; without a name, the host's.

    Raises:
        UserError: there is no such loop.
    """
    function = import_named('--loop', loop, (HOST_LOOP, OUR_LOOP))
    if loop == HOST_LOOP and rank == 0:
        # Imported here: the --help of commands names the loops, and must need neither torch nor a host.
        from stylegan2_compress.host import kernels

        kernels.announce()  # Our loop does so itself.
    function(rank=rank, **args)
