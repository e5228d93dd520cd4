"""NVIDIA's stylegan2-ada-pytorch ("the host"): where it is, and everything that depends on how it is written.

Call `host.activate()` first: most other modules here, and most of this package, import the host's modules.
"""

from stylegan2_compress.host.checkout import ENVIRONMENT, Host, activate, fetch, find, find_or_fetch

__all__ = ['ENVIRONMENT', 'Host', 'activate', 'fetch', 'find', 'find_or_fetch']
