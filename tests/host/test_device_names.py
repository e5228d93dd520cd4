"""Devices by name, on a machine that says it has two GPUs."""

import pytest
import torch

from stylegan2_compress.errors import UserError
from stylegan2_compress.host import devices


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)


@pytest.mark.usefixtures('two_gpus')
def test_a_device_is_the_one_that_is_named():
    """'cuda' is any GPU, and not the first one: processes that share the work each take theirs."""
    for name in ('cpu', 'cuda', 'cuda:1'):
        assert devices.choose(name) == torch.device(name)
    assert devices.choose() == torch.device('cuda')


@pytest.mark.usefixtures('two_gpus')
@pytest.mark.parametrize('name', ['cuda:2', 'nothing', 'meta', ''])
def test_others_are_refused(name):
    with pytest.raises(UserError, match=rf'^--device={name} is not available here: try cpu\.$'):
        devices.choose(name)


def test_without_a_gpu_there_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert devices.choose() == torch.device('cpu')
    with pytest.raises(UserError, match='--device=cuda is not available'):
        devices.choose('cuda')


@pytest.mark.parametrize('wanted', [False, True])
def test_single_precision_is_not_rounded_unless_asked_for(wanted):
    """Torch would compute convolutions in TF32."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, matmul.allow_tf32, cudnn.allow_tf32
    try:
        cudnn.benchmark = matmul.allow_tf32 = cudnn.allow_tf32 = not wanted
        devices.set_backends(cudnn_benchmark=wanted, allow_tf32=wanted)
        assert (cudnn.benchmark, matmul.allow_tf32, cudnn.allow_tf32) == (wanted,) * 3
    finally:
        cudnn.benchmark, matmul.allow_tf32, cudnn.allow_tf32 = before
