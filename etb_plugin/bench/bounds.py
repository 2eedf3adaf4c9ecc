"""Bounds: their time, memory and tightness on the margins of a batch, beside a forward pass of the network."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from etb_plugin.bench.steps import SHAPES
from etb_plugin.bench.turns import in_turns, milliseconds
from etb_plugin.bounds import Box, Interval, margin_spec, prepare
from etb_plugin.networks import build
from etb_plugin.registry import named_options
from etb_plugin.training.cost import PeakMemory

_LEAST = 3
"""Calls that are counted at least."""


@dataclass(frozen=True)
class BoundCost:
    """A bound on a batch: milliseconds (median, least, most), those of a forward pass between them (median), MiB as
    `PeakMemory` has it, the mean width of the margins, and that width relative to IBP's."""

    bound: str
    sound: bool
    model: str
    dataset: str
    images: int
    classes: int
    eps: float
    calls: int
    median_ms: float
    least_ms: float
    most_ms: float
    forward_ms: float
    mib: float
    width: float
    ratio_to_ibp: float

    @property
    def ratio(self) -> float:
        """How many forward passes the bound takes."""
        return self.median_ms / self.forward_ms


@torch.no_grad()
def measure_bounds(
    names: Sequence[str], model: str, dataset: str, eps: float, images: int, classes: int, seconds: float, device: str
) -> Iterator[BoundCost]:
    """Yield what each bound costs and gives, on a network as it is drawn and uniformly random images, calling it for
    about so many seconds. Raises UnsupportedLayer for a bound that cannot take the network."""
    generator, shape, place = torch.Generator(device).manual_seed(0), SHAPES[dataset], torch.device(device)
    x = torch.rand(images, *shape, generator=generator, device=device)
    network = build(model, shape, classes, seed=0).to(device).eval().requires_grad_(False)
    box, spec = Box.around(x, eps), margin_spec(network(x).argmax(1), classes)

    def prepared(text: str) -> Callable[[], Interval]:
        name, options = named_options(text)
        bounded = prepare(name, network, shape, **options)
        return lambda: bounded(box, spec)

    calls = {name: prepared(name) for name in names}
    reference = float(prepared("ibp")().width.mean())
    for name, call in calls.items():
        memory = PeakMemory(place)
        interval = call()
        mib, width = memory.mib(), float(interval.width.mean())
        taken = in_turns({"forward": lambda: network(x), "bound": call}, _LEAST, seconds, place)
        yield BoundCost(
            name, interval.sound, model, dataset, images, classes, eps, len(taken["bound"]),
            **milliseconds(taken["bound"]),
            forward_ms=milliseconds(taken["forward"])["median_ms"],
            mib=mib,
            width=width,
            ratio_to_ibp=width / reference,
        )  # fmt: skip
