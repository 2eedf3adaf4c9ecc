"""Branches on the ranges of units, whatever the activations (Shi et al. 2024, GenBaB): one is cut in two.

For networks with curved activations; those with piecewise linear ones alone are decided faster by `hinges`. A branch
says of every value that an activation takes between which ends it lies. Its bound is a linear relaxation over those
ends, with optimised lines and with multipliers for the ends that cuts moved (as in beta-CROWN, Wang et al. 2021).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from etb_plugin.graph.activations import Curved, crown_slope
from etb_plugin.graph.affine import Pairs
from etb_plugin.graph.ends import Tightened
from etb_plugin.graph.graph import Ends
from etb_plugin.graph.relaxation import Choice, Hinge, Relaxation, ordered
from etb_plugin.verification.branch import Branches, Tree
from etb_plugin.verification.problem import Problem

_POINT = 1e-9
"""Width up to which a range is not cut any more."""


@dataclass
class _Cut(Branches):
    """Which ends of each branch's units cuts moved (1 the lower, 2 the upper, 3 both) [branches, units], lines' shares
    [branches, rows, lines] and multipliers [branches, rows, units]."""

    moved: Tensor
    shares: Tensor
    pulls: Tensor


class UnitTree(Tree[_Cut]):
    """The search on one problem. A unit is an element of a value that activations take; elements of pairs that are the
    same value are one."""

    candidates = 8
    tightened_every, tightening_steps = 5, 3

    def __init__(self, network: nn.Module, relaxation: Relaxation, root: Tightened, problem: Problem) -> None:
        super().__init__(network, relaxation, root, problem)
        graph = relaxation.graph
        self.readers: dict[int, list[int]] = {}
        for i in graph.activations:
            self.readers.setdefault(graph.nodes[i].inputs[0], []).append(i)
        self.units = 0
        self.unit_of: dict[int, Tensor] = {}
        self.first_of: dict[int, Tensor] = {}
        self.spans: dict[int, slice] = {}
        for source in self.readers:
            operation, count = graph.nodes[source].operation, graph.nodes[source].shape.numel()
            same = operation.alike.cpu() if isinstance(operation, Pairs) else torch.arange(count)
            first, number = same.unique(return_inverse=True)
            self.first_of[source] = first.to(self.rows.device)
            self.unit_of[source] = number.to(self.rows.device) + self.units
            self.spans[source] = slice(self.units, self.units + len(first))
            self.units += len(first)
        self.lines = {
            (i, h): graph.nodes[i].shape
            for i, activation in graph.activations.items()
            for h in range(2 if isinstance(activation, Curved) else len(activation.hinges()))
        }

    @property
    def size(self) -> int:
        return self.units + sum(shape.numel() for shape in self.lines.values())

    def ends(self, branches: _Cut) -> Ends:
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for source, readers in self.readers.items():
            index, shape = self.unit_of[source], self.relaxation.graph.nodes[source].shape
            pair = branches.low[:, index].unflatten(1, shape), branches.high[:, index].unflatten(1, shape)
            found.update(dict.fromkeys(readers, pair))
        return found

    def of_units(self, ends: Ends) -> tuple[Tensor, Tensor]:
        branches = max(len(low) for low, _ in ends.values())
        low = self.rows.new_full((branches, self.units), -torch.inf)
        high = -low
        for source, readers in self.readers.items():
            index = self.unit_of[source].expand(branches, -1)
            for i in readers:
                below, above = (end.expand(branches, *end.shape[1:]).flatten(1) for end in ends[i])
                low = low.scatter_reduce(1, index, below, "amax")
                high = high.scatter_reduce(1, index, above, "amin")
        return ordered(low, high)

    def choice(self, branches: _Cut) -> Choice:
        pulls, limits = {}, {}
        least = torch.where(branches.moved & 1 > 0, -torch.inf, 0.0).to(branches.low).unsqueeze(1)
        most = torch.where(branches.moved & 2 > 0, torch.inf, 0.0).to(branches.low).unsqueeze(1)
        for source, span in self.spans.items():
            if bool(branches.moved[:, span].any()):
                pulls[source] = self._at(source, branches.pulls[:, :, span])
                limits[source] = self._at(source, least[:, :, span]), self._at(source, most[:, :, span])
        shares = {key: part.unflatten(2, self.lines[key]) for key, part in self._parts(branches.shares).items()}
        return Choice(shares, pulls=pulls, pull_limits=limits)

    def _parts(self, shares: Tensor) -> dict[Hinge, Tensor]:
        return dict(zip(self.lines, shares.split([shape.numel() for shape in self.lines.values()], 2), strict=True))

    def _flat(self, shares: Mapping[Hinge, Tensor], like: Tensor) -> Tensor:
        """Return shares of lines as one tensor, and what is missing as in `like`."""
        parts = self._parts(like)
        for key, share in shares.items():
            parts[key] = share.expand(*like.shape[:2], *self.lines[key]).flatten(2)
        return torch.cat([*parts.values()], 2)

    def _at(self, source: int, units: Tensor) -> Tensor:
        """Return values of a node's units [branches, rows, units] as values of the node, 0 at elements that repeat a
        unit."""
        shape, first = self.relaxation.graph.nodes[source].shape, self.first_of[source]
        if len(first) < shape.numel():
            full = units.new_zeros(*units.shape[:2], shape.numel())
            full[:, :, first] = units
            units = full
        return units.unflatten(2, shape)

    def root_branches(self, parts: Tensor) -> _Cut:
        low, high = (end.expand(len(parts), -1) for end in self.of_units(self.relaxation.ends))
        lines = self.relaxation.below(self.rows[parts])
        shares = {key: crown_slope(below, above).unsqueeze(1) for key, below, above in self.relaxation.hinges()}
        for key in self.lines.keys() - shares.keys():
            if key[0] in lines.arriving:
                shares[key] = self.relaxation.share(lines.arriving[key[0]], key)
        start = low.new_full((*lines.value.shape, self.size - self.units), 0.5)
        return _Cut(
            parts,
            torch.zeros_like(parts),
            low.new_full((len(parts),), -torch.inf),
            low,
            high,
            torch.zeros_like(low, dtype=torch.int8),
            self._flat(shares, start),
            low.new_zeros(*lines.value.shape, self.units),
        )

    def chosen(self, branches: _Cut, choice: Choice, above: Tensor) -> _Cut:
        pulls = branches.pulls.clone()
        for source, pull in choice.pulls.items():
            pulls[:, :, self.spans[source]] = pull.flatten(2)[:, :, self.first_of[source]]
        return replace(branches, shares=self._flat(choice.slopes, branches.shares), pulls=pulls, above=above)

    def whole(self, branches: _Cut) -> Tensor:
        return ~(branches.high - branches.low > _POINT).any(1)

    def finish(self, leaf: _Cut, seconds: float) -> tuple[bool, Tensor | None]:
        return False, None

    def cut(self, copies: _Cut, places: Tensor, upper: Tensor) -> _Cut:
        at = torch.arange(len(copies), device=places.device), places
        point = self._points(copies)[at]
        low, high, moved = copies.low.clone(), copies.high.clone(), copies.moved.clone()
        low[at] = torch.where(upper, point, low[at])
        high[at] = torch.where(upper, high[at], point)
        moved[at] |= torch.where(upper, 1, 2).to(moved)
        return replace(copies, low=low, high=high, moved=moved)

    def _points(self, branches: _Cut) -> Tensor:
        """Return where each unit would be cut, [branches, units]: at a knot inside its range, else in the middle."""
        points = (branches.low + branches.high) / 2
        for source, readers in self.readers.items():
            span = self.spans[source]
            low, high = branches.low[:, span], branches.high[:, span]
            for i in readers:
                point = self.relaxation.graph.activations[i].cut(low, high)
                points[:, span] = torch.where(point == (low + high) / 2, points[:, span], point)
        return points

    def losses(self, branches: _Cut, arriving: dict[int, Tensor]) -> Tensor:
        """Return how much each unit's relaxation may lose, [branches, units]: what the rows make of the gap between
        two parallel lines."""
        losses = torch.zeros_like(branches.low)
        graph = self.relaxation.graph
        for i, (low, high) in self.ends(branches).items():
            if i not in arriving:
                continue
            _, below, above = graph.activations[i].parallel(low, high)
            loss = arriving[i].abs() * (above - below)
            if graph.activations[i].joins:
                width = high - low
                loss = loss.unsqueeze(-1) * width / width.amax(-1, keepdim=True).clamp(min=_POINT)
            losses.index_add_(1, self.unit_of[graph.nodes[i].inputs[0]], torch.nan_to_num(loss, nan=0.0).flatten(1))
        return losses.masked_fill(~(branches.high - branches.low > _POINT), -1.0)
