"""Training steps: their time, memory and arithmetic, beside those of nominal steps.

Each method's steps take turns with nominal ones on the same network and random images, so that whatever else the
machine does slows both. The floor is the ratio of the multiplications and additions of both (convolutions and matrix
products, forward and backward, as torch counts them): what the ratio of times would be if nothing else cost anything.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from etb_plugin.bench.turns import in_turns, milliseconds
from etb_plugin.networks import Pair, build
from etb_plugin.objectives import Method, get_method
from etb_plugin.training import last_point
from etb_plugin.training.capture import as_taken
from etb_plugin.training.cost import PeakMemory
from etb_plugin.training.step import Step

SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
"""Shapes of images, without their data."""
_WARM_UP, _LEAST = 2, 5
"""Steps that are not counted, and how many are counted at least."""


@dataclass(frozen=True)
class StepCost:
    """A method's steps on one network: milliseconds (median, least, most), those of the nominal steps between them
    (median), the ratio of the two, the same ratio in arithmetic, and MiB as `PeakMemory` has it. On a GPU all are
    replayed as CUDA graphs where they can be, and `eager_ms` is the median of the same steps launch by launch."""

    method: str
    model: str
    dataset: str
    batch_size: int
    classes: int
    steps: int
    median_ms: float
    least_ms: float
    most_ms: float
    nominal_ms: float
    mib: float
    floor: float
    eager_ms: float | None = None

    @property
    def ratio(self) -> float:
        """How many nominal steps one of the method's takes."""
        return self.median_ms / self.nominal_ms


def measure_steps(
    wanted: Mapping[str, Method],
    model: str,
    dataset: str,
    eps: float,
    batch_size: int,
    seconds: float,
    device: str,
    classes: int = 10,
) -> Iterator[StepCost]:
    """Yield what a step of each method costs in the last phase of its schedule, at radius `eps` (pixel units), having
    taken steps for about so many seconds. Raises UnsupportedLayer for a method that cannot take the network."""
    generator = torch.Generator(device).manual_seed(0)
    shape, place = SHAPES[dataset], torch.device(device)
    images = torch.rand(batch_size, *shape, generator=generator, device=device)
    labels = torch.randint(classes, (batch_size,), generator=generator, device=device)

    def stepping(method: Method, network: nn.Module, capture: bool) -> Callable[[], None]:
        """Return a whole training step on a copy of the network, as the loop takes it."""
        drawn, point = torch.Generator(device).manual_seed(0), last_point(method.recipe, eps)
        rate = 1e-5  # too small to leave where the weights are
        step = Step.of(copy.deepcopy(network), method, shape, classes, rate, drawn)
        take = as_taken(step, batch_size, capture)
        return lambda: take(images, labels, point, drawn)

    for name, method in wanted.items():
        one = build(model, shape, classes, seed=0).to(device).train()
        network = Pair(one, copy.deepcopy(one)).train() if method.pair else one
        nominal, step = stepping(get_method("nominal"), one, False), stepping(method, network, False)
        floor = _arithmetic(step) / _arithmetic(nominal)
        memory = PeakMemory(place)
        step()
        mib = memory.mib()
        work = {"nominal": nominal, "step": step}
        if place.type == "cuda":
            work = {"nominal": stepping(get_method("nominal"), one, True), "step": stepping(method, network, True)}
            work["eager"] = step
        for _ in range(_WARM_UP):
            for take in work.values():
                take()
        taken = in_turns(work, _LEAST, seconds, place)
        yield StepCost(
            name,
            model,
            dataset,
            batch_size,
            classes,
            len(taken["step"]),
            **milliseconds(taken["step"]),
            nominal_ms=milliseconds(taken["nominal"])["median_ms"],
            mib=mib,
            floor=floor,
            eager_ms=milliseconds(taken["eager"])["median_ms"] if "eager" in taken else None,
        )


class _Counter(TorchDispatchMode):
    """Adds up torch's own counts. Not by its FlopCounterMode, which hooks modules, and attacks do not survive that."""

    total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def _arithmetic(step: Callable[[], None]) -> int:
    with _Counter() as counter:
        step()
    return counter.total
