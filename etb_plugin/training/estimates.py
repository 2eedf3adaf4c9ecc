"""What a training will cost, by single steps of each of its phases, before it begins.

A schedule's first steps tell nothing: at eps 0 nothing is bounded. So a step is taken at the full radius in each phase
(before the bound, between two bounds, behind), on a copy of the network; of a dear one on a part of the batch, and the
rest is reckoned in proportion.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch
from torch import nn

from etb_plugin.data import Dataset
from etb_plugin.objectives import Method, Phase, Point
from etb_plugin.training.capture import as_taken
from etb_plugin.training.cost import PeakMemory, timed
from etb_plugin.training.schedule import Schedule
from etb_plugin.training.step import Step

_LONG = 0.5
"""Seconds from which a step of a part of the batch is enough to go by."""
_VERY_LONG = 5.0
"""Seconds from which a step of the first part is."""
_REPEATS = 3
_FIRST = 2
"""Images of the first part; each next one has five times as many."""
_LOOKS = 2000
"""Steps of the schedule that are looked at for its phases."""


@dataclass(frozen=True)
class Estimate:
    """The phases of a run in order, each from a step on with its seconds a step; the run's steps; and the most memory
    of a step, in MiB, as `PeakMemory` has it."""

    begins: tuple[int, ...]
    seconds_per_step: tuple[float, ...]
    steps: int
    mib: float

    @property
    def seconds(self) -> float:
        """The duration of the whole run."""
        return self.left(0)

    def left(self, step: int) -> float:
        """Return the seconds that the steps from `step` on take."""
        ends = (*self.begins[1:], self.steps)
        parts = zip(self.begins, ends, self.seconds_per_step, strict=True)
        return sum(max(0, end - max(begin, step)) * each for begin, end, each in parts)


def estimate(
    network: nn.Module, method: Method, data: Dataset, schedule: Schedule, batch_size: int, capture: bool = True
) -> Estimate:
    """Return what training the network by the schedule costs, by steps as training takes them: on a GPU replayed, where
    they can be (`capture`). The network is left as it was, and so are torch's generators."""
    trial = copy.deepcopy(network).train()
    device = data.train.images.device
    generator = torch.Generator(device).manual_seed(0)
    whole = Step.of(trial, method, data.input_shape, data.classes, schedule.learning_rate, generator)
    batch = min(batch_size, len(data.train))
    images, labels = next(data.train.batches(min(batch, method.recipe.micro_batch or batch)))
    take = as_taken(whole, len(images), capture)
    known: dict[Phase, tuple[float, float]] = {}
    begins: list[int] = []
    seconds: list[float] = []
    last: Phase | None = None

    def step(point: Point, count: int) -> None:
        take(images[:count], labels[:count], point, generator)

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        total = schedule.run.steps
        for number in sorted({n * total // min(_LOOKS, total) for n in range(min(_LOOKS, total))}):
            point = schedule.point(number)
            phase = point.phase
            if phase == last:
                continue
            last = phase
            if phase not in known:
                full = replace(point, eps=schedule.eps * phase.bounded)
                known[phase] = _measured(partial(step, full), len(images), device)
            begins.append(number)
            seconds.append(known[phase][0] * batch / len(images))
    return Estimate(tuple(begins), tuple(seconds), total, max(mib for _, mib in known.values()))


def _measured(step: Callable[[int], None], images: int, device: torch.device) -> tuple[float, float]:
    """Return seconds and MiB of a step of so many images, by those of fewer where these take long."""
    memory, found = PeakMemory(device), []
    step(_FIRST)  # the first of all loads and chooses what the others have
    size = min(_FIRST, images)
    while True:
        if device.type == "cuda":
            step(size)  # the first of a size chooses its kernels, or is recorded
        took = [timed(partial(step, size), device)]
        while len(took) < _REPEATS and sum(took) < _LONG:
            took.append(timed(partial(step, size), device))
        found.append((size, median(took), memory.mib()))
        if size == images:
            return found[-1][1:]
        if found[-1][1] > (_LONG if len(found) > 1 else _VERY_LONG):
            break
        size = min(5 * size, images)
    (fewer, fast, small), (more, slow, large) = [(0, 0.0, found[-1][2]), *found][-2:]
    beyond = (images - more) / (more - fewer)
    return slow + beyond * max(0.0, slow - fast), large + beyond * max(0.0, large - small)
