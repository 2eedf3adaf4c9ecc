"""Linear relaxations of a graph over a box, walked backward: CROWN with slopes, splits and multipliers of one's own.

This is what the complete verifiers stand on: the pre-activation ends from which programs and branches start, and the
bounds of a branch. auto_LiRPA's CROWN gives the same numbers (tested); here the rows, the slopes and the splits of
every subproblem are one batch. Each hinge max(z - knot, 0) of an activation is relaxed by itself, so that leaky and
clipped activations need no case of their own.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from etb_plugin.graph.activations import PiecewiseLinear
from etb_plugin.graph.graph import Graph
from etb_plugin.graph.regions import Region

Hinge = tuple[int, int]
"""An activation's position in the graph, and the number of one of its hinges."""
Ends = Mapping[int, tuple[Tensor, Tensor]]
"""Lower and upper ends of each activation's input, [batch, *features], by the activation's position."""

_ROUNDING = 1e-9
"""How far apart, relative to their size, two ends of a point may be rounded in float64."""
_VALUES_AT_ONCE = 2**25
"""Elements that the rows of one pass may hold at one node."""


@dataclass(frozen=True)
class Choice:
    """What a relaxation may choose for the hinges, each [batch, rows or 1, *features]; a hinge may be missing.

    `slopes` are those of the lower lines, in [0, 1]: any choice is sound; CROWN's is the default. `signs` are the
    branch: +1 where z >= knot, -1 where z <= knot is taken as given, 0 elsewhere. `multipliers` >= 0 price them
    (beta-CROWN, Wang et al. 2021, equation 8): any choice is sound on the branch.
    """

    slopes: Mapping[Hinge, Tensor] = field(default_factory=dict)
    signs: Mapping[Hinge, Tensor] = field(default_factory=dict)
    multipliers: Mapping[Hinge, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Lines:
    """Linear functions of the input below the rows: `value` is their least one over the region, [batch, rows], and
    `coefficients` [batch or 1, rows, *input]. `arriving` holds the rows as they came to each activation."""

    value: Tensor
    coefficients: Tensor
    arriving: Mapping[int, Tensor]

    def minimizer(self, region: Region) -> Tensor:
        """Return the corner of a box at which each function is least, [batch, rows, *input]."""
        center, radius = region.center.unsqueeze(1), region.radius.unsqueeze(1)
        return center - radius * self.coefficients.sign()


def crown_slope(low: Tensor, high: Tensor) -> Tensor:
    """Return CROWN's own slope of a lower line (Zhang et al. 2018): 1 where more of the range lies above the knot."""
    return (high > -low).to(low)


class Relaxation:
    """A graph relaxed over a region, once the ends of all its activations are known."""

    def __init__(self, graph: Graph, region: Region, ends: Ends) -> None:
        self.graph, self.region, self.ends = graph, region, ends
        zeros = [region.center.new_zeros(1, *node.shape) for node in graph.nodes]
        self.constants = {
            i: node.operation.forward(*(zeros[j] for j in node.inputs))
            for i, node in enumerate(graph.nodes)
            if node.operation is not None and not isinstance(node.operation, PiecewiseLinear)
        }

    def over(self, ends: Ends) -> "Relaxation":
        """Return the same with other ends."""
        other = copy.copy(self)
        other.ends = ends
        return other

    def hinges(self) -> Iterator[tuple[Hinge, Tensor, Tensor]]:
        """Yield each hinge whose ends are known with those of z - knot, [batch, *features]."""
        for i, (low, high) in self.ends.items():
            for h, (knot, _) in enumerate(self.graph.activations[i].hinges()):
                yield (i, h), low - knot, high - knot

    def below(self, rows: Tensor, choice: Choice | None = None, position: int | None = None) -> Lines:
        """Return linear functions of the input that lie below `rows` of the node at `position` (the last).

        Shapes: rows [batch or 1, rows, *features of the node].
        """
        choice = choice or Choice()
        at = len(self.graph.nodes) - 1 if position is None else position
        pending, arriving = {at: rows}, {}
        constant = rows.new_zeros(rows.shape[:2])
        for i in range(at, 0, -1):
            if i not in pending:
                continue
            node, here = self.graph.nodes[i], pending.pop(i)
            if isinstance(node.operation, PiecewiseLinear):
                arriving[i] = here
                leaving, shift = self._through(i, node.operation, here, choice)
                parts = [leaving]
            else:
                assert node.operation is not None
                parts = node.operation.transpose(here, [self.graph.nodes[j].shape for j in node.inputs])
                shift = (here.flatten(2) @ self.constants[i].flatten(1).unsqueeze(2)).squeeze(2)
            constant = constant + shift
            for j, part in zip(node.inputs, parts, strict=True):
                pending[j] = pending[j] + part if j in pending else part
        coefficients = pending.get(0, rows.new_zeros(*rows.shape[:2], *self.graph.nodes[0].shape))
        middle = (coefficients.flatten(2) @ self.region.center.flatten(1).unsqueeze(2)).squeeze(2)
        return Lines(middle + constant - self.region.deviation(coefficients), coefficients, arriving)

    def _through(self, i: int, activation: PiecewiseLinear, rows: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
        """Return `rows` of an activation as rows of its input, and the constant that goes with them."""
        low, high = (end.unsqueeze(1) for end in self.ends[i])
        leaving = rows * activation.first()
        constant = (rows * activation.offset).flatten(2).sum(2)
        for h, (knot, change) in enumerate(activation.hinges()):
            lo, hi = low - knot, high - knot
            sign, price = choice.signs.get((i, h)), choice.multipliers.get((i, h))
            if sign is not None:
                lo, hi = torch.where(sign > 0, lo.clamp(min=0), lo), torch.where(sign < 0, hi.clamp(max=0), hi)
            below_knot, beyond = lo.clamp(max=0), hi.clamp(min=0)
            steep = beyond / (beyond - below_knot).clamp(min=1e-30)  # 1 where on, 0 where off
            unstable = (lo < 0) & (hi > 0)
            slope = choice.slopes.get((i, h))
            flat = torch.where(unstable, crown_slope(lo, hi) if slope is None else slope, steep)
            weighed = rows * change
            positive, negative = weighed.clamp(min=0), weighed.clamp(max=0)
            through = positive * flat + negative * steep
            if price is not None and sign is not None:
                through = through - price * sign
            leaving = leaving + through
            constant = constant - (through * knot + negative * steep * below_knot).flatten(2).sum(2)
        return leaving, constant


@dataclass(frozen=True)
class Tightened:
    """The ends of every activation's input; which branches are empty, [branches]; and the lower slopes that gave the
    ends: for each activation the units that were bounded, and slopes [1, 2 x units, *features], lower sides first.
    Without optimisation there are none."""

    ends: dict[int, tuple[Tensor, Tensor]]
    empty: Tensor
    slopes: dict[int, tuple[Tensor, Mapping[Hinge, Tensor]]]


def crown_ends(graph: Graph, region: Region, *, steps: int = 0) -> Tightened:
    """Return the ends of every activation's input: interval arithmetic's, then CROWN's where a unit is unstable.

    With `steps` the lower slopes of each unit's own bound are optimised by so many steps (alpha-CROWN). Cost: two
    backward passes for every unit that interval arithmetic leaves unstable, and three times `steps` more with steps.
    """
    middle = graph.intervals(region.center, region.radius)
    inputs = {i: middle[graph.nodes[i].inputs[0]] for i in graph.activations}
    known = {i: (center - radius, center + radius) for i, (center, radius) in inputs.items()}
    return tightened(Relaxation(graph, region, known), Choice(), steps=steps)


def tightened(relaxation: Relaxation, choice: Choice, *, steps: int, start: Tightened | None = None) -> Tightened:
    """Return the ends of branches, given by the signs of `choice` [branches, 1, *features], from those of
    `relaxation`, which hold for them too. A branch is empty where a lower end lies above the upper one.

    `start` gives slopes to begin with; slopes and multipliers are optimised by `steps` steps.
    """
    graph, region, known = relaxation.graph, relaxation.region, relaxation.ends
    batch = max(len(low) for low, _ in known.values()) if known else len(region)
    widest = max(node.shape.numel() for node in graph.nodes)
    ends: dict[int, tuple[Tensor, Tensor]] = {}
    slopes: dict[int, tuple[Tensor, Mapping[Hinge, Tensor]]] = {}
    empty = torch.zeros(batch, dtype=torch.bool, device=region.center.device)
    for i, activation in graph.activations.items():
        low, high = (end.expand(batch, *end.shape[1:]).clone() for end in known[i])
        before, at = relaxation.over(dict(ends)), graph.nodes[i].inputs[0]
        units = _unstable(activation, i, low, high, choice)
        if start is not None and i in start.slopes:
            units = units[torch.isin(units, start.slopes[i][0])]
        at_once = max(1, _VALUES_AT_ONCE // (2 * widest * batch))
        for some in units.split(at_once) if len(units) else ():  # no rows at all crash some of torch's backward passes
            rows = F.one_hot(some, low[0].numel()).to(low).view(1, -1, *low.shape[1:])
            both = torch.cat([rows, -rows], 1)
            mine = Choice(_chosen(start, i, some), choice.signs)
            value = before.below(both, mine, at).value
            if steps:
                better, found = optimized(before, both, steps=steps, position=at, start=mine)
                value = torch.maximum(value, better)
                if start is None and len(some) == len(units):
                    slopes[i] = units, found.slopes
            lower, negated = value.expand(batch, -1).chunk(2, 1)
            low.flatten(1)[:, some] = torch.maximum(low.flatten(1)[:, some], lower)
            high.flatten(1)[:, some] = torch.minimum(high.flatten(1)[:, some], -negated)
        empty |= (low > high + _ROUNDING * (1 + high.abs())).flatten(1).any(1)
        ends[i] = torch.minimum(low, high), torch.maximum(low, high)  # rounded apart where a range is a point
    return Tightened(ends, empty, slopes)


def _unstable(activation: PiecewiseLinear, i: int, low: Tensor, high: Tensor, choice: Choice) -> Tensor:
    """Return the units of an activation that some branch leaves undecided and unstable."""
    found = torch.zeros_like(low[0], dtype=torch.bool)
    for h, (knot, _) in enumerate(activation.hinges()):
        sign = choice.signs.get((i, h))
        undecided = torch.ones_like(low, dtype=torch.bool) if sign is None else sign[:, 0] == 0
        found |= (undecided & (low < knot) & (high > knot)).any(0)
    return found.flatten().nonzero()[:, 0]


def _chosen(start: Tightened | None, i: int, units: Tensor) -> Mapping[Hinge, Tensor]:
    """Return the slopes that `start` has for the rows of some units of an activation."""
    if start is None or i not in start.slopes:
        return {}
    known, slopes = start.slopes[i]
    place = torch.searchsorted(known, units)
    both = torch.cat([place, place + len(known)])
    return {key: values[:, both] for key, values in slopes.items()}


def optimized(
    relaxation: Relaxation,
    rows: Tensor,
    *,
    steps: int,
    position: int | None = None,
    start: Choice | None = None,
    rate: float = 0.1,
    enough: Tensor | float = torch.inf,
) -> tuple[Tensor, Choice]:
    """Return the best values found by gradient ascent over slopes and multipliers, [batch, rows], and the last choice.

    `start` gives the signs and where to begin. Stops early once every value exceeds `enough`. Every iterate is
    sound, so the best is.
    """
    start = start or Choice()
    slopes: dict[Hinge, Tensor] = {}
    prices: dict[Hinge, Tensor] = {}
    batch = max(len(relaxation.region), len(rows), *(len(low) for low, _ in relaxation.ends.values()))
    at = len(relaxation.graph.nodes) - 1 if position is None else position
    for key, low, high in relaxation.hinges():
        if key[0] < at and bool(((low < 0) & (high > 0)).any()):
            first = start.slopes.get(key, crown_slope(low, high).unsqueeze(1))
            slopes[key] = first.expand(batch, rows.shape[1], *low.shape[1:]).clone().requires_grad_()
        if key in start.signs:
            price = start.multipliers.get(key, torch.zeros_like(start.signs[key], dtype=rows.dtype))
            prices[key] = price.expand(batch, rows.shape[1], *price.shape[2:]).clone().requires_grad_()
    best = torch.full((batch, rows.shape[1]), -torch.inf, dtype=rows.dtype, device=rows.device)
    groups = [{"params": list(slopes.values()), "lr": rate}, {"params": list(prices.values()), "lr": rate}]
    optimizer = torch.optim.Adam([g for g in groups if g["params"]]) if slopes or prices else None
    with torch.enable_grad():
        for step in range(steps + 1):
            value = relaxation.below(rows, Choice(slopes, start.signs, prices), position).value
            best = torch.maximum(best, value.detach())
            if optimizer is None or step == steps or bool((best > enough).all()):
                break
            optimizer.zero_grad()
            (-value.sum()).backward()
            optimizer.step()
            with torch.no_grad():
                for slope in slopes.values():
                    slope.clamp_(0, 1)
                for price in prices.values():
                    price.clamp_(min=0)
            for group in optimizer.param_groups:
                group["lr"] *= 0.95
    fixed, priced = ({k: v.detach() for k, v in values.items()} for values in (slopes, prices))
    return best, Choice(fixed, start.signs, priced)
