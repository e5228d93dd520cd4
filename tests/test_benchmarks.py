"""The standing benchmarks run (`quality.py` is in test_evaluation.py)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stylegan2_compress import host

BENCHMARKS = Path(__file__).parent.parent / 'benchmarks'


@pytest.mark.slow
def test_speed(tmp_path):
    environment = dict(os.environ, STYLEGAN2_ADA_PYTORCH=str(host.activate().path), OMP_NUM_THREADS='1')
    command = [sys.executable, str(BENCHMARKS / 'speed.py'), '--size', 'smoke', '--device', 'cpu']
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [line.split(' | ') for line in done.stdout.splitlines() if line.startswith('| ')]
    first = {row[0].strip('| '): row for row in rows}
    steps = [first[f'stylegan2_compress.{name}'] for name in ('DiMELoss', 'NICKELLoss', 'NickelDimeLoss')]
    assert all(float(row[6]) > 0 for row in [first['training.loss.StyleGAN2Loss'], *steps])
    assert {'generation', 'embedding', 'statistics', '32 px, 24 MB', 'dense', 'ratio 0.5'} <= first.keys()
