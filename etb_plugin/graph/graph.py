"""A network as a graph of affine maps and activations, and the two walks over it.

Every front end builds the same `Graph`: `tracing` from a plain `nn.Module`, `etb_plugin.lirpa` from auto_LiRPA's own
graph. `Graph.forward` walks forward with intervals, `Graph.backward` walks backward with rows. Nothing here knows a
bound: what becomes of a row at an activation is the caller's rule (`relaxation`, or the expected bound's pieces).

Shapes: a value at a node is [batch, *features]; rows are as in `rows.Rows`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from etb_plugin.graph.activations import Activation, Curved
from etb_plugin.graph.affine import Affine
from etb_plugin.graph.regions import Ball, Region
from etb_plugin.graph.rounding import TINY, Sizes, Slack, are_rigorous, check_rigorous, gamma
from etb_plugin.graph.rows import Rows
from etb_plugin.memory import fitting
from etb_plugin.stopping import check_time

Through = Callable[[int, Activation, Rows], tuple[Tensor, Tensor | None]]
"""(position, activation, rows of its output) -> values of rows of its input, and the constant that goes with them,
[groups or 1, number], or None for 0."""
Tighten = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(position of an activation, lower and upper ends of its input) -> better ones, [batch, *features]."""
Ends = Mapping[int, tuple[Tensor, Tensor]]
"""Lower and upper ends of each activation's input, [batch, *features], by the activation's position."""

_VALUES_AT_ONCE = 2**24
"""Elements of the rows of an affine prefix that are worked on at once."""


@dataclass(frozen=True)
class Node:
    """One operation: its name in the network, its inputs by position, its output shape without the batch."""

    name: str
    operation: Affine | Activation | None  # None: the network's input
    inputs: tuple[int, ...]
    shape: torch.Size


@dataclass(frozen=True)
class Graph:
    """Nodes in the order in which they can be computed; the first is the input, the last the output."""

    nodes: tuple[Node, ...]
    row_sizes: dict[int, int] = field(default_factory=dict, compare=False, repr=False)
    """What `relaxation.row_size` has found, by position."""

    @cached_property
    def activations(self) -> dict[int, Activation]:
        """The activations by position."""
        return {i: n.operation for i, n in enumerate(self.nodes) if isinstance(n.operation, Activation)}

    @cached_property
    def curved(self) -> bool:
        """Whether some activation is not piecewise linear."""
        return any(isinstance(activation, Curved) for activation in self.activations.values())

    @property
    def last(self) -> int:
        """The output's position."""
        return len(self.nodes) - 1

    @property
    def classes(self) -> int:
        """The number of outputs."""
        return self.nodes[-1].shape[0]

    @cached_property
    def widest(self) -> int:
        """The number of elements at the widest node."""
        return max(node.shape.numel() for node in self.nodes)

    @cached_property
    def affine_prefix(self) -> dict[int, int]:
        """The nodes that no activation stands before, each with the number of matrices that it is a product of."""
        found = {0: 0}
        for i, node in enumerate(self.nodes):
            if isinstance(node.operation, Affine) and all(j in found for j in node.inputs):
                mixing = node.operation.gathering or len(node.inputs) > 1
                found[i] = max(found[j] for j in node.inputs) + mixing
        return found

    def values(self, x: Tensor) -> list[Tensor]:
        """Return the values at all nodes for inputs `x` [batch, *input]."""
        values = [x]
        for node in self.nodes[1:]:
            assert node.operation is not None
            values.append(node.operation.forward(*(values[j] for j in node.inputs)))
        return values

    def intervals(self, region: Region, tighten: Tighten | None = None) -> list[tuple[Tensor, Tensor]]:
        """Return (centre, radius) at every node by interval arithmetic (Gowal et al. 2019, equation 6).

        For a ball the nodes before the first activations are bounded by the dual norm of their rows. `tighten` may
        better the ends of each activation's input on the way. Within `rounding.rigorous` radii take in what rounding
        may have moved.
        """
        check_rigorous(region.center, takes=not isinstance(region, Ball))
        values: list[tuple[Tensor, Tensor]] = [(region.center, region.radius)]
        for i, node in enumerate(self.nodes[1:], start=1):
            inputs = [values[j] for j in node.inputs]
            if isinstance(node.operation, Activation):
                center, radius = inputs[0]
                low, high = center - radius, center + radius
                if are_rigorous():
                    pad = gamma() * (center.abs() + radius)
                    low, high = low - pad, high + pad
                if tighten is not None:
                    low, high = tighten(i, low, high)
                before = low, high
                low, high = node.operation.range(low, high)
                center, radius = (high + low) / 2, (high - low) / 2
                if are_rigorous():
                    radius = radius + gamma() * node.operation.magnitude(torch.maximum(*map(torch.abs, before)))
                values.append((center, radius))
                continue
            assert node.operation is not None
            center, radius = node.operation.interval(*inputs)
            if are_rigorous():
                sizes = [one.abs() + reach for one, reach in inputs]
                factor = gamma(*(size[0].numel() for size in sizes))
                radius = radius + factor * node.operation.magnitude(*sizes)
            if isinstance(region, Ball) and i in self._read_behind_prefix:
                radius = self.deviation_of_units(i, region, None)
            values.append((center, radius))
        return values

    def sizes(self, values: Sequence[tuple[Tensor, Tensor]], ends: Ends | None = None) -> Sizes:
        """Return what rounding is relative to in walks back, from (centre, radius) at every node, and the ends that
        relaxations are made from."""
        sizes = [center.abs() + radius + TINY for center, radius in values]
        for i, (low, high) in (ends or {}).items():
            source = self.nodes[i].inputs[0]
            sizes[source] = torch.maximum(sizes[source], torch.maximum(low.abs(), high.abs()))
        made = [sizes[0]]
        for node in self.nodes[1:]:
            assert node.operation is not None
            made.append(node.operation.magnitude(*(sizes[j] for j in node.inputs)))
        return Sizes(sizes, made)

    @cached_property
    def _read_behind_prefix(self) -> set[int]:
        """The nodes of the affine prefix that something behind it reads."""
        prefix = self.affine_prefix
        return {j for i, node in enumerate(self.nodes) if i not in prefix for j in node.inputs if j in prefix} - {0}

    def deviation_of_units(self, position: int, region: Region, through: Through | None) -> Tensor:
        """Return how far every unit of a node goes from its value at the centre, [batch, *features], where the map
        before it is affine, or made so by a rule `through` that adds no constants. Some units' rows at a time."""
        like, shape = region.center, self.nodes[position].shape
        parts = []
        at_once = max(1, fitting(_VALUES_AT_ONCE) // max(like.numel(), shape.numel()))
        for units in torch.arange(shape.numel(), device=like.device).split(at_once):
            check_time()
            rows = F.one_hot(units, shape.numel()).to(like.dtype).view(1, -1, *shape)
            reached, _ = self.backward({position: Rows(rows)}, through, shifts=False)
            parts.append(region.deviation(reached[0].values))
        return torch.cat(parts, dim=1).expand(len(region), -1).unflatten(1, shape)

    def backward(
        self,
        start: Mapping[int, Rows],
        through: Through | None,
        *,
        until: Collection[int] = (),
        shifts: bool = True,
        slack: Slack | None = None,
    ) -> tuple[dict[int, Rows], Tensor | float]:
        """Take rows of some nodes, which are added up, back to the input, or to the nodes `until`.

        Activations are passed by the rule `through`. Returns the rows at the input (zero where nothing of it is
        reached) and at `until`, and the constants met on the way, [groups or 1, number]; without `shifts` those of
        affine maps are left out. `slack` takes note of rounding.
        """
        pending, found = dict(start), {}
        constant: Tensor | float = 0.0
        for i in range(max(pending), -1, -1):
            if i not in pending:
                continue
            node, here = self.nodes[i], pending.pop(i)
            if i == 0 or i in until:
                found[i] = here
                continue
            shapes = [self.nodes[j].shape for j in node.inputs]
            if isinstance(node.operation, Activation):
                assert through is not None
                values, shift = through(i, node.operation, here)
                parts = [replace(here, values=values, zeroed=True)]  # a rule's slopes are zero outside an image
            else:
                assert node.operation is not None
                here = here.inside(node.shape[1:])
                parts = node.operation.back(here, node.shape, shapes)
                shift = node.operation.shift(here, shapes) if shifts else None
            if shift is not None:
                constant = constant + shift
            if slack is not None:
                slack.pass_node(i, here, parts, node.inputs)
            for j, part in zip(node.inputs, parts, strict=True):
                pending[j] = pending[j].plus(part, self.nodes[j].shape) if j in pending else part
        if not found:  # no path from the input: the node is constant
            number = max(rows.values.shape[1] for rows in start.values())
            like = next(iter(start.values())).values
            found[0] = Rows(like.new_zeros(1, number, *self.nodes[0].shape))
        return found, constant


def reach(region: Region, rows: Rows) -> tuple[Tensor, Tensor]:
    """Return the value of `rows` of the input at the region's centre, and how far they go to either side of it, both
    [groups or 1, number]."""
    if isinstance(region, Ball):
        rows = rows.inside(region.shape[1:])
        return rows.dot(region.center), region.deviation(rows.values)
    return rows.over(region.center, region.radius)
