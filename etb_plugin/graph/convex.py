"""Elementwise functions that are convex, or concave, where they are defined: squares, exponentials, logarithms, roots.

A convex function lies above each of its tangents and below its chord, whatever its slope: no table is needed, and which
tangent to take is only a matter of tightness. Where a range reaches beyond what a function is defined on, or a value is
too large for the dtype, ends are no numbers, and the bound says nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from etb_plugin.graph.activations import Curved, extremes

_INSIDE = 0.01
"""How far from the ends of a range, in shares of it, tangents are chosen: at an end the slope may be infinite."""


@dataclass(frozen=True)
class Convex(Curved):
    """A function by its value and derivative; `least` is where it is least, inside what it is defined on.

    `concave` says that it is the other way round; a function with a `pole` at 0 is so on the other side of that. No
    input is below the `floor` or above the `ceiling`, though its ends may not say so.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    least: float | None = None
    concave: bool = False
    pole: bool = False
    floor: float | None = None
    ceiling: float | None = None

    def forward(self, z: Tensor) -> Tensor:
        return self.value(z)

    def range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.known(low, high)
        lowest, greatest = extremes(self.value(low), self.value(high))
        if self.least is not None:
            lowest = torch.minimum(lowest, self.value(low.clamp(min=self.least).minimum(high)))
        if self.pole:
            across = (low <= 0) & (high >= 0)
            lowest, greatest = (end.masked_fill(across, torch.nan) for end in (lowest, greatest))
        return lowest, greatest

    def piece(self, z: Tensor, deviation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        slope = self.derivative(z)
        return slope, self.value(z) - slope * z

    def moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(mean), self.derivative(mean).square() * variance

    def chosen(self, share: Tensor, low: Tensor, high: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        """Return the tangent at a point between the ends, or the chord, which there is one of."""
        low, high = self.known(low, high)
        point = torch.lerp(low, high, _INSIDE + (1 - 2 * _INSIDE) * share)
        run, tangent = high - low, self.derivative(point)
        flat = run <= torch.finfo(low.dtype).eps * (low.abs() + high.abs())
        chord = (self.value(high) - self.value(low)) / torch.where(flat, 1.0, run)
        touching = self._bend(low) * sign > 0
        slope = torch.where(touching | flat, tangent, chord)
        return slope, torch.where(
            touching, self.value(point) - slope * point, self._past_ends(slope, low, high, sign)
        ) - (sign * self._rounding(slope, low, high))

    def parallel(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The tangent at the middle, and the line of its slope through the end that is farther from it."""
        low, high = self.known(low, high)
        middle = (low + high) / 2
        slope = self.derivative(middle)
        tangent, rounding = self.value(middle) - slope * middle, self._rounding(slope, low, high)
        below, above = (
            torch.where(self._bend(low) * sign > 0, tangent, self._past_ends(slope, low, high, sign)) - sign * rounding
            for sign in (1, -1)
        )
        return slope, below, above

    def known(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ends beyond which nothing is."""
        if self.floor is None and self.ceiling is None:
            return low, high
        return low.clamp(self.floor, self.ceiling), high.clamp(self.floor, self.ceiling)

    def _bend(self, low: Tensor) -> Tensor:
        """Return 1 where the function is convex and -1 where it is concave."""
        bend = torch.full_like(low, -1.0 if self.concave else 1.0)
        return torch.where(low > 0, bend, -bend) if self.pole else bend

    def _past_ends(self, slope: Tensor, low: Tensor, high: Tensor, sign: int) -> Tensor:
        """Return the intercept of the line through one end that has the other end above it (`sign` 1) or below it."""
        ends = self.value(low) - slope * low, self.value(high) - slope * high
        return torch.minimum(*ends) if sign > 0 else torch.maximum(*ends)

    def _rounding(self, slope: Tensor, low: Tensor, high: Tensor) -> Tensor:
        values = torch.maximum(self.value(low).abs(), self.value(high).abs())
        return 4 * torch.finfo(low.dtype).eps * (slope.abs() * torch.maximum(low.abs(), high.abs()) + values).detach()


SQUARE = Convex("square", torch.square, lambda z: 2 * z, least=0.0)
EXP = Convex("exp", torch.exp, torch.exp)
LOG = Convex("log", torch.log, torch.reciprocal, concave=True)
SQRT = Convex("sqrt", torch.sqrt, lambda z: 0.5 * z.rsqrt(), concave=True)
RSQRT = Convex("rsqrt", torch.rsqrt, lambda z: -0.5 * z.rsqrt() / z)
RECIPROCAL = Convex("reciprocal", torch.reciprocal, lambda z: -z.reciprocal().square(), pole=True)


def even_power(exponent: int) -> Convex:
    """Return z to an even power."""
    if exponent == 2:
        return SQUARE
    return Convex("power", lambda z: z.pow(exponent), lambda z: exponent * z.pow(exponent - 1), least=0.0)


def power_of_positive(exponent: int) -> Convex:
    """Return max(z, 0) to a power of 2 or more."""
    return Convex(
        "power of the positive part",
        lambda z: torch.relu(z).pow(exponent),
        lambda z: exponent * torch.relu(z).pow(exponent - 1),
    )
