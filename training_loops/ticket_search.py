"""The loop of the search for lottery tickets: it trains a generator, its scores say, and there is no discriminator."""

from stylegan2_compress.training_loops.loop import train


def training_loop(G_kwargs, D_kwargs=None, D_opt_kwargs=None, D_reg_interval=None, **arguments):
    """Train G with the loss that `loss_kwargs` name, whose `D` is None and which sees the phases of G only.

    The contract is the host's, so that the same options lead here. Snapshots hold a placeholder for D, without which
    the host opens no pickle.

    Args:
        G_kwargs: how the generator is built; all its parameters train.
        D_kwargs, D_opt_kwargs, D_reg_interval: unused.
        arguments: the others of the host's `training.training_loop.training_loop`, and those that `loop.train` adds.
    """
    train(G_kwargs=G_kwargs, D_kwargs=None, **arguments)
