"""Networks to export: small ones, in which everything has an effect, and their files."""

import pytest
import torch

from stylegan2_compress import pickles
from stylegan2_compress.export import checking


@pytest.fixture(scope='module', autouse=True)
def short_timing():
    """Nothing here depends on how long is timed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checking, 'SECONDS', 0)
        yield


@pytest.fixture(scope='session')
def lively():
    """A function that gives every part of a generator an effect: biases, noise, the average of w."""

    def change(G):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1)
            for name, tensor in [*G.named_parameters(), *G.named_buffers()]:
                if name.endswith(('.bias', 'w_avg')):
                    tensor.add_(torch.randn_like(tensor) * 0.3)
                elif name.endswith('noise_strength'):
                    tensor.fill_(0.3)
        return G.eval().requires_grad_(False)

    return change


@pytest.fixture(scope='session')
def make_pickle(make_generator, make_discriminator, lively, tmp_path_factory):
    """Writer of a network pickle: `make_pickle(name='G.pkl', **overrides)` of `make_generator`'s arguments."""
    directory = tmp_path_factory.mktemp('pickles')

    def make(name='G.pkl', **overrides):
        G = lively(make_generator(**overrides))
        D = make_discriminator()
        path = directory / name
        pickles.save(path, dict(G=G, D=D, G_ema=G, augment_pipe=None, training_set_kwargs=None))
        return path

    return make
