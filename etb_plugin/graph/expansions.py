"""Operations that become several nodes of a graph: products of values, softmax, normalisations by a value's own
statistics, attention. Dimensions are counted from the front, the batch being 0."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from etb_plugin.errors import UnsupportedLayer
from etb_plugin.graph.activations import Activation, Known
from etb_plugin.graph.affine import Affine, Coherent, LogSoftmax, Pairs, Reshape, Scale, Sum
from etb_plugin.graph.convex import EXP, RECIPROCAL, RSQRT, SQUARE, even_power, power_of_positive
from etb_plugin.graph.joint import LogSumExp, Product

if TYPE_CHECKING:
    from etb_plugin.graph.tracing import Builder


_SHARES = replace(EXP, ceiling=0.0)
"""Of the logarithms of shares, which are at most 1."""


def hidden_by(mask: Tensor) -> Tensor:
    """Return what a mask takes out of a softmax: by -inf, or the least number there is, as exporters write it."""
    return mask < torch.finfo(mask.dtype).min / 2


def without_infinity(mask: Tensor) -> Tensor:
    """Return what a mask adds to the others."""
    return mask.masked_fill(hidden_by(mask), 0.0)


@dataclass(frozen=True)
class Value:
    """A node by its position, and the shape of its value without the batch."""

    position: int
    shape: torch.Size


class Steps:
    """The nodes that one operation of a network, `node`, becomes."""

    def __init__(self, builder: "Builder", node: fx.Node) -> None:
        self.builder, self.node = builder, node

    def add(self, operation: Affine | Activation, shape: Sequence[int], *inputs: Value) -> Value:
        size = torch.Size(shape)
        return Value(self.builder.emit(self.node, operation, tuple(one.position for one in inputs), size), size)

    def reshaped(self, x: Value, shape: Sequence[int]) -> Value:
        return self.add(Reshape(torch.Size(shape)), shape, x) if x.shape != torch.Size(shape) else x

    def moved(self, x: Value, move: Callable[[Tensor], Tensor]) -> Value:
        """Return `move` of a value: its elements in another order, or repeated."""
        return self.add(Coherent(move, homogeneous=True), move(self._empty(x)).shape[1:], x)

    def gathered(self, x: Value, function: Callable[[Tensor], Tensor]) -> Value:
        """Return sums or means of a value's elements."""
        return self.add(Coherent(function, homogeneous=True, gathering=True), function(self._empty(x)).shape[1:], x)

    def scaled(
        self, x: Value, factor: float | Callable[[], Tensor], offset: Callable[[], Tensor] | None = None
    ) -> Value:
        """Return a value times a number or a tensor, plus another, which broadcast over the features."""
        shape = (1, *x.shape)
        number = self.builder.probe.new_full((), 0.0 if callable(factor) else factor)
        times = factor if callable(factor) else lambda: number
        return self.add(
            Scale(lambda: times().expand(shape), lambda: None if offset is None else offset().expand(shape)), x.shape, x
        )

    def minus(self, x: Value, y: Value) -> Value:
        return self.add(Sum(), x.shape, x, self.scaled(y, -1.0))

    def product(self, x: Value, y: Value) -> Value:
        """Return the elementwise product, each factor broadcast as torch does."""
        if x == y:
            return self.add(SQUARE, x.shape, x)
        if len(x.shape) != len(y.shape):
            raise UnsupportedLayer(
                f"layer {self.builder.name(self.node)} multiplies values of {len(x.shape)} and {len(y.shape)} "
                f"dimensions (without the batch), which mixes the batch into the features"
            )
        full = torch.broadcast_shapes(x.shape, y.shape)
        return self.reshaped(self._multiplied(x, y, lambda t: t, lambda t: t, full), full)

    def matrix_product(self, x: Value, y: Value) -> Value:
        """Return x @ y of [..., n, k] and [..., k, m]."""
        if len(x.shape) != len(y.shape) or len(x.shape) < 2:
            raise UnsupportedLayer(
                f"layer {self.builder.name(self.node)} multiplies matrices of shapes {list(x.shape)} and "
                f"{list(y.shape)} (without the batch)"
            )
        lead = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        full = torch.Size((*lead, x.shape[-2], y.shape[-1], x.shape[-1]))
        terms = self._multiplied(x, y, lambda t: t.unsqueeze(-2), lambda t: t.transpose(-1, -2).unsqueeze(-3), full)
        return self.gathered(terms, lambda t: t.unflatten(1, full).sum(-1))

    def einsum(self, equation: str, x: Value, y: Value) -> Value:
        """Return the product of two values whose batch is the first index of both and of the result."""
        equation = equation.replace(" ", "")
        inputs, _, out = equation.partition("->")
        one, _, two = inputs.partition(",")
        batch = one[:1]
        plain = all(len(set(part)) == len(part) and part.startswith(batch) for part in (one, two, out))
        if not (plain and out and equation.replace(",", "").replace("->", "").isalpha()):
            raise UnsupportedLayer(f"layer {self.builder.name(self.node)} is an einsum of a form that is not known")
        every = out[1:] + "".join(sorted(set(one + two) - set(out)))
        sizes = {**dict(zip(one[1:], x.shape, strict=True)), **dict(zip(two[1:], y.shape, strict=True))}

        def laid_out(t: Tensor, labels: str) -> Tensor:
            order = [0, *(labels.index(label) for label in every if label in labels)]
            t = t.permute(order)
            return t[(slice(None), *(slice(None) if label in labels else None for label in every))]

        full = torch.Size(sizes[label] for label in every)
        terms = self._multiplied(x, y, partial(laid_out, labels=one), partial(laid_out, labels=two), full)
        kept = full[: len(out) - 1]
        if kept == full:
            return self.reshaped(terms, full)
        return self.gathered(terms, lambda t: t.view(len(t), *kept, -1).sum(-1))

    def reciprocal(self, x: Value) -> Value:
        return self.add(RECIPROCAL, x.shape, x)

    def power(self, x: Value, exponent: int) -> Value:
        """Return x to a whole power of 1 or more: an odd one from those of its positive and its negative part, which
        are convex."""
        if exponent == 1:
            return x
        if exponent % 2 == 0:
            return self.add(even_power(exponent), x.shape, x)
        part = power_of_positive(exponent)
        return self.minus(self.add(part, x.shape, x), self.add(part, x.shape, self.scaled(x, -1.0)))

    def log_softmax(self, x: Value, dim: int) -> Value:
        return self._along(x, dim, self._log_softmax)

    def softmax(self, x: Value, dim: int, hidden: Tensor | None = None) -> Value:
        """exp of the logarithm, which is at most 0; 0 for what is `hidden`, of the shape of x: no part of the sum."""
        if hidden is None:
            return self._along(x, dim, lambda rows: self.add(_SHARES, rows.shape, self._log_softmax(rows)))
        flat = hidden.movedim(dim - 1, -1).reshape(-1, x.shape[dim - 1])
        seen = (~flat).to(self.builder.probe.dtype)

        def shares(rows: Value) -> Value:
            return self.scaled(self.add(_SHARES, rows.shape, self._log_softmax(rows, flat)), lambda: seen)

        return self._along(x, dim, shares)

    def log_sum_exp(self, x: Value, dim: int, keep: bool) -> Value:
        rows = self._rows(self.moved(x, lambda t: t.movedim(dim, -1)))
        before, behind = x.shape[: dim - 1], x.shape[dim:]
        return self.reshaped(self._log_sum_exp(rows), (*before, *([1] if keep else []), *behind))

    def attention(
        self, query: Value, key: Value, value: Value, scale: float | None, mask: Callable[[], Tensor] | None
    ) -> Value:
        """Return softmax(query key^T scale + mask) value, of [..., tokens, features]."""
        factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        scores = self.matrix_product(self.scaled(query, factor), self.moved(key, lambda t: t.transpose(-1, -2)))
        hidden = None
        if mask is not None:
            scores = self.scaled(scores, 1.0, lambda: without_infinity(mask()))
            hidden = hidden_by(mask()).expand(1, *scores.shape)[0]
        return self.matrix_product(self.softmax(scores, len(scores.shape), hidden), value)

    def centred(self, x: Value, dims: Sequence[int]) -> Value:
        """Return a value minus its mean along some dimensions."""
        mean = self.gathered(x, partial(torch.mean, dim=tuple(dims), keepdim=True))
        return self.minus(x, self.moved(mean, lambda t: t.expand(-1, *x.shape)))

    def mean_square(self, x: Value, dims: Sequence[int], keep: bool = True) -> Value:
        """Return the mean of a value's square along some dimensions."""
        return self.gathered(self.product(x, x), partial(torch.mean, dim=tuple(dims), keepdim=keep))

    def normalised(self, x: Value, eps: float, shape: torch.Size, *, centred: bool = True) -> Value:
        """Return [..., n] minus its mean, over its standard deviation (or its root of the mean square), in `shape`. No
        element of that is larger than the root of n - 1 (or of n)."""
        last = [len(x.shape)]
        off = self.centred(x, last) if centred else x
        width = self.scaled(self.mean_square(off, last), 1.0, lambda: self.builder.probe.new_full((), eps))
        limit = math.sqrt(max(x.shape[-1] - centred, 0)) * (1 + 1e-6)
        found = self.product(off, self.add(replace(RSQRT, floor=eps), width.shape, width))
        return self.reshaped(self.add(Known(-limit, limit), found.shape, found), shape)

    def _multiplied(
        self,
        x: Value,
        y: Value,
        of_x: Callable[[Tensor], Tensor],
        of_y: Callable[[Tensor], Tensor],
        full: torch.Size,
    ) -> Value:
        """Return all products, flat, of two values that are laid out to broadcast to `full`."""
        numbers = torch.arange(x.shape.numel() + y.shape.numel(), dtype=torch.float64)
        first, second = numbers[: x.shape.numel()], numbers[x.shape.numel() :]
        if x == y:
            second = first
        laid_out = (lambda t: of_x(t).expand(len(t), *full), lambda t: of_y(t).expand(len(t), *full))
        sides = laid_out[0](first.view(1, *x.shape)), laid_out[1](second.view(1, *y.shape))
        ids = torch.stack(sides, -1).flatten().long()
        places = torch.full((len(numbers),), len(ids)).scatter_reduce(0, ids, torch.arange(len(ids)), "amin")
        operation = Pairs(laid_out, full, places[ids])
        return self.add(Product(), (full.numel(),), self.add(operation, (full.numel(), 2), x, y))

    def _along(self, x: Value, dim: int, of: Callable[[Value], Value]) -> Value:
        """Return `of` the rows [m, n] of a value along one of its dimensions, in the value's own shape."""
        turned = x if dim == len(x.shape) else self.moved(x, lambda t: t.movedim(dim, -1))
        back = self.reshaped(of(self._rows(turned)), turned.shape)
        return back if turned is x else self.moved(back, lambda t: t.movedim(-1, dim))

    def _log_softmax(self, rows: Value, hidden: Tensor | None = None) -> Value:
        return self.add(LogSoftmax(hidden), rows.shape, rows, self._log_sum_exp(rows, hidden))

    def _log_sum_exp(self, rows: Value, hidden: Tensor | None = None) -> Value:
        return self.add(LogSumExp(hidden), rows.shape[:1], rows)

    def _rows(self, x: Value) -> Value:
        return self.reshaped(x, (x.shape[:-1].numel(), x.shape[-1]))

    def _empty(self, x: Value) -> Tensor:
        return self.builder.probe.new_empty(1, *x.shape)
