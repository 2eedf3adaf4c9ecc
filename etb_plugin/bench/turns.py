"""Two pieces of work, timed in turns, so that whatever else the machine does slows both."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

from etb_plugin.training.cost import timed

_MILLI = 1000.0


def in_turns(
    work: Mapping[str, Callable[[], Any]], least: int, seconds: float, device: torch.device
) -> dict[str, list[float]]:
    """Do the pieces of `work` in turns, `least` times and for so many seconds, and return the seconds of each."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    begun, rounds = time.perf_counter(), 0
    while rounds < least or time.perf_counter() - begun < seconds:
        for name, one in work.items():
            taken[name].append(timed(one, device))
        rounds += 1
    return taken


def milliseconds(taken: list[float]) -> dict[str, float]:
    """Return the median, the least and the most of some seconds, as the records of a benchmark have them."""
    return {
        "median_ms": _MILLI * median(taken),
        "least_ms": _MILLI * min(taken),
        "most_ms": _MILLI * max(taken),
    }
