"""`timm:NAME`: timm's features, preprocessing and layers, of its smallest models with random weights."""

import pytest
import torch

from stylegan2_compress import embeddings
from stylegan2_compress.errors import UserError

try:
    import timm
except (ImportError, RuntimeError):  # A torchvision that is not of this torch raises the latter.
    pytest.skip('pip install timm torchvision to run', allow_module_level=True)


@pytest.fixture(params=['test_resnet', 'test_vit', 'test_efficientnet'])
def saved(request, tmp_path):
    """A model in eval mode, without its classifier, and the spec of a directory that it lies in."""
    torch.manual_seed(0)
    model = timm.create_model(request.param, num_classes=5).eval()
    timm.models.save_for_hf(model, str(tmp_path / 'saved'))
    model.reset_classifier(0)
    return model, f'timm:local-dir:{tmp_path / "saved"}'


def test_features_preprocessing_and_layers(saved):
    model, spec = saved
    embedding = embeddings.load(spec, 'cpu')
    config = timm.data.resolve_model_data_config(model)
    size = config['input_size'][-1]
    images = torch.rand([2, 3, size, size]) * 2 - 1
    mean, std = (torch.tensor(config[name]).reshape(1, 3, 1, 1) for name in ('mean', 'std'))
    x = ((images + 1) / 2 - mean) / std
    with torch.no_grad():
        torch.testing.assert_close(embedding(images), model(x), rtol=1e-4, atol=1e-4)
        expected = model.forward_intermediates(x, intermediates_only=True)
        assert len(expected) > 1
        for mine, theirs in zip(embedding.layers(images), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert embedding.library == f'timm {timm.__version__}'
    assert embedding.preprocessing.size == size
    assert embedding.preprocessing.filter == config['interpolation']


def test_gradients_reach_the_images(saved):
    images = torch.rand([1, 1, 32, 32], requires_grad=True)
    embeddings.load(saved[1], 'cpu')(images).square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0


@pytest.mark.parametrize('name', ['no_such_model', 'local-dir:/no/such/directory'])
def test_models_that_do_not_exist(name):
    with pytest.raises(UserError, match=r'cannot be loaded by timm \(.*\): check the name .*timm:local-dir:DIR'):
        embeddings.load(f'timm:{name}', 'cpu')
