"""Training loops with the argument contract of the host's `training.training_loop.training_loop`."""
