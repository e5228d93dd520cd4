"""Losses for the host's training loop: an adversarial base, and one file per term that hangs on it."""
