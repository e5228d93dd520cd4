"""Distributions of features: moments and kernel distances, and the references that students are compared with.

`moments` and `mmd` are the estimators, on tensors. `sources` are sequences of images, `statistics` what an embedding
makes of them, with a cache and a file format; `layer_features` turns several layers of an embedding into one vector.
"""
