"""The masks of the expected bound: which piece of each activation stays.

A kind of masks gives, for each activation, the point whose piece stays (`Activation.piece`): the paper's
diag(1{u >= 0}) where the point is an upper bound u of the activation's input. Nothing here carries a gradient.

The paper's:
- "ibp" (the default; its choice for convolutions, and the authors' code): u by interval bound propagation.
- "blockwise" (equation 6): u_i = G_{i-1} m + g_{i-1} + |G_{i-1}| r, the bound's own upper end at that layer; one row
  per unit, so quadratic in their number. Equal to "ibp" on a network of two layers.
Ours:
- "sketch": equation 6 with |G_{i-1}| r estimated from random projections, pushed forward through the masked network
  for all layers at once: `graph/projections.py`.
- "center": the value at the region's centre, so that what is left is the local linear map there.
- "slope": the mean slope over the region, P(z >= 0) for a ReLU, by moments: a point drawn uniformly, every unit taken
  as normal and independent (the central-limit argument of propositions 1 and 2, applied to the mask).
"""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from etb_plugin.errors import ConfigError
from etb_plugin.graph.activations import Activation
from etb_plugin.graph.affine import Affine
from etb_plugin.graph.graph import Graph, Through
from etb_plugin.graph.projections import columns_of, estimate, forget
from etb_plugin.graph.regions import Ball, Region
from etb_plugin.graph.rows import Rows

Points = dict[int, tuple[Tensor, Tensor | None]]
"""The arguments of `Activation.piece` for each activation by position, [batch, *features]."""
Pieces = dict[int, tuple[Tensor, Tensor | None]]
"""Slope and intercept of each activation by position, [batch, *features]; an intercept of None is 0."""


def through_pieces(pieces: Pieces) -> Through:
    """Return the rule by which a row passes activations that are replaced by their pieces: times the slope."""

    def through(i: int, activation: Activation, rows: Rows) -> tuple[Tensor, None]:
        return activation.repeated(rows.values) * rows.view(pieces[i][0]), None

    return through


def step(graph: Graph, i: int, values: list[Tensor], pieces: Pieces) -> Tensor:
    """Return the value at node `i`, its activation replaced by its piece where it has one, and as it is elsewhere."""
    node = graph.nodes[i]
    assert node.operation is not None
    if i not in pieces:
        return node.operation.forward(*(values[j] for j in node.inputs))
    assert isinstance(node.operation, Activation)
    slope, intercept = pieces[i]
    value = node.operation.added(values[node.inputs[0]] * slope)
    return value if intercept is None else value + intercept


def walk(graph: Graph, m: Tensor, pieces: Pieces) -> list[Tensor]:
    """Return the values at all nodes for the input `m`, activations replaced by those of `pieces`."""
    values = [m]
    for i in range(1, len(graph.nodes)):
        values.append(step(graph, i, values, pieces))
    return values


def ibp(graph: Graph, region: Region, projections: int, seed: int) -> Points:
    """Return upper bounds by interval bound propagation (section 4, "easy-to-compute IBP upper bounds")."""
    intervals = graph.intervals(region)
    points: Points = {}
    for i in graph.activations:
        center, radius = intervals[graph.nodes[i].inputs[0]]
        points[i] = center + radius, None
    return points


def blockwise(graph: Graph, region: Region, projections: int, seed: int) -> Points:
    """Return the bound's own upper ends, layer after layer (equation 6)."""
    points: Points = {}
    pieces: Pieces = {}
    activations, values = graph.activations, [region.center]
    for i in range(1, len(graph.nodes)):
        if i in activations:
            source = graph.nodes[i].inputs[0]
            deviation = graph.deviation_of_units(source, region, through_pieces(pieces))
            points[i] = values[source] + deviation, None
            pieces[i] = activations[i].piece(*points[i])
        values.append(step(graph, i, values, pieces))
    return points


def sketch(graph: Graph, region: Region, projections: int, seed: int) -> Points:
    """Return the upper ends of equation 6, their deviations estimated from `projections` random columns."""
    points: Points = {}
    pieces: Pieces = {}
    values = [region.center]
    if isinstance(region, Ball) and region.norm == 1:
        raise ConfigError("masks='sketch' has no projections for l1 balls, whose dual norm is a maximum")
    columns = {0: columns_of(region, projections, torch.Generator(region.center.device).manual_seed(seed))}
    uses = Counter(j for node in graph.nodes for j in node.inputs)
    for i, node in enumerate(graph.nodes[1:], start=1):
        operation, inputs = node.operation, [columns[j] for j in node.inputs]
        if isinstance(operation, Activation):
            points[i] = values[node.inputs[0]] + estimate(inputs[0], region), None
            pieces[i] = operation.piece(*points[i])
            columns[i] = operation.added(inputs[0] * pieces[i][0].unsqueeze(1))
        else:
            assert isinstance(operation, Affine)
            columns[i] = operation.push(*inputs)
        values.append(step(graph, i, values, pieces))
        forget(columns, node.inputs, uses)
    return points


def center(graph: Graph, region: Region, projections: int, seed: int) -> Points:
    """Return the network's own values at the centre."""
    values = walk(graph, region.center, {})
    return {i: (values[graph.nodes[i].inputs[0]], None) for i in graph.activations}


def slope(graph: Graph, region: Region, projections: int, seed: int) -> Points:
    """Return mean and deviation of every activation's input, for a point drawn uniformly from the region."""
    points: Points = {}
    moments = [(region.center, region.variance)]
    for i, node in enumerate(graph.nodes[1:], start=1):
        inputs = [moments[j] for j in node.inputs]
        if isinstance(node.operation, Activation):
            mean, variance = inputs[0]
            points[i] = mean, variance.sqrt()
            moments.append(node.operation.moments(mean, variance))
        else:
            assert node.operation is not None
            mean = node.operation.forward(*(mean for mean, _ in inputs))
            moments.append((mean, node.operation.squared(*(variance for _, variance in inputs))))
    return points


MASKS: dict[str, Callable[[Graph, Region, int, int], Points]] = {
    "ibp": ibp,
    "blockwise": blockwise,
    "sketch": sketch,
    "center": center,
    "slope": slope,
}
"""Kinds of masks by name: (graph, region, number and seed of the projections) -> points."""
