"""Piecewise linear functions that a network writes out by conditions: x (x > 0), where(x > 0, x, x / 10), ...

Where they jump they are `jumps.Broken`.

Read from what is computed, not from values: knots and slopes are those of the constants that stand in the network.
"""

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from etb_plugin.graph.activations import PiecewiseLinear, Relu
from etb_plugin.graph.jumps import Broken

_MOST = 32
"""Knots of a function."""


@dataclass(frozen=True)
class Pieces:
    """slope z + intercept on each of the intervals that ascending knots leave, of which `lines` has one more, and the
    values `at` the knots. A condition is 0 or 1."""

    knots: tuple[float, ...]
    lines: tuple[tuple[float, float], ...]
    at: tuple[float, ...]

    def joined(self, other: "Pieces | float", join: Callable[[tuple[float, float], tuple[float, float]], Any]) -> Any:
        """Return what `join` makes of two functions' lines, interval by interval."""
        other = _made(other)
        knots = tuple(sorted({*self.knots, *other.knots}))
        if len(knots) > _MOST:
            raise ValueError("it has too many pieces")
        inside = _inside(knots)
        at = tuple(join((0.0, self._value(z)), (0.0, other._value(z)))[1] for z in knots)
        return Pieces(knots, tuple(join(self._line(z), other._line(z)) for z in inside), at)

    def _line(self, z: float) -> tuple[float, float]:
        return self.lines[sum(knot < z for knot in self.knots)]

    def _value(self, z: float) -> float:
        return dict(zip(self.knots, self.at, strict=True)).get(z, _at(self._line(z), z))

    def __add__(self, other: "Pieces | float") -> "Pieces":
        return self.joined(other, lambda one, two: (one[0] + two[0], one[1] + two[1]))

    def __mul__(self, other: "Pieces | float") -> "Pieces":
        return self.joined(other, _multiplied)

    def above(self, other: "Pieces | float", *, or_equal: bool = False) -> "Pieces":
        """Return where this function is above the other one, or meets it, as 0 or 1."""
        difference = self + _made(other) * -1.0
        knots, edges = list(difference.knots), (-math.inf, *difference.knots, math.inf)
        for (slope, intercept), low, high in zip(difference.lines, edges, edges[1:], strict=False):
            if slope and low < -intercept / slope < high:
                knots.append(-intercept / slope)
        knots.sort()

        def holds(value: float) -> float:
            return float(value > 0 or (or_equal and value == 0))

        lines = tuple((0.0, holds(_at(difference._line(z), z))) for z in _inside(tuple(knots)))
        # Where the two cross they are equal, whatever rounding makes of it.
        at = tuple(holds(difference._value(z) if z in difference.knots else 0.0) for z in knots)
        return Pieces(tuple(knots), lines, at)

    def activation(self, tolerance: float) -> PiecewiseLinear | Broken:
        """Return the function. It jumps where it does so by more than `tolerance`, relative to its parts."""
        (first, offset), *_ = self.lines
        hinges = []
        for knot, own, (before, behind) in zip(self.knots, self.at, itertools.pairwise(self.lines), strict=True):
            left, right = _at(before, knot), _at(behind, knot)
            size = max(abs(part) for slope, intercept in (before, behind) for part in (slope * knot, intercept))
            if max(left, right, own) - min(left, right, own) > tolerance * size:
                return Broken(self.knots, self.lines, self.at)
            if before[0] != behind[0]:
                hinges.append((knot, behind[0] - before[0]))
        if (first, offset, hinges) == (0.0, 0.0, [(0.0, 1.0)]):
            return Relu()
        return PiecewiseLinear(lambda: first, offset, lambda: hinges)


class Reader:
    """Reads nodes of a network as functions of the value at `source`; `constants` are what others hold."""

    def __init__(self, module: nn.Module, source: fx.Node, constants: Mapping[fx.Node, Tensor]) -> None:
        self._module = module
        self._known: dict[fx.Node, Any] = {source: Pieces((), ((1.0, 0.0),), ())}
        self._known |= {node: float(constant) for node, constant in constants.items()}

    def activation(self, node: fx.Node, tolerance: float) -> PiecewiseLinear | Broken | None:
        """Return a node's function, or None where that is not piecewise linear; `tolerance` is that of
        `Pieces.activation`."""
        try:
            return _made(self._read(node)).activation(tolerance)
        except (ValueError, TypeError):
            return None

    def knots(self, nodes: Iterable[fx.Node]) -> set[float] | None:
        """Return where nodes bend or jump, or None where that cannot be told."""
        found: set[float] = set()
        for node in nodes:
            if _name(self._module, node) in _BENT:
                try:
                    found.update(_made(self._read(node)).knots)
                except (ValueError, TypeError):
                    return None
        return found

    def _read(self, node: fx.Node) -> Any:
        if node not in self._known:
            function = _FUNCTIONS.get(_name(self._module, node))
            if function is None:
                raise ValueError("it is not known")
            args, kwargs = fx.map_arg(node.args, self._read), fx.map_arg(node.kwargs, self._read)
            self._known[node] = function(*args, **kwargs)
        return self._known[node]


def _name(module: nn.Module, node: fx.Node) -> str:
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))).__name__.lower()
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _made(value: Any) -> Pieces:
    if isinstance(value, Pieces):
        return value
    if not math.isfinite(number := float(value)):
        raise ValueError("it is not finite")
    return Pieces((), ((0.0, number),), ())


def _at(line: tuple[float, float], z: float) -> float:
    return line[0] * z + line[1]


def _inside(knots: tuple[float, ...]) -> list[float]:
    """Return a point of each of the intervals between knots."""
    if not knots:
        return [0.0]
    between = [(a + b) / 2 for a, b in itertools.pairwise(knots)]
    return [knots[0] - 1 - abs(knots[0]), *between, knots[-1] + 1 + abs(knots[-1])]


def _multiplied(one: tuple[float, float], two: tuple[float, float]) -> tuple[float, float]:
    if one[0] and two[0]:
        raise ValueError("it is a product")
    return one[0] * two[1] + one[1] * two[0], one[1] * two[1]


def _divided(one: Any, two: Any) -> Pieces:
    below = _made(two)
    if any(slope or not value for slope, value in below.lines) or not all(below.at):
        raise ValueError("it is a quotient")
    lines = tuple((0.0, 1 / value) for _, value in below.lines)
    return _made(one) * Pieces(below.knots, lines, tuple(1 / value for value in below.at))


def _chosen(condition: Any, one: Any, other: Any) -> Pieces:
    condition = _made(condition)
    return condition * _made(one) + _not(condition) * _made(other)


def _not(condition: Any) -> Pieces:
    return _made(condition) * -1.0 + 1.0


def _larger(one: Any, other: Any) -> Pieces:
    return _chosen(_made(one).above(other), one, other)


def _smaller(one: Any, other: Any) -> Pieces:
    return _chosen(_made(one).above(other), other, one)


def _clamped(x: Any, min: Any = None, max: Any = None) -> Pieces:
    above = x if min is None else _larger(x, min)
    return _made(above) if max is None else _smaller(above, max)


def _added(x: Any, other: Any, alpha: float = 1.0) -> Pieces:
    return _made(x) + _made(other) * alpha


def _size(x: Any) -> Pieces:
    return _larger(x, _made(x) * -1.0)


def _sign(x: Any) -> Pieces:
    return _made(x).above(0.0) + (_made(0.0).above(x)) * -1.0


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("add", "iadd"), _added),
    "sub": lambda x, other, alpha=1.0: _added(x, other, -alpha),
    **dict.fromkeys(("mul", "imul"), lambda x, other: _made(x) * _made(other)),
    **dict.fromkeys(("truediv", "div"), _divided),
    "neg": lambda x: _made(x) * -1.0,
    "relu": lambda x, inplace=False: _larger(x, 0.0),
    "relu6": lambda x, inplace=False: _clamped(x, 0.0, 6.0),
    "hardtanh": lambda x, min_val=-1.0, max_val=1.0, inplace=False: _clamped(x, min_val, max_val),
    "hardsigmoid": lambda x, inplace=False: _clamped(_made(x) * (1 / 6) + 0.5, 0.0, 1.0),
    **dict.fromkeys(("clamp", "clip"), _clamped),
    "maximum": _larger,
    "minimum": _smaller,
    "abs": _size,
    "sign": _sign,
    "gt": lambda x, other: _made(x).above(other),
    "ge": lambda x, other: _made(x).above(other, or_equal=True),
    "lt": lambda x, other: _made(other).above(x),
    "le": lambda x, other: _made(other).above(x, or_equal=True),
    **dict.fromkeys(("and_", "logical_and"), lambda x, other: _made(x) * _made(other)),
    **dict.fromkeys(("or_", "logical_or"), _larger),
    **dict.fromkeys(("invert", "logical_not"), _not),
    "where": _chosen,
    "masked_fill": lambda x, mask, value: _chosen(mask, value, x),
    **dict.fromkeys(("float", "double", "to", "type_as"), lambda x, *_, **__: _made(x)),
    "zeros_like": lambda *_, **__: 0.0,
    "ones_like": lambda *_, **__: 1.0,
    "full_like": lambda x, fill_value, **_: fill_value,
    "getattr": lambda x, name: name,  # a dtype, for a cast
}
"""By the names of torch's calls, methods and layers; what else there is is not piecewise linear, or not written so."""

_BENT = {
    *("gt", "ge", "lt", "le", "relu", "relu6", "hardtanh", "hardsigmoid", "clamp", "clip"),
    *("maximum", "minimum", "abs", "sign"),
}
"""What bends or jumps by itself."""
CONDITIONS: set[Any] = {
    *(operator.gt, operator.ge, operator.lt, operator.le, operator.and_, operator.or_, operator.invert),
    *(torch.gt, torch.ge, torch.lt, torch.le, "gt", "ge", "lt", "le"),
    *(torch.logical_and, torch.logical_or, torch.logical_not, "logical_and", "logical_or", "logical_not"),
}
"""What decides by values."""
