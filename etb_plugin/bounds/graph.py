"""A network as a graph of affine maps and piecewise linear activations, and the two walks over it.

Both front ends build the same `Graph`: `tracing` from a plain `nn.Module`, `hook` from auto_LiRPA's own
graph. `Graph.intervals` walks forward (interval arithmetic), `Graph.pull_back` walks backward (rows of a
linear map as one batched transposed pass). Nothing here knows a bound.

Shapes: a value at a node is [batch, *features]; rows at a node are [batch or 1, rows, *features]. Rows keep a
batch of 1 until the first activation that differs between the examples.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


class Affine(ABC):
    """An affine map of one or several inputs."""

    @abstractmethod
    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the value, [batch, *out]."""

    @abstractmethod
    def spread(self, *radii: Tensor) -> Tensor:
        """Return |A| r, the sum over the inputs, [batch, *out] for radii [batch, *in] >= 0."""

    @abstractmethod
    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        """Return `rows` [batch, rows, *out] times A for each input, of `shapes` (without the batch)."""


@dataclass(frozen=True)
class Linear(Affine):
    """x W^T + b over the last dimension; `weight()` is [out, in]."""

    weight: Callable[[], Tensor]
    bias: Callable[[], Tensor | None]

    def forward(self, *inputs: Tensor) -> Tensor:
        return F.linear(inputs[0], self.weight(), self.bias())

    def spread(self, *radii: Tensor) -> Tensor:
        return F.linear(radii[0], self.weight().abs())

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        return [rows @ self.weight()]


_CONV = (F.conv1d, F.conv2d, F.conv3d)
_CONV_TRANSPOSE = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@dataclass(frozen=True)
class Conv(Affine):
    """A convolution with zero padding over one, two or three dimensions; `weight()` is [out, in/groups, *k]."""

    weight: Callable[[], Tensor]
    bias: Callable[[], Tensor | None]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._apply(inputs[0], self.weight(), self.bias())

    def spread(self, *radii: Tensor) -> Tensor:
        return self._apply(radii[0], self.weight().abs(), None)

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        weight = self.weight()
        flat = rows.flatten(0, 1)
        dimensions = len(self.stride)
        if dimensions == 2:
            # About twice as fast as the default layout for transposed convolutions, on CPU and CUDA alike.
            flat = flat.contiguous(memory_format=torch.channels_last)
            weight = weight.contiguous(memory_format=torch.channels_last)
        # The input rows that a stride leaves uncovered have no influence; they come back as zeros.
        covered = [
            (size - 1) * step - 2 * pad + dilate * (kernel - 1) + 1
            for size, step, pad, dilate, kernel in zip(
                flat.shape[2:], self.stride, self.padding, self.dilation, weight.shape[2:], strict=True
            )
        ]
        extra = [size - got for size, got in zip(shapes[0][1:], covered, strict=True)]
        result = _CONV_TRANSPOSE[dimensions - 1](
            flat, weight, None, self.stride, self.padding, extra, self.groups, self.dilation
        )
        return [result.unflatten(0, rows.shape[:2])]

    def _apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _CONV[len(self.stride) - 1](x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


@dataclass(frozen=True)
class Coherent(Affine):
    """An affine map in which each output takes each input with coefficients of one sign.

    Reshaping, slicing, padding, concatenation, sums and differences, averages, and any elementwise scale and
    shift are such maps: |A| r is then |f(r) - f(0)|, input by input, and A^T comes from f's own derivative.
    `homogeneous` says that f(0) = 0.
    """

    function: Callable[..., Tensor]
    homogeneous: bool = False

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)

    def spread(self, *radii: Tensor) -> Tensor:
        zeros = [torch.zeros_like(r) for r in radii]
        if len(radii) == 1 and self.homogeneous:
            return self.function(radii[0]).abs()
        at_zero = self.function(*zeros)
        total = torch.zeros_like(at_zero)
        for i, radius in enumerate(radii):
            total = total + (self.function(*zeros[:i], radius, *zeros[i + 1 :]) - at_zero).abs()
        return total

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        points = [rows.new_zeros(len(rows), *shape) for shape in shapes]
        derivative = torch.func.vjp(self.function, *points)[1]
        return list(torch.vmap(derivative, in_dims=1, out_dims=1)(rows))


@dataclass(frozen=True)
class Reshape(Affine):
    """A change of shape that keeps the order of the elements; `shape` is without the batch."""

    shape: torch.Size

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].reshape(len(inputs[0]), *self.shape)

    spread = forward

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        return [rows.reshape(*rows.shape[:2], *shapes[0])]


@dataclass(frozen=True)
class Sum(Affine):
    """The sum of two inputs of one shape: where the branches of a residual network meet."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[1]

    spread = forward

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        return [rows] * len(shapes)


class Relu:
    """max(z, 0): two linear pieces, of slope 0 and 1."""

    def forward(self, z: Tensor) -> Tensor:
        return z.clamp(min=0)

    def slope(self, z: Tensor) -> Tensor:
        """Return the slope of the piece that holds at `z`, with 1 at the kink (the paper's 1{u >= 0})."""
        return (z >= 0).to(z.dtype)


@dataclass(frozen=True)
class Node:
    """One operation: its name in the network, its inputs by position, its output shape without the batch."""

    name: str
    operation: Affine | Relu | None  # None: the network's input
    inputs: tuple[int, ...]
    shape: torch.Size


@dataclass(frozen=True)
class Graph:
    """Nodes in the order in which they can be computed; the first is the input, the last the output."""

    nodes: tuple[Node, ...]

    @property
    def activations(self) -> dict[int, Relu]:
        """The activations by position."""
        return {i: node.operation for i, node in enumerate(self.nodes) if isinstance(node.operation, Relu)}

    def intervals(self, center: Tensor, radius: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return (centre, radius) at every node by interval arithmetic (Gowal et al. 2019, equation 6)."""
        values: list[tuple[Tensor, Tensor]] = [(center, radius)]
        for node in self.nodes[1:]:
            inputs = [values[i] for i in node.inputs]
            if isinstance(node.operation, Relu):
                center, radius = inputs[0]
                low = node.operation.forward(center - radius)
                high = node.operation.forward(center + radius)
                values.append(((high + low) / 2, (high - low) / 2))
            else:
                assert node.operation is not None
                center = node.operation.forward(*(c for c, _ in inputs))
                values.append((center, node.operation.spread(*(r for _, r in inputs))))
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
            if isinstance(node.operation, Relu):
                leaving = [arriving * slopes[i].unsqueeze(1)]
            else:
                assert node.operation is not None
                leaving = node.operation.transpose(arriving, [self.nodes[j].shape for j in node.inputs])
            for j, part in zip(node.inputs, leaving, strict=True):
                pending[j] = pending[j] + part if j in pending else part
        if 0 not in pending:  # no path from the input: the node is constant
            return rows.new_zeros(*rows.shape[:2], *self.nodes[0].shape)
        return pending[0]
