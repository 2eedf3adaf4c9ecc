"""A network as a graph of affine maps and piecewise linear activations, and the two walks over it.

Both front ends build the same `Graph`: `tracing` from a plain `nn.Module`, `hook` from auto_LiRPA's own
graph. `Graph.intervals` walks forward (interval arithmetic), `Graph.pull_back` walks backward (rows of a
linear map as one batched transposed pass). Nothing here knows a bound.

Shapes: a value at a node is [batch, *features]; rows and columns at a node are [batch or 1, number, *features]. Rows
keep a batch of 1 until the first activation that differs between the examples.
"""

import math
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
    def squared(self, *values: Tensor) -> Tensor:
        """Return (A * A) v, A squared element by element, the sum over the inputs: [batch, *out]."""

    @abstractmethod
    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        """Return `rows` [batch, rows, *out] times A for each input, of `shapes` (without the batch)."""

    @abstractmethod
    def push(self, *columns: Tensor) -> Tensor:
        """Return A times `columns` [batch, columns, *in], without the constant: [batch, columns, *out]."""


@dataclass(frozen=True)
class Linear(Affine):
    """x W^T + b over the last dimension; `weight()` is [out, in]."""

    weight: Callable[[], Tensor]
    bias: Callable[[], Tensor | None]

    def forward(self, *inputs: Tensor) -> Tensor:
        return F.linear(inputs[0], self.weight(), self.bias())

    def spread(self, *radii: Tensor) -> Tensor:
        return F.linear(radii[0], self.weight().abs())

    def squared(self, *values: Tensor) -> Tensor:
        return F.linear(values[0], self.weight().square())

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        return [rows @ self.weight()]

    def push(self, *columns: Tensor) -> Tensor:
        return F.linear(columns[0], self.weight())


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

    def squared(self, *values: Tensor) -> Tensor:
        return self._apply(values[0], self.weight().square(), None)

    def push(self, *columns: Tensor) -> Tensor:
        flat = self._apply(columns[0].flatten(0, 1), self.weight(), None)
        return flat.unflatten(0, columns[0].shape[:2])

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
    `homogeneous` says that f(0) = 0; `gathering` that an output may take several elements of one input.
    """

    function: Callable[..., Tensor]
    homogeneous: bool = False
    gathering: bool = False

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

    def squared(self, *values: Tensor) -> Tensor:
        if self.gathering:
            return self._squared_row_by_row(values[0])
        zeros = [torch.zeros_like(v) for v in values]
        at_zero = self.function(*zeros)
        total = torch.zeros_like(at_zero)
        for i, value in enumerate(values):
            image = self.function(*zeros[:i], value, *zeros[i + 1 :]) - at_zero
            coefficient = self.function(*zeros[:i], torch.ones_like(value), *zeros[i + 1 :]) - at_zero
            total = total + image * coefficient
        return total

    def _squared_row_by_row(self, value: Tensor) -> Tensor:
        out = self.function(torch.zeros_like(value)).shape[1:]
        parts = []
        for units in torch.arange(out.numel(), device=value.device).split(max(1, 2**24 // value.numel())):
            rows = F.one_hot(units, out.numel()).to(value.dtype).unflatten(1, out).expand(len(value), -1, *out)
            (reached,) = self.transpose(rows, [value.shape[1:]])
            parts.append((reached.square() * value.unsqueeze(1)).flatten(2).sum(2))
        return torch.cat(parts, 1).unflatten(1, out)

    def push(self, *columns: Tensor) -> Tensor:
        at_zero = self.function(*(torch.zeros_like(c[:, 0]) for c in columns))
        return torch.vmap(self.function, in_dims=1, out_dims=1)(*columns) - at_zero.unsqueeze(1)

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

    spread = squared = forward

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        return [rows.reshape(*rows.shape[:2], *shapes[0])]

    def push(self, *columns: Tensor) -> Tensor:
        return columns[0].reshape(*columns[0].shape[:2], *self.shape)


@dataclass(frozen=True)
class Sum(Affine):
    """The sum of two inputs of one shape: where the branches of a residual network meet."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[1]

    spread = squared = push = forward

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        return [rows] * len(shapes)


Number = float | Tensor


@dataclass(frozen=True)
class PiecewiseLinear:
    """An elementwise, continuous, piecewise linear function: slope z + offset + sum of change max(z - knot, 0).

    `first()` is the slope of the first piece, and each of `hinges()` a knot with the change of slope there, knots
    ascending; slopes may be parameters, [*features] or of a shape that broadcasts.
    """

    first: Callable[[], Number]
    offset: float
    hinges: Callable[[], Sequence[tuple[float, Number]]]

    def forward(self, z: Tensor) -> Tensor:
        """Return the value at `z`."""
        value = self.first() * z + self.offset
        for knot, change in self.hinges():
            value = value + change * (z - knot).clamp(min=0)
        return value

    def range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least and the greatest value between `low` and `high`, whether the function rises or not."""
        least, greatest = torch.aminmax(torch.stack([self.forward(low), self.forward(high)]), dim=0)
        for knot, _ in self.hinges():
            between = self.forward(torch.minimum(torch.maximum(torch.full_like(low, knot), low), high))
            least, greatest = torch.minimum(least, between), torch.maximum(greatest, between)
        return least, greatest

    def piece(self, z: Tensor, deviation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return slope and intercept of the piece that holds at `z`; at a knot, of the piece behind it.

        With a `deviation` they are the means over a normal variable around `z`. An intercept of None is 0.
        """
        slope, intercept = torch.zeros_like(z) + self.first(), torch.full_like(z, self.offset)
        for knot, change in self.hinges():
            beyond = _beyond(z - knot, deviation)
            slope = slope + change * beyond
            intercept = intercept - change * knot * beyond
        return slope, intercept

    def moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the function of a normal variable."""
        # f = first z + offset + sum of change h, and E[h h'] = E[h_max^2] + |knot - knot'| E[h_max].
        first, hinges = self.first(), self.hinges()
        h = [_hinge_moments(mean - knot, variance) for knot, _ in hinges]
        middle = first * mean + sum(change * one for (_, change), (one, _) in zip(hinges, h, strict=True))
        square = first * first * (mean.square() + variance)
        for i, (knot, change) in enumerate(hinges):
            square = square + 2 * first * change * (h[i][1] + knot * h[i][0])
            for j, (other, its_change) in enumerate(hinges):
                last = h[max(i, j)]
                square = square + change * its_change * (last[1] + abs(knot - other) * last[0])
        return middle + self.offset, (square - middle.square()).clamp(min=0)


class Relu(PiecewiseLinear):
    """max(z, 0)."""

    def __init__(self) -> None:
        super().__init__(lambda: 0.0, 0.0, lambda: ((0.0, 1.0),))

    def forward(self, z: Tensor) -> Tensor:
        return z.clamp(min=0)

    def range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return low.clamp(min=0), high.clamp(min=0)

    def piece(self, z: Tensor, deviation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return _beyond(z, deviation), None


def leaky(slope: Callable[[], Number]) -> PiecewiseLinear:
    """Return z for z >= 0 and `slope` z below."""
    return PiecewiseLinear(slope, 0.0, lambda: ((0.0, 1 - slope()),))


def clipped(low: float, high: float) -> PiecewiseLinear:
    """Return z cut to [low, high]."""
    return PiecewiseLinear(lambda: 0.0, low, lambda: ((low, 1.0), (high, -1.0)))


def _beyond(z: Tensor, deviation: Tensor | None) -> Tensor:
    """Return 1 where z >= 0 (the paper's 1{u >= 0}), or the probability of it."""
    step = (z >= 0).to(z.dtype)
    if deviation is None:
        return step
    return torch.where(deviation > 0, torch.special.ndtr(z / deviation.clamp(min=1e-30)), step)


def _hinge_moments(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return E h and E h^2 of h = max(z, 0), z normal."""
    deviation = variance.sqrt()
    share = _beyond(mean, deviation)
    density = torch.exp(-0.5 * (mean / deviation.clamp(min=1e-30)).square()) / math.sqrt(2 * math.pi)
    return mean * share + deviation * density, (mean.square() + variance) * share + mean * deviation * density


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
