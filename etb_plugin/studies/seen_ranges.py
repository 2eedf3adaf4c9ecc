"""The ranges of many small networks on their boxes, as far as millions of points show them.

What the bound `sampled` does for any network is done here for affine layers and ReLUs at a tenth of its time: a unit
that keeps its side on the box costs nothing, and all networks look at the same points.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from etb_plugin.bounds import Box, Interval
from etb_plugin.graph.ends import crown_ends
from etb_plugin.graph.tracing import trace

_AT_ONCE = 2**12
"""Points of one pass: what a network makes of them stays in a CPU's cache."""
_CORNERS = 20
"""Boxes of up to so many inputs are looked at in all their corners."""


@dataclass(frozen=True)
class Merged:
    """A network of affine layers and ReLUs on a box, in its coordinates, -1 to 1 from its lower to its upper corner.

    Values are the coordinates, then the units that may take both sides of their ReLU, layer by layer: each of `units`
    is a layer's weights [units, values before] and biases [units, 1]. The outputs are `weight` [outputs, values]
    applied to all of them, plus `constant` [outputs].
    """

    units: tuple[tuple[Tensor, Tensor], ...]
    weight: Tensor
    constant: Tensor

    def moved(self, points: Tensor) -> Tensor:
        """Return how far the outputs lie from `constant`, [outputs, points], at coordinates [inputs, points]."""
        values = points.new_empty((self.weight.shape[1], points.shape[1]))
        known = len(points)
        values[:known] = points
        for weight, bias in self.units:
            new = values[known : known + len(weight)]
            torch.addmm(bias, weight, values[:known], out=new).relu_()
            known += len(weight)
        return self.weight @ values

    def float(self) -> "Merged":
        """Return it for float32 coordinates, its constant as it is."""
        units = tuple((weight.float(), bias.float()) for weight, bias in self.units)
        return Merged(units, self.weight.float(), self.constant)


@torch.no_grad()
def merged(network: nn.Sequential, box: Box) -> Merged:
    """Return `network`, of affine layers with a ReLU between any two, on `box` of one point.

    Units that CROWN shows to keep their side are merged into the layers behind them.
    """
    graph = trace(network, box.shape)
    ends = crown_ends(graph, box).ends
    sides = [(lower[0], upper[0]) for lower, upper in (ends[i] for i in graph.activations)]
    first, *others = [layer for layer in network if isinstance(layer, nn.Linear)]
    weight = first.weight * box.radius[0]
    constant = first.weight @ box.center[0] + first.bias
    units = []
    for layer, (lower, upper) in zip(others, sides, strict=True):
        both = (lower < 0) & (upper > 0)
        units.append((weight[both], constant[both].unsqueeze(1)))
        on = lower >= 0
        kept = torch.eye(len(both), dtype=weight.dtype)[:, both]
        weight = layer.weight @ torch.cat([weight * on.unsqueeze(1), kept], 1)
        constant = layer.weight @ (constant * on) + layer.bias
    return Merged(tuple(units), weight, constant)


@torch.no_grad()
def seen_ranges(networks: Sequence[Merged], samples: int, seed: int = 0) -> list[Interval]:
    """Return each network's range over `samples` uniform points of its box and as many corners, all corners where there
    are at most 20 inputs; [1, outputs], float64, as wide as the truth or narrower.

    All have equally many inputs. They are walked in float32, and what moves on the box is apart from what does not.
    """
    inputs = networks[0].weight.shape[1] - sum(len(weight) for weight, _ in networks[0].units)
    single = [network.float() for network in networks]
    lower = [torch.full_like(network.constant, torch.inf, dtype=torch.float32) for network in networks]
    upper = [-end for end in lower]
    for points in _points(inputs, samples, torch.Generator().manual_seed(seed)):
        for i, network in enumerate(single):
            low, high = network.moved(points).aminmax(dim=1)
            lower[i] = torch.minimum(lower[i], low)
            upper[i] = torch.maximum(upper[i], high)
    return [
        Interval((network.constant + low).unsqueeze(0), (network.constant + high).unsqueeze(0), sound=False)
        for network, low, high in zip(networks, lower, upper, strict=True)
    ]


def _points(inputs: int, samples: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield coordinates [inputs, some] between -1 and 1: uniform ones, then corners."""

    def uniform() -> Iterator[Tensor]:
        for start in range(0, samples, _AT_ONCE):
            yield 2 * torch.rand((inputs, min(_AT_ONCE, samples - start)), generator=generator) - 1

    yield from uniform()
    if inputs <= _CORNERS:
        digits = torch.arange(inputs).unsqueeze(1)
        for numbers in torch.arange(2**inputs).split(_AT_ONCE):
            yield 2 * (numbers >> digits & 1).float() - 1
    else:
        yield from (points.sign() for points in uniform())
