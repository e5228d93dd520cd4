"""What only a GPU can show; `benchmarks/gpu.py` runs these tests. On a CPU (see conftest.py) they show that they run.

The networks are tiny and have random weights: whether steps work, and what devices and precision change in numbers.
"""

import json
import os
import shutil

import commands
import pytest
import torch
from tiny_runs import BASELINES, EMBEDDING, LOSSES, compressing, loop_arguments

from stylegan2_compress import pickles
from stylegan2_compress.evaluation.evaluate import evaluate
from stylegan2_compress.export import graph
from stylegan2_compress.host import devices, kernels, recorded
from stylegan2_compress.runs.loops import HOST_LOOP
from stylegan2_compress.training_loops import distillation

DEVICE = torch.device(os.environ.get('STYLEGAN2_COMPRESS_TEST_DEVICE', 'cuda'))
ON_CUDA = DEVICE.type == 'cuda'
FORKED = () if ON_CUDA else ('forked_processes',)  # CUDA does not survive a fork.
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures('small_grids', *FORKED)]
only_on_cuda = pytest.mark.skipif(not ON_CUDA, reason='this part of the host is for CUDA alone')
HALF = dict(num_fp16_res=2, conv_clamp=256)
RULES = ('edge-popup', 'global-edge-popup', 'gem-miner', 'imp')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('STYLEGAN2_COMPRESS_CACHE', str(tmp_path / 'cache'))


def in_half_precision(arguments: dict) -> None:
    """Two FP16 resolutions in the generator and in every discriminator of a run."""
    arguments['G_kwargs']['synthesis_kwargs'] = arguments['G_kwargs']['synthesis_kwargs'] | HALF
    arguments['D_kwargs'] = arguments['D_kwargs'] | HALF


def finite_averages(run_dir) -> dict[str, torch.Tensor]:
    """The weights of G_ema in the last snapshot."""
    snapshot = max(run_dir.glob('network-snapshot-*.pkl'))
    weights = pickles.load(str(snapshot))['G_ema'].state_dict()
    assert all(tensor.isfinite().all() for tensor in weights.values())
    return weights


# --- Kernels --------------------------------------------------------------------------------------------------------


@only_on_cuda
def test_kernels_are_compiled_and_equal_the_reference_operations():
    loaded = kernels.load(DEVICE)
    assert not loaded.failures, str(loaded)
    from torch_utils.ops import bias_act, upfirdn2d

    x = torch.randn([2, 4, 16, 16], device=DEVICE)
    f = upfirdn2d.setup_filter([1, 3, 3, 1], device=DEVICE)
    compared = {
        'upfirdn2d': lambda impl: upfirdn2d.upfirdn2d(x, f, up=2, padding=[2, 1, 2, 1], gain=4, impl=impl),
        'bias_act': lambda impl: bias_act.bias_act(x, x[0, :, 0, 0].contiguous(), act='lrelu', clamp=1, impl=impl),
    }
    for operation in compared.values():
        torch.testing.assert_close(operation('cuda'), operation('ref'), rtol=1e-4, atol=1e-5)


def test_a_generator_makes_the_same_images_as_on_a_cpu(make_generator):
    """FP32 within the tolerance of TF32, which the host leaves off; FP16 within its own."""
    G = make_generator(synthesis_kwargs=dict(channel_base=256, channel_max=16, **HALF)).eval().requires_grad_(False)
    z, c = torch.randn([4, 16]), torch.zeros([4, 0])
    on_cpu = G(z, c, noise_mode='const', force_fp32=True)
    G.to(DEVICE)
    full, half = (
        G(z.to(DEVICE), c.to(DEVICE), noise_mode='const', **precision).cpu()
        for precision in (dict(force_fp32=True), devices.precision(DEVICE))
    )
    torch.testing.assert_close(full, on_cpu, rtol=1e-3, atol=1e-3)
    assert (half - on_cpu).abs().mean() < 0.02 * on_cpu.abs().mean()
    assert torch.equal(half, full) == (not ON_CUDA)


@only_on_cuda
def test_a_recorded_generator_makes_the_same_images(make_generator):
    G = make_generator(c_dim=3).eval().requires_grad_(False).to(DEVICE)
    fast = recorded.RecordedGenerator(G, 4, noise_mode='const')
    for _ in range(2):
        z, c = torch.randn([4, 16], device=DEVICE), torch.eye(3, device=DEVICE)[[0, 1, 2, 0]]
        torch.testing.assert_close(fast(z, c), G(z, c, noise_mode='const'), rtol=1e-4, atol=1e-4)


def test_the_graphs_of_exports_make_the_same_images(make_generator):
    G = make_generator().eval().requires_grad_(False).to(DEVICE)
    z, c = torch.randn([2, 16], device=DEVICE), torch.zeros([2, 0], device=DEVICE)
    mapping, synthesis = graph.from_generator(G)
    expected = G(z, c, noise_mode='const', force_fp32=True)
    torch.testing.assert_close(synthesis(mapping(z)), expected, rtol=1e-4, atol=1e-4)


# --- Runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('precision', ['fp32', pytest.param('fp16', marks=only_on_cuda)])
@pytest.mark.parametrize('loss', [*LOSSES, *BASELINES] if ON_CUDA else [*LOSSES[-2:], BASELINES[0]])
def test_our_loop(tmp_path, data, teacher, loss, precision):
    arguments = loop_arguments(tmp_path / 'run', data, True, device=str(DEVICE), **compressing(loss, teacher))
    if precision == 'fp16':
        in_half_precision(arguments)
    distillation.training_loop(**arguments)
    finite_averages(tmp_path / 'run')
    stats = [json.loads(line) for line in (tmp_path / 'run' / 'stats.jsonl').read_text().splitlines()]
    if loss == 'regression':  # Without a discriminator.
        assert all(stat['Loss/G/loss']['num'] > 0 for stat in stats)
        return
    assert all(stat['Loss/D/loss']['num'] > 0 for stat in stats)
    assert any(stat['Loss/pl_penalty']['num'] > 0 for stat in stats)
    assert any(stat['Loss/r1_penalty']['num'] > 0 for stat in stats)


@only_on_cuda
@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
@pytest.mark.parametrize('loss', [*LOSSES, *BASELINES])
def test_the_hosts_loop(tmp_path, data, teacher, loss, precision):
    from training import training_loop

    arguments = loop_arguments(tmp_path / 'run', data, True, **compressing(loss, teacher))
    del arguments['device']
    if precision == 'fp16':
        in_half_precision(arguments)
    training_loop.training_loop(**arguments)
    finite_averages(tmp_path / 'run')


def losses_of(run_dir) -> dict[str, list[float]]:
    """The means of the losses, tick by tick."""
    stats = [json.loads(line) for line in (run_dir / 'stats.jsonl').read_text().splitlines()]
    names = [name for name in stats[0] if name.startswith('Loss/') and all(stat[name]['num'] for stat in stats)]
    return {name: [stat[name]['mean'] for stat in stats] for name in names}


@only_on_cuda
@pytest.mark.parametrize('rounds', [1, 2])
@pytest.mark.parametrize('loss', ['moments', 'kernel', 'images', 'both'])
def test_steps_recorded_as_cuda_graphs_are_the_same_steps(tmp_path, data, teacher, loss, rounds):
    """Up to the order of sums, which also differs from one run to the next."""
    found = []
    for name, with_graphs in (('plain', False), ('again', False), ('recorded', True)):
        often = dict(G_reg_interval=1, D_reg_interval=1, batch_gpu=16 // rounds, total_kimg=0.2, cudnn_benchmark=False)
        arguments = loop_arguments(tmp_path / name, data, True, device=str(DEVICE), **compressing(loss, teacher))
        distillation.training_loop(**arguments | often, cuda_graphs=with_graphs)
        found.append((finite_averages(tmp_path / name), losses_of(tmp_path / name)))
    (plain, plain_losses), (again, again_losses), (graphs, graphs_losses) = found
    for name, expected in plain.items():
        noise = (again[name] - expected).abs().max().item()
        assert (graphs[name] - expected).abs().max() <= 4 * noise + 1e-5 * expected.abs().max() + 1e-6, (name, noise)
    for name, expected in plain_losses.items():
        noise = max(abs(a - b) for a, b in zip(again_losses[name], expected, strict=True))
        assert graphs_losses[name] == pytest.approx(expected, rel=1e-3, abs=4 * noise + 1e-5), name


def distill(tmp_path, teacher, data, *options: object) -> None:
    half = ['--ratio', '0.5', '--outdir', tmp_path / 'runs', '--batch', 128, '--seed', 1]
    loss = [f'--loss-arg=embeddings={EMBEDDING}', '--loss-arg=weights=1', '--loss-arg=samples=16']
    where = [] if any(str(option).startswith('--gpus') for option in options) else ['--device', DEVICE]
    commands.run('distill', '--teacher', teacher, '--data', data, '--cond', 1, *half, *loss, *where, *options)


def test_a_run_continues_where_it_stopped(tmp_path, data, teacher):
    """As `distill` starts it; on CUDA up to the order in which sums are taken.

    Of the way from the stop to the end, that is 0.002 where states are off by 1e-7, and 0.08 where Adam's moments are
    lost (measured on a CPU).
    """
    ends = {}
    for directory, kimg in [('at-once', 2), ('in-two', 1), ('in-two', 2)]:
        (tmp_path / directory).mkdir(exist_ok=True)
        distill(tmp_path / directory, teacher, data, '--kimg', kimg, '--resume', 'latest')
        ends[directory, kimg] = finite_averages(next((tmp_path / directory / 'runs').iterdir()))
    stopped, end = (torch.cat([x.flatten() for x in ends['in-two', kimg].values()]) for kimg in (1, 2))
    expected = torch.cat([x.flatten() for x in ends['at-once', 2].values()])
    assert (end - expected).norm() <= (0.03 if ON_CUDA else 0) * (expected - stopped).norm()
    assert not torch.equal(end, stopped)


def test_every_gpu_takes_part(tmp_path, data, teacher):
    """NCCL; two gloo processes stand in for it on a CPU."""
    gpus = torch.cuda.device_count() if ON_CUDA else 2
    if gpus < 2:
        pytest.skip('there is one GPU')
    gpus = 1 << min(gpus, 8).bit_length() - 1  # The batch is divisible by powers of two.
    device = [] if ON_CUDA else ['--device', DEVICE]
    distill(tmp_path, teacher, data, '--gpus', gpus, *device, '--kimg', 1)
    finite_averages(next((tmp_path / 'runs').iterdir()))


@only_on_cuda
def test_two_gpus_begin_alike_in_the_hosts_loop(tmp_path, data, teacher):
    """Its first snapshot, after one step, checks that they do."""
    if torch.cuda.device_count() < 2:
        pytest.skip('there is one GPU')
    distill(tmp_path, teacher, data, '--gpus', 2, '--loop', HOST_LOOP, '--kimg', 1)
    finite_averages(next((tmp_path / 'runs').iterdir()))


@pytest.mark.parametrize('rule', RULES if ON_CUDA else RULES[:1])
def test_a_ticket_search_and_its_ticket(tmp_path, data, rule):
    small = ['--batch', 100, '--kimg', 1, '--z-dim', 16, '--w-dim', 16, '--mapping-layers', 2]
    widths = ['--channel-base', 64, '--channel-max', 8, '--embedding', EMBEDDING, '--rule', rule]
    commands.run('find-ticket', '--data', data, '--outdir', tmp_path, '--device', DEVICE, *small, *widths)
    run_dir = next(path for path in tmp_path.iterdir() if (path / 'training_options.json').exists())
    finite_averages(run_dir)
    tickets = list(run_dir.glob('*.ticket'))
    assert bool(tickets) == (rule != 'imp'), 'magnitudes are pruned in rounds, of which this run is too short for one'
    if not tickets:
        return
    commands.run('ticket', 'bake', tickets[0], tmp_path / 'baked.pkl')
    G = pickles.load(str(tmp_path / 'baked.pkl'))['G_ema'].to(DEVICE)
    z = torch.randn([2, 16], device=DEVICE)
    image = G(z, torch.zeros([2, G.c_dim], device=DEVICE), **devices.precision(DEVICE))
    assert image.isfinite().all()


@only_on_cuda
@pytest.mark.parametrize('rule', ['edge-popup', 'global-edge-popup'])
def test_a_recorded_search(tmp_path, data, rule):
    small = ['--batch', 100, '--kimg', 1, '--z-dim', 16, '--w-dim', 16, '--mapping-layers', 2, '--cuda-graphs', 1]
    widths = ['--channel-base', 64, '--channel-max', 8, '--embedding', EMBEDDING, '--rule', rule]
    commands.run('find-ticket', '--data', data, '--outdir', tmp_path, *small, *widths)
    finite_averages(next(path for path in tmp_path.iterdir() if (path / 'training_options.json').exists()))


# --- Numbers --------------------------------------------------------------------------------------------------------


def test_metrics_are_those_of_a_cpu(tmp_path, data, teacher):
    metrics = ','.join(f'{name}:{EMBEDDING}' for name in ('fd', 'kd', 'dc', 'agreement'))
    networks = [teacher, shutil.copy(teacher, tmp_path / 'student.pkl')]
    (here,) = evaluate(networks, str(data), metrics, samples=16, device=str(DEVICE))[1:]
    (on_cpu,) = evaluate(networks, str(data), metrics, samples=16, device='cpu')[1:]
    for name, values in on_cpu.values.items():
        assert here.values[name] == pytest.approx(values, rel=0.02, abs=0.02), name


@only_on_cuda
def test_another_gpu_than_the_first_is_used_alone(tmp_path, data, teacher):
    if torch.cuda.device_count() < 2:
        pytest.skip('there is one GPU')
    before = torch.cuda.memory_allocated(0)
    torch.cuda.reset_peak_memory_stats(0)
    arguments = loop_arguments(tmp_path / 'run', data, True, device='cuda:1', **compressing('both', teacher))
    distillation.training_loop(**arguments)
    assert torch.cuda.max_memory_allocated(0) == before
