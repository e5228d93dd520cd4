"""The standing benchmarks run: `gpu.py` and, as a part of it, `speed.py` (`quality.py` is in test_evaluation.py).

And what `quality.py` makes of its numbers is what it says, and those of embeddings and estimators are of use.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from stylegan2_compress import host, pickles
from stylegan2_compress.host import checkout
from stylegan2_compress.losses.estimators import ESTIMATORS

BENCHMARKS = Path(__file__).parent.parent / 'benchmarks'


@pytest.mark.slow
def test_the_report_of_a_gpu_runs_to_its_end_on_a_cpu(tmp_path):
    cached = tmp_path.parent / f'{tmp_path.name}-cache' / 'host'  # Where `stylegan2-compress host` puts it.
    shutil.copytree(host.activate().path, cached, ignore=shutil.ignore_patterns('.git', '__pycache__'))
    checkout._write_receipt(cached, 'a test')
    environment = dict(os.environ, STYLEGAN2_COMPRESS_CACHE=str(cached.parent))
    environment.pop(host.ENVIRONMENT, None)
    command = [sys.executable, str(BENCHMARKS / 'gpu.py'), '--device', 'cpu', '--size', 'smoke', '--outdir', tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    report = json.loads((tmp_path / 'gpu.json').read_text())
    assert done.returncode == 0, (report, done.stderr)
    outcomes = {test['name']: test['outcome'] for test in report['tests']['tests']}
    assert outcomes['test_every_gpu_takes_part'] == 'passed'
    assert outcomes['test_our_loop[both-fp32]'] == 'passed'
    assert outcomes['test_the_hosts_loop[both-fp32]'] == 'skipped'
    rows = [line.split(' | ') for line in report['speed']['printed'].splitlines() if line.startswith('| ')]
    first = {row[0].strip('| '): row for row in reversed(rows)}
    steps = [first[name] for name in ('training.loss.StyleGAN2Loss', 'stylegan2_compress.NickelDimeLoss')]
    assert all(float(row[6]) > 0 for row in steps)
    assert float(first['bf16'][2]) > 0
    assert {'generation', 'embedding', 'statistics', '32 px, 24 MB', 'dense', 'ratio 0.5'} <= first.keys()
    text = (tmp_path / 'gpu.md').read_text()
    for line in ('The host has no kernels for a CPU.', '| test_our_loop[both-fp32] | passed |', '### Latency'):
        assert line in text
    assert {path.name for path in tmp_path.iterdir()} == {'gpu.json', 'gpu.md'}


def test_the_report_of_a_gpu_needs_one(tmp_path):
    command = [sys.executable, str(BENCHMARKS / 'gpu.py'), '--outdir', tmp_path / 'report']
    done = subprocess.run(command, env=dict(os.environ, CUDA_VISIBLE_DEVICES=''), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith(
        'Error: there is no GPU here, or torch cannot use it; --device cpu --size smoke shows what would run.\n'
    )
    assert not list(tmp_path.iterdir())


def test_methods_are_compared_in_pairs_of_one_seed(monkeypatch):
    """With the nearest of the others that have the most of its seeds: here not the one that is nearest on one seed."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import quality_report

    def rows(name, *distances):
        common = dict(name=name, ratio=0.9, trained_on='none', kimg=8, recognised=0.5)
        return [dict(common, seed=seed, frechet_distance=d) for seed, d in enumerate(distances)]

    ours = rows('images-moments', 1.0, 1.4, 1.2)
    others = rows('images', 2.0, 2.0, 2.6) + rows('adversarial', 3.0, 3.0, 3.0) + rows('stylekd', 1.0)
    shown = quality_report.grouped(ours + others, None)
    (line,) = quality_report.comparison(shown).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip('|').split(' | ')]
    assert cells[3] == 'image distillation, moments of the teacher, beside image distillation'
    assert cells[4] == '3'
    # Differences -1, -0.6 and -1.4: a mean of -1, a standard error of 0.4 / sqrt(3), and t is 4.3027; of 2.2.
    assert cells[5] == '-45 % [-91, -0]'
    assert cells[-1] == '+0.0 [+0.0, +0.0]'


def test_a_part_whose_time_is_over_is_ended_as_by_ctrl_c(monkeypatch):
    """So that tests tell what they know, and the lock of a compiler is put away."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    script = 'import time\ntry:\n    time.sleep(60)\nfinally:\n    print("put away")'
    done = gpu.run([sys.executable, '-c', script], 5)
    assert done == dict(ok=False, printed='put away', failure='not at its end after 5 seconds')


def test_differences_over_several_settings_are_one_number_per_seed(tmp_path):
    common = dict(ratio=0.95, kimg=24)
    rows = [
        dict(common, name=name, trained_on=on, seed=seed, frechet_distance=fd)
        for on in ('full', 'none')
        for name, fds in (('both', (1.0, 2.0, 9.0)), ('images', (2.0, 4.0)))
        for seed, fd in enumerate(fds)
    ]
    rows[0]['frechet_distance'] = 3.0
    (tmp_path / 'results.json').write_text(json.dumps(rows))
    command = [sys.executable, str(BENCHMARKS / 'quality_differences.py'), 'both', 'images', '--results']
    command += [tmp_path / 'results.json', '--trained-on', 'full,none']
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # Means of seeds 0 and 1 are 2 and 2, beside 2 and 4: -1 of 3; the standard error is 1, and t is 12.7062.
    assert '2 pairs\nFréchet distance: -33 % [-457, +390]\n' in done.stdout


def test_a_table_of_students_is_bold_where_the_interval_is_below_zero(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import quality_tables

    def rows(name, *distances, trained_on='none'):
        common = dict(name=name, ratio=0.9, trained_on=trained_on, kimg=8, CAS=0.25)
        return [dict(common, seed=seed, frechet_distance=d) for seed, d in enumerate(distances)]

    images = rows('images', 2.0, 2.2, 1.8)
    near, perhaps = rows('nickel', 1.0, 1.1, 0.9), rows('both', 1.0, 2.2, 1.5)
    of_another = rows('nickel', 3.0, trained_on='full')
    measured = images + near + perhaps + of_another
    short = quality_tables.table('overview', '0.9; 8; none full; images nickel both; beside images', measured)
    lines = short.splitlines()[2:]
    assert lines[:1] == ['| image distillation | 2.00 ± 0.20 (25.0 %) | – |']
    assert lines[1].startswith('| NICKEL | **1.00 ± 0.10** (25.0 %) | 3.00 (25.0 %) |')
    assert lines[2] == '| NICKEL and DiME | 1.57 ± 0.60 (25.0 %) | – |'
    detailed = quality_tables.table('students', '0.9; 8; none; images nickel; beside images', images + near)
    assert detailed.splitlines()[2:] == [
        '| no data | image distillation | 2.00 ± 0.20 | 2.00, 2.20, 1.80 |  | 25.0 % ± 0.0 % |',
        '|  | NICKEL | 1.00 ± 0.10 | 1.00, 1.10, 0.90 | −50 % [−62, −38] | 25.0 % ± 0.0 % |',
    ]


def test_a_table_of_progress_has_a_column_for_each_number_of_images(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import quality_tables

    def rows(name, kimg, *distances):
        common = dict(name=name, ratio=0.9, trained_on='none', kimg=kimg)
        return [dict(common, seed=seed, frechet_distance=d) for seed, d in enumerate(distances)]

    measured = rows('images', 8, 2.0, 2.2, 1.8) + rows('images', 16, 1.0, 1.0, 1.3) + rows('nickel', 8, 1.0, 1.1, 0.9)
    lines = quality_tables.table('progress', '0.9; 8 16; none; images nickel; beside images', measured).splitlines()
    assert lines[0] == '| loss | 8 thousand | 16 thousand |'
    assert lines[2:] == [
        '| image distillation | 2.00 ± 0.20 | 1.10 ± 0.17 |',
        '| NICKEL | **1.00 ± 0.10** | – |',
    ]
    together = quality_tables.table('together', '0.9; 8 16; none; images nickel; beside images', measured).splitlines()
    assert together[2:] == ['| NICKEL, beside image distillation | 8 | −50 % [−62, −38] |  |  |  |  |']


# --- Embeddings and estimators ----------------------------------------------------------------------------------------

TINY = 'module:tiny_embeddings:tiny@size=16'


@pytest.fixture
def teacher(tmp_path, make_generator, make_discriminator):
    networks = dict(G_ema=make_generator(1, c_dim=3), D=make_discriminator(1, c_dim=3))
    pickles.save(tmp_path / 'teacher.pkl', dict(networks, G=networks['G_ema']))
    return str(tmp_path / 'teacher.pkl')


def printed_below(header: str, script, *options) -> list[list[str]]:
    """The words of the lines that a script prints below the line of its columns."""
    done = CliRunner().invoke(script.main, list(map(str, options)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    lines = [line.replace('|', ' ').split() for line in done.output.splitlines()]
    return lines[lines.index(header.split()) + 1 :]


def test_gradients_of_a_large_batch_point_where_the_populations_do(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gradient_cosines

    monkeypatch.setattr(gradient_cosines, 'POPULATION', {'moments': 2**12, 'rbf': 2**10})
    options = ['--off', '1,0.03', '--batches', '4,1024', '--memories', '0,64', '--trials', 4]
    _rule, *rows = printed_below('estimator batch memory off by 1 off by 0.03', gradient_cosines, *options)
    assert [row[:3] for row in rows] == [
        [f'`{estimator}`', *counts]
        for estimator in ('moments', 'rbf')
        for counts in [('4', 'none'), ('4', '64'), ('1024', 'none')]
    ]
    for of_estimator in (rows[:3], rows[3:]):
        near, _with_memory, of_many = (float(row[-1]) for row in of_estimator)
        assert near < of_many
        assert float(of_estimator[2][-2]) > 0.95


def test_a_weight_makes_an_estimator_pull_as_hard_as_moments(monkeypatch, teacher):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import estimator_weights

    options = ['--embedding', TINY, '--teacher', teacher, '--batch', 8, '--batches', 1]
    columns = 'estimator distance gradient distance gradient moments at default'
    printed = printed_below(columns, estimator_weights, *options)
    rows = {name: list(map(float, numbers)) for name, *numbers in printed}
    assert set(rows) == {'adversarial', *ESTIMATORS}
    gradient = rows['moments'][1]
    for name, (distance, norm, floor, _norm_there, weight, *_default) in rows.items():
        assert weight == pytest.approx(20 * gradient / norm, rel=0.05, abs=0.002), name
        assert name == 'adversarial' or distance > floor
    assert rows['moments'][-2:] == [20, ESTIMATORS['moments'].weight]


def test_an_embedding_ranks_damages_that_it_sees(monkeypatch, teacher):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import embedding_choice

    options = ['--embedding', TINY, '--estimators', 'rbf', '--teacher', teacher, '--samples', 256, '--batch', 8]
    columns = 'embedding estimator noise blur contrast truncation classes rank seen'
    _rule, row = printed_below(columns, embedding_choice, *options)
    ranks = [float(cell.rstrip(',')) for cell in row[2:12:2]]
    deviations = [float(cell) for cell in row[3:12:2]]
    assert ranks[2] == ranks[3] == 1  # Contrast and truncation.
    assert float(row[-2]) == pytest.approx(sum(ranks) / len(ranks), abs=0.01)
    assert float(row[-1]) == min(deviations) < 0.3 < max(deviations)
