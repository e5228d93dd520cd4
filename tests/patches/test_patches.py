"""The run-time repairs: what fails without them where that can be shown here, and that nothing else changes."""

import contextlib
import importlib.util
import inspect
import itertools
import multiprocessing
import os
import warnings
import zipfile
from pathlib import Path
from types import ModuleType

import detectors
import dnnlib
import numpy as np
import pytest
import scipy.linalg
import torch
from metrics import (
    frechet_inception_distance,
    inception_score,
    kernel_inception_distance,
    metric_main,
    metric_utils,
    perceptual_path_length,
    precision_recall,
)
from torch_utils import custom_ops, misc
from torch_utils.ops import bias_act, conv2d_gradfix, grid_sample_gradfix, upfirdn2d
from training import networks, training_loop
from training.augment import AugmentPipe
from training.dataset import ImageFolderDataset
from two_processes import in_two_processes

from stylegan2_compress import host, patches
from stylegan2_compress.embeddings.torchscript import VGG16
from stylegan2_compress.patches import (
    bias_act_on_cpu,
    conv_layers_on_cpu,
    cuda_plugins,
    modulated_conv_on_cpu,
    sqrtm,
)
from stylegan2_compress.patches import grid_sample_gradfix as grid_sample_repair

IN_FORCE = {repair.__name__.rpartition('.')[2] for repair in patches.apply_needed()}


def pristine(name: str) -> ModuleType:
    """Import the host's module `name` once more, as it is in its file, under another name."""
    package, _, stem = name.rpartition('.')
    file = host.activate().path / f'{name.replace(".", "/")}.py'
    spec = importlib.util.spec_from_file_location(f'{package}.pristine_{stem}', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- The table ----------------------------------------------------------------------------------------------------


def test_every_repair_is_in_the_table_and_says_what_why_and_where():
    files = {path.stem for path in Path(patches.__file__).parent.glob('*.py')} - {'__init__'}
    assert set(patches.REPAIRS) == files
    for name in patches.REPAIRS:
        repair = importlib.import_module(f'stylegan2_compress.patches.{name}')
        assert all(getattr(repair, text) for text in ('WHAT', 'WHY', 'VERSIONS')), name


def test_repairs_are_applied_where_needed_and_never_twice(monkeypatch):
    class Repair:
        def __init__(self, needed):
            self.needed, self.times = lambda: needed, 0

        def apply(self):
            self.times += 1

    repairs = {'wanted': Repair(True), 'unwanted': Repair(False)}
    monkeypatch.setattr(patches, 'REPAIRS', tuple(repairs))
    monkeypatch.setattr(patches, '_applied', {})
    monkeypatch.setattr(patches.importlib, 'import_module', lambda name: repairs[name.rpartition('.')[2]])
    assert patches.apply_needed() == patches.apply_needed() == [repairs['wanted']]
    assert [repair.times for repair in repairs.values()] == [1, 0]


@pytest.mark.parametrize(
    'name',
    sorted(IN_FORCE - {'zip_per_process', 'metrics_on_cpu', 'distances_on_cpu', 'percentile', 'ddp_buffers'}),
)
def test_repair_is_no_longer_needed_once_applied(name):
    assert not importlib.import_module(f'stylegan2_compress.patches.{name}').needed()


# --- infinite_sampler ---------------------------------------------------------------------------------------------


@pytest.mark.skipif('infinite_sampler' not in IN_FORCE, reason='this torch still takes the argument')
def test_infinite_sampler_fails_unrepaired():
    with pytest.raises(TypeError, match='argument'):
        pristine('torch_utils.misc').InfiniteSampler(range(10))


@pytest.mark.parametrize(
    'options',
    [{}, {'shuffle': False}, {'seed': 3, 'window_size': 0.2}, {'rank': 1, 'num_replicas': 3}, {'window_size': 0}],
)
def test_infinite_sampler_yields_what_the_host_wrote(options):
    original = object.__new__(pristine('torch_utils.misc').InfiniteSampler)
    defaults = {'rank': 0, 'num_replicas': 1, 'shuffle': True, 'seed': 0, 'window_size': 0.5}
    vars(original).update(defaults, dataset=range(10), **options)
    repaired = misc.InfiniteSampler(range(10), **options)
    assert list(itertools.islice(repaired, 100)) == list(itertools.islice(original, 100))


def test_infinite_sampler_still_checks_its_arguments_and_drives_a_loader():
    with pytest.raises(AssertionError):
        misc.InfiniteSampler(range(10), rank=3, num_replicas=2)
    sampler = misc.InfiniteSampler(range(10), shuffle=False)
    assert isinstance(sampler, torch.utils.data.Sampler)
    loader = torch.utils.data.DataLoader(list(range(10)), sampler=sampler, batch_size=4)
    assert torch.cat(list(itertools.islice(loader, 5))).tolist() == [*range(10), *range(10)]


# --- zip_per_process ----------------------------------------------------------------------------------------------


needs_fork = pytest.mark.skipif('zip_per_process' not in IN_FORCE, reason='processes cannot fork here')


def wrong_readers(dataset, images, workers=3) -> int:
    """How many of some forked processes read something else than `images` from `dataset`, or fail to."""

    def read():
        with contextlib.suppress(zipfile.BadZipFile, OSError, SyntaxError):
            raise SystemExit(not all(np.array_equal(dataset[i][0], image) for i, image in enumerate(images)))
        raise SystemExit(1)

    processes = [multiprocessing.get_context('fork').Process(target=read) for _ in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return sum(process.exitcode != 0 for process in processes)


def is_moved_by_another_process(dataset) -> bool:
    """Whether an image that a forked process reads from `dataset` moves the place in the file where this one reads."""
    handle = dataset._get_zipfile().fp.fileno()
    before = os.lseek(handle, 0, os.SEEK_CUR)
    process = multiprocessing.get_context('fork').Process(target=dataset.__getitem__, args=(len(dataset) - 1,))
    process.start()
    process.join()
    assert process.exitcode == 0
    return os.lseek(handle, 0, os.SEEK_CUR) != before


@needs_fork
def test_zip_read_by_forked_workers(tmp_path, make_dataset_zip):
    path = str(make_dataset_zip(tmp_path, n=64, resolution=64))
    images = [image for image, _ in ImageFolderDataset(path)]

    assert is_moved_by_another_process(pristine('training.dataset').ImageFolderDataset(path))
    assert not is_moved_by_another_process(ImageFolderDataset(path))
    assert not any(wrong_readers(ImageFolderDataset(path), images) for _ in range(5))


@needs_fork
@pytest.mark.filterwarnings('ignore:This DataLoader will create 3 worker processes')
def test_zip_behind_a_data_loader(tmp_path, make_dataset_zip):
    dataset = ImageFolderDataset(str(make_dataset_zip(tmp_path, n=48, resolution=64, labels=3)), use_labels=True)
    expected = [dataset[i] for i in range(len(dataset))]
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=3, multiprocessing_context='fork')
    loaded = [pair for images, labels in loader for pair in zip(images, labels, strict=True)]
    assert len(loaded) == len(expected)
    for (image, label), (expected_image, expected_label) in zip(loaded, expected, strict=True):
        assert np.array_equal(image, expected_image)
        assert np.array_equal(label, expected_label)
    assert dataset._get_zipfile() is dataset._get_zipfile()  # One handle per process, not one per image.


# --- ddp_buffers --------------------------------------------------------------------------------------------------


@pytest.mark.skipif('ddp_buffers' not in IN_FORCE, reason='this torch hands buffers on')
@pytest.mark.parametrize('is_repaired', [False, True])
def test_networks_begin_with_the_same_buffers_in_all_processes(make_generator, is_repaired):
    """As the host wraps them."""

    def wrap_and_check(rank):
        G = make_generator(rank).eval()
        torch_there = training_loop.torch if is_repaired else torch
        with warnings.catch_warnings():
            warnings.simplefilter('error' if is_repaired else 'ignore')  # A deprecated name.
            wrapped = torch_there.nn.parallel.DistributedDataParallel(G, device_ids=None, broadcast_buffers=False)
        assert isinstance(wrapped, torch.nn.parallel.DistributedDataParallel)
        of_process_0 = G.synthesis.b4.conv1.noise_const.clone()
        torch.distributed.broadcast(of_process_0, src=0)
        assert torch.equal(of_process_0, G.synthesis.b4.conv1.noise_const) == (is_repaired or rank == 0)
        if is_repaired:
            misc.check_ddp_consistency(G)  # The host's, at the first snapshot.
        G.mapping.w_avg.fill_(rank)
        wrapped(torch.randn(2, 16), torch.zeros(2, 0))
        assert (G.mapping.w_avg == rank).all()  # In a step, as the host wants it, they are not handed on.

    in_two_processes(wrap_and_check)


# --- adam_betas ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif('adam_betas' not in IN_FORCE, reason='this torch takes integers')
def test_adam_refuses_the_hosts_betas():
    with pytest.raises(ValueError, match='betas must be'):
        torch.optim.Adam([torch.zeros([1])], betas=[0, 0.99])


def test_adam_by_class_name_takes_the_hosts_betas():
    steps = []
    for make in (
        lambda p: dnnlib.util.construct_class_by_name([p], class_name='torch.optim.Adam', lr=0.1, betas=[0, 0.99]),
        lambda p: torch.optim.Adam([p], lr=0.1, betas=(0.0, 0.99)),
    ):
        param = torch.tensor([1.0, -2.0], requires_grad=True)
        optimizer = make(param)
        for _ in range(3):
            optimizer.zero_grad()
            param.square().sum().backward()
            optimizer.step()
        steps.append(param)
    assert torch.equal(*steps)
    assert dnnlib.util.construct_class_by_name(class_name='fractions.Fraction', numerator=2).numerator == 2


# --- conv2d_gradfix -----------------------------------------------------------------------------------------------


def test_convolutions_on_cuda_do_not_warn(monkeypatch):
    class AsIfOnCuda(torch.Tensor):
        device = torch.device('cuda')

    image = torch.randn([1, 2, 5, 5]).as_subclass(AsIfOnCuda)
    weight = torch.randn([3, 2, 3, 3], requires_grad=True)
    unrepaired = pristine('torch_utils.ops.conv2d_gradfix')
    unrepaired.enabled = True
    with pytest.warns(UserWarning, match='conv2d_gradfix not supported'):
        unrepaired.conv2d(image, weight)

    monkeypatch.setattr(conv2d_gradfix, 'enabled', True)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for ours, torchs in (
            (conv2d_gradfix.conv2d, torch.nn.functional.conv2d),
            (conv2d_gradfix.conv_transpose2d, torch.nn.functional.conv_transpose2d),
        ):
            outputs = [conv(image, weight, stride=2, padding=1) for conv in (ours, torchs)]
            assert torch.equal(*outputs)
            assert torch.equal(*(torch.autograd.grad(output.square().sum(), weight)[0] for output in outputs))
            weight = weight.detach().transpose(0, 1).requires_grad_()


# --- grid_sample_gradfix ------------------------------------------------------------------------------------------


@pytest.fixture
def image_and_grid():
    rnd = torch.Generator().manual_seed(0)
    image = torch.randn([2, 3, 6, 5], generator=rnd, dtype=torch.float64, requires_grad=True)
    grid = torch.rand([2, 4, 7, 2], generator=rnd, dtype=torch.float64) * 2.6 - 1.3  # Some points lie outside.
    return image, grid


def test_grid_sample_does_not_warn(image_and_grid, monkeypatch):
    unrepaired = pristine('torch_utils.ops.grid_sample_gradfix')
    unrepaired.enabled = True
    with pytest.warns(UserWarning, match='grid_sample_gradfix not supported'):
        expected = unrepaired.grid_sample(*image_and_grid)
    monkeypatch.setattr(grid_sample_gradfix, 'enabled', True)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert torch.equal(grid_sample_gradfix.grid_sample(*image_and_grid), expected)


def test_own_grid_sample_has_torchs_values_and_first_gradients(image_and_grid):
    image, grid = image_and_grid
    samples = [sample(image, grid) for sample in (grid_sample_repair.twice_differentiable, torch_grid_sample)]
    assert torch.equal(*samples)
    weights = torch.randn(samples[0].shape, dtype=torch.float64)
    assert torch.equal(*(torch.autograd.grad(sample, image, weights)[0] for sample in samples))


def test_own_grid_sample_agrees_with_finite_differences_to_second_order(image_and_grid):
    image, grid = image_and_grid
    assert torch.autograd.gradcheck(grid_sample_repair.twice_differentiable, (image, grid))
    assert torch.autograd.gradgradcheck(grid_sample_repair.twice_differentiable, (image, grid))


def test_own_grid_sample_leaves_gradients_of_the_grid_to_torch(image_and_grid):
    image, grid = image_and_grid
    grid.requires_grad_()
    grads = [
        torch.autograd.grad(sample(image, grid).square().sum(), grid)[0]
        for sample in (grid_sample_repair.twice_differentiable, torch_grid_sample)
    ]
    assert torch.equal(*grads)


def torch_grid_sample(image, grid):
    return torch.nn.functional.grid_sample(image, grid, 'bilinear', 'zeros', align_corners=False)


def r1_behind_ada(D) -> list[torch.Tensor]:
    """Gradients of D's parameters under R1 through the whole augmentation pipe at full strength."""
    pipe = AugmentPipe(xflip=1, rotate90=1, xint=1, scale=1, rotate=1, aniso=1, xfrac=1, brightness=1, contrast=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        real_img = torch.randn([4, 3, 16, 16], requires_grad=True)
        logits = D(pipe(real_img), None)
        (r1_grads,) = torch.autograd.grad(logits.sum(), real_img, create_graph=True)
        return torch.autograd.grad(r1_grads.square().sum(), list(D.parameters()), allow_unused=True)


def test_r1_behind_ada_is_the_same_with_torchs_and_with_our_second_derivative(make_discriminator, monkeypatch):
    D = make_discriminator()
    with torch.no_grad():  # Wherever the host is activated first.
        probed = grid_sample_repair.torch_can_differentiate_twice()
    assert probed == can_differentiate_twice(D, monkeypatch)

    monkeypatch.setattr(grid_sample_repair, 'torch_can_differentiate_twice', lambda: False)
    monkeypatch.setattr(grid_sample_gradfix, 'grid_sample', grid_sample_gradfix.grid_sample)  # Undone after the test.
    grid_sample_repair.apply()
    assert grid_sample_gradfix.grid_sample is grid_sample_repair.twice_differentiable
    ours = r1_behind_ada(D)
    assert any(grad is not None and grad.abs().max() > 0 for grad in ours)

    # An independent grid_sample from plain indexing, which torch can differentiate as often as one likes.
    monkeypatch.setattr(grid_sample_gradfix, 'grid_sample', grid_sample_by_indexing)
    for grad, expected in zip(ours, r1_behind_ada(D), strict=True):
        assert (grad is None) == (expected is None)
        if grad is not None:
            torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-6)


def can_differentiate_twice(D, monkeypatch) -> bool:
    with monkeypatch.context() as patch:
        patch.setattr(grid_sample_gradfix, 'grid_sample', torch_grid_sample)
        try:
            r1_behind_ada(D)
        except RuntimeError as err:
            assert 'grid_sampler_2d_backward' in str(err)  # noqa: PT017 - there is no error where torch has it.
            return False
    return True


def grid_sample_by_indexing(image, grid):
    height, width = image.shape[2:]
    padded = torch.nn.functional.pad(image, [1, 1, 1, 1])
    x = ((grid[..., 0] + 1) * width / 2 - 0.5).clamp(-1, width)
    y = ((grid[..., 1] + 1) * height / 2 - 0.5).clamp(-1, height)
    x0, y0 = x.floor().clamp(max=width - 1), y.floor().clamp(max=height - 1)
    batch = torch.arange(len(image))[:, None, None]
    total = 0
    for dx, dy in itertools.product((0, 1), repeat=2):
        weight = (1 - (x - x0 - dx).abs()) * (1 - (y - y0 - dy).abs())
        values = padded.permute(0, 2, 3, 1)[batch, (y0 + dy + 1).long(), (x0 + dx + 1).long()]
        total = total + values * weight[..., None]
    return total.permute(0, 3, 1, 2)


# --- cuda_plugins -------------------------------------------------------------------------------------------------


@pytest.fixture
def attempts(monkeypatch):
    """Names of the plugins that the host tries to build, which fails; the repairs are undone after the test."""
    attempts = []

    def get_plugin(module_name, sources, **build_kwargs):
        attempts.append(module_name)
        raise RuntimeError('Ninja is required\nto load C++ extensions')

    monkeypatch.setattr(custom_ops, 'get_plugin', get_plugin)
    for op in (upfirdn2d, bias_act):
        monkeypatch.setattr(op, '_init', op._init)
        monkeypatch.setattr(op, '_inited', False)
    return attempts


@pytest.mark.skipif(torch.cuda.is_available(), reason='already repaired: there is a CUDA device')
def test_a_plugin_that_cannot_be_built_is_tried_again_and_again_unrepaired(attempts):
    for _ in range(3):
        with pytest.warns(UserWarning, match='Traceback'):
            assert not upfirdn2d._init()
    assert attempts == ['upfirdn2d_plugin'] * 3


def test_a_plugin_that_cannot_be_built_is_tried_once_and_reported_in_a_sentence(attempts, monkeypatch):
    monkeypatch.setattr(cuda_plugins.cpp_extension, 'CUDA_HOME', None)
    monkeypatch.setattr(cuda_plugins.cpp_extension, 'is_ninja_available', lambda: True)
    cuda_plugins.apply()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        assert [op._init() for op in (upfirdn2d, bias_act) for _ in range(3)] == [False] * 6
    assert attempts == ['upfirdn2d_plugin', 'bias_act_plugin']
    messages = [str(warning.message) for warning in caught]
    for message, name in zip(messages, ['upfirdn2d', 'bias_act'], strict=True):
        assert message.startswith(f'The CUDA kernels of {name} could not be built (missing: nvcc')
        assert '\n' not in message


def test_a_plugin_whose_build_fails_with_all_tools_there_gives_the_last_word_of_the_error(attempts, monkeypatch):
    monkeypatch.setattr(cuda_plugins, '_missing_tools', lambda: '')
    cuda_plugins.apply()
    with pytest.warns(UserWarning, match=r'could not be built \(to load C\+\+ extensions\)'):
        bias_act._init()


def test_a_plugin_that_failed_before_the_repair_is_not_tried_again(attempts):
    with pytest.warns(UserWarning, match='Traceback'):
        bias_act._init()
    cuda_plugins.apply()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert not bias_act._init()
    assert attempts == ['bias_act_plugin']


def test_a_plugin_that_can_be_built_is_used(attempts, monkeypatch):
    plugin = object()
    monkeypatch.setattr(custom_ops, 'get_plugin', lambda *args, **kwargs: plugin)
    for op in (upfirdn2d, bias_act):
        monkeypatch.setattr(op, '_plugin', None)
    cuda_plugins.apply()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert all(op._init() and op._plugin is plugin for op in (upfirdn2d, bias_act) for _ in range(2))


# --- upfirdn2d_on_cpu ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(padding=[1, 1, 1, 1], gain=4),
        dict(padding=[2, 1, -1, 0]),
        dict(up=2, padding=[2, 1, 2, 1], gain=4),
        dict(up=2, padding=[3, 2, 1, 4]),
        dict(up=[1, 3], padding=[-1, 3, 0, 2]),
        dict(down=2, padding=[1, 1, 1, 1]),
        dict(down=[2, 1], padding=[-1, 1, 2, 0]),
        dict(up=2, down=2, padding=[2, 2, 2, 2]),
    ],
    ids=str,
)
@pytest.mark.parametrize('shape', [(4, 4), (3, 2), (5,), None], ids=str)
@pytest.mark.parametrize('flip_filter', [False, True])
def test_resampling_and_its_derivatives_are_the_hosts(kwargs, shape, flip_filter):
    assert 'upfirdn2d_on_cpu' in IN_FORCE
    torch.manual_seed(0)
    f = None if shape is None else torch.randn(shape)
    x = torch.randn([2, 3, 9, 8], dtype=torch.float64, requires_grad=True)
    results = []
    for function in (upfirdn2d.upfirdn2d, pristine('torch_utils.ops.upfirdn2d')._upfirdn2d_ref):
        y = function(x, f, flip_filter=flip_filter, **kwargs)
        torch.manual_seed(1)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((dx * torch.randn_like(dx)).sum(), x)
        results.append((y, dx, second))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)  # The filter and its gain are in float32.


# --- modulated_conv_on_cpu ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('fused', [True, False])
@pytest.mark.parametrize('noise', [True, False])
@pytest.mark.parametrize('demodulate', [True, False])
@pytest.mark.parametrize('side', [1, 3])
@pytest.mark.parametrize('resampled', [{}, dict(up=2, flip_weight=False), dict(down=2)], ids=['same', 'up', 'down'])
def test_modulated_convolutions_and_their_derivatives_are_the_hosts(resampled, side, demodulate, noise, fused):
    assert 'modulated_conv_on_cpu' in IN_FORCE
    torch.manual_seed(0)
    shapes = [[2, 3, 8, 8], [5, 3, side, side], [2, 3]]
    x, weight, styles = inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    maps = 8 * resampled.get('up', 1) // resampled.get('down', 1)
    arguments = dict(
        noise=torch.randn([2, 1, maps, maps], dtype=torch.float64) if noise else None,
        resample_filter=upfirdn2d.setup_filter([1, 3, 3, 1]),
        padding=side // 2,
        demodulate=demodulate,
        fused_modconv=fused,
        **resampled,
    )
    results = []
    for function in (networks.modulated_conv2d, modulated_conv_on_cpu._host_function):
        y = function(x, weight, styles, **arguments)
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum((each * each.detach().cos()).sum() for each in first), inputs)
        results.append((y, *first, *second))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)  # The filter is in float32.


# --- bias_act_on_cpu ------------------------------------------------------------------------------------------------


def two_derivatives(function, inputs):
    """A function's result, its gradients, and theirs."""
    y = function(*inputs)
    first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum((each * each.detach().cos()).sum() for each in first), inputs)
    return y, *first, *second


@pytest.mark.parametrize('clamp', [None, 0.7, 100])
@pytest.mark.parametrize('gain', [None, 1, 0.3])
@pytest.mark.parametrize('act', ['linear', 'lrelu', 'relu', 'tanh'])
@pytest.mark.parametrize('shape', [[2, 3, 4, 4], [5, 3]], ids=str)
def test_bias_and_activation_and_their_derivatives_are_the_hosts(shape, act, gain, clamp):
    assert 'bias_act_on_cpu' in IN_FORCE
    torch.manual_seed(0)
    inputs = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in (shape, [3])]
    hosts = pristine('torch_utils.ops.bias_act')._bias_act_ref
    for arguments in (inputs, inputs[:1]):  # Without a bias, too.
        before = arguments[0].detach().clone()
        results = [
            two_derivatives(lambda *given, f=f: f(*given, act=act, gain=gain, clamp=clamp), arguments)
            for f in (bias_act.bias_act, hosts)
        ]
        assert torch.equal(arguments[0], before)
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_activation_with_a_gain_that_is_1_in_single_precision_is_the_hosts_bit_for_bit():
    torch.manual_seed(0)
    x, b = torch.randn([2, 3, 8, 8], requires_grad=True), torch.randn([3], requires_grad=True)
    gain = float(np.sqrt(2) * np.sqrt(0.5))
    assert gain != 1
    hosts = pristine('torch_utils.ops.bias_act')._bias_act_ref
    for limit in (1.5, 256):
        results = [
            two_derivatives(lambda x, b, f=f, clamp=limit: f(x, b, act='lrelu', gain=gain, clamp=clamp), [x, b])
            for f in (bias_act.bias_act, hosts)
        ]
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_bounds_hold_for_what_is_not_finite(bad):
    x = torch.tensor([0.5, bad])
    assert torch.equal(bias_act_on_cpu.bounded(x, 2).nan_to_num(5), x.clamp(-2, 2).nan_to_num(5))


# --- conv_layers_on_cpu ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(kernel_size=3),
        dict(kernel_size=1),
        dict(kernel_size=3, down=2),
        dict(kernel_size=1, down=2, bias=False, activation='linear'),
        dict(kernel_size=3, down=2, resample_filter=[1, 2, 1]),
        dict(kernel_size=3, up=2),
        dict(kernel_size=3, activation='swish'),
        dict(kernel_size=3, trainable=False),
    ],
    ids=str,
)
@pytest.mark.parametrize('in_channels', [2, 6])
@pytest.mark.parametrize('conv_clamp', [None, 1.0, 256])
def test_layers_of_discriminators_and_their_derivatives_are_the_hosts(kwargs, in_channels, conv_clamp):
    assert 'conv_layers_on_cpu' in IN_FORCE
    torch.manual_seed(0)
    kwargs = {'activation': 'lrelu'} | kwargs
    layer = networks.Conv2dLayer(in_channels, 5, conv_clamp=conv_clamp, **kwargs).double()
    layer.resample_filter = layer.resample_filter.float()  # The host asks for that.
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    inputs = [torch.randn([3, in_channels, 8, 8], dtype=torch.float64, requires_grad=True), *layer.parameters()]
    results = [
        two_derivatives(lambda x, *_parameters, f=f: f(layer, x, gain=np.sqrt(0.5)), inputs)
        for f in (networks.Conv2dLayer.forward, conv_layers_on_cpu._host_function)
    ]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_layer_can_still_be_traced(make_discriminator):
    D = make_discriminator(img_channels=1).eval().requires_grad_(False)
    images = torch.randn([2, 1, 16, 16])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        traced = torch.jit.trace(lambda x: D(x, None), images)
    torch.testing.assert_close(traced(500 * images), D(500 * images, None), rtol=1e-4, atol=1e-4)


# --- sqrtm --------------------------------------------------------------------------------------------------------


def test_frechet_distance_without_the_disp_argument(monkeypatch):
    """Against the closed form for Gaussians with diagonal covariances: |m1 - m2|² + Σ (√v1 - √v2)²."""
    sqrtm_of_scipy = scipy.linalg.sqrtm
    monkeypatch.setattr(scipy.linalg, 'sqrtm', lambda A: sqrtm_of_scipy(A))
    m1, v1, m2, v2 = np.array([[1.0, 2.0], [4.0, 0.25], [0.0, 2.5], [1.0, 9.0]])

    class Stats:
        def __init__(self, mean, variance):
            self.get_mean_cov = lambda: (mean, np.diag(variance))

    monkeypatch.setattr(metric_utils, 'compute_feature_stats_for_dataset', lambda **_: Stats(m1, v1))
    monkeypatch.setattr(metric_utils, 'compute_feature_stats_for_generator', lambda **_: Stats(m2, v2))
    opts = metric_utils.MetricOptions(device=torch.device('cpu'))

    with pytest.raises(TypeError, match='disp'):
        pristine('metrics.frechet_inception_distance').compute_fid(opts, max_real=None, num_gen=2)
    monkeypatch.setattr(frechet_inception_distance, 'scipy', scipy)  # Undone after the test.
    sqrtm.apply()
    fid = frechet_inception_distance.compute_fid(opts, max_real=None, num_gen=2)
    assert fid == pytest.approx(np.square(m1 - m2).sum() + np.square(np.sqrt(v1) - np.sqrt(v2)).sum())


@pytest.mark.parametrize(('installed', 'needed'), [('1.17.1', False), ('1.18.0', True), ('2.0.0rc1', True)])
def test_sqrtm_is_repaired_from_scipy_1_18_on(installed, needed, monkeypatch):
    monkeypatch.setattr(sqrtm, 'version', lambda name: installed)
    assert sqrtm.needed() == needed


# --- metrics_on_cpu, ppl_in_fp32, percentile ----------------------------------------------------------------------


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    """What all metrics look through; they need no network."""
    with detectors.in_the_place_of_the_hosts(tmp_path_factory.mktemp('dnnlib')) as detector:
        yield detector


@pytest.fixture(scope='module')
def metric_kwargs(tmp_path_factory, detector, make_dataset_zip, make_generator):
    """Arguments for `metric_main.calc_metric`."""
    return {
        'G': make_generator(img_channels=1).eval(),
        'dataset_kwargs': {
            'class_name': 'training.dataset.ImageFolderDataset',
            'path': str(make_dataset_zip(tmp_path_factory.mktemp('metrics'), n=40, channels=1)),
        },
        'device': torch.device('cpu'),
    }


@pytest.fixture
def seeded():
    """The host's metrics draw from the global generators."""
    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        yield
    np.random.set_state(state)  # noqa: NPY002


@pytest.mark.skipif('metrics_on_cpu' not in IN_FORCE, reason='memory can be pinned here')
@pytest.mark.parametrize(
    ('module', 'compute', 'kwargs'),
    [
        (
            'metrics.metric_utils',
            'compute_feature_stats_for_generator',
            {'detector_url': VGG16, 'detector_kwargs': {'return_features': True}, 'max_items': 8},
        ),
        (
            'metrics.perceptual_path_length',
            'compute_ppl',
            {'num_samples': 4, 'epsilon': 1e-4, 'space': 'w', 'sampling': 'end', 'crop': False, 'batch_size': 2},
        ),
    ],
)
def test_pinned_memory_stops_metrics_on_a_cpu_unrepaired(
    module, compute, kwargs, metric_kwargs, make_generator, make_dataset_zip, tmp_path
):
    labelled = {'path': str(make_dataset_zip(tmp_path, channels=1, labels=2)), 'use_labels': True}
    metric_kwargs = metric_kwargs | {
        'G': make_generator(img_channels=1, c_dim=2),
        'dataset_kwargs': metric_kwargs['dataset_kwargs'] | labelled,
    }
    with pytest.raises(RuntimeError, match=r'accelerator|CUDA|NVIDIA'):
        getattr(pristine(module), compute)(metric_utils.MetricOptions(**metric_kwargs), **kwargs)


@pytest.mark.skipif('distances_on_cpu' not in IN_FORCE, reason='this torch has the kernel')
@pytest.mark.parametrize('count', [3, 40])
def test_distances_of_any_number_of_features_on_a_cpu(count):
    unrepaired = pristine('metrics.precision_recall').compute_distances
    rows, columns = (
        torch.randn([n, 16], generator=torch.Generator().manual_seed(n)).half() for n in (count, count - 1)
    )
    arguments = dict(num_gpus=1, rank=0, col_batch_size=10)
    distances = precision_recall.compute_distances(row_features=rows, col_features=columns, **arguments)
    expected = (rows.double()[:, None] - columns.double()).square().sum(2).sqrt()
    torch.testing.assert_close(distances, expected.half(), rtol=2e-3, atol=0)
    if count == 3:
        with pytest.raises((RuntimeError, NotImplementedError), match='cdist'):
            unrepaired(row_features=rows, col_features=columns, **arguments)


@pytest.mark.skipif('metrics_on_cpu' not in IN_FORCE, reason='memory can be pinned here')
def test_pinning_is_skipped_inside_a_metric_only(metric_kwargs):
    opts = metric_utils.MetricOptions(**metric_kwargs)
    with pytest.raises(TypeError):
        perceptual_path_length.compute_ppl(opts, num_samples=4, nonsense=True)
    with pytest.raises(RuntimeError):
        torch.zeros([1]).pin_memory()


@pytest.mark.filterwarnings('ignore:This DataLoader will create 3 worker processes')
def test_frechet_distance_on_a_cpu_through_calc_metric(metric_kwargs, detector, seeded, monkeypatch):
    """The dataset's and the generator's statistics, computed here in another way, give the same distance."""

    def fid16(opts):
        return {'fid16': frechet_inception_distance.compute_fid(opts, max_real=None, num_gen=16)}

    monkeypatch.setitem(metric_main._metric_dict, 'fid16', fid16)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*pin_memory.*')
        metric_main.calc_metric('fid16', **metric_kwargs)
    torch.manual_seed(0)
    result = metric_main.calc_metric('fid16', **metric_kwargs)  # Now the dataset's statistics come from a file.
    assert result.metric == 'fid16'

    dataset = ImageFolderDataset(metric_kwargs['dataset_kwargs']['path'])
    reals = torch.stack([torch.as_tensor(image) for image, _ in dataset])
    torch.manual_seed(0)
    fakes = []
    for _ in range(64 // 4):  # The host always generates whole batches of 64, four at a time.
        fakes.append(metric_kwargs['G'](torch.randn([4, 16]), torch.zeros([4, 0])))
    fakes = (torch.cat(fakes)[:16] * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    with torch.no_grad():
        real, fake = (detector(images.repeat([1, 3, 1, 1]), return_features=True).double() for images in (reals, fakes))
    root = scipy.linalg.sqrtm(np.cov(fake.T, bias=True) @ np.cov(real.T, bias=True))
    covariances = np.cov(fake.T, bias=True) + np.cov(real.T, bias=True) - 2 * root.real
    expected = (real.mean(0) - fake.mean(0)).square().sum() + np.trace(covariances)
    assert result.results.fid16 == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.filterwarnings('ignore:This DataLoader will create 3 worker processes')
def test_the_other_metrics_on_a_cpu(metric_kwargs, seeded):
    opts = metric_utils.MetricOptions(**metric_kwargs)
    kid = kernel_inception_distance.compute_kid(opts, max_real=None, num_gen=32, num_subsets=2, max_subset_size=16)
    assert np.isfinite(kid)
    batches = {'row_batch_size': 16, 'col_batch_size': 64}
    pr = precision_recall.compute_pr(opts, max_real=None, num_gen=32, nhood_size=3, **batches)
    assert all(0 <= value <= 1 for value in pr)
    mean, std = inception_score.compute_is(opts, num_gen=32, num_splits=2)
    assert 1 <= mean <= 6  # There are six classes.
    assert std >= 0


@pytest.mark.parametrize('space', ['w', 'z'])
def test_perceptual_path_length_on_a_cpu(metric_kwargs, seeded, space, monkeypatch):
    """The mean of the distances between the 1st and the 99th percentile, taken from the sample nearest inside."""
    distances = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 100.0])
    opts = metric_utils.MetricOptions(**metric_kwargs)
    options = {'num_samples': 6, 'epsilon': 1e-2, 'space': space, 'sampling': 'end', 'crop': False, 'batch_size': 2}
    assert perceptual_path_length.compute_ppl(opts, **options) > 0

    batches = iter(distances.split(2))
    monkeypatch.setattr(perceptual_path_length.PPLSampler, 'forward', lambda self, c: next(batches))
    ppl = perceptual_path_length.compute_ppl(opts, **options)
    lo, hi = np.percentile(distances, 1, method='lower'), np.percentile(distances, 99, method='higher')
    assert ppl == pytest.approx(distances[(distances >= lo) & (distances <= hi)].mean().item())


def test_path_lengths_may_be_asked_for_fp32_like_other_metrics(metric_kwargs, seeded, monkeypatch):
    def ppl(**G_kwargs):
        torch.manual_seed(0)
        opts = metric_utils.MetricOptions(**metric_kwargs, G_kwargs=G_kwargs)
        return perceptual_path_length.compute_ppl(opts, 4, 1e-2, space='w', sampling='end', crop=False, batch_size=2)

    assert ppl(force_fp32=True) == ppl()
    with pytest.raises(TypeError, match='nonsense'):  # The rest reaches the generator.
        ppl(force_fp32=True, nonsense=True)
    monkeypatch.setattr(perceptual_path_length, 'PPLSampler', pristine('metrics.perceptual_path_length').PPLSampler)
    with pytest.raises(TypeError, match='force_fp32'):
        ppl(force_fp32=True)


@pytest.mark.skipif('percentile' not in IN_FORCE, reason='this NumPy still knows `interpolation`')
def test_perceptual_path_length_fails_unrepaired_for_its_percentiles(metric_kwargs, monkeypatch):
    unrepaired = pristine('metrics.perceptual_path_length')
    assert 'interpolation' in inspect.getsource(unrepaired.compute_ppl)
    with pytest.raises(TypeError, match='interpolation'):
        unrepaired.np.percentile(np.arange(3.0), 1, interpolation='lower')
