"""Distributions of features: moments and kernel distances, and the reference they are compared with."""
