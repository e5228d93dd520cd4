"""The loop for compression with a discriminator: the host's arguments, on any device, in any number of processes."""

from stylegan2_compress.training_loops.loop import train


def training_loop(G_kwargs, D_kwargs, **arguments):
    """Train G and D against each other with the loss that `loss_kwargs` describe.

    Args:
        G_kwargs, D_kwargs: classes and arguments of the networks.
        arguments: the others of the host's `training.training_loop.training_loop`, and those that `loop.train` adds.
    """
    train(G_kwargs=G_kwargs, D_kwargs=D_kwargs, **arguments)
