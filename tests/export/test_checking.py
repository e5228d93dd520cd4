"""What is compared before an export is kept."""

import numpy as np
import pytest
import torch

from stylegan2_compress.export import checking, graph
from stylegan2_compress.export.running import Here


@pytest.mark.parametrize('exact', [True, False])
@pytest.mark.parametrize('batch', [1, 2, 4])
def test_every_label_is_compared(make_generator, lively, batch, exact):
    """A runtime that is wrong for the last of three classes only."""
    G = lively(make_generator(c_dim=3, img_resolution=4))
    modules = graph.from_generator(G, 'const')

    def check(wrong):
        def mapping(inputs):
            ws = modules[0](**{name: torch.from_numpy(value) for name, value in inputs.items()}).numpy()
            return ws + wrong * inputs['c'][:, 2].reshape(-1, 1, 1)

        def synthesis(inputs):
            return modules[1](torch.from_numpy(inputs['ws'])).numpy()

        found = checking.check(Here(dict(mapping=mapping, synthesis=synthesis)), G, modules, 'const', exact, batch)
        assert found.images == 2 * batch
        return np.array([found.largest_difference, found.largest_difference_to_host])

    assert (check(np.float32(0)) < 1e-4).all()
    assert (check(np.float32(1)) > 0.9).all()
