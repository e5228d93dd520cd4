"""Checkouts of other repositories, for tests that compare with their code; without one, such a test is skipped.

`OTHER_CHECKOUTS` names a directory with checkouts under the names that git gives them: `stylegan3`, and so on. Their
modules have the names of the host's, so that they run in processes of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def checkout(name: str) -> Path:
    """The checkout of a repository; the test that asks is skipped where there is none."""
    path = Path(os.environ.get('OTHER_CHECKOUTS', ''), name)
    if 'OTHER_CHECKOUTS' not in os.environ or not path.is_dir():
        pytest.skip(f'set OTHER_CHECKOUTS to a directory with a checkout of {name} to run')
    return path


# setuptools 82 has no pkg_resources any more, of which this old code takes one function.
PARSE_VERSION = """
import importlib.util, sys, types
if importlib.util.find_spec('pkg_resources') is None:
    from packaging.version import parse
    sys.modules['pkg_resources'] = types.SimpleNamespace(parse_version=parse)
"""


def run_there(name: str, script: str, *arguments: object) -> None:
    """Run a script in which the modules of a checkout can be imported, and ours cannot be."""
    path = checkout(name)
    done = subprocess.run(
        [sys.executable, '-c', PARSE_VERSION + script, *map(str, arguments)],
        env={**os.environ, 'PYTHONPATH': str(path)},
        cwd=path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# Writes a.pkl as the training loops of stylegan3 and of the paper's public code do, and images.npz: what its networks
# make of inputs that `inputs` below makes again. Arguments: directory, G's class and arguments, D's, as JSON.
WRITE_SNAPSHOT = """
import json, pickle, sys
from pathlib import Path
import dnnlib
import numpy as np
import torch

directory, G_kwargs, D_kwargs = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
torch.manual_seed(0)
G = dnnlib.util.construct_class_by_name(**G_kwargs).eval().requires_grad_(False)
D = dnnlib.util.construct_class_by_name(**D_kwargs).eval().requires_grad_(False)
for tensor in [*G.parameters(), G.mapping.w_avg]:
    tensor.add_(torch.randn(tensor.shape) * 0.3)
with open(directory / 'a.pkl', 'wb') as file:
    data = dict(G=G, D=D, G_ema=G, augment_pipe=None, training_set_kwargs=dict(path='faces.zip'))
    pickle.dump(data, file)
z = torch.from_numpy(np.random.RandomState(0).randn(4, G.z_dim))
images = G(z, None, truncation_psi=0.7, noise_mode='const', force_fp32=True)
np.savez(directory / 'images.npz', images=images.numpy(), logits=D(images, None, force_fp32=True).numpy())
"""
