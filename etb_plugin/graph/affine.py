"""Affine maps: what a node of a graph does between activations.

Shapes: a value is [batch, *features]; rows and columns are [batch or 1, number, *features].
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph.rows import Rows, Window
from etb_plugin.memory import fitting
from etb_plugin.stopping import check_time


class Affine(ABC):
    """An affine map of one or several inputs."""

    gathering = True
    """Whether an output may take several elements of one input."""

    @abstractmethod
    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the value, [batch, *out]."""

    @abstractmethod
    def spread(self, *radii: Tensor) -> Tensor:
        """Return |A| r, the sum over the inputs, [batch, *out] for radii [batch, *in] >= 0."""

    def magnitude(self, *sizes: Tensor) -> Tensor:
        """Return the sum of the sizes of all that a value is added up from, [batch, *out], for inputs of at most
        `sizes` [batch, *in]: what rounding is relative to."""
        zeros = (torch.zeros_like(size[:1]) for size in sizes)
        return self.spread(*sizes) + self.forward(*zeros).abs()

    @abstractmethod
    def squared(self, *values: Tensor) -> Tensor:
        """Return (A * A) v, A squared element by element, the sum over the inputs: [batch, *out]."""

    @abstractmethod
    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        """Return `rows` [batch, rows, *out] times A for each input, of `shapes` (without the batch)."""

    @abstractmethod
    def push(self, *columns: Tensor) -> Tensor:
        """Return A times `columns` [batch, columns, *in], without the constant: [batch, columns, *out]."""

    def interval(self, *inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return centre and radius of the values, for inputs as (centre, radius)."""
        return self.forward(*(center for center, _ in inputs)), self.spread(*(radius for _, radius in inputs))

    def back(self, rows: Rows, shape: torch.Size, shapes: Sequence[torch.Size]) -> list[Rows]:
        """Return `rows` of the output, of `shape`, as rows of each input, of `shapes`; windows grow or are given up."""
        whole = rows.whole(shape)
        return [whole.with_values(part) for part in self.transpose(whole.values, shapes)]

    def shift(self, rows: Rows, shapes: Sequence[torch.Size]) -> Tensor | None:
        """Return `rows` of the output times the map's constant, [groups or 1, number]; None where that is 0."""
        at_zero = self.forward(*(rows.values.new_zeros(1, *shape) for shape in shapes))
        return rows.dot(at_zero)


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

    def shift(self, rows: Rows, shapes: Sequence[torch.Size]) -> Tensor | None:
        bias = self.bias()
        if bias is None:
            return None
        if rows.window is not None:
            return rows.dot(bias.expand(1, *shapes[0][:-1], -1))
        products = rows.values @ bias
        return products if products.ndim == 2 else products.flatten(2).sum(2)

    def units(self, units: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the rows of some of the outputs of a one-dimensional input, [units, in], and their constants."""
        bias = self.bias()
        return self.weight()[units], None if bias is None else bias[units]


_CONV = (F.conv1d, F.conv2d, F.conv3d)
_FEW = 2
"""Channels up to which a product and a fold are faster than a transposed convolution."""
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
        # The input rows that a stride leaves uncovered have no influence; they come back as zeros.
        covered = self._grown(rows.shape[3:], weight, self.padding)
        extra = [size - got for size, got in zip(shapes[0][1:], covered, strict=True)]
        return [self._transposed(rows, weight, self.padding, extra)]

    def back(self, rows: Rows, shape: torch.Size, shapes: Sequence[torch.Size]) -> list[Rows]:
        window = rows.window
        if window is None:
            return super().back(rows, shape, shapes)
        weight = self.weight()
        size = self._grown(rows.values.shape[3:], weight, (0,) * len(self.stride))
        if 2 * math.prod(size) > 3 * shapes[0][1:].numel():  # the whole image costs less
            return super().back(rows, shape, shapes)
        strides = zip(window.stride, self.stride, strict=True)
        offsets = zip(window.offset, self.stride, self.padding, strict=True)
        grown = Window(window.grid, tuple(a * b for a, b in strides), tuple(a * s - p for a, s, p in offsets))
        return [replace(rows, values=self._of_windows(rows.values, weight, size), window=grown, zeroed=False)]

    def shift(self, rows: Rows, shapes: Sequence[torch.Size]) -> Tensor | None:
        bias = self.bias()
        return None if bias is None else rows.values.flatten(3).sum(3) @ bias

    def _of_windows(self, values: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
        """Return rows over windows of the output as rows over the windows of `size` that those look at."""
        none = (0,) * len(self.stride)
        channels, before = weight.shape[0], weight.shape[1] * self.groups
        into, out = values.shape[2:].numel(), before * math.prod(size)
        # Few input channels leave a transposed convolution idle: one product with its matrix is faster, up to
        # 32 / channels times its arithmetic. The matrix itself is made from the identity.
        products = math.prod(size) * self.groups / weight.shape[2:].numel()
        if values.shape[:2].numel() > into and products * before < 32:
            eye = torch.eye(into, dtype=values.dtype, device=values.device).view(1, into, channels, *values.shape[3:])
            matrix = self._transposed(eye, weight, none, none).reshape(into, out)
            return (values.flatten(2) @ matrix).unflatten(2, (before, *size))
        return self._transposed(values, weight, none, none)

    def _grown(self, size: Sequence[int], weight: Tensor, padding: Sequence[int]) -> list[int]:
        """Return how far outputs of `size` look, in elements of the input."""
        return [
            (length - 1) * step - 2 * pad + dilate * (kernel - 1) + 1
            for length, step, pad, dilate, kernel in zip(
                size, self.stride, padding, self.dilation, weight.shape[2:], strict=True
            )
        ]

    def _transposed(self, rows: Tensor, weight: Tensor, padding: Sequence[int], extra: Sequence[int]) -> Tensor:
        flat = rows.flatten(0, 1)
        dimensions = len(self.stride)
        single = flat[0, 0].numel() == 1 and not any((*padding, *extra)) and set(self.dilation) == {1}
        if single and self.groups == 1:
            return (flat.flatten(1) @ weight.flatten(1)).view(*rows.shape[:2], *weight.shape[1:])
        if dimensions == 2 and weight.shape[1] <= _FEW and self.groups == 1:
            # A transposed convolution to an image's few channels idles: a product, and its parts put together. The
            # weights are repeated, which takes no memory, since `matmul` would turn the rows around instead.
            sizes = zip(self._grown(rows.shape[3:], weight, padding), extra, strict=True)
            columns = torch.bmm(weight.flatten(1).t().expand(len(flat), -1, -1), flat.flatten(2))
            kernel, out = tuple(weight.shape[2:]), tuple(size + more for size, more in sizes)
            image = F.fold(columns, out, kernel, self.dilation, tuple(padding), self.stride)
            return image.unflatten(0, rows.shape[:2])
        if dimensions == 2:
            # About twice as fast as the default layout for transposed convolutions, on CPU and CUDA alike.
            flat = flat.contiguous(memory_format=torch.channels_last)
            weight = weight.contiguous(memory_format=torch.channels_last)
        result = _CONV_TRANSPOSE[dimensions - 1](
            flat, weight, None, self.stride, padding, extra, self.groups, self.dilation
        )
        return result.unflatten(0, rows.shape[:2])

    def _apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _CONV[len(self.stride) - 1](x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


def transposed(function: Callable[..., Tensor], rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Return `rows` [batch, rows, *out] times the matrix of an affine function, for each of its inputs, of `shapes`."""
    # A row is one more example of the batch to the function, and its gradient there, wherever that is taken, A^T.
    flat = rows.flatten(0, 1)
    zero = flat.new_zeros(())
    learns = torch.is_grad_enabled() and (
        rows.requires_grad or function(*(zero.expand(1, *shape) for shape in shapes)).requires_grad
    )
    with torch.enable_grad():
        points = [zero.expand(len(flat), *shape).detach().requires_grad_() for shape in shapes]
        image = function(*points)
    parts = torch.autograd.grad(image, points, flat, create_graph=learns, materialize_grads=True, allow_unused=True)
    return [part.unflatten(0, rows.shape[:2]) for part in parts]


@dataclass(frozen=True)
class Dense(Affine):
    """Any affine map, by its function alone: |A| r and the like take the whole matrix, some rows at a time."""

    function: Callable[..., Tensor]

    def magnitude(self, *sizes: Tensor) -> Tensor:
        raise UnsupportedLayer("rounding is not known of an affine map that is known by its function alone")

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)

    def spread(self, *radii: Tensor) -> Tensor:
        return self._by_rows(Tensor.abs, radii)

    def squared(self, *values: Tensor) -> Tensor:
        return self._by_rows(Tensor.square, values)

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        return transposed(self.function, rows, shapes)

    def push(self, *columns: Tensor) -> Tensor:
        at_zero = self.function(*(torch.zeros_like(c[:1, 0]) for c in columns))
        flat = self.function(*(c.flatten(0, 1) for c in columns)) - at_zero
        return flat.unflatten(0, columns[0].shape[:2])

    def _by_rows(self, of: Callable[[Tensor], Tensor], values: Sequence[Tensor]) -> Tensor:
        """Return of(A) times `values`, the sum over the inputs."""
        shapes = [value.shape[1:] for value in values]
        out = self.function(*(torch.zeros_like(value) for value in values)).shape[1:]
        widest = max(shape.numel() for shape in (out, *shapes))
        parts = []
        for units in torch.arange(out.numel(), device=values[0].device).split(max(1, fitting(2**24) // widest)):
            check_time()
            rows = F.one_hot(units, out.numel()).to(values[0].dtype).view(1, -1, *out)
            reached = self.transpose(rows, shapes)
            parts.append(
                torch.stack(
                    [v.flatten(1) @ of(part[0].flatten(1)).T for v, part in zip(values, reached, strict=True)]
                ).sum(0)
            )
        return torch.cat(parts, 1).unflatten(1, out)


@dataclass(frozen=True)
class Coherent(Dense):
    """An affine map in which each output takes each input with coefficients of one sign.

    Reshaping, slicing, padding, concatenation, sums and differences, averages, and any elementwise scale and
    shift are such maps: |A| r is then |f(r) - f(0)|, input by input, and A^T comes from f's own derivative.
    `homogeneous` says that f(0) = 0, `opaque` that f(0) may be what is left of larger terms.
    """

    homogeneous: bool = False
    gathering: bool = False
    opaque: bool = False

    def magnitude(self, *sizes: Tensor) -> Tensor:
        return super().magnitude(*sizes) if self.opaque else Affine.magnitude(self, *sizes)

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
            return super().squared(*values)
        zeros = [torch.zeros_like(v) for v in values]
        at_zero = self.function(*zeros)
        total = torch.zeros_like(at_zero)
        for i, value in enumerate(values):
            image = self.function(*zeros[:i], value, *zeros[i + 1 :]) - at_zero
            coefficient = self.function(*zeros[:i], torch.ones_like(value), *zeros[i + 1 :]) - at_zero
            total = total + image * coefficient
        return total

    def shift(self, rows: Rows, shapes: Sequence[torch.Size]) -> Tensor | None:
        return None if self.homogeneous else super().shift(rows, shapes)


@dataclass(frozen=True)
class Reshape(Affine):
    """A change of shape that keeps the order of the elements; `shape` is without the batch."""

    gathering = False

    shape: torch.Size

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].reshape(len(inputs[0]), *self.shape)

    spread = squared = forward

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        return [rows.reshape(*rows.shape[:2], *shapes[0])]

    def push(self, *columns: Tensor) -> Tensor:
        return columns[0].reshape(*columns[0].shape[:2], *self.shape)

    def shift(self, rows: Rows, shapes: Sequence[torch.Size]) -> Tensor | None:
        return None


@dataclass(frozen=True)
class Sum(Affine):
    """The sum of two inputs of one shape: where the branches of a residual network meet."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[1]

    spread = squared = push = forward

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        return [rows] * len(shapes)

    def back(self, rows: Rows, shape: torch.Size, shapes: Sequence[torch.Size]) -> list[Rows]:
        return [rows] * len(shapes)

    def shift(self, rows: Rows, shapes: Sequence[torch.Size]) -> Tensor | None:
        return None


@dataclass(frozen=True)
class Scale(Affine):
    """An elementwise product and shift, as batch norm's in eval mode; both broadcast over the features.

    `factor()` and `offset()` are [1, *features] or of a shape that broadcasts; `channels` says that they differ
    between channels only, and are [1, channels, 1, ...]. `terms()` is the sum of the sizes of what the offset was
    computed from, where that is more than its own.
    """

    gathering = False

    factor: Callable[[], Tensor]
    offset: Callable[[], Tensor | None]
    channels: bool = False
    terms: Callable[[], Tensor] | None = None

    def magnitude(self, *sizes: Tensor) -> Tensor:
        return super().magnitude(*sizes) if self.terms is None else self.spread(*sizes) + self.terms()

    def forward(self, *inputs: Tensor) -> Tensor:
        value, offset = inputs[0] * self.factor(), self.offset()
        return value if offset is None else value + offset

    def spread(self, *radii: Tensor) -> Tensor:
        return radii[0] * self.factor().abs()

    def squared(self, *values: Tensor) -> Tensor:
        return values[0] * self.factor().square()

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        return [rows * self.factor().unsqueeze(1)]

    def push(self, *columns: Tensor) -> Tensor:
        return columns[0] * self.factor().unsqueeze(1)

    def back(self, rows: Rows, shape: torch.Size, shapes: Sequence[torch.Size]) -> list[Rows]:
        if rows.window is None:
            return super().back(rows, shape, shapes)
        return [rows.with_values(rows.values * rows.view(self.factor().expand(1, *shape)))]

    def shift(self, rows: Rows, shapes: Sequence[torch.Size]) -> Tensor | None:
        offset = self.offset()
        return None if offset is None else rows.dot(offset.expand(1, *shapes[0]))


@dataclass(frozen=True)
class Pairs(Affine):
    """Elements of two values in pairs, [batch, n, 2]: each of `laid_out` gives one of the two in the shape `full`, of n
    elements. `alike` [n, 2], flat, is for each element of the result the first that is the same one: of a value that
    meets many others, one row is enough."""

    laid_out: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
    full: torch.Size
    alike: Tensor

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.stack([of(value).flatten(1) for of, value in zip(self.laid_out, inputs, strict=True)], -1)

    spread = squared = forward

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        sides = zip(self.laid_out, rows.unbind(-1), shapes, strict=True)
        return [transposed(of, values.unflatten(-1, self.full), [shape])[0] for of, values, shape in sides]

    def push(self, *columns: Tensor) -> Tensor:
        return self.forward(*(c.flatten(0, 1) for c in columns)).unflatten(0, columns[0].shape[:2])

    def shift(self, rows: Rows, shapes: Sequence[torch.Size]) -> Tensor | None:
        return None


@dataclass(frozen=True)
class LogSoftmax(Affine):
    """x - log sum exp x along the last axis, from x [batch, *features, n] and that sum L [batch, *features]; 0 for what
    is `hidden` [*features, n], which the sum leaves out.

    An interval is found from x alone: each value rises in its own element and falls in the others.
    """

    hidden: Tensor | None = None

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._zero(inputs[0] - inputs[1].unsqueeze(-1))

    push = forward

    def spread(self, *radii: Tensor) -> Tensor:
        return self._zero(radii[0] + radii[1].unsqueeze(-1))

    squared = spread

    def interval(self, *inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        (x, radius), _ = inputs
        low, high = (-self._log_sum_of(x - way, x + way) for way in (radius, -radius))
        return self._zero((high + low) / 2), self._zero((high - low) / 2)

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        rows = self._zero(rows)
        return [rows, -rows.sum(-1)]

    def shift(self, rows: Rows, shapes: Sequence[torch.Size]) -> Tensor | None:
        return None

    def _zero(self, values: Tensor) -> Tensor:
        return values if self.hidden is None else values.masked_fill(self.hidden, 0.0)

    def _log_sum_of(self, own: Tensor, others: Tensor) -> Tensor:
        """Return log sum_j exp(z_j - own_i) for each i, z_i being own_i and the other z_j those of `others`."""
        n = own.shape[-1]
        differences = others.unsqueeze(-2) - own.unsqueeze(-1)
        if self.hidden is not None:
            differences = differences.masked_fill(self.hidden.unsqueeze(-2), -torch.inf)
        eye = torch.eye(n, dtype=torch.bool, device=own.device)
        return differences.masked_fill(eye, 0.0).logsumexp(-1)


@dataclass(frozen=True)
class LargerOf(Affine):
    """The larger of two values a and b, from a, b and h = max(b - a, 0): a + h.

    b has no coefficient of its own; it is there so that an interval is that of the larger value, and not of the sum.
    """

    def magnitude(self, *sizes: Tensor) -> Tensor:
        return sizes[0] + sizes[1] + sizes[2]

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[2]

    push = forward

    def spread(self, *radii: Tensor) -> Tensor:
        return radii[0] + radii[2]

    squared = spread

    def interval(self, *inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        (a, ra), (b, rb), _ = inputs
        low, high = torch.maximum(a - ra, b - rb), torch.maximum(a + ra, b + rb)
        return (high + low) / 2, (high - low) / 2

    def transpose(self, rows: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
        return [rows, torch.zeros_like(rows), rows]

    def back(self, rows: Rows, shape: torch.Size, shapes: Sequence[torch.Size]) -> list[Rows]:
        return [rows, rows.with_values(torch.zeros_like(rows.values)), rows]

    def shift(self, rows: Rows, shapes: Sequence[torch.Size]) -> Tensor | None:
        return None
