"""Branches at the knots of piecewise linear activations, with the bounds of beta-CROWN (Wang et al. 2021).

A branch says of some unstable hinges on which side of the knot their input is. One in which every hinge is decided is a
linear program, which stays open where proofs have to be rigorous.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from etb_plugin.graph.graph import Ends
from etb_plugin.graph.relaxation import Choice, Hinge, Relaxation, crown_slope
from etb_plugin.graph.rounding import are_rigorous
from etb_plugin.verification.branch import Branches, Tree
from etb_plugin.verification.exact import Decider


@dataclass
class _Decided(Branches):
    """The place of each branch's ends among those that the tree keeps [branches], signs [branches, units], slopes and
    multipliers [branches, rows, units]."""

    ends: Tensor
    signs: Tensor
    slopes: Tensor
    prices: Tensor


class HingeTree(Tree[_Decided]):
    """The search on the problem of a `decider`."""

    candidates = 24

    def __init__(self, decider: Decider) -> None:
        super().__init__(decider.network, decider.relaxation, decider.root, decider.problem)
        self.decider, relaxation = decider, decider.relaxation
        self.hinges: dict[Hinge, Tensor] = {}
        self.open: dict[Hinge, Tensor] = {}
        for key, low, high in relaxation.hinges():
            self.hinges[key] = low
            self.open[key] = ((low < 0) & (high > 0)).flatten().nonzero()[:, 0]
        self.units = sum(len(places) for places in self.open.values())
        self._kept = dict(relaxation.ends)

    @property
    def size(self) -> int:
        return sum(low.numel() for low in self.hinges.values())

    def relaxed(self, branches: _Decided) -> Relaxation:
        return self.relaxation.over(
            {i: (low[branches.ends], high[branches.ends]) for i, (low, high) in self._kept.items()}
        )

    def spread(self, flat: Tensor) -> dict[Hinge, Tensor]:
        """Return values of the open units [branches, rows, units] as one tensor for each hinge, 0 elsewhere."""
        parts = flat.split([len(places) for places in self.open.values()], 2)
        spread = {}
        for (key, places), part in zip(self.open.items(), parts, strict=True):
            shape = self.hinges[key].shape[1:]
            full = flat.new_zeros(*flat.shape[:2], shape.numel())
            full[:, :, places] = part
            spread[key] = full.unflatten(2, shape)
        return spread

    def gathered(self, spread: dict[Hinge, Tensor], like: Tensor) -> Tensor:
        """Return what `spread` was made of; where a hinge is missing, of `like`."""
        parts = like.split([len(places) for places in self.open.values()], 2)
        return torch.cat(
            [
                spread[key].flatten(2)[:, :, places] if key in spread else part
                for (key, places), part in zip(self.open.items(), parts, strict=True)
            ],
            2,
        )

    def choice(self, branches: _Decided) -> Choice:
        signs = self.spread(branches.signs.unsqueeze(1).to(branches.slopes))
        return Choice(self.spread(branches.slopes), signs, self.spread(branches.prices))

    def root_branches(self, parts: Tensor) -> _Decided:
        like = self.rows
        slopes = {key: crown_slope(low, high).unsqueeze(1) for key, low, high in self.relaxation.hinges()}
        shape = (len(parts), like.shape[1], self.units)
        none = torch.zeros_like(parts)
        return _Decided(
            parts,
            none,
            like.new_full((len(parts),), -torch.inf),
            none,
            torch.zeros(len(parts), self.units, dtype=torch.int8, device=like.device),
            self.gathered(slopes, like.new_zeros(1, 1, self.units)).expand(shape),
            like.new_zeros(shape),
        )

    def chosen(self, branches: _Decided, choice: Choice, above: Tensor) -> _Decided:
        slopes = self.gathered(dict(choice.slopes), branches.slopes)
        prices = self.gathered(dict(choice.multipliers), branches.prices)
        return replace(branches, slopes=slopes, prices=prices, above=above)

    def with_ends(self, branches: _Decided, ends: Ends) -> _Decided:
        """Keep the ends, and add the signs that follow from them."""
        first = len(next(iter(self._kept.values()))[0])
        for i, pair in ends.items():
            before = self._kept[i]
            self._kept[i] = torch.cat([before[0], pair[0]]), torch.cat([before[1], pair[1]])
        branches = replace(branches, ends=first + torch.arange(len(branches), device=branches.part.device))
        sides = {
            key: ((low >= 0).to(torch.int8) - ((low < 0) & (high <= 0)).to(torch.int8)).unsqueeze(1)
            for key, low, high in self.relaxed(branches).hinges()
        }
        implied = self.gathered(sides, branches.signs.unsqueeze(1))[:, 0]
        return replace(branches, signs=torch.where(branches.signs == 0, implied, branches.signs))

    def whole(self, branches: _Decided) -> Tensor:
        return (branches.signs != 0).all(1)

    def finish(self, leaf: _Decided, seconds: float) -> tuple[bool, Tensor | None]:
        if are_rigorous():  # a solver's answer is no proof in real arithmetic
            return False, None
        return self.decider.decide(int(leaf.part), seconds, integer=False, signs=leaf.signs[0].tolist())

    def cut(self, copies: _Decided, places: Tensor, upper: Tensor) -> _Decided:
        sign = torch.where(upper, 1, -1).to(copies.signs)
        return replace(copies, signs=copies.signs.scatter(1, places.unsqueeze(1), sign.unsqueeze(1)))

    def losses(self, branches: _Decided, arriving: dict[int, Tensor]) -> Tensor:
        losses: dict[Hinge, Tensor] = {}
        chosen = self.spread(branches.slopes.amax(1, keepdim=True))
        for key, low, high in self.relaxed(branches).hinges():
            i, h = key
            if i not in arriving:
                continue
            change = self.relaxation.graph.activations[i].hinges()[h][1]
            rows, slope = arriving[i] * change, chosen[key][:, 0]
            above = -rows.clamp(max=0) * high * -low / (high - low).clamp(min=1e-30)
            below = rows.clamp(min=0) * torch.maximum(slope * -low, (1 - slope) * high) / 2
            losses[key] = (above + below).unsqueeze(1)
        found = self.gathered(losses, branches.slopes.new_zeros(len(branches), 1, self.units))[:, 0]
        return found.masked_fill(branches.signs != 0, -1.0)
