"""Random projections: how far every unit goes from its centre, estimated by columns pushed forward through a network.

The image under A of r times a Cauchy variable for each input is a Cauchy variable as wide as |A| r, so that the median
of the sizes of k such images estimates it (Wong et al. 2018, scaling, section 3.2), for all units at once, at the cost
of k forward passes. Estimates, not bounds. What an activation's relaxation adds is a draw of its own: widths of
independent Cauchy variables add up, so the same k columns carry the deviations that all layers before bring about.
"""

import math
from collections import Counter

import torch
from torch import Tensor

from etb_plugin.graph.activations import Activation
from etb_plugin.graph.affine import Affine
from etb_plugin.graph.graph import Graph
from etb_plugin.graph.regions import Ball, Box, Region


def cauchy(like: Tensor, number: int, generator: torch.Generator | None = None) -> Tensor:
    """Return Cauchy columns [1, number, *features] for values `like` [batch, *features]; without a `generator` they are
    drawn from torch's own."""
    shape = (1, number, *like.shape[1:])
    uniform = torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)
    return torch.tan(math.pi * (uniform - 0.5))


def columns_of(region: Region, number: int, generator: torch.Generator | None = None) -> Tensor:
    """Return random columns [batch, number, *input] whose images under A are spread as wide as A's deviation: Cauchy
    for a box, Gaussian for an l2 ball. Without a `generator` they are drawn from torch's own."""
    like = region.center
    if not isinstance(region, Ball):
        columns = cauchy(like, number, generator)
    else:
        assert region.norm == 2  # an l1 ball's dual norm is a maximum
        shape = (1, number, *like.shape[1:])
        columns = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
    return region.radius.unsqueeze(1) * columns


def estimate(columns: Tensor, region: Region) -> Tensor:
    """Return the deviation that pushed columns [batch, number, *features] tell of, [batch, *features]."""
    if isinstance(region, Ball):
        return columns.square().mean(1).sqrt()
    return columns.abs().median(1).values


def projected_ends(graph: Graph, box: Box, number: int) -> dict[int, tuple[Tensor, Tensor]]:
    """Return estimates of the ends that `ends.dual_ends` gives, [batch, *features], by `number` columns.

    An activation lies between two lines of the chord's slope, so that its value is the slope's part, the middle of the
    intercepts and a deviation of half their distance: one more column entry for each unit.
    """
    ends: dict[int, tuple[Tensor, Tensor]] = {}
    middles: dict[int, Tensor] = {0: box.center}
    columns: dict[int, Tensor] = {0: columns_of(box, number)}
    uses = Counter(j for node in graph.nodes for j in node.inputs)
    last = max(graph.activations, default=0)  # nothing is asked about what comes behind
    for i, node in enumerate(graph.nodes[1 : last + 1], start=1):
        operation = node.operation
        if isinstance(operation, Activation):
            middle, spread = middles[node.inputs[0]], columns[node.inputs[0]]
            deviation = estimate(spread, box)
            ends[i] = middle - deviation, middle + deviation
            slope, below, above = operation.parallel(*ends[i])
            middles[i] = operation.added(slope * middle) + (below + above) / 2
            own = ((above - below) / 2).unsqueeze(1) * cauchy(below, number)
            columns[i] = operation.added(slope.unsqueeze(1) * spread) + own
        else:
            assert isinstance(operation, Affine)
            middles[i] = operation.forward(*(middles[j] for j in node.inputs))
            columns[i] = operation.push(*(columns[j] for j in node.inputs))
        forget(columns, node.inputs, uses)
    return ends


def forget(columns: dict[int, Tensor], read: tuple[int, ...], uses: "Counter[int]") -> None:
    """Drop the columns of the nodes just `read` that no further node reads; `uses` counts the readers to come."""
    uses.subtract(read)
    for j in read:
        if not uses[j]:
            columns.pop(j, None)
