"""Everything that changes the host: one module per run-time repair, and `train.patch`."""
