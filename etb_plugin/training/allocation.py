"""The memory allocator, told to keep what is freed."""

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt."""


def keep_freed_memory() -> None:
    """Let the allocator keep large blocks for reuse. glibc hands each back to the system at once, and asking for
    fresh pages at every step costs up to a third of it on a CPU."""
    with contextlib.suppress(AttributeError, OSError):  # no glibc, no such cost
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
