"""Linear relaxations of a graph over a region, walked backward: what becomes of a row at an activation.

Each hinge max(z - knot, 0) of an activation is relaxed by itself, so that leaky and clipped activations need no case of
their own. Where it is unstable on [low, high] it lies below its chord, and above every line through the knot with a
slope in [0, 1]. CROWN takes the chord above and slope 0 or 1 below; alpha-CROWN optimises the slope; Wong and Kolter's
dual takes the chord's slope on both sides, so that one pass gives both ends. Splits and multipliers make bounds of a
branch (beta-CROWN). A curved activation has a line below and one above it, both of which alpha-CROWN optimises.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from etb_plugin.graph.activations import Activation, Curved, PiecewiseLinear, chord, crown_slope
from etb_plugin.graph.ascent import Ascent, Moved
from etb_plugin.graph.graph import Ends, Graph, reach
from etb_plugin.graph.regions import Box, Region
from etb_plugin.graph.rounding import Sizes, Slack, are_rigorous, check_rigorous
from etb_plugin.graph.rows import Rows, Tables, dot, flat, summed, weighed_sum
from etb_plugin.stopping import check_time

Hinge = tuple[int, int]
"""An activation's position in the graph, and the number of one of its hinges; of a curved one 0 is the line below, 1
the line above."""


_K = TypeVar("_K")


@dataclass(frozen=True)
class Decided:
    """Signs of single units: where `on` z >= knot, else z <= knot, for one `row` of one of the `batch` at one `unit` of
    the flat features, all [signs]."""

    batch: Tensor
    row: Tensor
    unit: Tensor
    on: Tensor

    def apply(self, rows: Tensor, part: Tensor, shift: Tensor, rise: Tensor) -> None:
        """Put the piece that is left into what `rows` became by lines with `rise`: `part`, and `shift` beside it."""
        here = self.batch, self.row, self.unit
        was, shared = flat(rows)[here], rise.flatten(1)
        shift.index_put_(here[:2], -was.clamp(max=0) * shared[self.batch % len(shared), self.unit], accumulate=True)
        part.view(*part.shape[:2], -1)[here] = torch.where(self.on, was, 0.0)


@dataclass(frozen=True)
class Choice:
    """What a relaxation may choose for the hinges; a hinge may be missing.

    `slopes` are those of the lower lines, in [0, 1], as the rows arrive there ([groups, rows or 1, *features or
    window]), and the shares of curved activations' lines (`Curved.chosen`): any choice is sound; CROWN's is the
    default. `signs` [batch, 1, *features] are the branch: +1 where z >= knot, -1 where z <= knot is taken as given, 0
    elsewhere. `multipliers` >= 0 [batch, rows or 1, *features] price them (beta-CROWN, Wang et al. 2021, equation 8):
    any choice is sound on the branch. `pulls` [batch, rows, *features], by the node whose value an activation takes, do
    the same for ends that a branch moved: positive ones price the upper end, negative ones the lower; `pull_limits` say
    which of them may be, [batch, 1, *features]. `decided` are further signs, of single rows at single units, for a look
    at many branches that differ by one: values alone, without a gradient.
    """

    slopes: Mapping[Hinge, Tensor] = field(default_factory=dict)
    signs: Mapping[Hinge, Tensor] = field(default_factory=dict)
    multipliers: Mapping[Hinge, Tensor] = field(default_factory=dict)
    pulls: Mapping[int, Tensor] = field(default_factory=dict)
    pull_limits: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    decided: Mapping[Hinge, Decided] = field(default_factory=dict)
    fitting: bool = False
    """Whether slopes are those of the pieces already where a hinge is on or off."""


@dataclass(frozen=True)
class Lines:
    """Linear functions of the input below the rows: `value` is their least one over the region, [groups, rows], and
    `reached` the rows at the input, `constant` beside them. `arriving` holds the rows as they came to each activation.
    """

    value: Tensor
    reached: Rows
    constant: Tensor | float
    arriving: Mapping[int, Rows]

    @property
    def coefficients(self) -> Tensor:
        """[batch or 1, rows, *input]"""
        return self.reached.values

    def minimizer(self, region: Region) -> Tensor:
        """Return the corner of a box at which each function is least, [batch, rows, *input]."""
        center, radius = region.center.unsqueeze(1), region.radius.unsqueeze(1)
        return center - radius * self.coefficients.sign()


@dataclass(frozen=True)
class _Hinge:
    """The lines of one hinge over its ends `low` and `high`, all [batch or 1, *features]: `steep` is the chord's slope
    (1 where on, 0 where off), `rise` the chord's value at the knot."""

    low: Tensor
    high: Tensor
    steep: Tensor
    rise: Tensor

    @cached_property
    def flat(self) -> Tensor:
        """CROWN's slope below; where the hinge is stable that is the chord's."""
        return crown_slope(self.low, self.high)

    @cached_property
    def unstable(self) -> Tensor:
        return (self.low < 0) & (self.high > 0)


@torch.no_grad()
def ordered(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return two ends in their order: where a range is a point they may have been rounded apart."""
    return torch.minimum(low, high), torch.maximum(low, high)


def cut(low: Tensor, high: Tensor, known: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the ends of what lies between two ends and between others that are known to hold too."""
    return ordered(torch.maximum(low, known[0]), torch.minimum(high, known[1]))


def _hinge(low: Tensor, high: Tensor) -> _Hinge:
    return _Hinge(low, high, *chord(low, high))


@dataclass(frozen=True)
class _Line:
    """A line below (`sign` 1) or above a curved activation over its ends, all [batch or 1, *features]."""

    activation: Curved
    low: Tensor
    high: Tensor
    sign: int

    @property
    def slope(self) -> Tensor:
        return self.usual[0]

    @property
    def intercept(self) -> Tensor:
        return self.usual[1]

    @cached_property
    def usual(self) -> tuple[Tensor, Tensor]:
        return self.activation.line(self.low, self.high, self.sign)


class Relaxation:
    """A graph relaxed over a region, once the ends of its activations are known. `before`, of the same graph and
    region, may know some of the lines."""

    def __init__(self, graph: Graph, region: Region, ends: Ends, before: "Relaxation | None" = None) -> None:
        self.graph, self.region, self.ends = graph, region, dict(ends)
        self._hinges: dict[Hinge, _Hinge] = {}
        self._signed: dict[Hinge, _Hinge] = {}
        self._views: dict[tuple[Hinge, str], Tensor] | None = None
        self._tables: Tables | None = {}
        self._sizes: Sizes | None = None
        self._box = (region.center, region.radius) if isinstance(region, Box) else None
        # Made now: blocks of rows that are worked on twice, for a gradient, have to find the same both times.
        self._curves: dict[Hinge, _Line] = {}
        known = {} if before is None else {i: pair for i, pair in before.ends.items() if ends.get(i) is pair}
        for key, low, high in self.hinges():
            self._hinges[key] = before._hinges[key] if before and key[0] in known else _hinge(low, high)
        for i, (low, high) in self.ends.items():
            activation = graph.activations[i]
            if isinstance(activation, Curved):
                for side, sign in enumerate((1, -1)):
                    line = before._curves[i, side] if before and i in known else None
                    self._curves[i, side] = line or _Line(activation, low, high, sign)
                    if torch.is_grad_enabled():
                        _ = self._curves[i, side].usual

    def over(self, ends: Ends) -> "Relaxation":
        """Return the same with other ends."""
        return Relaxation(self.graph, self.region, ends, self)

    def without_tables(self) -> "Relaxation":
        """Return the same for blocks of rows that are worked on twice, and have to do the same both times."""
        other = copy.copy(self)
        other._tables = None
        return other

    def repeated(self) -> "Relaxation":
        """Return the same for calls with rows of the same places and one branch: what they look at is kept."""
        other = copy.copy(self)
        other._signed, other._views = {}, {}
        return other

    def hinges(self) -> Iterator[tuple[Hinge, Tensor, Tensor]]:
        """Yield each hinge whose ends are known with those of z - knot, [batch, *features]."""
        for i, (low, high) in self.ends.items():
            for h, (knot, _) in enumerate(self.graph.activations[i].hinges()):
                yield (i, h), low - knot, high - knot

    def below(self, rows: Tensor | Mapping[int, Rows], choice: Choice | None = None) -> Lines:
        """Return linear functions of the input that lie below `rows`: of the output, [batch or 1, rows, classes], or
        of other nodes, by position."""
        choice, arriving = choice or Choice(), {}
        start = {self.graph.last: Rows(rows)} if isinstance(rows, Tensor) else dict(rows)
        for node, pull in choice.pulls.items():
            start[node] = Rows(pull)

        def through(i: int, activation: Activation, here: Rows) -> tuple[Tensor, Tensor | None]:
            arriving[i] = here
            if isinstance(activation, Curved):
                return self._through_curved(i, activation, here, choice)
            assert isinstance(activation, PiecewiseLinear)
            return self._through(i, activation, here, choice)

        slack = Slack(self._rounded()) if are_rigorous() else None
        found, constant = self.graph.backward(start, through, slack=slack)
        middle, deviation = self._reach(found[0])
        value = middle + constant - deviation
        for node, pull in choice.pulls.items():
            large = torch.finfo(pull.dtype).max  # nothing pulls at an end that is not finite
            low, high = (end.unsqueeze(1).clamp(-large, large) for end in self._ends_of_nodes[node])
            value = value - flat(torch.maximum(pull * low, pull * high)).sum(2)
        if slack is not None:
            slack.reach(0, found[0])
            value = value - slack.total
        return Lines(value, found[0], constant, arriving)

    @cached_property
    def _ends_of_nodes(self) -> dict[int, tuple[Tensor, Tensor]]:
        return {self.graph.nodes[i].inputs[0]: ends for i, ends in self.ends.items()}

    @torch.no_grad()
    def _rounded(self) -> Sizes:
        """Return what rounding is relative to, all rows alike."""
        if self._sizes is None:

            def known(i: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
                return cut(low, high, self.ends[i]) if i in self.ends else (low, high)

            self._sizes = self.graph.sizes(self.graph.intervals(self.region, known), self.ends)
        return self._sizes

    def between(self, rows: Tensor | Mapping[int, Rows]) -> tuple[Tensor, Tensor, Rows, Tensor]:
        """Return the least and the greatest value of `rows`, as of `below`, with the chord's slope on both sides
        (Wong and Kolter 2018), and the linear functions below them: rows at the input and constants."""
        check_rigorous(self.region.center, takes=False)
        start = {self.graph.last: Rows(rows)} if isinstance(rows, Tensor) else rows

        def through(i: int, activation: Activation, here: Rows) -> tuple[Tensor, Tensor | None]:
            if isinstance(activation, Curved):
                here = here.inside(self.graph.nodes[i].shape[1:])
                slope, lower, upper = (here.view(line) for line in activation.parallel(*self.ends[i]))
                positive, negative = here.values.clamp(min=0), here.values.clamp(max=0)
                least, most = dot(positive, lower) + dot(negative, upper), dot(positive, upper) + dot(negative, lower)
                return activation.repeated(here.values) * slope, torch.stack([least, most])
            assert isinstance(activation, PiecewiseLinear)
            values, shift = self._first_piece(i, activation, here)
            both = None if shift is None else torch.stack([shift, shift])
            for key, knot, lines, weighed in self._weighed(i, activation, here, {}):
                steep, rise = self._view(here, key, lines, "steep"), self._view(here, key, lines, "rise")
                part, *shifts = _ThroughChord.apply(weighed, steep, rise)
                ends = torch.stack(shifts)
                if knot:
                    ends = ends - knot * flat(part).sum(2)
                values = part if values is None else values + part
                both = ends if both is None else both + ends
            assert values is not None
            return values, both

        found, constant = self.graph.backward(start, through)
        middle, deviation = self._reach(found[0])
        constant = torch.as_tensor(constant, dtype=middle.dtype, device=middle.device)
        constants = constant if constant.ndim == 3 else torch.stack([constant.expand_as(middle)] * 2)
        return middle + constants[0] - deviation, middle + constants[1] + deviation, found[0], constants[0]

    def _reach(self, rows: Rows) -> tuple[Tensor, Tensor]:
        if self._box is None:
            return reach(self.region, rows)
        return rows.over(*self._box, self._tables)

    def _lines(self, key: Hinge, knot: float, sign: Tensor | None) -> _Hinge:
        if sign is None:
            return self._hinges[key]
        if key in self._signed:
            return self._signed[key]
        low, high = (end - knot for end in self.ends[key[0]])
        sign = sign[:, 0]
        low, high = torch.where(sign > 0, low.clamp(min=0), low), torch.where(sign < 0, high.clamp(max=0), high)
        lines = _hinge(low, high)
        if self._views is not None:
            self._signed[key] = lines
        return lines

    def _view(self, rows: Rows, key: Hinge, lines: _Hinge | _Line, name: str) -> Tensor:
        value = getattr(lines, name)
        if self._views is not None:
            if (key, name) not in self._views:
                self._views[key, name] = rows.view(value)
            return self._views[key, name]
        return rows.view(value, self._tables)

    def _first_piece(self, i: int, activation: PiecewiseLinear, rows: Rows) -> tuple[Tensor | None, Tensor | None]:
        """Return rows times the slope of the first piece, and times its constant; None where those are 0."""
        first = activation.first()
        if isinstance(first, float) and not first:
            values = None
        else:
            values = rows.values * rows.view(_full(first, rows.values, self.graph.nodes[i].shape))
        if not activation.offset:
            return values, None
        return values, activation.offset * flat(rows.inside(self.graph.nodes[i].shape[1:]).values).sum(2)

    def _weighed(
        self, i: int, activation: PiecewiseLinear, rows: Rows, signs: Mapping[Hinge, Tensor]
    ) -> Iterator[tuple[Hinge, float, _Hinge, Tensor]]:
        """Yield each hinge of an activation with its knot, its lines, and `rows` times its change of slope."""
        shape = self.graph.nodes[i].shape
        for h, (knot, change) in enumerate(activation.hinges()):
            if isinstance(change, Tensor):
                change = rows.view(_full(change, rows.values, shape))
            values = rows.inside(shape[1:]).values if knot else rows.values
            yield (i, h), knot, self._lines((i, h), knot, signs.get((i, h))), _times(values, change)

    def _through(self, i: int, activation: PiecewiseLinear, rows: Rows, choice: Choice) -> tuple[Tensor, Tensor | None]:
        """Return `rows` of an activation as rows of its input, and the constant that goes with them."""
        values, constant = self._first_piece(i, activation, rows)
        for key, knot, lines, weighed in self._weighed(i, activation, rows, choice.signs):
            sign, price, slope = (of.get(key) for of in (choice.signs, choice.multipliers, choice.slopes))
            steep, rise = self._view(rows, key, lines, "steep"), self._view(rows, key, lines, "rise")
            if slope is None:
                slope = self._view(rows, key, lines, "flat")
            elif not choice.fitting:
                slope = torch.where(self._view(rows, key, lines, "unstable"), slope, steep)
            part, shift = _Through.apply(weighed, slope, steep, rise)
            if key in choice.decided:
                choice.decided[key].apply(weighed, part, shift, rise)
            if price is not None and sign is not None:
                part = part - price * rows.view(sign[:, 0])
            if knot:
                shift = shift - knot * flat(part).sum(2)
            values = part if values is None else values + part
            constant = shift if constant is None else constant + shift
        assert values is not None
        return values, constant

    def _through_curved(self, i: int, activation: Curved, rows: Rows, choice: Choice) -> tuple[Tensor, Tensor]:
        """Return `rows` of a curved activation as rows of its input, and the constant that goes with them."""
        rows, lines = rows.inside(self.graph.nodes[i].shape[1:]), []
        for side, sign in enumerate((1, -1)):
            line, share = self._curves[i, side], choice.slopes.get((i, side))
            if share is None:
                lines += [self._view(rows, (i, side), line, name) for name in ("slope", "intercept")]
            else:
                low, high = (self._view(rows, (i, side), line, name) for name in ("low", "high"))
                lines += activation.chosen(share, low, high, sign)
        values, shift = _ThroughCurve.apply(rows.values, *lines)
        return values, shift

    def share(self, rows: Rows, key: Hinge) -> Tensor:
        """Return the share by which a curved activation's line is the one that it has without a choice."""
        activation, line = self.graph.activations[key[0]], self._curves[key]
        assert isinstance(activation, Curved)
        low, high, slope = (self._view(rows, key, line, name) for name in ("low", "high", "slope"))
        return activation.share(slope, low, high, 1 - 2 * key[1])


def _times(values: Tensor, factor: float | Tensor) -> Tensor:
    return values if isinstance(factor, float | int) and factor == 1 else values * factor


def _weighed(values: Tensor, weights: Tensor) -> Tensor:
    """Return each row times its weights [groups or 1, number or 1, *features], summed over the features."""
    return dot(values, weights) if weights.shape[1] == 1 else flat(values * weights).sum(2)


def _full(value: float | Tensor, like: Tensor, shape: torch.Size) -> Tensor:
    """Return a slope, a number or a parameter that broadcasts, as [1, *features]."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).expand(1, *shape)


class _Through(torch.autograd.Function):
    """Rows through lines: positive entries take the slope `low`, negative ones the line `steep` z + `rise`.

    Written out since autograd would keep five tensors of the rows' size for it; this keeps one. Products with masks,
    not `where`, and comparisons into numbers: with broadcast operands, or as booleans, they are ten times slower on a
    CPU.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, low: Tensor, steep: Tensor, rise: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.contiguous()  # of convolutions they come otherwise, and operands laid out alike are much faster
        ctx.save_for_backward(rows, low, steep, rise)
        negative = rows.clamp(max=0)
        shift = dot(negative, rise)
        if low.shape[1] == 1:
            return (rows * low).addcmul_(negative, steep - low), shift
        return (rows.clamp(min=0) * low).addcmul_(negative, steep), shift

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, steep, rise = ctx.saved_tensors
        grad, of_shift = grads[0].contiguous(), grads[1]
        needed = ctx.needs_input_grad
        of_rows = of_low = of_steep = of_rise = None
        if needed[0]:
            below = (of_shift[(...,) + (None,) * (rows.ndim - 2)] * rise).addcmul_(grad, steep)
            positive = torch.gt(rows, 0, out=torch.empty_like(rows))
            of_rows = summed(below.lerp_(grad * low, positive.expand_as(below)), rows)
        if needed[1]:
            of_low = summed(grad * rows.clamp(min=0), low)
        if needed[2] or needed[3]:
            negative = rows.clamp(max=0)
            of_steep = summed(grad * negative, steep)
            of_rise = weighed_sum(of_shift, negative, rise)
        return of_rows, of_low, of_steep, of_rise


class _ThroughCurve(torch.autograd.Function):
    """Rows through two lines: positive entries take the one below, negative ones the one above. Of an activation that
    joins values, slopes have an axis more, for these. Written out for the reasons of `_Through`."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, slope: Tensor, intercept: Tensor, slope_above: Tensor, intercept_above: Tensor
    ) -> tuple[Tensor, Tensor]:
        rows = rows.contiguous()
        ctx.save_for_backward(rows, slope, intercept, slope_above, intercept_above)
        positive, negative = rows.clamp(min=0), rows.clamp(max=0)
        shift = _weighed(positive, intercept) + _weighed(negative, intercept_above)
        if slope.ndim == rows.ndim:
            return (positive * slope).addcmul_(negative, slope_above), shift
        if slope.shape[-1] != 2:
            return (positive.unsqueeze(-1) * slope).addcmul_(negative.unsqueeze(-1), slope_above), shift
        # Each of two factors by itself, also in memory: loops over an axis of two are several times slower.
        values = rows.new_empty(2, *torch.broadcast_shapes(rows.shape, slope.shape[:-1], slope_above.shape[:-1]))
        for part, one, other in zip(values, slope.unbind(-1), slope_above.unbind(-1), strict=True):
            torch.mul(positive, one.contiguous(), out=part).addcmul_(negative, other.contiguous())
        return values.movedim(0, -1), shift

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, *lines = ctx.saved_tensors
        grad, of_shift = grads
        positive = rows > 0
        found: list[Tensor | None] = []
        of_rows = []
        of_shift = of_shift[(...,) + (None,) * (rows.ndim - 2)]
        joins = grad.ndim > rows.ndim
        for slope, intercept, half in zip(lines[::2], lines[1::2], (rows.clamp(min=0), rows.clamp(max=0)), strict=True):
            product = grad * slope
            of_rows.append((product.sum(-1) if joins else product) + of_shift * intercept)
            found.append(summed(grad * (half.unsqueeze(-1) if joins else half), slope))
            found.append(summed(of_shift * half, intercept))
        below, above = of_rows
        return summed(torch.where(positive, below, above), rows), *found


class _ThroughChord(torch.autograd.Function):
    """Rows through the chord's slope on both sides: rows times `steep`, and what is lost below and gained above by
    their entries' signs, times `rise`. Written out for the reasons of `_Through`, by whose two lines, both the chord,
    a step of the dual takes a third longer."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, steep: Tensor, rise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = rows.contiguous()
        ctx.save_for_backward(rows, steep, rise)
        below = dot(rows.clamp(max=0), rise)
        return rows * steep, below, dot(rows, rise) - below

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, steep, rise = ctx.saved_tensors
        grad, of_below, of_above = grads[0].contiguous(), grads[1], grads[2]
        needed = ctx.needs_input_grad
        of_rows = of_steep = of_rise = None
        if needed[0]:
            below, above = (of[(...,) + (None,) * (rows.ndim - 2)] for of in (of_below, of_above))
            positive = torch.gt(rows, 0, out=torch.empty_like(rows))
            of_rows = summed((positive * (above - below)).add_(below).mul_(rise).addcmul_(grad, steep), rows)
        if needed[1] or needed[2]:
            of_steep = summed(grad * rows, steep)
            of_rise = weighed_sum(of_above, rows, rise) + weighed_sum(of_below - of_above, rows.clamp(max=0), rise)
        return of_rows, of_steep, of_rise


def optimized(
    relaxation: Relaxation,
    rows: Tensor | Mapping[int, Rows],
    *,
    steps: int,
    start: Choice | None = None,
    rate: float = 0.5,
    enough: Tensor | float = torch.inf,
) -> tuple[Tensor, Choice]:
    """Return the best values found by gradient ascent over slopes and multipliers, [batch, rows], and the last choice.

    `start` gives the signs and where to begin. Stops early once every value exceeds `enough`. Every iterate is
    sound, so the best is.
    """
    start, relaxation = start or Choice(), relaxation.repeated()
    with torch.no_grad():
        lines = relaxation.below(rows, start)
    best = lines.value
    slopes, prices, pulls = _movable(relaxation, lines, start)
    moved = [*slopes.values(), *prices.values(), *pulls.values()]
    leaves = [one.value for one in moved]
    choice = Choice(_values(slopes), start.signs, _values(prices), _values(pulls), start.pull_limits, fitting=True)
    if leaves and steps:
        ascent = Ascent(moved, rate, decay=0.95)
        with torch.enable_grad():
            for _ in range(steps):
                if bool((best > enough).all()):
                    break
                check_time()
                # The first values are those of `start`; what is behind a step is taken with the next one.
                value = relaxation.below(rows, choice).value
                best = torch.fmax(best, value.detach())
                ascent.step(torch.autograd.grad(value.sum(), leaves, allow_unused=True))
        with torch.no_grad():
            best = torch.fmax(best, relaxation.below(rows, choice).value)
    return best, Choice(_fixed(slopes), start.signs, _fixed(prices), _fixed(pulls), start.pull_limits)


def _values(moved: Mapping[_K, Moved]) -> dict[_K, Tensor]:
    return {key: one.value for key, one in moved.items()}


def _fixed(moved: Mapping[_K, Moved]) -> dict[_K, Tensor]:
    return {key: one.value.detach() for key, one in moved.items()}


def _movable(
    relaxation: Relaxation, lines: Lines, start: Choice
) -> tuple[dict[Hinge, Moved], dict[Hinge, Moved], dict[int, Moved]]:
    """Return slopes and shares, multipliers and pulls, from where `start` has them, for rows that gave `lines`."""
    slopes: dict[Hinge, Moved] = {}
    prices: dict[Hinge, Moved] = {}
    batch, activations = len(lines.value), relaxation.graph.activations
    none, one, infinite = (lines.value.new_full((), number) for number in (0.0, 1.0, torch.inf))

    def leaf(first: Tensor, here: Rows) -> Tensor:
        return first.expand(batch, *here.values.shape[1:]).contiguous().clone().requires_grad_()

    for key, _, _ in relaxation.hinges():
        if key[0] not in lines.arriving:
            continue
        here, knot = lines.arriving[key[0]], activations[key[0]].hinges()[key[1]][0]
        hinge = relaxation._lines(key, knot, start.signs.get(key))
        if bool(hinge.unstable.any()):
            steep, unstable = (relaxation._view(here, key, hinge, name) for name in ("steep", "unstable"))
            first = start.slopes.get(key, relaxation._view(here, key, hinge, "flat"))
            limits = torch.where(unstable, 0.0, steep), torch.where(unstable, 1.0, steep)
            slopes[key] = Moved(leaf(torch.where(unstable, first, steep), here), *limits)
        if key in start.signs:
            prices[key] = Moved(leaf(start.multipliers.get(key, none), here), none, infinite)
    for key in relaxation._curves:
        if key[0] in lines.arriving:
            here = lines.arriving[key[0]]
            with torch.no_grad():
                first = start.slopes[key] if key in start.slopes else relaxation.share(here, key)
            slopes[key] = Moved(leaf(first, here), none, one, activations[key[0]].pace)
    pulls = {
        node: Moved(pull.detach().clone().requires_grad_(), *start.pull_limits[node])
        for node, pull in start.pulls.items()
    }
    return slopes, prices, pulls
