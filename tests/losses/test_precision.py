"""Steps with FP16 blocks, which a CPU can compute, if slowly, against the same steps in FP32."""

import pytest
import torch

from stylegan2_compress import DiMELoss, ImageDistillationLoss, NickelDimeLoss, pickles
from stylegan2_compress.host import devices
from stylegan2_compress.losses.adversarial import AdversarialLoss
from stylegan2_compress.networks.dual import DualDiscriminator

EMBEDDING = 'module:tiny_embeddings:tiny@size=16'
HALF = dict(num_fp16_res=2, conv_clamp=256)
WIDTHS = dict(channel_base=256, channel_max=16)


@pytest.fixture
def teacher(tmp_path, make_generator, make_discriminator, monkeypatch):
    monkeypatch.setenv('STYLEGAN2_COMPRESS_CACHE', str(tmp_path / 'cache'))
    path = str(tmp_path / 'teacher.pkl')
    G, D = make_generator(seed=1).eval(), make_discriminator(seed=1).eval()  # FP32: the run's precision is another.
    pickles.save(path, dict(G=G, D=D, G_ema=G, training_set_kwargs=None, augment_pipe=None))
    return path


def gradients(loss_class, phase, teacher, make_generator, make_discriminator):
    """The gradient of all parameters of the module that a phase trains, as one vector; and the loss."""
    G = make_generator(synthesis_kwargs=WIDTHS | HALF).train()
    D = make_discriminator(**HALF).train()
    arguments = {}
    if loss_class is not AdversarialLoss:
        arguments.update(teacher=teacher)
    if loss_class in (DiMELoss, NickelDimeLoss):
        arguments.update(embeddings=[EMBEDDING], weights=[1], samples=8)
    if loss_class is ImageDistillationLoss:
        arguments.update(embedding=EMBEDDING)
    if loss_class is NickelDimeLoss:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            D = DualDiscriminator(
                c_dim=0, img_resolution=16, img_channels=3, **HALF,
                student_kwargs=dict(WIDTHS), teacher_kwargs=dict(WIDTHS), matched_channels={'b4': 16},
            ).train()  # fmt: skip
    loss = loss_class('cpu', G.mapping, G.synthesis, D, **arguments)
    module, other = (G, D) if phase.startswith('G') else (D, G)
    module.requires_grad_(True)
    other.requires_grad_(False)
    torch.manual_seed(3)
    c = torch.zeros([4, 0])
    loss.accumulate_gradients(phase, torch.randn(4, 3, 16, 16).clamp(-1, 1), c, torch.randn(4, 16), c, True, 1)
    flat = [parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None]
    return torch.cat(flat), loss


@pytest.mark.parametrize('phase', ['Gmain', 'Greg', 'Dmain', 'Dreg'])
@pytest.mark.parametrize('loss_class', [AdversarialLoss, DiMELoss, NickelDimeLoss, ImageDistillationLoss])
def test_fp16_steps_are_those_in_fp32_but_for_rounding(
    teacher, make_generator, make_discriminator, monkeypatch, loss_class, phase
):
    full, _loss = gradients(loss_class, phase, teacher, make_generator, make_discriminator)
    monkeypatch.setattr(devices, 'precision', lambda _device: {})  # As on CUDA.
    half, loss = gradients(loss_class, phase, teacher, make_generator, make_discriminator)
    assert half.isfinite().all()
    assert not torch.equal(half, full)
    assert (half - full).norm() < 0.03 * full.norm()
    for term in loss.terms:  # The frozen teacher is in the run's precision, too.
        if hasattr(term, 'teacher'):
            assert [getattr(term.teacher.G.synthesis, f'b{res}').use_fp16 for res in (4, 8, 16)] == [False, True, True]
            assert term.teacher.G.synthesis.b16.conv1.conv_clamp == 256
