"""Branch and bound on the input: a box is cut in two where its linear bounds depend on it most, many boxes at a time.

For few inputs, whatever the network: as boxes shrink, CROWN becomes exact. Each box is cut down to what its linear
bounds leave of the unsafe parts (as in interval constraint propagation), and dropped where nothing is left; the ends of
its units hold in both halves. The worst come first, as a counterexample is met there; points are tried where the bounds
are attained.
"""

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from etb_plugin.attacks import Pgd
from etb_plugin.errors import OutOfTime
from etb_plugin.graph.ends import crown_ends, flat_ends, shaped_ends
from etb_plugin.graph.graph import Graph
from etb_plugin.graph.regions import Box
from etb_plugin.graph.relaxation import Relaxation
from etb_plugin.graph.rounding import are_rigorous, gamma
from etb_plugin.memory import fitting
from etb_plugin.stopping import check_time, until
from etb_plugin.verification.problem import TOLERANCE, Problem, Search
from etb_plugin.verification.waiting import Waiting

_UNITS_AT_ONCE = 2**19
"""Units, times rows of the property, of the boxes that are bounded together."""
_ATTACKED_EVERY, _ATTACKED_AT_ONCE = 8, 64
"""Rounds after which the problem's box is attacked from the centres of the worst boxes, and in each of so many first
ones; and from how many boxes."""
_ATTACK = Pgd(steps=30, step=0.1)
_EVEN = 0.05
"""What an input counts for that the bounds do not depend on, of the one that they depend on most: every input is cut at
last."""
_POINT = 1e-12
"""Width up to which a box is not cut any more."""


@dataclass
class _Boxes(Waiting):
    """Boxes [boxes, inputs] in waiting, which unsafe parts are open in each [boxes, parts], how far above its limit the
    worst of them is [boxes], and ends of all activations' inputs that hold there [boxes, units]."""

    lower: Tensor
    upper: Tensor
    open: Tensor
    above: Tensor
    low: Tensor
    high: Tensor


class _Split:
    """The search on one problem."""

    def __init__(self, network: nn.Module, graph: Graph, problem: Problem) -> None:
        self.network, self.graph, self.problem = network, graph, problem
        self.rows = torch.cat([part.rows for part in problem.unsafe])
        self.most = torch.cat([part.most for part in problem.unsafe])
        self.units = sum(graph.nodes[graph.nodes[i].inputs[0]].shape.numel() for i in graph.activations)
        self.at_once = max(4, min(4096, fitting(_UNITS_AT_ONCE) // max(1, self.units * len(self.rows))))
        self.witness: Tensor | None = None

    def whole(self, parts: Tensor) -> _Boxes:
        """Return the problem's box, with its unsafe `parts` (indices) open."""
        lower, upper = self.problem.box.lower.flatten(1), self.problem.box.upper.flatten(1)
        asked = torch.zeros(1, len(self.problem.unsafe), dtype=torch.bool, device=lower.device)
        asked[0, parts] = True
        nothing = lower.new_full((1, self.units), torch.inf)
        return _Boxes(lower, upper, asked, lower.new_full((1,), -torch.inf), -nothing, nothing)

    def bounded(self, boxes: _Boxes) -> tuple[_Boxes, Tensor]:
        """Return what is left of boxes, and how much the bounds depend on each input there, [boxes, inputs]. May find a
        counterexample."""
        ends = shaped_ends(self.graph, boxes.low, boxes.high)
        if bool(boxes.low.isfinite().all()):  # what the larger box's ends prove needs no rows of units
            boxes, _ = self._left(boxes, Relaxation(self.graph, self._region(boxes), ends))
            ends = shaped_ends(self.graph, boxes.low, boxes.high)
        if not len(boxes):
            return boxes, boxes.lower
        region = self._region(boxes)
        found = crown_ends(self.graph, region, within=ends).ends
        low, high = flat_ends(self.graph, found)
        return self._left(replace(boxes, low=low, high=high), Relaxation(self.graph, region, found))

    def _region(self, boxes: _Boxes) -> Box:
        shape = self.problem.box.shape
        return Box(boxes.lower.unflatten(1, shape), boxes.upper.unflatten(1, shape), ordered=True)

    def _left(self, boxes: _Boxes, relaxation: Relaxation) -> tuple[_Boxes, Tensor]:
        """Return what the linear bounds of a relaxation leave, and how much they depend on each input there."""
        lines = relaxation.below(self.rows.expand(len(boxes), *self.rows.shape))
        above = lines.value - self.most  # [boxes, rows]
        slopes = lines.coefficients.flatten(2).expand(len(boxes), -1, -1)
        region = relaxation.region
        assert isinstance(region, Box)
        self.look(torch.cat([lines.minimizer(region).flatten(0, 1), region.center]))
        nearest = torch.stack([part.amax(1) for part in above.split(self.problem.form, 1)], 1)
        lower, upper, empty = self._cut_down(boxes, slopes, above)
        still = boxes.open & ~(nearest > TOLERANCE) & ~empty
        # Where several parts are open, what is left of the box is what any of them leaves.
        wide = still.unsqueeze(2)
        weight = torch.stack([part.abs().amax(1) for part in slopes.split(self.problem.form, 1)], 1)
        left = still.any(1).nonzero()[:, 0]
        found = replace(
            boxes,
            lower=torch.where(wide, lower, torch.inf).amin(1),
            upper=torch.where(wide, upper, -torch.inf).amax(1),
            open=still,
            above=torch.where(still, nearest, torch.inf).amin(1),
        )[left]
        return found, torch.where(wide, weight, 0.0).amax(1)[left] * (found.upper - found.lower)

    def _cut_down(self, boxes: _Boxes, slopes: Tensor, above: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return for each unsafe part the box in which its rows can be reached by their linear bounds, [boxes, parts,
        inputs], and where it is empty, [boxes, parts].

        A row is unsafe only where slope . x + constant <= most. Its least value over the box lies `above` the limit
        by v <= 0; along one input alone it may rise by no more than -v.
        """
        width = (boxes.upper - boxes.lower).unsqueeze(1)
        room = (TOLERANCE - above).clamp(min=0).unsqueeze(2)
        cut, steps = slopes.abs() * width > room, room / slopes.abs().clamp(min=1e-300)
        first, last = boxes.lower.unsqueeze(1), boxes.upper.unsqueeze(1)
        if are_rigorous():
            steps = steps + gamma() * (steps + first.abs() + last.abs())
        up = torch.where(cut & (slopes > 0), first + steps, last)
        low = torch.where(cut & (slopes < 0), last - steps, first)
        lows, ups = [], []
        for first, last in zip(low.split(self.problem.form, 1), up.split(self.problem.form, 1), strict=True):
            lows.append(first.amax(1))
            ups.append(last.amin(1))
        lower, upper = torch.stack(lows, 1), torch.stack(ups, 1)
        return lower, upper, (lower > upper).any(2)

    def look(self, points: Tensor) -> None:
        """Keep the first of `points` [points, *input] that is unsafe."""
        found = self.problem.met(self.network, points)
        if found is not None:
            self.witness = found

    @torch.no_grad()
    def attack(self, boxes: _Boxes) -> None:
        """Look at what projected gradient descent over the whole box meets from the centres of some boxes."""
        points = self._region(boxes).center[:_ATTACKED_AT_ONCE]
        self.look(self.problem.polished(self.network, points, _ATTACK))

    def halves(self, boxes: _Boxes, influence: Tensor) -> _Boxes:
        """Return both halves of each box."""
        width = boxes.upper - boxes.lower
        share = width / (self.problem.box.upper - self.problem.box.lower).flatten(1).clamp(min=1e-300)
        weight, even = (one / one.amax(1, keepdim=True).clamp(min=1e-300) for one in (influence, share))
        at = torch.maximum(weight, _EVEN * even).argmax(1, keepdim=True)  # never one that does not move
        middle = (boxes.lower.gather(1, at) + boxes.upper.gather(1, at)) / 2
        below = replace(boxes, upper=boxes.upper.scatter(1, at, middle))
        return below.joined(replace(boxes, lower=boxes.lower.scatter(1, at, middle)))


@torch.no_grad()
def split_inputs(network: nn.Module, graph: Graph, problem: Problem, parts: Tensor, deadline: float) -> Search:
    """Cut the input until each of the problem's unsafe `parts` (indices) is proved unreachable, a counterexample is
    met, or `time.monotonic()` reaches `deadline`.

    Network, graph and problem are of one dtype.
    """
    search = _Split(network, graph, problem)
    queue = search.whole(parts)
    left = torch.zeros_like(queue.open[0])  # parts that stay open where there is nothing more to cut
    for rounds in itertools.count():
        if not len(queue):
            break
        order = queue.order()
        now, queue = queue[order[: search.at_once]], queue[order[search.at_once :]]
        try:
            with until(deadline):
                check_time()
                if rounds < _ATTACKED_EVERY or rounds % _ATTACKED_EVERY == 0:
                    search.attack(now)
                found, influence = search.bounded(now)
        except OutOfTime:
            queue = queue.joined(now)
            break
        if search.witness is not None:
            return Search(parts[:0], search.witness)
        wide = (found.upper - found.lower).amax(1) > _POINT
        left |= found.open[~wide].any(0)
        queue = queue.joined(search.halves(found[wide.nonzero()[:, 0]], influence[wide]))
    left |= queue.open.any(0)
    return Search(torch.tensor([p for p in parts.tolist() if not bool(left[p])], dtype=torch.long), None)
