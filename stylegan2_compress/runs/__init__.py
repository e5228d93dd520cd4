"""Runs: their directories and states, their processes, and how they are continued."""
