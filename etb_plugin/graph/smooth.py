"""Smooth elementwise activations of bounded slope, and lines below and above them; waves are in `waves`.

Any slope gives a sound line once its intercept is the least (or greatest) value of f(z) - slope z on the range, and
that is attained at an end, at a kink, or where f' is the slope. So the derivative is tabulated on the intervals on
which it is monotone, and looked up backward: within a cell of the table the error is at most the derivative's distance
from the slope times the cell's width, by which the line is moved outward, and by the rounding. What slope to choose is
then only a matter of tightness: by default that of the convex hull's supporting line at the middle of the range, which
leaves the smallest area; alpha-CROWN optimises it.
"""

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from etb_plugin.graph.activations import Curved, extremes

_CELLS = 4096
"""Cells of the table of the derivative on each interval on which it is monotone."""
_LOGIT = 36.0
"""Tables go from minus this to this in the logit of the derivative's share of its range: float64 knows none nearer to 0
or 1."""
_SLOPES = 2**13
"""How many elements the slopes that are tried at once may hold: for few units a call costs more than its work."""
_TANGENT = 0.01
"""Up to which share of the range the points at which a supporting line touches count as one."""
_POINTS = 24
"""Points of the quadrature for a normal variable."""


class Hull(Protocol):
    """A function (`sign` 1), or its negative (-1), on ranges [low, high], and where lines touch it from below."""

    def touching(self, slope: Tensor) -> Tensor:
        """Return where sign f(z) - slope z is least."""

    def lowest(self, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Return where it is least, and how much less it may be elsewhere."""


class Sloped(Curved):
    """An elementwise function by its value and derivative, of which a `hull` says where lines touch it."""

    pace = 0.04  # the best slopes are seldom the least or the greatest

    value: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    slack: float = 0.0
    """How far the function may be from `value`."""

    @abstractmethod
    def hull(self, low: Tensor, high: Tensor, sign: int) -> Hull:
        """Return what is known of the function, or of its negative, on ranges."""

    @abstractmethod
    def slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least and the greatest derivative on [low, high]: no line of another slope is a good one."""

    @property
    @abstractmethod
    def all_slopes(self) -> tuple[float, float]:
        """The least and the greatest derivative."""

    def forward(self, z: Tensor) -> Tensor:
        return self.value(z)

    def piece(self, z: Tensor, deviation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if deviation is None:
            slope = self.derivative(z)
            return slope, self.value(z) - slope * z
        # By parts, E f' = E f x / deviation and E f' x = E f (x^2 - 1) / deviation: a kink costs little in f.
        mean, tilt, bend = normal_means(self.value, z, deviation)
        narrow = deviation < 1e-3
        slope = torch.where(narrow, self.derivative(z), tilt / torch.where(narrow, torch.ones_like(z), deviation))
        return slope, mean - slope * z - torch.where(narrow, 0.0, bend)

    def moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        return normal_moments(self.value, mean, variance)

    def line(self, low: Tensor, high: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        """Return the line that leaves the smallest area between itself and the function."""
        middle = (low + high) / 2
        with torch.no_grad():
            hull = self.hull(low, high, sign)
            ends = sorted(sign * slope for slope in self.all_slopes)
            least, most = (torch.full_like(middle, end) for end in ends)
            digits = -int(math.log2(torch.finfo(low.dtype).eps)) + 6
            at_once = int(math.log2(max(2, min(32, _SLOPES // max(1, low.numel())))))
            shares = torch.linspace(0, 1, 2**at_once + 1, dtype=low.dtype, device=low.device)
            shares = shares.view(-1, *[1] * low.ndim)
            first, last = hull.touching(least), hull.touching(most)
            for _ in range(math.ceil(digits / at_once)):
                slopes = torch.lerp(least.unsqueeze(0), most.unsqueeze(0), shares)
                # Where a slope was seen to touch stays: of another shape its digits, and so the side, may be others.
                touched = torch.cat([first.unsqueeze(0), hull.touching(slopes[1:-1]), last.unsqueeze(0)])
                place = (touched[1:-1] <= middle).cumprod(0).sum(0, keepdim=True)
                least, most = (slopes.gather(0, at)[0] for at in (place, place + 1))
                first, last = (touched.gather(0, at)[0] for at in (place, place + 1))
            one = last - first <= _TANGENT * (high - low)
        first, last = (_attached(point, low, high) for point in (first, last))
        run = torch.where(one, torch.ones_like(low), last - first)
        slope = torch.where(one, self.derivative(middle), (self.value(last) - self.value(first)) / run)
        return slope, self.intercept(slope, low, high, sign)

    def chosen(self, share: Tensor, low: Tensor, high: Tensor, sign: int) -> tuple[Tensor, Tensor]:
        slope = torch.lerp(*self.slopes(low, high), share)
        return slope, self.intercept(slope, low, high, sign)

    def share(self, slope: Tensor, low: Tensor, high: Tensor, sign: int) -> Tensor:
        least, most = self.slopes(low, high)
        return ((slope - least) / (most - least).clamp(min=torch.finfo(slope.dtype).tiny)).clamp(0, 1)

    def parallel(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        run = high - low
        flat = run <= torch.finfo(run.dtype).eps * (low.abs() + high.abs())
        chord = (self.value(high) - self.value(low)) / torch.where(flat, torch.ones_like(run), run)
        slope = torch.where(flat, self.derivative((low + high) / 2), chord)
        return slope, self.intercept(slope, low, high, 1), self.intercept(slope, low, high, -1)

    def intercept(self, slope: Tensor, low: Tensor, high: Tensor, sign: int) -> Tensor:
        """Return the intercept of a line of this `slope` that lies below the function on [low, high], for `sign` 1, or
        above it, for -1, and touches it, but for what rounding may do."""
        with torch.no_grad():
            point, less = self.hull(low, high, sign).lowest(sign * slope)
            size = (2 + slope.abs()) * torch.maximum(low.abs(), high.abs()) + self._at_zero
            outward = less + 2 * torch.finfo(low.dtype).eps * size
        point = _attached(point, low, high)
        return self.value(point) - slope * point - sign * outward

    @cached_property
    def _at_zero(self) -> float:
        """The value's size at 0."""
        return abs(float(self.value(torch.zeros(1, dtype=torch.float64))))


@dataclass(frozen=True)
class Smooth(Sloped):
    """A function whose derivative is monotone but for a few `turns`, or jumps there, ascending.

    Beyond +-`reach` the derivative is constant, as far as float64 can tell; with `tails` it gets there as slowly as a
    power of z. The function whose derivative it is may be `slack` + `drift` |z| from `value` where z > `beyond`.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    turns: tuple[float, ...]
    reach: float
    slack: float = 0.0
    drift: float = 0.0
    beyond: float = -math.inf
    tails: bool = False

    def range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        least, greatest = extremes(self.value(low), self.value(high))
        for point in self._level:
            least = torch.minimum(least, self.value(low.clamp(min=point).minimum(high)) - self.off(low, high))
        return least, greatest

    def hull(self, low: Tensor, high: Tensor, sign: int) -> "_Tabulated":
        return _Tabulated(self, low, high, sign)

    def slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        least, greatest = extremes(self.derivative(low), self.derivative(high))
        for turn in self.turns:
            for side in (-1e-6, 1e-6):
                between = self.derivative(low.clamp(min=turn + side).minimum(high))
                least, greatest = torch.minimum(least, between), torch.maximum(greatest, between)
        return least, greatest

    def off(self, low: Tensor, high: Tensor) -> Tensor | float:
        """Return how far the function may be from `value` on [low, high]; at a point nothing is said of another one."""
        if not self.slack and not self.drift:
            return 0.0
        off = self.slack + self.drift * torch.maximum(low.abs(), high.abs())
        return torch.where((high > low) & (high > self.beyond), off, 0.0)

    @cached_property
    def all_slopes(self) -> tuple[float, float]:
        ends = torch.tensor([-self.reach, *self.turns, self.reach], dtype=torch.float64)
        hair = 1e-9 * self.reach
        slopes = self.derivative(torch.cat([ends - hair, ends + hair, ends]))
        return float(slopes.min()), float(slopes.max())

    @cached_property
    def _level(self) -> tuple[float, ...]:
        """Where the derivative goes from falling to rising: no function here has a greatest value inside."""
        crossed = [points for points, slopes in self._tables[1] if float(slopes[0]) < 0 < float(slopes[-1])]
        return tuple(float(self._reaching(torch.zeros(()), points[0], points[-1])) for points in crossed)

    @cached_property
    def _tables(self) -> dict[int, list[tuple[Tensor, Tensor]]]:
        """Points and derivatives, these ascending, of each interval on which the derivative is monotone and varies:
        under 1 where the function bends up, under -1 where it bends down.

        The logits of its shares of the range are evenly spaced: a cell is found by arithmetic, and none is wide where
        the derivative has nearly its least or greatest value.
        """
        ends = (-self.reach, *self.turns, self.reach)
        tables: dict[int, list[tuple[Tensor, Tensor]]] = {1: [], -1: []}
        shares = torch.linspace(-_LOGIT, _LOGIT, _CELLS + 1, dtype=torch.float64).sigmoid()
        for low, high in itertools.pairwise(ends):
            hair = 1e-9 if self.tails else 1e-9 * (high - low)  # at a kink the derivative of this side
            outer = torch.tensor([low + hair, high - hair], dtype=torch.float64)
            first, last = self.derivative(outer).tolist()
            if first != last:
                slopes = min(first, last) + abs(last - first) * shares
                points = self._reaching(slopes, *(outer if first < last else outer.flip(0)))
                tables[1 if first < last else -1].append((points, self.derivative(points).cummax(0).values))
        return tables

    def _reaching(self, slopes: Tensor, below: Tensor, above: Tensor) -> Tensor:
        """Return where the derivative reaches `slopes`, between a point with lesser ones and one with greater ones."""
        for _ in range(100):
            middle = (below + above) / 2
            less = self.derivative(middle) < slopes
            below, above = torch.where(less, middle, below), torch.where(less, above, middle)
        return below

    def tables(self, like: Tensor, sign: int) -> list[tuple[Tensor, Tensor]]:
        """Return the tables where the function bends up, for `sign` 1, or down, for -1, in the dtype and on the device
        of `like`."""
        return [(points.to(like), slopes.to(like)) for points, slopes in self._tables[sign]]


_Near = Sequence[tuple[Tensor, Tensor, Tensor]]


class _Tabulated:
    """The hull of a function whose derivative is tabulated.

    A line below a function touches it at an end, at a turn, or where it bends up.
    """

    def __init__(self, function: Smooth, low: Tensor, high: Tensor, sign: int) -> None:
        self.function, self.low, self.high, self.sign = function, low, high, sign
        self.tables = function.tables(low, sign)
        fixed = [low, high, *(low.clamp(min=turn).minimum(high) for turn in function.turns)]
        self.fixed = [(point, sign * function.value(point)) for point in fixed]

    def touching(self, slope: Tensor) -> Tensor:
        return self._touching(slope, self._looked_up(slope))

    def lowest(self, slope: Tensor) -> tuple[Tensor, Tensor]:
        near = self._looked_up(slope)
        error = torch.zeros_like(slope)
        for point, width, inside in near:
            off = (self.function.derivative(point) - self.sign * slope).abs() * width.minimum(self.high - self.low)
            error = torch.maximum(error, torch.where(inside, off, 0.0))
        # beyond the tables the derivative is constant but for less than rounding
        return self._touching(slope, near), error + self.function.off(self.low, self.high)

    def _touching(self, slope: Tensor, near: _Near) -> Tensor:
        point, value = self.fixed[0]
        point, best = point.expand_as(slope), value - slope * point
        inner = [other.maximum(self.low).minimum(self.high) for other, _, _ in near]
        for other, value in (*self.fixed[1:], *((other, self.sign * self.function.value(other)) for other in inner)):
            better = value - slope * other
            point, best = torch.where(better < best, other, point), torch.minimum(better, best)
        return point

    def _looked_up(self, slope: Tensor) -> _Near:
        """Return for each table the point at which the derivative is nearly the slope, the width of its cell, and
        whether the table has that slope at all."""
        wanted, found = self.sign * slope, []
        least = torch.finfo(slope.dtype).eps / 2  # logarithms of 0 take a hundred times as long
        for points, slopes in self.tables:
            bottom, top = slopes[0], slopes[-1]
            logit = ((wanted - bottom) / (top - bottom)).logit(least).clamp(-_LOGIT, _LOGIT)
            cell = ((logit + _LOGIT) * (_CELLS / (2 * _LOGIT))).long().clamp(0, _CELLS - 1).flatten()
            first, last, low, high = (
                of.index_select(0, at).view_as(wanted) for of in (points, slopes) for at in (cell, cell + 1)
            )
            share = ((wanted - low) / (high - low).clamp(min=torch.finfo(slope.dtype).tiny)).clamp(0, 1)
            inside = (wanted >= bottom) & (wanted <= top)
            # rounding may miss the cell, where the derivative hardly varies: then nothing is known of its width
            missed = (wanted < low) | (wanted > high)
            found.append((torch.lerp(first, last, share), (last - first).abs().masked_fill_(missed, torch.inf), inside))
        return found


def _attached(point: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the point with the gradient of the end that it is; inside it has none."""
    return torch.where(point == low, low, torch.where(point == high, high, point))


def normal_means(function: Callable[[Tensor], Tensor], z: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return E f, E f x and E f (x^2 - 1) of f = function(z + x deviation), x standard normal."""
    values = [(weight, at, function(z + at * deviation)) for weight, at in _normal_points()]
    mean, tilt, bend = (
        torch.stack([weight * of(at) * value for weight, at, value in values]).sum(0)
        for of in (lambda at: 1.0, lambda at: at, lambda at: at * at - 1)
    )
    return mean, tilt, bend


def normal_moments(function: Callable[[Tensor], Tensor], mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of a function of a normal variable."""
    deviation = variance.sqrt()
    values = [(weight, function(mean + at * deviation)) for weight, at in _normal_points()]
    middle = torch.stack([weight * value for weight, value in values]).sum(0)
    return middle, torch.stack([weight * (value - middle).square() for weight, value in values]).sum(0)


@cache
def _normal_points() -> tuple[tuple[float, float], ...]:
    """Return weights and points of the Gauss-Hermite quadrature of a standard normal variable."""
    points, weights = np.polynomial.hermite_e.hermegauss(_POINTS)
    return tuple((float(w) / math.sqrt(2 * math.pi), float(p)) for w, p in zip(weights, points, strict=True))


def _gelu_slope(z: Tensor) -> Tensor:
    return torch.special.erfc(-z / math.sqrt(2)) / 2 + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh_slope(z: Tensor) -> Tensor:
    z = z.clamp(-20, 20)  # its cube overflows far out, where the derivative is 0 or 1
    inner = math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)
    change = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z * z)
    return torch.sigmoid(2 * inner) + 2 * z * change * torch.sigmoid(2 * inner) * torch.sigmoid(-2 * inner)


def _mish_slope(z: Tensor) -> Tensor:
    inner = F.softplus(z)
    return torch.tanh(inner) + z * torch.sigmoid(z) * 4 * torch.sigmoid(2 * inner) * torch.sigmoid(-2 * inner)


def _hard_swish_slope(z: Tensor) -> Tensor:
    return torch.where(z.abs() < 3, (2 * z + 3) / 6, (z > 0).to(z.dtype))


def softplus(beta: float = 1.0, threshold: float = 20.0) -> Smooth:
    """Return log(1 + exp(beta z)) / beta; torch takes z itself where beta z is above a threshold."""
    slack = math.log1p(math.exp(-threshold)) / beta
    return Smooth(
        "softplus",
        lambda z: F.softplus(z, beta, threshold),
        lambda z: torch.sigmoid(beta * z),
        turns=(),
        reach=40 / beta,
        slack=slack,
        beyond=threshold / beta,
    )


def elu(alpha: float = 1.0, scale: float = 1.0, width: float = 1.0) -> Smooth:
    """Return scale z for z > 0 and scale alpha (exp(z / width) - 1) below: ELU, CELU (alpha = width), SELU."""

    def value(z: Tensor) -> Tensor:
        return scale * torch.where(z > 0, z, alpha * torch.expm1(z.clamp(max=0) / width))

    def slope(z: Tensor) -> Tensor:
        return scale * torch.where(z > 0, torch.ones_like(z), alpha / width * torch.exp(z.clamp(max=0) / width))

    return Smooth("elu", value, slope, (0.0,), 40 * width)


SIGMOID = Smooth("sigmoid", torch.sigmoid, lambda z: torch.sigmoid(z) * torch.sigmoid(-z), (0.0,), 40.0)
TANH = Smooth("tanh", torch.tanh, lambda z: 4 * torch.sigmoid(2 * z) * torch.sigmoid(-2 * z), (0.0,), 20.0)
LOG_SIGMOID = Smooth("log-sigmoid", F.logsigmoid, lambda z: torch.sigmoid(-z), (), 40.0)
GELU = Smooth("gelu", F.gelu, _gelu_slope, (-math.sqrt(2), math.sqrt(2)), 12.0)
GELU_TANH = Smooth(
    "gelu-tanh",
    lambda z: F.gelu(z, approximate="tanh"),
    _gelu_tanh_slope,
    (-1.4185040087908285, 1.4185040087908285),
    12.0,
)
ATAN = Smooth("atan", torch.atan, lambda z: 1 / (1 + z * z), (0.0,), 1e8, tails=True)
SOFTSIGN = Smooth("softsign", F.softsign, lambda z: (1 + z.abs()) ** -2, (0.0,), 1e8, tails=True)
TANHSHRINK = Smooth("tanhshrink", F.tanhshrink, lambda z: torch.tanh(z) ** 2, (0.0,), 20.0)
ERF = Smooth("erf", torch.erf, lambda z: 2 / math.sqrt(math.pi) * torch.exp(-z * z), (0.0,), 8.0)
SILU = Smooth(
    "silu",
    F.silu,
    lambda z: torch.sigmoid(z) * (1 + z * torch.sigmoid(-z)),
    (-2.399357280515467, 2.399357280515467),
    40.0,
)
QUICK_GELU = Smooth(
    "quick-gelu",
    lambda z: z * torch.sigmoid(1.702 * z),
    lambda z: torch.sigmoid(1.702 * z) * (1 + 1.702 * z * torch.sigmoid(-1.702 * z)),
    (-2.399357280515467 / 1.702, 2.399357280515467 / 1.702),
    24.0,
)
MISH = Smooth("mish", F.mish, _mish_slope, (-2.256376396360794, 1.4905711794854282), 40.0)
HARD_SWISH = Smooth("hard-swish", F.hardswish, _hard_swish_slope, (-3.0, 3.0), 4.0)
