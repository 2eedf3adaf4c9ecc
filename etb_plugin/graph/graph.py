"""A network as a graph of affine maps and piecewise linear activations, and the two walks over it.

Every front end builds the same `Graph`: `tracing` from a plain `nn.Module`, `etb_plugin.lirpa` from auto_LiRPA's own
graph. `Graph.intervals` walks forward (interval arithmetic), `Graph.pull_back` walks backward (rows of a
linear map as one batched transposed pass). Nothing here knows a bound.

Shapes: a value at a node is [batch, *features]; rows and columns at a node are [batch or 1, number, *features]. Rows
keep a batch of 1 until the first activation that differs between the examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from etb_plugin.graph.activations import PiecewiseLinear
from etb_plugin.graph.affine import Affine


@dataclass(frozen=True)
class Node:
    """One operation: its name in the network, its inputs by position, its output shape without the batch."""

    name: str
    operation: Affine | PiecewiseLinear | None  # None: the network's input
    inputs: tuple[int, ...]
    shape: torch.Size


@dataclass(frozen=True)
class Graph:
    """Nodes in the order in which they can be computed; the first is the input, the last the output."""

    nodes: tuple[Node, ...]

    @property
    def activations(self) -> dict[int, PiecewiseLinear]:
        """The activations by position."""
        return {i: n.operation for i, n in enumerate(self.nodes) if isinstance(n.operation, PiecewiseLinear)}

    @property
    def affine_prefix(self) -> set[int]:
        """The nodes that no activation stands before: affine in the input."""
        found = {0}
        for i, node in enumerate(self.nodes):
            if isinstance(node.operation, Affine) and found.issuperset(node.inputs):
                found.add(i)
        return found

    def intervals(
        self, center: Tensor, radius: Tensor, known: Mapping[int, Tensor] | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Return (centre, radius) at every node by interval arithmetic (Gowal et al. 2019, equation 6).

        `known` gives better radii than the arithmetic's at some affine nodes.
        """
        values: list[tuple[Tensor, Tensor]] = [(center, radius)]
        for i, node in enumerate(self.nodes[1:], start=1):
            inputs = [values[j] for j in node.inputs]
            if isinstance(node.operation, PiecewiseLinear):
                center, radius = inputs[0]
                low, high = node.operation.range(center - radius, center + radius)
                values.append(((high + low) / 2, (high - low) / 2))
            else:
                assert node.operation is not None
                center = node.operation.forward(*(c for c, _ in inputs))
                better = None if known is None else known.get(i)
                values.append((center, node.operation.spread(*(r for _, r in inputs)) if better is None else better))
        return values

    def pull_back(self, position: int, rows: Tensor, slopes: Mapping[int, Tensor]) -> Tensor:
        """Return `rows` of the node at `position` as rows of the input: rows times the linear map between.

        `slopes` gives each activation's diagonal, [batch, *features], by position. Shapes: rows
        [batch or 1, rows, *features of the node], result [batch or 1, rows, *input].
        """
        pending: dict[int, Tensor] = {position: rows}
        for i in range(position, 0, -1):
            if i not in pending:
                continue
            node, arriving = self.nodes[i], pending.pop(i)
            if isinstance(node.operation, PiecewiseLinear):
                leaving = [arriving * slopes[i].unsqueeze(1)]
            else:
                assert node.operation is not None
                leaving = node.operation.transpose(arriving, [self.nodes[j].shape for j in node.inputs])
            for j, part in zip(node.inputs, leaving, strict=True):
                pending[j] = pending[j] + part if j in pending else part
        if 0 not in pending:  # no path from the input: the node is constant
            return rows.new_zeros(*rows.shape[:2], *self.nodes[0].shape)
        return pending[0]
