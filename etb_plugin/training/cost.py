"""What training costs: the time of a step, and the memory of a run."""

import ctypes
import gc
import resource
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch


class StepTimer:
    """Times steps without making a GPU wait: events there, the clock elsewhere. A lap ends each step."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []
        self.lap()

    def lap(self) -> None:
        """End a step and begin the next."""
        if self._cuda:
            self._events.append(torch.cuda.Event(enable_timing=True))
            self._events[-1].record()
        else:
            self._times.append(time.perf_counter())

    def median_ms(self) -> float:
        """Return the median step in milliseconds. Waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
            return median(begin.elapsed_time(end) for begin, end in pairwise(self._events))
        return median((end - begin) * 1000 for begin, end in pairwise(self._times))


class PeakMemory:
    """The most memory held since `PeakMemory(device)`, in MiB.

    On a GPU it is what torch allocated there. Elsewhere it is the resident memory of the whole process, torch and
    the data set included; where the system cannot reset that figure (anything but Linux), it is the peak since
    the process began.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif _STATUS.exists():
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # what the allocator kept of earlier runs is not this one's
            Path("/proc/self/clear_refs").write_text("5")

    def mib(self) -> float:
        """Return the peak so far."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**20
        if _STATUS.exists():
            line = next(s for s in _STATUS.read_text().splitlines() if s.startswith("VmHWM:"))
            return int(line.split()[1]) / 2**10
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def timed(work: Callable[[], None], device: torch.device) -> float:
    """Return the seconds that some work takes, on a GPU from when it is idle until it is again."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


_STATUS = Path("/proc/self/status")
