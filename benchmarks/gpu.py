"""What works on your GPU and how fast: one command, at most nine minutes, two files to send back.

    python benchmarks/gpu.py [--outdir DIR]

It records, in this order and each in a process of its own: the environment; whether the host's kernels compile; the
tests marked `gpu` (losses in the host's loop and in ours, FP32 and FP16, continuing, all GPUs at once, metrics,
tickets, CUDA graphs); the tables of `speed.py`, on a GPU without that of loading; and on a GPU the table of
`cuda_graphs.py`. What fails, or does not end in time, is recorded like everything else, and the rest goes on. The files
are gpu.json and gpu.md; no path, user name or host name is in them.

`--device cpu --size smoke` shows, in two minutes and without a GPU, that it runs.
"""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import click
import torch

ROOT = Path(__file__).parent.parent
SECONDS = dict(  # At most.
    gpu=dict(kernels=100, tests=140, speed=120, graphs=120), smoke=dict(kernels=300, tests=900, speed=900)
)
AT_ONCE, GIB = 8, 2  # Tests on one GPU, and memory for each.
SECONDS_TO_END = 20  # Once the time is over.
IN_ALL = dict(gpu=480, smoke=1800)


@click.command()
@click.option('--device', default='cuda', show_default=True, metavar='cuda|cpu', help='What to test.')
@click.option(
    '--size', type=click.Choice(['gpu', 'smoke']), default='gpu', show_default=True, help='smoke: does it run.'
)
@click.option('--outdir', default='.', show_default=True, metavar='DIR', help='Where gpu.json and gpu.md are written.')
def main(device: str, size: str, outdir: str) -> None:
    """Write what works on this GPU, and how fast, to gpu.json and gpu.md. Exit status 1 if anything failed."""
    if device not in ('cuda', 'cpu'):
        raise click.UsageError(f'--device={device} is not cuda or cpu.')
    if device == 'cuda' and not torch.cuda.is_available():
        raise click.UsageError(
            'there is no GPU here, or torch cannot use it; --device cpu --size smoke shows what would run.'
        )
    directory = Path(outdir).resolve()  # The parts run elsewhere.
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f'--outdir={outdir} cannot be created: {error.strerror}.') from error
    end = time.monotonic() + IN_ALL[size]
    parts: dict[str, Callable[[float], dict]] = dict(
        kernels=lambda seconds: kernels(device, seconds),
        tests=lambda seconds: tests(device, directory, seconds),
        speed=lambda seconds: speed(device, size, seconds),
        graphs=lambda seconds: run([sys.executable, 'benchmarks/cuda_graphs.py', '--turns', '1'], seconds),
    )
    if device == 'cpu':
        del parts['graphs']
    report = dict(environment=environment(), device=device, size=size)
    for name, part in parts.items():
        click.echo(f'{name} …')
        start = time.monotonic()
        report[name] = part(max(10, min(SECONDS[size][name], end - start)))
        report[name]['seconds'] = round(time.monotonic() - start, 1)
        write(directory, report)  # After each part: whatever comes next, this much is known.
    click.echo(f'{directory / "gpu.json"} and {directory / "gpu.md"} are complete.')
    sys.exit(0 if all(report[name]['ok'] for name in parts) else 1)


# --- The parts ------------------------------------------------------------------------------------------------------


def environment() -> dict:
    """Versions and devices, as far as they decide what works and how fast."""
    from stylegan2_compress.version import __version__

    commit = ''
    if shutil.which('git'):
        asked = ['git', 'rev-parse', '--short', 'HEAD']
        commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return dict(
        stylegan2_compress=__version__,
        commit=commit or None,
        python=platform.python_version(),
        system=f'{platform.system()} {platform.machine()}',
        cores=os.cpu_count(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        architectures=torch.cuda.get_arch_list() if torch.cuda.is_available() else [],
        gpus=[
            dict(name=p.name, memory_gib=round(p.total_memory / 2**30, 1), capability=f'{p.major}.{p.minor}')
            for p in properties
        ],
    )


def kernels(device: str, seconds: float) -> dict:
    """Compile the host's kernels, if they are not yet, and load them."""
    script = (
        'import sys, torch\n'
        'from stylegan2_compress import host\n'
        'host.find_or_fetch(); host.activate()\n'
        'from stylegan2_compress.host import kernels\n'
        'loaded = kernels.load(torch.device(sys.argv[1]))\n'
        'print(loaded or "The host has no kernels for a CPU.")\n'
        'for way_out in loaded.ways_out() if loaded else []: print(way_out)\n'
        'sys.exit(bool(loaded and loaded.failures))'
    )
    return run([sys.executable, '-c', script, device], seconds)


def tests(device: str, directory: Path, seconds: float) -> dict:
    """The tests marked `gpu`."""
    junit = directory / 'gpu-tests.xml'
    at_once = 0
    if device == 'cuda':
        fitting = torch.cuda.get_device_properties(0).total_memory // (GIB * 2**30)
        at_once = max(min(AT_ONCE, os.cpu_count() or 1, fitting), 1)
    spread = ['--numprocesses', str(at_once), '--dist', 'load']
    command = [sys.executable, '-m', 'pytest', '-m', 'gpu', *spread, f'--junitxml={junit}', '-q', 'tests/gpu']
    done = run(command, seconds, STYLEGAN2_COMPRESS_TEST_DEVICE=device)
    done['tests'] = []
    if junit.exists():  # Not if the time was over.
        for case in ElementTree.parse(junit).iter('testcase'):
            done['tests'].append(outcome(case))
        junit.unlink()
    done['ok'] = done['ok'] and bool(done['tests'])
    return done


def outcome(case: ElementTree.Element) -> dict:
    found = next((case.find(kind) for kind in ('failure', 'error', 'skipped') if case.find(kind) is not None), None)
    kind = 'passed' if found is None else found.tag
    message = None if found is None else without_paths(found.get('message', '').split('\n')[0])
    return dict(name=case.get('name'), outcome=kind, seconds=round(float(case.get('time', 0)), 1), message=message)


def speed(device: str, size: str, seconds: float) -> dict:
    """Step times, peak memory, statistics, loading and latency: the tables of `speed.py`."""
    command = [sys.executable, 'benchmarks/speed.py', '--device', device, '--size', size]
    if size == 'gpu':  # What has no need of one, and takes minutes, is left out; what is quick comes first.
        command += ['--only', 'latency,embeddings,statistics,steps']
    return run(command, seconds)


def run(command: list[str], seconds: float, **environment: str) -> dict:
    """Whether a command succeeded within its time, and what it printed."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, text=True, errors='replace', start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        printed, errors = process.communicate(timeout=seconds)
        failure = None if process.returncode == 0 else last_lines(errors or printed, 20)
    except subprocess.TimeoutExpired:
        printed, errors = end(process)
        failure = f'not at its end after {seconds:.0f} seconds'
    return dict(ok=failure is None, printed=without_paths(printed), failure=failure and without_paths(failure))


def end(process: subprocess.Popen) -> tuple[str, str]:
    """End a command and all that it started; what it printed.

    First as Ctrl-C does: tests then report those that have ended, and a compiler's lock is put away, for which the next
    part, and every later run, would wait for ever.
    """
    os.killpg(process.pid, signal.SIGINT)
    try:
        return process.communicate(timeout=SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()


def last_lines(text: str, count: int) -> str:
    return '\n'.join(text.strip().splitlines()[-count:])


def without_paths(text: str) -> str:
    """The text with the directories of this machine and this user left out."""
    places = {str(ROOT.resolve()): '.', sys.prefix: 'PREFIX', tempfile.gettempdir(): 'TMP', str(Path.home()): '~'}
    for place, name in places.items():
        if place != os.path.sep:  # The home of a user without one.
            text = text.replace(place, name)
    return re.sub(r'pytest-of-[^/\\\s]+', 'pytest', text).strip()


# --- The files ------------------------------------------------------------------------------------------------------


def write(directory: Path, report: dict) -> None:
    (directory / 'gpu.json').write_text(json.dumps(report, indent=2) + '\n')
    (directory / 'gpu.md').write_text(markdown(report))


def markdown(report: dict) -> str:
    here = report['environment']
    gpus = ', '.join(f'{gpu["name"]} ({gpu["memory_gib"]} GiB, {gpu["capability"]})' for gpu in here['gpus'])
    lines = [
        f'# {gpus or "CPU"}',
        '',
        f'stylegan2-compress {here["stylegan2_compress"]} ({here["commit"]}), torch {here["torch"]}, '
        f'CUDA {here["cuda"]}, Python {here["python"]}, {here["system"]}, {here["cores"]} cores; size {report["size"]}',
    ]
    for name in ('kernels', 'tests', 'speed', 'graphs'):
        if name not in report:
            continue
        part = report[name]
        lines += [
            '',
            f'## {name.capitalize()}',
            '',
            f'{"Passed" if part["ok"] else "Failed"}, {part["seconds"]} s.',
            '',
        ]
        if part['failure']:
            lines += ['```', part['failure'], '```', '']
        if name == 'tests':
            lines += ['| test | outcome | s | |', '| --- | --- | --- | --- |']
            for test in part['tests']:
                message = (test['message'] or '').replace('|', ' ')
                lines.append(f'| {test["name"]} | {test["outcome"]} | {test["seconds"]} | {message} |')
        else:
            lines.append(part['printed'])
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    main()
