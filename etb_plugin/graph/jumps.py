"""Elementwise functions that jump: signs, thresholds, hard shrinking, rounding.

On a range such a function lies within the hull of a few corners: its ends, and what it is at a jump and on both sides
of it. A line of any slope is sound once it passes below all of these, or above them; by default it is the edge of the
hull at the middle of the range, which leaves the smallest area, and alpha-CROWN optimises its slope.

An end that lies within a few roundings of a jump has both sides of it; at the jump itself it has the one side that is
in the range, since searches cut there.
"""

import itertools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from etb_plugin.graph.activations import Curved
from etb_plugin.graph.smooth import normal_means, normal_moments

_ROUNDINGS = 8
"""Of an end's size, by which it may be off."""
_MOST_PAIRED = 8
"""Corners of which all pairs are tried for an edge; of more, neighbours, and the two ends."""


class Jumping(Curved):
    """A function by its corners."""

    @abstractmethod
    def corners(self, low: Tensor, high: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        """Return points in [low, high], ascending from one end to the other, and values there, both [corners, *ends]:
        on the range the function lies nowhere below their hull, for `sign` 1, or above it, for -1."""

    def range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return self.corners(low, high, 1)[1].amin(0), self.corners(low, high, -1)[1].amax(0)

    def piece(self, z: Tensor, deviation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Behind a jump. Of means over a normal variable the slope is E f x / deviation (Stein): jumps count."""
        if deviation is None:
            slope = self.slope(z)
            return slope, self.forward(z) - slope * z
        wide = deviation.clamp(min=1e-3)
        mean, tilt, _ = normal_means(self.forward, z, wide)
        slope = tilt / wide
        return slope, mean - slope * z

    def moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        return normal_moments(self.forward, mean, variance)

    @abstractmethod
    def slope(self, z: Tensor) -> Tensor:
        """Return the derivative beside jumps."""

    @abstractmethod
    def distance(self, z: Tensor) -> Tensor:
        """Return how far the nearest jump is."""

    def line(self, low: Tensor, high: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        points, values = self.corners(low, high, sign)
        slopes = _edges(points, values)
        with torch.no_grad():
            heights = sign * (_times(slopes, (low + high) / 2) + _intercepts(slopes, points, values, sign))
            best = heights.nan_to_num(nan=-torch.inf).argmax(0, keepdim=True)
        slope = slopes.gather(0, best)[0]
        return slope, self._intercept(slope, points, values, sign)

    def chosen(self, share: Tensor, low: Tensor, high: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        points, values = self.corners(low, high, sign)
        slope = torch.lerp(*_steepest(points, values), share)
        return slope, self._intercept(slope, points, values, sign)

    def share(self, slope: Tensor, low: Tensor, high: Tensor, sign: int) -> Tensor:
        least, most = _steepest(*self.corners(low, high, sign))
        return ((slope - least) / (most - least).clamp(min=torch.finfo(slope.dtype).tiny)).clamp(0, 1)

    def parallel(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        below, above = self.corners(low, high, 1), self.corners(low, high, -1)
        slope = _edge(low, high, below[1][0], above[1][-1]) / 2 + _edge(low, high, above[1][0], below[1][-1]) / 2
        return slope, self._intercept(slope, *below, 1), self._intercept(slope, *above, -1)

    def _intercept(self, slope: Tensor, points: Tensor, values: Tensor, sign: int) -> Tensor:
        """Return the intercept of a line of this slope that passes all corners, moved by what rounding may do."""
        size = _times(slope.abs(), points.abs().amax(0)) + values.abs().amax(0)
        rounding = 4 * torch.finfo(slope.dtype).eps * size.detach()
        return _intercepts(slope.unsqueeze(0), points, values, sign)[0] - sign * rounding


@dataclass(frozen=True)
class Broken(Jumping):
    """slope z + intercept on each of the intervals that ascending knots leave, and the values `at` the knots: `lines`
    has one more."""

    knots: tuple[float, ...]
    lines: tuple[tuple[float, float], ...]
    at: tuple[float, ...]

    def forward(self, z: Tensor) -> Tensor:
        slope, intercept = self._pieces(z)
        value = slope * z + intercept
        for knot, own in zip(self.knots, self.at, strict=True):
            value = torch.where(z == knot, own, value)
        return value

    def slope(self, z: Tensor) -> Tensor:
        return self._pieces(z)[0]

    def _pieces(self, z: Tensor) -> tuple[Tensor, Tensor]:
        slope, intercept = (torch.full_like(z, number) for number in self.lines[0])
        for knot, line in zip(self.knots, self.lines[1:], strict=True):
            slope, intercept = (torch.where(z >= knot, n, old) for n, old in zip(line, (slope, intercept), strict=True))
        return slope, intercept

    def distance(self, z: Tensor) -> Tensor:
        return torch.stack([(z - knot).abs() for knot in self.knots]).amin(0)

    def corners(self, low: Tensor, high: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        first, last = self.forward(low), self.forward(high)
        points, values = [low], [first]
        least, most = (end + side * _off(end) for end, side in ((low, -1), (high, 1)))
        worse = torch.minimum if sign > 0 else torch.maximum
        for knot, own, (before, behind) in zip(self.knots, self.at, itertools.pairwise(self.lines), strict=True):
            left, right = (slope * knot + intercept for slope, intercept in (before, behind))
            inside = torch.full_like(low, own)
            leftward, rightward = (least < knot) & (low != knot), (most > knot) & (high != knot)
            inside = torch.where(leftward, worse(inside, torch.full_like(low, left)), inside)
            inside = torch.where(rightward, worse(inside, torch.full_like(low, right)), inside)
            points.append(torch.minimum(torch.maximum(torch.full_like(low, knot), low), high))
            values.append(torch.where(knot < least, first, torch.where(knot > most, last, inside)))
        return torch.stack([*points, high]), torch.stack([*values, last])

    def undecided(self, low: Tensor, high: Tensor) -> Tensor:
        return torch.stack([(low <= knot) & (high >= knot) for knot in self.knots]).any(0) & (high > low)

    def cut(self, low: Tensor, high: Tensor) -> Tensor:
        return self.cut_at(self.knots, low, high)


@dataclass(frozen=True)
class Rounded(Jumping):
    """A function that jumps by 1 at each whole number plus `offset`, and is constant between; it is `before` less than
    where it jumps on the left of that."""

    function: Callable[[Tensor], Tensor]
    offset: float
    before: float

    def forward(self, z: Tensor) -> Tensor:
        return self.function(z)

    def slope(self, z: Tensor) -> Tensor:
        return torch.zeros_like(z)

    def distance(self, z: Tensor) -> Tensor:
        return (z - self._jump(z)).abs()

    def _jump(self, z: Tensor) -> Tensor:
        """Return the nearest jump."""
        return torch.floor(z - self.offset + 0.5) + self.offset

    def corners(self, low: Tensor, high: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        low = torch.where(low == self._jump(low), low, low - _off(low))
        high = torch.where(high == self._jump(high), high, high + _off(high))
        # Between the first and the last jump corners lie on a line of slope 1. On the side that a line passes a jump at
        # an end is none: there the end's own value counts.
        first, last = self.forward(low), self.forward(high)
        if sign > 0:
            start, end = torch.floor(low - self.offset) + 1 + self.offset, torch.floor(high - self.offset) + self.offset
            values = start - self.before, end - self.before
            there = start <= high, end > low
        else:
            start, end = torch.ceil(low - self.offset) + self.offset, torch.ceil(high - self.offset) - 1 + self.offset
            values = start - self.before + 1, end - self.before + 1
            there = start < high, end >= low
        points = torch.stack([low, torch.where(there[0], start, high), torch.where(there[1], end, low), high])
        values = torch.where(there[0], values[0], last), torch.where(there[1], values[1], first)
        points, order = points.sort(0)
        return points, torch.stack([first, *values, last]).gather(0, order)

    def undecided(self, low: Tensor, high: Tensor) -> Tensor:
        return self.forward(low) != self.forward(high)

    def cut(self, low: Tensor, high: Tensor) -> Tensor:
        middle = (low + high) / 2
        jump = self._jump(middle)
        return torch.where((low < jump) & (jump < high), jump, middle)


def step(threshold: float, at: float, *, falls: bool = False) -> Broken:
    """Return 1 above a threshold and 0 below, or the other way round, and `at` where it is met."""
    sides = (0.0, 0.0), (0.0, 1.0)
    return Broken((threshold,), sides[::-1] if falls else sides, (at,))


SIGN = Broken((0.0,), ((0.0, -1.0), (0.0, 1.0)), (0.0,))
FLOOR = Rounded(torch.floor, 0.0, 1.0)
CEIL = Rounded(torch.ceil, 0.0, 0.0)
ROUND = Rounded(torch.round, 0.5, 0.5)


def hard_shrink(reach: float) -> Broken:
    """Return z where |z| > reach, else 0."""
    return Broken((-reach, reach), ((1.0, 0.0), (0.0, 0.0), (1.0, 0.0)), (0.0, 0.0))


def _off(end: Tensor) -> Tensor:
    return _ROUNDINGS * torch.finfo(end.dtype).eps * end.abs()


def _edge(low: Tensor, high: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Return the slope from one point to another; 0 where they are one, or too near."""
    run = high - low
    near = run <= 8 * torch.finfo(run.dtype).eps * (low.abs() + high.abs())
    return torch.where(near, 0.0, (last - first) / torch.where(near, 1.0, run))


def _edges(points: Tensor, values: Tensor) -> Tensor:
    """Return slopes that edges of the hull may have, [edges, *ends]."""
    count = len(points)
    pairs: Sequence[tuple[int, int]] = list(itertools.combinations(range(count), 2))
    if count > _MOST_PAIRED:
        pairs = [*itertools.pairwise(range(count)), (0, count - 1)]
    one, other = (torch.tensor(side, device=points.device) for side in zip(*pairs, strict=True))
    return _edge(points[one], points[other], values[one], values[other])


def _steepest(points: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest slope that a good line may have."""
    edges = _edges(points, values)
    size = values.abs().amax(0)
    within = 4 * _edge(points[0], points[-1], -size, size)
    return edges.amin(0).maximum(-within), edges.amax(0).minimum(within)


def _intercepts(slopes: Tensor, points: Tensor, values: Tensor, sign: int) -> Tensor:
    """Return for lines of some slopes [lines, *ends] the intercepts by which they pass all corners."""
    beside = values - _times(slopes.unsqueeze(1), points)
    return beside.amin(1) if sign > 0 else beside.amax(1)


def _times(slope: Tensor, point: Tensor) -> Tensor:
    """Return the product, which is 0 for a flat line at an infinite point too."""
    return torch.where(slope == 0, 0.0, slope * point)
