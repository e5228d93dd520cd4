"""profiling.py: the field's published numbers, torch's own flop counter, and clocks and memory that are known."""

import functools
import json
import time
import types

import psutil
import pytest
import torch
from commands import refused, run
from torch.utils.flop_counter import FlopCounterMode
from torch_utils.ops import upfirdn2d
from training import networks
from training.networks import Generator

from stylegan2_compress import pickles, pruning
from stylegan2_compress.host import profiling
from stylegan2_compress.patches import modulated_conv_on_cpu


def ffhq_generator(img_resolution, channel_base):
    return Generator(512, 0, 512, img_resolution, 3, synthesis_kwargs=dict(channel_base=channel_base))


def cut(G, widths):
    return pruning.prune(G, pruning.masks_from_scores(pruning.CRITERIA['l1'](G, pruning.CriterionOptions()), widths))


# The numbers that the pruning papers and their public code go by.
@pytest.mark.parametrize(
    ('img_resolution', 'channel_base', 'macs', 'parameters'),
    [
        (256, 32768, 45_124_673_536, 30_034_338),
        (256, 16384, 14_903_009_280, 24_767_458),
        (1024, 32768, 74_266_894_336, 30_370_060),
    ],
)
def test_published_generators(img_resolution, channel_base, macs, parameters):
    G = ffhq_generator(img_resolution, channel_base)
    assert (profiling.macs(G), profiling.parameters(G)) == (macs, parameters)


def test_published_ratios():
    G = ffhq_generator(256, 16384)
    dense = profiling.macs(G)
    for ratio, macs, reduction in [
        (0.7, 1_386_445_024, 0.9070),
        (0.8, 617_773_872, 0.9585),
        (0.9, 163_384_512, 0.9890),
        (0.95, 47_497_440, 0.9968),
    ]:
        pruned = cut(G, pruning.widths_for_ratio(G, ratio))
        assert profiling.macs(pruned) == macs
        assert round(1 - macs / dense, 4) == reduction


@pytest.mark.parametrize('architecture', ['skip', 'resnet', 'orig'])
@pytest.mark.parametrize('kernel_size', [1, 3])
def test_macs_are_the_flops_torch_counts(make_generator, monkeypatch, architecture, kernel_size):
    """Half the flops of one image, less those of the blur filters, which the accounting leaves out.

    With the host's own modulated convolution: ours finds demodulation by a product of matrices, left out, too.
    """
    monkeypatch.setattr(networks, 'modulated_conv2d', modulated_conv_on_cpu._host_function)
    blur_flops = 0
    upfirdn = upfirdn2d.upfirdn2d

    def counted(*args, **kwargs):
        nonlocal blur_flops
        with FlopCounterMode(display=False) as counter:
            result = upfirdn(*args, **kwargs)
        blur_flops += counter.get_total_flops()
        return result

    monkeypatch.setattr(upfirdn2d, 'upfirdn2d', counted)
    synthesis_kwargs = dict(channel_base=128, architecture=architecture, kernel_size=kernel_size)
    G = make_generator(c_dim=3, synthesis_kwargs=synthesis_kwargs).eval()
    widths = dict(zip(pruning.widths_for_ratio(G, 0), (3, 9, 16, 1, 5, 7), strict=True))
    for network in (G, cut(G, widths)):
        blur_flops = 0
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.randn(1, 16), torch.eye(1, 3))
        assert blur_flops > 0
        assert 2 * profiling.macs(network) == counter.get_total_flops() - blur_flops


def test_layers_add_up(make_generator):
    G = make_generator(c_dim=2)
    layers = profiling.layer_costs(G)
    assert len({layer.name for layer in layers}) == len(layers)
    assert sum(layer.parameters for layer in layers) == sum(p.numel() for p in G.parameters())
    assert sum(layer.macs for layer in layers) == profiling.macs(G)
    by_name = {layer.name: layer for layer in layers}
    assert by_name['synthesis.b4'] == profiling.LayerCost('synthesis.b4', (16, 4, 4), 256, 0)
    # 16 × 16 × 9 weights on 4 × 4 pixels; as well 16 biases and a noise strength.
    assert by_name['synthesis.b8.conv0'] == profiling.LayerCost('synthesis.b8.conv0', (16, 16, 3, 3), 2321, 36864)
    assert by_name['mapping.embed'] == profiling.LayerCost('mapping.embed', (16, 2), 48, 32)


class Stopwatch(torch.nn.Module):
    """A generator that takes 20 ms an image and holds two tensors of 1,000,000 floats at once, never the third."""

    z_dim, c_dim = 4, 2

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(250))
        self.register_buffer('noise', torch.zeros(250))
        self.calls = []

    def forward(self, z, c, noise_mode, force_fp32):
        self.calls.append((tuple(z.shape), tuple(c.shape), noise_mode, force_fp32, torch.is_grad_enabled()))
        time.sleep(0.02 * len(z))
        x = torch.zeros(1_000_000)
        x = (x + self.weight[0]).reshape(1000, 1000)[:, :500]
        return x * 2  # Of half the size.


def test_measurement():
    G = Stopwatch()
    measurement = profiling.measure(G, batch=3, seconds=0.4)
    assert set(G.calls) == {((3, 4), (3, 2), 'const', True, False)}
    assert 0.06 <= measurement.seconds < 1  # A busy machine may be late.
    assert measurement.batch == 3
    assert measurement.images_per_second == pytest.approx(3 / measurement.seconds)
    assert len(G.calls) == measurement.runs + 1
    assert measurement.runs >= 3
    assert measurement.peak_bytes == 2 * 4_000_000 + 2 * 1_000


def test_with_cuda_graphs():
    dense = profiling.Measurement(1, 0.02, 3, 50, 1000, 0.01)
    small = profiling.Measurement(1, 0.02, 3, 50, 1000, 0.002)
    profiles = [profiling.Profile('G.pkl', 1, 10, 10, [], [each]) for each in (dense, small)]
    assert profiling.reductions(profiles[1], profiles[0])['recorded_speedup_at_batch_1'] == pytest.approx(5)
    (line,) = (line for line in profiling.table(profiles).splitlines() if 'as a CUDA graph' in line)
    assert line.split()[-7:] == ['10.0', 'ms', '2.0', 'ms', '(5.00×', 'the', 'speed)']


@pytest.fixture
def files(tmp_path, monkeypatch, make_generator, make_discriminator):
    """A teacher's and a student's pickle, for a command that does not take its time to measure."""
    monkeypatch.setattr(profiling, 'measure', functools.partial(profiling.measure, seconds=0))
    G = make_generator()
    teacher = dict(G=G, D=make_discriminator(), G_ema=G, training_set_kwargs=None, augment_pipe=None)
    pickles.save(tmp_path / 'teacher.pkl', teacher)
    pickles.save(tmp_path / 'student.pkl', pruning.make_student(teacher, pruning.widths_for_ratio(G, 0.5)))
    return tmp_path / 'teacher.pkl', tmp_path / 'student.pkl'


def test_command_for_machines(files):
    report = json.loads(run('profile', *files, '--batch', 2, '--layers', '--json', '--device', 'cpu'))
    assert 'CPU' in report['measured_on']
    teacher, student = report['profiles']
    for file, entry in zip(files, (teacher, student), strict=True):
        G = pickles.load(file)['G_ema']
        assert (entry['file'], entry['file_bytes']) == (str(file), file.stat().st_size)
        assert (entry['parameters'], entry['macs']) == (profiling.parameters(G), profiling.macs(G))
        assert sum(layer['macs'] for layer in entry['layers']) == entry['macs']
        assert [m['batch'] for m in entry['measurements']] == [1, 2]
    against = student['against_first']
    assert against['macs'] == pytest.approx(1 - student['macs'] / teacher['macs'])
    assert against['parameters'] == pytest.approx(1 - student['parameters'] / teacher['parameters'])
    latencies = [entry['measurements'][1]['seconds'] for entry in (teacher, student)]
    assert against['speedup_at_batch_2'] == pytest.approx(latencies[0] / latencies[1])


def test_command_for_people(files):
    lines = run('profile', *files, '--no-measure', '--layers').splitlines()
    rows = {line[:60].strip(): line for line in lines}
    teacher, student = (profiling.macs(pickles.load(file)['G_ema']) for file in files)
    line = next(line for line in rows.values() if 'MACs per image' in line)
    assert line.startswith('counted')
    assert line.split()[-3:] == [f'{teacher:,}', f'{student:,}', f'({student / teacher - 1:+.2%})']
    assert any('synthesis.b16.torgb.affine' in line for line in rows.values())
    assert not any('latency' in line for line in rows.values())
    assert {line.split()[0] for line in lines[1:]} == {'counted', 'measured'}

    text = run('profile', files[0], '--batch', 1, '--device', 'cpu')
    assert text.count('measured  latency') == 1
    assert 'measured on' in text


def test_a_batch_that_memory_does_not_hold(files, monkeypatch):
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: types.SimpleNamespace(available=10**7))
    message = refused('profile', files[0], '--batch', 1000, '--device', 'cpu', unchanged=files[0].parent)
    assert f'--batch=1000 of {files[0]} takes about' in message
    run('profile', files[0], '--device', 'cpu', '--no-measure')
    run('profile', files[0], '--batch', 1, '--device', 'cpu')


@pytest.mark.parametrize('arguments', ['', 'missing.pkl', 'teacher.pkl --batch 0', 'teacher.pkl --device quantum'])
def test_bad_input(files, monkeypatch, arguments):
    monkeypatch.chdir(files[0].parent)
    refused('profile', *arguments.split(), unchanged=files[0].parent, usage=True)
