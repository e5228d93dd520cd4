"""What exports gain on this machine: students of 256 pixels in the host's code, ONNX Runtime, OpenVINO, and a browser.

    python benchmarks/export.py [--ratio 0.9] [--batch 1] [--threads 1] [--rounds 10] [--browser] [--out table.md]

Weights are random: they do not change what an image takes. All networks of a batch size and a number of threads are
opened first and then run by turns, so that a machine that others use as well is as slow for one as for another. Times
are the least of the rounds, for an image, from z. "Share" is what a product of matrices on the same threads would need
for the multiply-accumulates. At the end, kinds of operations by their part of OpenVINO's time.
"""

import contextlib
import functools
import math
import sys
import tempfile
from collections import Counter
from pathlib import Path

import click
import torch

from stylegan2_compress import host

RATIOS = (0, 0.7, 0.8, 0.9, 0.95)
WIDTHS = {res: min(16384 // res, 512) for res in (4, 8, 16, 32, 64, 128, 256)}  # The host's `paper256`.
RUNTIMES = {'onnx': 'ONNX Runtime', 'openvino': 'OpenVINO'}
SIDE = 1024  # Of the matrices whose product is the measure.
PRODUCT = (None, 'product')
TIMING = """
(async () => {
  const times = [];
  for (let seed = 0; seed < 50; seed++) {
    const [, milliseconds] = await generators[0].image({seed, second: 0, label: 0, psi: 1, share: 0, layer: 99});
    times.push(milliseconds);
    await new Promise(requestAnimationFrame);
  }
  window.median = times.sort((a, b) => a - b)[times.length >> 1];
})()
"""


@click.command()
@click.option('--ratio', 'ratios', multiple=True, type=float, default=RATIOS, show_default=True, help='Of pruning.')
@click.option(
    '--batch', 'batches', multiple=True, type=int, default=(1, 8), show_default=True, help='Images at a time.'
)
@click.option(
    '--threads', 'counts', multiple=True, type=int, default=(1, 2), show_default=True, help='Of all runtimes.'
)
@click.option('--rounds', default=10, show_default=True, help='Times are the least of so many.')
@click.option('--multiple-of', default=1, show_default=True, help='Round the widths up, as `prune --multiple-of` does.')
@click.option('--browser', is_flag=True, help='In Chromium, too.')
@click.option('--out', type=click.Path(dir_okay=False), help='Write the table to a file, too.')
def main(ratios, batches, counts, rounds: int, multiple_of: int, browser: bool, out: str | None) -> None:
    host.activate()
    from stylegan2_compress.export.base import exporter
    from stylegan2_compress.host import profiling

    generators = {ratio: generator(ratio, multiple_of) for ratio in ratios}
    chosen = {name: exporter(name) for name in RUNTIMES}
    versions = ', '.join(each.runtime() for each in chosen.values())
    lines = [f'{profiling.device_name(torch.device("cpu"))}, {versions}; least of {rounds} rounds, ms per image']
    for threads in counts:
        torch.set_num_threads(threads)
        for batch in batches:
            times = by_turns(generators, chosen, batch, threads, rounds)
            rate, dense = 1 / times[PRODUCT], times[min(generators), 'host']
            lines += [
                '',
                f'**Batch {batch}, {threads} thread{"s" * (threads > 1)}** (matrix product: {rate / 1e9:.0f} GMAC/s)',
                '',
            ]
            lines += ['| ratio (MACs) | host | ONNX Runtime | dense host ÷ it | OpenVINO | dense host ÷ it | share |']
            lines += ['| --- | --- | --- | --- | --- | --- | --- |']
            for ratio, G in generators.items():
                macs = profiling.macs(G)
                cells = [f'{ratio:g} ({macs / 1e6:,.0f} M)', f'{times[ratio, "host"] * 1e3:.1f}']
                for name in RUNTIMES:
                    seconds = times[ratio, name]
                    cells += [f'{seconds * 1e3:.1f}', f'{dense / seconds:.1f}']
                lines.append(f'| {" | ".join(cells)} | {macs / rate / times[ratio, "openvino"]:.0%} |')
            click.echo('\n'.join(lines[-len(generators) - 4 :]))
    if browser:
        lines += ['', '**Chromium, WebAssembly, one thread**', '', '| ratio | ms per image | images per second |']
        lines += ['| --- | --- | --- |']
        for ratio, G in generators.items():
            seconds = in_browser(G)
            lines.append(f'| {ratio:g} | {seconds * 1e3:.1f} | {1 / seconds:.0f} |')
            click.echo(lines[-1])
    lines += ['', '**Where OpenVINO’s time goes**, batch 1', '']
    torch.set_num_threads(counts[0])
    for ratio, G in generators.items():
        shares = ', '.join(f'{kind} {share:.0%}' for kind, share in kinds_of_operations(G))
        lines.append(f'* {ratio:g}: {shares}')
        click.echo(lines[-1])
    if out:
        Path(out).write_text('\n'.join(lines) + '\n', encoding='utf-8')


def generator(ratio: float, multiple_of: int):
    """A pruned generator of random weights with the widths of `prune --ratio`."""
    from stylegan2_compress.networks.pruned import PrunedGenerator

    channels = {}
    for res, width in WIDTHS.items():
        kept = math.ceil(round((1 - ratio) * width, 9))
        kept = min(-(-kept // multiple_of) * multiple_of, width)
        channels |= {f'b{res}.{"const" if res == 4 else "conv0"}': kept, f'b{res}.conv1': kept}
    G = PrunedGenerator(512, 0, 512, 256, 3, channels=channels, synthesis_kwargs=dict(conv_clamp=256))
    return G.eval().requires_grad_(False)


def by_turns(generators, chosen, batch: int, threads: int, rounds: int) -> dict[tuple[float | None, str], float]:
    """Seconds per image by ratio and runtime ('host', 'onnx', 'openvino'); of a multiply-accumulate for `PRODUCT`."""
    from stylegan2_compress.export import checking, timing

    a, b = torch.randn([SIDE, SIDE]), torch.randn([SIDE, SIDE])
    runs = {PRODUCT: lambda: checking.seconds_of(lambda: a @ b)}
    with contextlib.ExitStack() as stack, torch.inference_mode():
        for ratio, G in generators.items():
            inputs = checking.inputs_of(G, batch, 1.0, G.num_ws)
            in_host = functools.partial(
                G, torch.from_numpy(inputs['z']), torch.from_numpy(inputs['c']), noise_mode='const', force_fp32=True
            )
            runs[ratio, 'host'] = functools.partial(checking.seconds_of, in_host)
            for name, each in chosen.items():
                fixed = None if each.batch is None else batch
                names, networks = stack.enter_context(timing.opened(each, G, str(ratio), fixed, threads=threads))
                runs[ratio, name] = functools.partial(networks.seconds, {name: inputs[name] for name in names})
        times = dict.fromkeys(runs, math.inf)
        for _ in range(rounds + 1):  # One more, to warm up.
            for key, measure in runs.items():
                times[key] = min(times[key], measure())
    return {key: seconds / (SIDE**3 if key == PRODUCT else batch) for key, seconds in times.items()}


def in_browser(G) -> float:
    """Seconds of an image in a headless Chromium, the median of many, as the page that `export` writes shows them."""
    from stylegan2_compress import pickles
    from stylegan2_compress.export.export import export
    from stylegan2_compress.export.options import ExportOptions

    sys.path.append(str(Path(__file__).parents[1] / 'tests' / 'support'))
    from chromium import chromium

    with tempfile.TemporaryDirectory() as directory, chromium() as page:
        pkl, html = f'{directory}/G.safetensors', f'{directory}/page.html'
        pickles.save(pkl, dict(G_ema=G))
        export(pkl, ExportOptions(format='web', single_file=True, out=html))
        page.open(Path(html), 800)
        page.wait('document.body.dataset.ready')
        page.evaluate(TIMING)
        page.wait('window.median')
        return page.evaluate('window.median') / 1e3


def kinds_of_operations(G, runs: int = 20) -> list[tuple[str, float]]:
    """What takes most of OpenVINO's time in the synthesis network: kinds of operations, and their shares."""
    import openvino

    from stylegan2_compress.export import graph
    from stylegan2_compress.export.base import exporter
    from stylegan2_compress.export.signatures import signatures_of

    chosen = exporter('openvino')
    mapping, synthesis = graph.from_generator(G, 'const', chosen.form)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, 'synthesis.xml')
        chosen.write(path, synthesis, signatures_of(G, mapping, 1)['synthesis'])
        options = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': '1', 'PERF_COUNT': 'YES'}
        request = openvino.Core().compile_model(path, 'CPU', options).create_infer_request()
    total: Counter[str] = Counter()
    for _ in range(runs):
        request.infer([torch.randn([1, G.num_ws, G.w_dim]).numpy()])
        for node in request.get_profiling_info():
            total[node.node_type] += node.real_time.total_seconds()
    everything = sum(total.values())
    return [(kind, seconds / everything) for kind, seconds in total.most_common(5)]


if __name__ == '__main__':
    main()
