"""From options to a run: `distill`, `find-ticket` and the host's `train.py`."""
