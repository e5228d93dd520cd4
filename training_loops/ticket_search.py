"""The loop of the search for lottery tickets: it trains a generator (say, its scores) without a discriminator."""

from stylegan2_compress.training_loops.loop import train


def training_loop(G_kwargs, D_kwargs=None, D_opt_kwargs=None, D_reg_interval=None, **arguments):
    """Train G with the loss that `loss_kwargs` name, whose `D` is None and which sees the phases of G only.

    The arguments are those of the host's loop, so that the same options work. Snapshots have a placeholder for D,
    because the host opens no pickle without D.

    Args:
        G_kwargs: class and arguments of the generator; all its parameters are trained.
        D_kwargs, D_opt_kwargs, D_reg_interval: unused.
        arguments: the others of the host's `training.training_loop.training_loop`, and those that `loop.train` adds.
    """
    train(G_kwargs=G_kwargs, D_kwargs=None, **arguments)
