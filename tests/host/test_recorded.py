"""Generators as CUDA graphs, in a simulation of graphs on the CPU; tests/gpu has real ones."""

import pytest
import simulated_graphs
import torch

from stylegan2_compress.host import recorded


@pytest.fixture
def graphs(monkeypatch):
    return simulated_graphs.install(monkeypatch)


def test_images_are_the_generators(make_generator, graphs):
    G = make_generator(c_dim=3).eval()
    fast = recorded.RecordedGenerator(G, 2, truncation_psi=0.7, noise_mode='const')
    for seed in range(2):
        z = torch.randn([2, G.z_dim], generator=torch.Generator().manual_seed(seed))
        c = torch.eye(3)[[seed, 2]]
        expected = G(z, c, truncation_psi=0.7, noise_mode='const', force_fp32=True)
        assert torch.equal(fast(z, c), expected)
    assert graphs[0].replays == 2


def test_noise_is_drawn_in_each_call(make_generator, graphs):
    G = make_generator().eval()
    for name, parameter in G.named_parameters():
        if name.endswith('noise_strength'):
            parameter.data.fill_(1)
    fast = recorded.RecordedGenerator(G, 1)
    z, c = torch.zeros([1, G.z_dim]), torch.zeros([1, 0])
    first = fast(z, c).clone()
    assert not torch.equal(fast(z, c), first)
