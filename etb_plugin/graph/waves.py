"""Sine and cosine, and lines below and above them: where a line touches a wave is known in closed form.

A wave less a line of a slope s in [-1, 1] is least in one place of each period, and from period to period that least
value changes by the same: over a range the lowest of all lies in the first or the last period, or at an end.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from etb_plugin.graph.activations import extremes
from etb_plugin.graph.smooth import Sloped

_PERIOD = 2 * math.pi


@dataclass(frozen=True)
class Wave(Sloped):
    """sin(z + phase); `cosine` is the one of phase pi / 2."""

    name: str
    cosine: bool

    @property
    def phase(self) -> float:
        """By how much the sine is ahead."""
        return math.pi / 2 if self.cosine else 0.0

    def value(self, z: Tensor) -> Tensor:
        return torch.cos(z) if self.cosine else torch.sin(z)

    def derivative(self, z: Tensor) -> Tensor:
        return -torch.sin(z) if self.cosine else torch.cos(z)

    def range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        least, greatest = extremes(self.value(low), self.value(high))
        top = math.pi / 2 - self.phase
        greatest = torch.where(_holds(low, high, top), 1.0, greatest)
        return torch.where(_holds(low, high, top - math.pi), -1.0, least), greatest

    def hull(self, low: Tensor, high: Tensor, sign: int) -> "_Periodic":
        return _Periodic(self, low, high, sign)

    def slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        least, greatest = extremes(self.derivative(low), self.derivative(high))
        greatest = torch.where(_holds(low, high, -self.phase), 1.0, greatest)
        return torch.where(_holds(low, high, math.pi - self.phase), -1.0, least), greatest

    @property
    def all_slopes(self) -> tuple[float, float]:
        return -1.0, 1.0

    def piece(self, z: Tensor, deviation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        fade = 1.0 if deviation is None else torch.exp(-deviation.square() / 2)
        slope = fade * self.derivative(z)
        # E f - E f' z, and E f' (z + deviation x) = E f' z - deviation^2 E f
        return slope, fade * self.value(z) * (1.0 if deviation is None else 1 + deviation.square()) - slope * z

    def moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        middle = torch.exp(-variance / 2) * self.value(mean)
        # the square of a sine is half of one less the cosine of twice its argument
        square = (1 - torch.exp(-2 * variance) * torch.cos(2 * (mean + self.phase))) / 2
        return middle, (square - middle.square()).clamp(min=0)


class _Periodic:
    """The hull of a wave."""

    def __init__(self, wave: Wave, low: Tensor, high: Tensor, sign: int) -> None:
        self.wave, self.low, self.high, self.sign = wave, low, high, sign

    def touching(self, slope: Tensor) -> Tensor:
        # sign sin(w) - slope w turns from falling to rising where sign cos(w) = slope and sign sin(w) <= 0
        turn = torch.arccos((self.sign * slope).clamp(-1, 1)) * -self.sign - self.wave.phase
        points = [self.low, self.high]
        for period in (((self.low - turn) / _PERIOD).ceil(), ((self.high - turn) / _PERIOD).floor()):
            points.append((turn + period * _PERIOD).maximum(self.low).minimum(self.high))
        point, best = points[0].expand_as(slope), self._less(points[0], slope)
        for other in points[1:]:
            value = self._less(other, slope)
            better = value < best
            point, best = torch.where(better, other, point), torch.where(better, value, best)
        return point

    def lowest(self, slope: Tensor) -> tuple[Tensor, Tensor]:
        # A turn is found to within a share of its size and the root of what rounding does, where the wave less the
        # line is flat: that counts by its square.
        eps = torch.finfo(slope.dtype).eps
        size = torch.maximum(self.low.abs(), self.high.abs())
        return self.touching(slope), 4 * eps * (1 + slope.abs()) * (1 + size) + (4 * eps * size).square()

    def _less(self, point: Tensor, slope: Tensor) -> Tensor:
        return self.sign * self.wave.value(point) - slope * point


def _holds(low: Tensor, high: Tensor, point: float) -> Tensor:
    """Return whether [low, high], or what rounding may make of it, has one of point + 2 pi k."""
    hair = 4 * torch.finfo(low.dtype).eps * (1 + torch.maximum(low.abs(), high.abs()))
    return ((high + hair - point) / _PERIOD).floor() >= ((low - hair - point) / _PERIOD).ceil()


SIN = Wave("sin", cosine=False)
COS = Wave("cos", cosine=True)
