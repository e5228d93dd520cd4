"""For scripts that run in a process of their own, as on a machine where only the host is installed."""

WITHOUT_OUR_PACKAGE = """
import sys

class OurPackageIsNotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'stylegan2_compress':
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, OurPackageIsNotInstalled())
"""
