"""Structured pruning of the synthesis network: criteria score channels, surgery cuts them out."""
