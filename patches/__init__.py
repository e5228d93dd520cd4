"""Everything that changes the host: one module per run-time repair, and `train.patch`."""


def apply_needed() -> None:
    """Apply the repairs that the host needs here."""
