"""Activations: the functions between affine maps; here the continuous piecewise linear ones.

The others are `Curved`: elementwise in `smooth` (by tables), `convex` and `jumps`, of several values in `joint`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor

from etb_plugin.errors import UnsupportedLayer

Number = float | Tensor


class Activation(ABC):
    """A function, as a node of a graph: elementwise, or, where it `joins`, of all elements along the last
    axis, [batch, *features, n] -> [batch, *features]. Slopes are of the input's shape, intercepts of the value's."""

    joins: ClassVar[bool] = False
    pace: ClassVar[float] = 1.0
    """How fast a search for the best lines moves their slopes or shares, beside those of hinges."""

    hinges: Callable[[], Sequence[tuple[float, Number]]]
    """Where a piecewise linear function changes its slope: a sound bound relaxes, and a branch decides, each hinge by
    itself. A curved one has none."""

    @abstractmethod
    def forward(self, z: Tensor) -> Tensor:
        """Return the value at `z`."""

    @abstractmethod
    def range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least and the greatest value between `low` and `high`, whether the function rises or not."""

    @abstractmethod
    def piece(self, z: Tensor, deviation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return slope and intercept of the piece that holds at `z`, or of the tangent there; at a knot, of the piece
        behind it.

        With a `deviation` they are the means over a normal variable around `z`. An intercept of None is 0.
        """

    @abstractmethod
    def parallel(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return a slope, and the intercepts of a line below and of one above with that slope, on [low, high]: chords'
        slopes, as in Wong and Kolter's dual."""

    def repeated(self, values: Tensor) -> Tensor:
        """Return rows of the value as rows of the input, which its slopes are still to be multiplied with."""
        return values.unsqueeze(-1) if self.joins else values

    def added(self, products: Tensor) -> Tensor:
        """Return what slopes times the input add up to, of the value's shape."""
        return products.sum(-1) if self.joins else products

    def magnitude(self, size: Tensor) -> Tensor:
        """Return the sum of the sizes of all that a value is added up from, for inputs of at most `size`: what rounding
        is relative to."""
        raise UnsupportedLayer("rounding is known of piecewise linear activations only")

    @abstractmethod
    def moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the function of a normal variable."""

    def cut(self, low: Tensor, high: Tensor) -> Tensor:
        """Return where a search cuts a range in two: at a knot inside, else in the middle."""
        return self.cut_at([knot for knot, _ in self.hinges()], low, high)

    @staticmethod
    def cut_at(knots: Sequence[float], low: Tensor, high: Tensor) -> Tensor:
        """Return which of some knots lies inside a range, the last one, else the middle."""
        point = (low + high) / 2
        for knot in knots:
            point = torch.where((low < knot) & (high > knot), knot, point)
        return point


class Curved(Activation):
    """A function that is relaxed as a whole, by a line below it and one above: one that is not piecewise linear."""

    pace = 0.2

    def hinges(self) -> Sequence[tuple[float, Number]]:
        return ()

    def undecided(self, low: Tensor, high: Tensor) -> Tensor:
        """Return for which inputs tighter ends are worth their rows."""
        return high > low

    def line(self, low: Tensor, high: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        """Return slope and intercept of a line that lies below the function on [low, high], for `sign` 1, or above it,
        for -1. Differentiable in the ends."""
        return self.chosen(self.usual(low, high, sign), low, high, sign)

    @abstractmethod
    def chosen(self, share: Tensor, low: Tensor, high: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        """Return one of many such lines, by a `share` in [0, 1], of the value's shape: all are sound."""

    def usual(self, low: Tensor, high: Tensor, sign: int) -> Tensor:
        """Return the share that is taken where nothing is chosen, of the value's shape or of one that broadcasts."""
        return low.new_full((), 0.5)

    def share(self, slope: Tensor, low: Tensor, high: Tensor, sign: int) -> Tensor:
        """Return the share by which `chosen` gives the line of `line`, or one near it, whose slope is given."""
        return self.usual(low, high, sign)


@dataclass(frozen=True)
class Known(Curved):
    """z itself, known to lie between `least` and `most`, whatever bounds say: its lines are between it and those."""

    least: float
    most: float

    def forward(self, z: Tensor) -> Tensor:
        return z

    def range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return low.clamp(self.least, self.most), high.clamp(self.least, self.most)

    def undecided(self, low: Tensor, high: Tensor) -> Tensor:
        return (low < self.least) | (high > self.most)

    def piece(self, z: Tensor, deviation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return torch.ones_like(z), None

    def moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        return mean, variance

    def chosen(self, share: Tensor, low: Tensor, high: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        low, high = self.range(low, high)
        return share.expand(torch.broadcast_shapes(share.shape, low.shape)), (1 - share) * (low if sign > 0 else high)

    def usual(self, low: Tensor, high: Tensor, sign: int) -> Tensor:
        return (low >= self.least if sign > 0 else high <= self.most).to(low.dtype)

    def parallel(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slope = self.usual(low, high, 1) * self.usual(low, high, -1)
        low, high = self.range(low, high)
        return slope, (1 - slope) * low, (1 - slope) * high


@dataclass(frozen=True)
class PiecewiseLinear(Activation):
    """An elementwise, continuous, piecewise linear function: slope z + offset + sum of change max(z - knot, 0).

    `first()` is the slope of the first piece, and each of `hinges()` a knot with the change of slope there, knots
    ascending; slopes may be parameters, [*features] or of a shape that broadcasts.
    """

    first: Callable[[], Number]
    offset: float
    hinges: Callable[[], Sequence[tuple[float, Number]]]

    def forward(self, z: Tensor) -> Tensor:
        """Return the value at `z`, by its piece: a sum of hinges would cancel where a flat piece is far away."""
        slope, intercept = self.piece(z)
        value = slope * z
        return value if intercept is None else value + intercept

    def range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        least, greatest = extremes(self.forward(low), self.forward(high))
        for knot, _ in self.hinges():
            between = self.forward(torch.minimum(torch.maximum(torch.full_like(low, knot), low), high))
            least, greatest = torch.minimum(least, between), torch.maximum(greatest, between)
        return least, greatest

    def piece(self, z: Tensor, deviation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        slope, intercept = torch.zeros_like(z) + self.first(), torch.full_like(z, self.offset)
        for knot, change in self.hinges():
            beyond = _beyond(z - knot, deviation)
            slope = slope + change * beyond
            intercept = intercept - change * knot * beyond
        return slope, intercept

    def parallel(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slope = torch.zeros_like(low) + self.first()
        below = above = torch.full_like(low, self.offset)
        for knot, change in self.hinges():
            steep, rise = chord(low - knot, high - knot)
            slope = slope + change * steep
            shift, reach = -change * steep * knot, change * rise
            below, above = below + shift - torch.relu(-reach), above + shift + torch.relu(reach)
        return slope, below, above

    def magnitude(self, size: Tensor) -> Tensor:
        total = (1 + torch.as_tensor(self.first()).abs()) * size + abs(self.offset)
        for knot, change in self.hinges():
            total = total + (1 + torch.as_tensor(change).abs()) * (size + abs(knot))
        return total

    def moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
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
        return torch.relu(low), torch.relu(high)  # whose gradient is many times faster than clamp's

    def piece(self, z: Tensor, deviation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return _beyond(z, deviation), None


def leaky(slope: Callable[[], Number]) -> PiecewiseLinear:
    """Return z for z >= 0 and `slope` z below."""
    return PiecewiseLinear(slope, 0.0, lambda: ((0.0, 1 - slope()),))


def clipped(low: float, high: float) -> PiecewiseLinear:
    """Return z cut to [low, high]."""
    return PiecewiseLinear(lambda: 0.0, low, lambda: ((low, 1.0), (high, -1.0)))


def chord(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return slope and value at 0 of the chord of max(z, 0) over [low, high]; 1 and 0 where on, 0 and 0 where off."""
    # relu in place of clamp, whose gradient is many times slower.
    before, beyond = torch.relu(-low), torch.relu(high)
    steep = beyond / (beyond + before + torch.finfo(low.dtype).tiny)
    return steep, steep * before


def crown_slope(low: Tensor, high: Tensor) -> Tensor:
    """Return CROWN's own slope of a lower line (Zhang et al. 2018): 1 where more of the range lies above the knot."""
    return torch.gt(high + low, 0, out=torch.empty_like(low))  # into numbers: as booleans it takes ten times as long


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


def extremes(*values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest of values, place by place, with gradients, which `torch.aminmax` had none of up
    to torch 2.11."""
    return reduce(torch.minimum, values), reduce(torch.maximum, values)
