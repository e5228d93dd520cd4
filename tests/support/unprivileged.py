"""A process that may no more than any user's, although tests run as root: permissions of files count."""

import ctypes
import os

VERSION = 0x20080522  # Of the structures of capset(2).
OVERRIDES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH.


def become() -> None:
    """Give up the right to override permissions, for good."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(VERSION, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) != 0:
        raise OSError(ctypes.get_errno(), 'capget')
    for index in (0, 1):  # Effective and permitted ones.
        sets[index] &= ~OVERRIDES
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), 'capset')
