"""NVIDIA's stylegan2-ada-pytorch ("the host"): where it is, and all that knows how it is made.

`host.activate()` comes first: the other modules here, and most of this package, import the host.
"""

from stylegan2_compress.host.checkout import ENVIRONMENT, Host, activate, fetch, find, find_or_fetch

__all__ = ['ENVIRONMENT', 'Host', 'activate', 'fetch', 'find', 'find_or_fetch']
