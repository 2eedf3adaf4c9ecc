"""Rows: linear functions of the values at a node, on their way back to the input.

A convolution's unit only looks at a small window of its input. So rows may hold a *window* of an image in place of all
of it, each group at a place of its own: passing a convolution grows it a little, and what belongs to the node (slopes,
ends, centres) is cut out where the window lies, zero outside the image. The bound is the same, at a fraction of the
cost of whole images. Values of a window that lie outside the image are zero, or about to be multiplied by zero.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Window:
    """Where windows lie: the one of place p (a multi-index of `grid`) begins at `stride` p + `offset`."""

    grid: tuple[int, ...]
    stride: tuple[int, ...]
    offset: tuple[int, ...]

    def reaches_beyond(self, size: Sequence[int], image: Sequence[int]) -> bool:
        """Whether some window of `size` leaves the `image`."""
        return any(
            start < 0 or start + step * (count - 1) + length > whole
            for count, step, start, length, whole in zip(self.grid, self.stride, self.offset, size, image, strict=True)
        )

    def cut(self, value: Tensor, size: Sequence[int]) -> Tensor:
        """Return every window of `value` [batch, channels, *image], [batch, places, channels, *size]."""
        first, dims = 2, len(size)
        pads: list[int] = []
        for count, step, start, length, whole in zip(
            self.grid, self.stride, self.offset, size, value.shape[2:], strict=True
        ):
            end = start + step * (count - 1) + length
            pads = [-start, end - whole, *pads]  # negative padding cuts; F.pad wants the last dimension first
        value = F.pad(value, pads)
        for d, (step, length) in enumerate(zip(self.stride, size, strict=True)):
            value = value.unfold(first + d, length, step)
        places = range(first, first + dims)
        order = (0, *places, 1, *range(first + dims, first + 2 * dims))
        return value.permute(order).flatten(1, dims)


Tables = dict[tuple[int, Window, tuple[int, ...], bool], tuple[Tensor, Tensor]]
"""Values with all of their windows, by the values' identity (hence they are kept too), by where the windows lie, and by
whether they have gradients."""


@dataclass(frozen=True)
class Rows:
    """`values` [groups or 1, number, *features of the node]; with a `window` [groups or 1, number, channels, *size].

    `owners` [groups] says which example of the batch a group is about; None: group g is about example g. `places`
    [groups] says where its window lies; None: every place of each of the `examples`, in order. A single group stands
    for all. `zeroed` says that what of a window lies outside the image is zero.
    """

    values: Tensor
    owners: Tensor | None = None
    places: Tensor | None = None
    window: Window | None = None
    examples: int = 1
    zeroed: bool = False

    def with_values(self, values: Tensor) -> "Rows":
        """Return other values in the same place."""
        return replace(self, values=values)

    def view(self, value: Tensor, tables: Tables | None = None) -> Tensor:
        """Return what of `value` [batch or 1, *features] each group looks at, [groups or 1, 1, as the values].

        All windows of a value are cut out at once; `tables` keeps them for other rows.
        """
        if self.window is None:
            if self.owners is not None and len(value) > 1:
                value = value.index_select(0, self.owners)
            return value.unsqueeze(1)
        size = self.values.shape[3:]
        if tables is None:
            table = self.window.cut(value, size)
        else:
            key = (id(value), self.window, tuple(size), torch.is_grad_enabled())
            if key not in tables:
                tables[key] = value, self.window.cut(value, size)
            table = tables[key][1]
        if self.places is None:
            return table.expand(self.examples, *table.shape[1:]).flatten(0, 1).unsqueeze(1)
        index = self.places
        if len(value) > 1:
            assert self.owners is not None
            index = index + table.shape[1] * self.owners
        return table.flatten(0, 1).index_select(0, index).unsqueeze(1)

    def dot(self, value: Tensor) -> Tensor:
        """Return each row times `value` [batch or 1, *features], [groups or 1, number]."""
        return dot(self.values, self.view(value))

    def over(self, center: Tensor, radius: Tensor, tables: Tables | None = None) -> tuple[Tensor, Tensor]:
        """Return each row's value at the `center` of a box, and how far it goes to either side of that, both
        [groups or 1, number], for `center` and `radius` [batch or 1, *features]."""
        return _Over.apply(self.values, self.view(center, tables), self.view(radius, tables))

    def inside(self, image: Sequence[int]) -> "Rows":
        """Return the rows with zeros where a window leaves the `image`."""
        if self.zeroed or self.window is None or not self.window.reaches_beyond(self.values.shape[3:], image):
            return self
        mask = self.view(self.values.new_ones(1, 1, *image))
        return replace(self, values=self.values * mask, zeroed=True)

    def whole(self, shape: torch.Size) -> "Rows":
        """Return the rows over all of the node's `shape`, no window any more."""
        if self.window is None:
            return self
        rows, window, image = self.inside(shape[1:]), self.window, shape[1:]
        places, owners = rows.places, rows.owners
        if places is None:
            device = rows.values.device
            every = torch.arange(math.prod(window.grid), device=device)
            places = every.repeat(rows.examples)
            owners = torch.arange(rows.examples, device=device).repeat_interleave(len(every))
        values = rows.values.expand(len(places), *rows.values.shape[1:])
        index = torch.zeros(len(places), *[1] * len(image), dtype=torch.long, device=values.device)
        rest = places
        for d in reversed(range(len(image))):
            at = window.stride[d] * (rest % window.grid[d]) + window.offset[d]
            rest = rest // window.grid[d]
            length = values.shape[3 + d]
            along = (at.unsqueeze(1) + torch.arange(length, device=at.device)).clamp(0, image[d] - 1)
            index = index + along.view(-1, *[length if e == d else 1 for e in range(len(image))]) * math.prod(
                image[d + 1 :]
            )
        index = index.flatten(1)[:, None, None].expand(*values.shape[:3], -1)
        out = values.new_zeros(*values.shape[:3], math.prod(image)).scatter_add(3, index, values.flatten(3))
        return Rows(out.unflatten(3, image), owners)

    def plus(self, other: "Rows", shape: torch.Size) -> "Rows":
        """Return the sum of rows of one node, of `shape`, that came on two ways."""
        one, two = self, other
        if one.window != two.window or one.values.shape[3:] != two.values.shape[3:]:
            if one.window is None or two.window is None or one.window.stride != two.window.stride:
                one, two = one.whole(shape), two.whole(shape)
            else:
                one, two = _aligned(one, two)
        return replace(one, values=one.values + two.values, zeroed=one.zeroed and two.zeroed)


def dot(values: Tensor, view: Tensor) -> Tensor:
    """Return the sum over the features of values [groups or 1, number, ...] times view [groups or 1, 1, ...]."""
    rows, other = flat(values), view.flatten(1).unsqueeze(2)
    if len(other) == 1:
        return (rows @ other[0])[:, :, 0]
    return (rows @ other)[:, :, 0]


def flat(values: Tensor) -> Tensor:
    """Return values [groups, number, *features] with the features in one dimension: one number may have no other."""
    return values.flatten(2) if values.ndim > 2 else values.unsqueeze(2)


class _Over(torch.autograd.Function):
    """values v and a box -> v m and |v| r. Written out, since autograd would keep |v|, and take twice as long."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(values, center, radius)
        return dot(values, center), dot(values.abs(), radius)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, center, radius = ctx.saved_tensors
        of_values = of_center = of_radius = None
        if ctx.needs_input_grad[0]:
            of_middle, of_deviation = (grad[(...,) + (None,) * (values.ndim - 2)] for grad in grads)
            of_values = summed((of_deviation * radius).mul_(values.sign()).addcmul_(of_middle, center), values)
        if ctx.needs_input_grad[1]:
            of_center = weighed_sum(grads[0], values, center)
        if ctx.needs_input_grad[2]:
            of_radius = weighed_sum(grads[1], values.abs(), radius)
        return of_values, of_center, of_radius


def weighed_sum(weights: Tensor, values: Tensor, like: Tensor) -> Tensor:
    """Return values [groups or 1, number, ...] by `weights` [groups, number], summed over the numbers, as `like`."""
    return summed(weights.unsqueeze(1) @ flat(values), flat(like)).view_as(like)


def summed(value: Tensor, like: Tensor) -> Tensor:
    """Return `value` summed over those of its first two dimensions in which `like` was broadcast."""
    for d in (0, 1):
        if like.shape[d] == 1 and value.shape[d] > 1:
            value = value.sum(d, keepdim=True)
    return value


def _aligned(one: Rows, two: Rows) -> tuple[Rows, Rows]:
    """Return rows of windows of one stride as rows of the window that holds both."""
    assert one.window is not None
    assert two.window is not None
    sizes = one.values.shape[3:], two.values.shape[3:]
    offset = tuple(min(pair) for pair in zip(one.window.offset, two.window.offset, strict=True))
    ends = [
        max(a + n, b + m) for a, n, b, m in zip(one.window.offset, sizes[0], two.window.offset, sizes[1], strict=True)
    ]
    grown = []
    for rows, size in zip((one, two), sizes, strict=True):
        assert rows.window is not None
        pads: list[int] = []
        for start, length, first, last in zip(rows.window.offset, size, offset, ends, strict=True):
            pads = [start - first, last - start - length, *pads]
        window = replace(rows.window, offset=offset)
        grown.append(replace(rows, values=F.pad(rows.values, pads), window=window))
    return grown[0], grown[1]
