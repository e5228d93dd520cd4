"""What a training step costs with each loss: ratios to the host's loss, measured by turns in one run.

    python benchmarks/step_time.py [--size quickstart] [--loss CLASS …] [--reference DIR] [--against REVISION] \
        [--device cpu]

Every loss trains the same pruned student of the same teacher, with random weights: time does not depend on them. The
two embeddings are ResNet-50s, as the paper's are, at 256 (512) and 224 pixels, raw images, equal for all; of the size
`quickstart`, they are the quickstart's EfficientNet, whose layers image distillation and moment matching take, too. A
step is the sum of its phases by their intervals, Gmain + Greg/4 + Dmain + Dreg/16, each with its optimizer; the data
loader, G_ema and snapshots are left out (`loop_overhead.py` has them). Each loss lives in a process of its own and the
processes take turns, so that a busy machine slows all of them alike. Times are medians: of one thread on a CPU its own
time, else that of the clock. Memory is the peak of the process (CPU) or of the allocator (CUDA).

The second table says what the phases consist of (`operations.py`): kinds of operations by their share of the time,
under the profiler; arithmetic per second, as a share of what a product of matrices reaches on the same device; kernels;
and the bytes that they read and write.

--against REVISION times the losses with an older version of this package, too, a commit of this repository or a
directory with a checkout, and prints how much of its time they take: in medians, and in the shortest times, which on a
machine that others use vary less. What its phases consist of is left out.

--reference DIR is a checkout of the paper's public code (SangyeopYeo/NICKEL_AND_DIME). Its loss and networks are run
as they are, with its optimizers; its embeddings are replaced by the same ResNet-50s, frozen, as they are when it
runs on several GPUs. Modules it imports and does not use here (torchvision) need not be installed. It needs
PyWavelets.
"""

import contextlib
import functools
import importlib.util
import io
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import traceback
import types
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import click

HOST_LOSS = 'training.loss.StyleGAN2Loss'
LOSSES = [HOST_LOSS, *(f'stylegan2_compress.{name}' for name in ('DiMELoss', 'NICKELLoss', 'NickelDimeLoss'))]
REFERENCE = "the paper's code"
ROOT = Path(__file__).resolve().parent.parent
APART = 'apart'  # What a process is told instead of a phase, at its end.
STEP = {'Gmain': 1, 'Greg': 1 / 4, 'Dmain': 1, 'Dreg': 1 / 16}  # How much of each phase a step has.
REFERENCE_RESOLUTION = 256  # Its layer indices fit no other.
SIZES = dict(
    quickstart=dict(resolution=32, channel_base=1024, channel_max=64, z_dim=64, ratio=0.7, batch=16, resnet_width=0),
    paper256=dict(resolution=256, channel_base=16384, channel_max=512, z_dim=512, ratio=0.9, batch=8, resnet_width=64),
    ffhq512=dict(resolution=512, channel_base=32768, channel_max=512, z_dim=512, ratio=0.9, batch=8, resnet_width=64),
)


@click.command()
@click.option(
    '--loss', 'losses', multiple=True, metavar='CLASS', help=f'May be repeated  [default: {", ".join(LOSSES)}]'
)
@click.option('--reference', metavar='DIR', help="Checkout of the paper's public code, to be timed too.")
@click.option('--against', metavar='REVISION', help='Older version of this package, to be timed too.')
@click.option('--size', type=click.Choice(list(SIZES)), default='paper256', show_default=True)
@click.option('--channel-base', type=int, help="Of the teacher and both discriminators  [default: the size's]")
@click.option('--channel-max', type=int)
@click.option('--ratio', type=float, help='Share of channels cut.')
@click.option('--batch', type=int)
@click.option('--resnet-width', type=int, help='Of the embeddings; 64 is ResNet-50, 0 the EfficientNet.')
@click.option('--rounds', default=5, show_default=True, help='How often each phase is timed, after one to warm up.')
@click.option('--apart/--no-apart', default=True, show_default=True, help='What the phases consist of.')
@click.option('--device', default=None, help='cpu or cuda  [default: CUDA where there is one]')
def main(losses, reference, against, size, rounds, apart, device, **given) -> None:
    import torch

    name_the_host()
    if reference and SIZES[size]['resolution'] != REFERENCE_RESOLUTION:
        raise click.UsageError(f"--reference needs --size=paper256: the paper's code is for {REFERENCE_RESOLUTION} px.")
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    print(table(losses or LOSSES, reference, device, size, rounds, against, apart, **given))


def table(
    losses, reference, device, size: str, rounds: int, against: str | None = None, apart: bool = True, **given
) -> str:
    """Time the losses, and the paper's code in the directory `reference` if there is one.

    With `apart`, a second table says what the phases consist of; that takes long on CUDA. With `against`, the losses of
    that version of this package take turns with them, in a third.
    """
    sizes = SIZES[size] | {name: value for name, value in given.items() if value is not None}
    with tempfile.TemporaryDirectory() as directory, own_cache(Path(directory, 'cache')):
        inputs = write_inputs(Path(directory), **sizes)
        names = list(dict.fromkeys([HOST_LOSS, *losses]))
        contenders = [Contender(loss, plug_in, loss, inputs, device) for loss in names]
        if against:
            inputs = inputs | dict(package=importable(against, Path(directory, 'against')))
            contenders += [Contender(f'{loss} at {against}', plug_in, loss, inputs, device) for loss in names]
        if reference:
            contenders.append(Contender(REFERENCE, the_papers_code, reference, inputs, device))
        contenders = [contender for contender in contenders if contender.ready()]
        if not contenders:
            raise click.UsageError('none of them can be timed: the reasons are above.')
        for number in range(rounds + 1):
            for phase in STEP:
                for contender in contenders:
                    contender.time(phase, keep=number > 0)
        for contender in contenders:
            contender.take_apart(STEP if apart else ())
            contender.finish()
            print(f'{contender.name}: {contender.step:.3f} s', file=sys.stderr)
    setting = ', '.join(f'{name} {value}' for name, value in sizes.items())
    tables = [format_table(contenders, setting)]
    tables += [format_operations(contenders)] if apart else []
    tables += [format_against(contenders, against)] if against else []
    return '\n\n'.join(tables)


def name_the_host() -> None:
    """Activate the host, and let the processes that are started use the same, whatever their cache is."""
    from stylegan2_compress import host

    os.environ[host.ENVIRONMENT] = str(host.activate().path)


def own_cache(directory: Path) -> contextlib.AbstractContextManager:
    """Let nothing that was computed before be found, here and in the processes that are started."""
    return mock.patch.dict(os.environ, STYLEGAN2_COMPRESS_CACHE=str(directory))


def format_table(contenders: list['Contender'], setting: str) -> str:
    first = contenders[0]
    lines = [
        f'| {setting} | {" | ".join(STEP)} | step | ratio | peak memory | ratio |',
        '| --- |' + ' --- |' * (len(STEP) + 4),
    ]
    for each in contenders:
        phases = ' | '.join(f'{each.median(phase):.3f}' for phase in STEP)
        lines.append(f'| {each.name} | {phases} | {each.step:.3f} s | {each.step / first.step:.2f} '
                     f'| {each.peak / 1e6:.0f} MB | {each.peak / first.peak:.2f} |')  # fmt: skip
    by_name = {each.name: each for each in contenders}
    ours, theirs = by_name.get(LOSSES[-1]), by_name.get(REFERENCE)
    if ours and theirs:
        lines.append(f"\nNICKEL + DiME: {ours.step / theirs.step:.2f} of the time of the paper's code, "
                     f'{ours.peak / theirs.peak:.2f} of its memory.')  # fmt: skip
    return '\n'.join(lines)


def format_against(contenders: list['Contender'], against: str) -> str:
    """Ratios of times to those of the older version, of each phase and of the step."""
    lines = [f'| of the time at {against}, in medians / in shortest times | {" | ".join(STEP)} | step |',
             '| --- |' + ' --- |' * (len(STEP) + 1)]  # fmt: skip
    by_name = {each.name: each for each in contenders}
    for each in contenders:
        before = by_name.get(f'{each.name} at {against}')
        if before is not None:
            ratios = [each.median(phase) / before.median(phase) for phase in STEP] + [each.step / before.step]
            least = [min(each.seconds[phase]) / min(before.seconds[phase]) for phase in STEP]
            least.append(each.shortest_step / before.shortest_step)
            cells = [f'{ratio:.2f} / {of_least:.2f}' for ratio, of_least in zip(ratios, least, strict=True)]
            lines.append(f'| {each.name} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def format_operations(contenders: list['Contender']) -> str:
    from operations import KINDS

    lines = [
        f'|  | phase | {" | ".join(KINDS)} | arithmetic, of a product | kernels | MB |',
        '| --- |' + ' --- |' * (len(KINDS) + 4),
    ]
    for each in contenders:
        for phase, done in each.operations.items():
            shares = ' | '.join(f'{share:.0%}' for share in done.shares().values())
            arithmetic = done.flop / each.median(phase) / each.product_rate
            lines.append(f'| {each.name} | {phase} | {shares} | {arithmetic:.0%} | {done.kernels:,} '
                         f'| {done.bytes / 1e6:,.0f} |')  # fmt: skip
    return '\n'.join(lines)


# --- What all of them get -----------------------------------------------------------------------------------------


def write_inputs(
    directory: Path,
    resolution: int,
    channel_base: int,
    channel_max: int,
    z_dim: int,
    ratio: float,
    batch: int,
    resnet_width: int,
) -> dict:
    """Data, teacher, student and embedding files, and the numbers that the contenders share."""
    import dnnlib
    from loop_overhead import write_random_images

    from stylegan2_compress import pickles, pruning

    data, teacher, student, resnet = (
        str(directory / name) for name in ('random.zip', 'teacher.pkl', 'student.pkl', 'resnet50')
    )
    write_random_images(Path(data), resolution, count=2 * batch)
    shape = dict(c_dim=0, img_resolution=resolution, img_channels=1)
    width = dict(channel_base=channel_base, channel_max=channel_max, conv_clamp=256)
    G_kwargs = dict(z_dim=z_dim, w_dim=z_dim, mapping_kwargs=dict(num_layers=8), synthesis_kwargs=width)
    G = dnnlib.util.construct_class_by_name(class_name='training.networks.Generator', **G_kwargs, **shape)
    D = dnnlib.util.construct_class_by_name(class_name='training.networks.Discriminator', **width, **shape)
    networks = dict(G=G, D=D, G_ema=G, augment_pipe=None, training_set_kwargs={})
    pickles.save(teacher, networks)
    pickles.save(student, pruning.make_student(networks, pruning.widths_for_ratio(G, ratio)))
    if resnet_width:
        save_resnet(resnet, resnet_width)
        embeddings = [f'hf:{resnet}@preprocess=raw@size={size}' for size in (resolution, 224)]
    else:
        embeddings = [f'efficientnet_lite0@size={resolution}']
    return dict(data=data, teacher=teacher, student=student, embeddings=embeddings, batch=batch, shape=shape,
                G_kwargs=G_kwargs, D_kwargs=width, ratio=ratio, z_dim=z_dim)  # fmt: skip


def save_resnet(directory: str, width: int) -> None:
    """A ResNet-50 of random weights, as wide as given in its first layer, for an embedding `hf:DIRECTORY`."""
    from transformers import ResNetConfig, ResNetModel

    widths = [width << shift for shift in (2, 3, 4, 5)]
    ResNetModel(ResNetConfig(embedding_size=width, hidden_sizes=widths)).save_pretrained(directory)


def importable(version: str, directory: Path) -> str:
    """A directory to import `stylegan2_compress` from, as it is in a checkout or in a commit of this repository.

    Raises:
        click.UsageError: there is no such version.
    """
    checkout = Path(version).resolve()
    if not checkout.is_dir():
        done = subprocess.run(['git', 'archive', version], cwd=ROOT, capture_output=True)
        if done.returncode:
            raise click.UsageError(f'--against={version} is neither a directory nor a commit of this repository.')
        checkout = directory / 'checkout'
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(checkout, filter='data')
    package = directory / 'stylegan2_compress'  # Parts of it are elsewhere in a checkout, see setup.cfg.
    package.mkdir(parents=True)
    for part in [*(checkout / 'stylegan2_compress').iterdir(), checkout / 'training_loops', checkout / 'patches']:
        (package / part.name).symlink_to(part)
    return str(directory)


class Contender:
    """One loss in a process of its own, which runs a phase when it is told to.

    Args:
        name: how the table calls it.
        build: what makes its `run_phase(name)`, called as `build(which, inputs, device)` in that process.
    """

    def __init__(self, name: str, build, which: str, inputs: dict, device: str):
        context = multiprocessing.get_context('spawn')
        self.name = name
        self.seconds = {phase: [] for phase in STEP}
        self.operations = {}  # By phase, once it was taken apart.
        self.product_rate = None  # Floating point operations per second of a product of matrices.
        self.peak = None  # Bytes, known at the end.
        self.pipe, theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, build, which, inputs, device), daemon=True).start()

    def ready(self) -> bool:
        """Whether it could be built; if not, it says why."""
        problem = self.pipe.recv()
        if problem:
            print(f'{self.name} does not run here: {problem}', file=sys.stderr)
        return not problem

    def time(self, phase: str, keep: bool) -> None:
        self.pipe.send(phase)
        seconds = self.pipe.recv()
        if keep:
            self.seconds[phase].append(seconds)

    def take_apart(self, phases: Iterable[str]) -> None:
        """Find out what the phases consist of."""
        self.pipe.send(APART)
        self.pipe.send(list(phases))
        self.product_rate, self.operations = self.pipe.recv()

    def finish(self) -> None:
        self.pipe.send(None)
        self.peak = self.pipe.recv()

    def median(self, phase: str) -> float:
        return statistics.median(self.seconds[phase])

    @property
    def step(self) -> float:
        """Seconds."""
        return sum(share * self.median(phase) for phase, share in STEP.items())

    @property
    def shortest_step(self) -> float:
        """Seconds, of the shortest times of the phases."""
        return sum(share * min(self.seconds[phase]) for phase, share in STEP.items())


def serve(pipe, build, which, inputs, device) -> None:
    import torch
    from operations import clock, operations, product_rate

    sys.stdout = sys.stderr  # Standard output is for the table.
    try:
        run_phase = build(which, inputs, torch.device(device))
    except Exception as error:
        traceback.print_exc()
        pipe.send(f'{type(error).__name__}: {error}')
        return
    pipe.send(None)
    seconds = clock(torch.device(device))
    while (phase := pipe.recv()) != APART:
        start = seconds()
        run_phase(phase)
        if device != 'cpu':
            torch.cuda.synchronize()
        pipe.send(seconds() - start)
    where = torch.device(device)
    phases = pipe.recv()
    phases = [] if 'package' in inputs else phases  # Of an older version, only times are asked for.
    apart = {each: operations(functools.partial(run_phase, each), where) for each in phases}
    pipe.send((product_rate(where), apart))
    pipe.recv()
    if device != 'cpu':
        pipe.send(torch.cuda.max_memory_allocated())
    else:  # Not getrusage's maximum, which begins with the size of the process that started this one.
        pipe.send(int(re.search(r'VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) * 1024)


def phase_runner(loss, optimized: dict, inputs: dict, device, **more):
    """A function that runs a phase: gradients, then the optimizers of the modules it trains.

    Args:
        optimized: by the phase's letter, the modules that it trains.
        more: further arguments of `accumulate_gradients`.
    """
    import torch

    batch, c = inputs['batch'], torch.zeros([inputs['batch'], 0], device=device)
    side = inputs['shape']['img_resolution']
    reals = torch.randn([batch, 1, side, side], device=device).clamp(-1, 1)
    optimizers = {
        letter: [torch.optim.Adam(module.parameters(), lr=1e-4, betas=(0.0, 0.99)) for module in modules]
        for letter, modules in optimized.items()
    }

    def run_phase(phase: str) -> None:
        z = torch.randn([batch, inputs['z_dim']], device=device)
        for module, optimizer in zip(optimized[phase[0]], optimizers[phase[0]], strict=True):
            optimizer.zero_grad(set_to_none=True)
            module.requires_grad_(True)
        loss.accumulate_gradients(phase=phase, real_img=reals, real_c=c, gen_z=z, gen_c=c, sync=True, gain=1, **more)
        for module, optimizer in zip(optimized[phase[0]], optimizers[phase[0]], strict=True):
            module.requires_grad_(False)
            for parameter in module.parameters():
                if parameter.grad is not None:  # As all loops do: random embeddings have large gradients for FP16.
                    torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
            optimizer.step()

    return run_phase


# --- The contenders -----------------------------------------------------------------------------------------------


def plug_in(loss_class: str, inputs: dict, device):
    """A loss of the host's or of ours, on the networks that `train.py --loss` would construct."""
    if 'package' in inputs:
        sys.path.insert(0, inputs['package'])
    from stylegan2_compress import host

    host.activate()
    import dnnlib

    precise(device)
    args = loop_arguments(loss_class, inputs, device)
    G, D = (
        dnnlib.util.construct_class_by_name(**kwargs, **inputs['shape']).train().requires_grad_(False).to(device)
        for kwargs in (args.G_kwargs, args.D_kwargs)
    )
    loss = dnnlib.util.construct_class_by_name(
        device=device, G_mapping=G.mapping, G_synthesis=G.synthesis, D=D, augment_pipe=None, **args.loss_kwargs
    )
    return phase_runner(loss, dict(G=[G], D=[D]), inputs, device)


def precise(device) -> None:
    """Compute as training does: convolutions in FP32 and not in TF32, by the fastest of cuDNN's ways."""
    import torch

    if device.type == 'cuda':  # Older versions of this package have no function for it.
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def loop_arguments(loss_class: str, inputs: dict, device, **options):
    """What `train.py --loss` would pass to a training loop; `options` are more of `MethodOptions`."""
    from stylegan2_compress.compression.options import MethodOptions
    from stylegan2_compress.compression.planning import compress
    from stylegan2_compress.host import configurations
    from stylegan2_compress.runs.plan import Plan

    _desc, args = configurations.loop_arguments(inputs['data'], cfg='paper256', batch=inputs['batch'], aug='noaug')
    loss_args = []
    if 'DiME' in loss_class or 'Dime' in loss_class:
        loss_args += ['samples=16', f'embeddings={json.dumps(inputs["embeddings"])}']
    elif any(name in loss_class for name in ('Image', 'Moment', 'Regression')):
        loss_args += [f'embedding={inputs["embeddings"][0]}']
    args.device = str(device)
    teacher = None if loss_class == HOST_LOSS else inputs['teacher']
    chosen = dict(loss=loss_class, loss_args=tuple(loss_args), student=inputs['student'], teacher=teacher)
    compress(Plan('', args), MethodOptions(**chosen, **options))
    return args


def the_papers_code(checkout: str, inputs: dict, device):
    """Its loss for both methods on its own networks of the same shapes."""
    sys.path.insert(0, checkout)
    import dnnlib
    import torch

    from stylegan2_compress import embeddings

    precise(device)
    fp16 = dict(num_fp16_res=0 if device.type == 'cpu' else 4)
    network = 'training.networks_DD.'
    kwargs = inputs['G_kwargs'] | dict(synthesis_kwargs=inputs['G_kwargs']['synthesis_kwargs'] | fp16)
    G, G_teacher = (
        dnnlib.util.construct_class_by_name(
            class_name=network + 'Generator', **kwargs, **inputs['shape'], pruning_ratio=ratio
        ).to(device)
        for ratio in (inputs['ratio'], 0.0)
    )
    D, D_teacher = (
        dnnlib.util.construct_class_by_name(
            class_name=network + 'Discriminator', **inputs['D_kwargs'], **fp16, **inputs['shape']
        ).to(device)
        for _ in range(2)
    )
    for module in (G, G_teacher, D, D_teacher):
        module.train(module is not G_teacher).requires_grad_(False)
    dino, clip = (embeddings.load(spec, device) for spec in inputs['embeddings'])
    clip.encode_image = clip.forward
    if importlib.util.find_spec('torchvision') is None:  # Its loss imports `transforms` and uses nothing of it.
        sys.modules['torchvision'] = types.ModuleType('torchvision')
        sys.modules['torchvision'].transforms = None
    loss = dnnlib.util.construct_class_by_name(
        class_name='training.loss_DD.StyleGAN2Loss', device=device, img_resolution=REFERENCE_RESOLUTION, r1_gamma=1,
        G_mapping=G.mapping, G_synthesis=G.synthesis, D=D, D_teacher=D_teacher,
        G_teacher_mapping=G_teacher.mapping, G_teacher_synthesis=G_teacher.synthesis,
        dino_model=dino, clip_model=types.SimpleNamespace(module=clip),
    )  # fmt: skip
    moments = {
        f'global_{name}_{order}': torch.zeros([network.dim], device=device)
        for name, network in (('dino', dino), ('clip', clip))
        for order in ('first', 'second')
    }
    return phase_runner(loss, dict(G=[G], D=[D, D_teacher]), inputs, device, global_features=moments)


if __name__ == '__main__':
    main()
