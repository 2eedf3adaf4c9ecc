"""Memory: what a process may hold, and blocks of work that get smaller where that is not enough."""

import os
import sys
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from etb_plugin.errors import OutOfMemory

_SMALLER = (0, 3, 6, 9)
"""Halvings of all blocks that are tried, one after the other."""
_halvings: ContextVar[int] = ContextVar("halvings", default=0)

Result = TypeVar("Result")


def fitting(elements: int) -> int:
    """Return how many elements a block may hold of the so many that are fast: fewer where memory ran out before."""
    return max(1, elements >> _halvings.get())


def in_smaller_blocks(work: Callable[[], Result]) -> Result:
    """Return what `work` returns, begun again with smaller blocks where memory runs out.

    Raises OutOfMemory where the smallest do not fit either.
    """
    for halvings in _SMALLER:
        token = _halvings.set(halvings)
        try:
            return work()
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            why = str(error)
        finally:
            _halvings.reset(token)
    raise OutOfMemory(f"out of memory, in the smallest blocks too: {why.partition(chr(10))[0]}")


def ran_out(error: Exception) -> bool:
    """Return whether memory is what an error is about: torch has a kind of its own only for a GPU's."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("out of memory", "not enough memory", "can't allocate memory")
    )


def machine_memory() -> int | None:
    """Return the bytes of memory that this machine has, or this process's control group allows; None if unknown."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found = min(found, int(Path(file).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return found


def limit_memory(size: int) -> None:
    """Let this process hold no more than `size` bytes of data of its own: an allocation beyond fails, which
    `in_smaller_blocks` answers. Systems without such a limit go on without one."""
    if sys.platform == "win32":
        return
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    size = size if most == resource.RLIM_INFINITY else min(size, most)
    resource.setrlimit(resource.RLIMIT_DATA, (size, most))
