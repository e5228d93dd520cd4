"""For scripts that run in a process of their own, as on a machine where only the host is installed."""

WITHOUT_OUR_PACKAGE = """
import sys

class OurPackageIsNotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'stylegan2_compress':
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, OurPackageIsNotInstalled())
"""

# The host's scripts ask for torch.device('cuda'). This runs one as it is, with every such device replaced by the CPU at
# the moment it reaches a torch function.
HOST_SCRIPT = """
import runpy, sys
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

class NoCUDA(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        args, kwargs = tree_map_only(torch.device, lambda _: torch.device('cpu'), (args, kwargs or {}))
        return function(*args, **kwargs)

script = sys.argv[1]
sys.argv = sys.argv[1:]
with NoCUDA():
    runpy.run_path(script, run_name='__main__')
"""
