"""Branches at the knots of piecewise linear activations, with the bounds of beta-CROWN (Wang et al. 2021).

A branch says of some unstable hinges on which side of the knot their input is. One in which every hinge is decided is a
linear program, which stays open where proofs have to be rigorous.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from etb_plugin.graph.activations import crown_slope
from etb_plugin.graph.ends import flat_ends, shaped_ends
from etb_plugin.graph.graph import Ends
from etb_plugin.graph.relaxation import Choice, Decided, Hinge
from etb_plugin.graph.rounding import are_rigorous
from etb_plugin.verification.branch import Branches, Tree
from etb_plugin.verification.exact import Decider

_BELOW = 1e-3
"""What a lower line may lose counts, of what an upper one does: its slope was optimised, and often loses nothing."""


@dataclass
class _Decided(Branches):
    """Signs [branches, open], slopes and multipliers [branches, rows, open] of the hinges that are open at the root."""

    signs: Tensor
    slopes: Tensor
    prices: Tensor


class HingeTree(Tree[_Decided]):
    """The search on the problem of a `decider`."""

    candidates = 8
    tightened_every, tightening_steps = 8, 0

    def __init__(self, decider: Decider) -> None:
        super().__init__(decider.network, decider.relaxation, decider.root, decider.problem)
        self.decider, relaxation = decider, decider.relaxation
        self.hinges: dict[Hinge, Tensor] = {}
        self.open: dict[Hinge, Tensor] = {}
        for key, low, high in relaxation.hinges():
            self.hinges[key] = low
            self.open[key] = ((low < 0) & (high > 0)).flatten().nonzero()[:, 0]
        self.units = sum(len(places) for places in self.open.values())

    @property
    def size(self) -> int:
        return sum(low.numel() for low in self.hinges.values())

    def ends(self, branches: _Decided) -> Ends:
        return shaped_ends(self.relaxation.graph, branches.low, branches.high)

    def of_units(self, ends: Ends) -> tuple[Tensor, Tensor]:
        return flat_ends(self.relaxation.graph, ends)

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
        low, high = (end.expand(len(parts), -1) for end in self.of_units(self.relaxation.ends))
        return _Decided(
            parts,
            torch.zeros_like(parts),
            like.new_full((len(parts),), -torch.inf),
            low,
            high,
            torch.zeros(len(parts), self.units, dtype=torch.int8, device=like.device),
            self.gathered(slopes, like.new_zeros(1, 1, self.units)).expand(shape),
            like.new_zeros(shape),
        )

    def chosen(self, branches: _Decided, choice: Choice, above: Tensor) -> _Decided:
        slopes = self.gathered(dict(choice.slopes), branches.slopes)
        prices = self.gathered(dict(choice.multipliers), branches.prices)
        return replace(branches, slopes=slopes, prices=prices, above=above)

    def implied(self, branches: _Decided) -> _Decided:
        """Add the signs that the ends tell."""
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

    def cut_values(self, branches: _Decided, places: Tensor) -> Tensor:
        # The halves differ from their branch by one unit in each row, and share all the rest with it.
        count, rows = places.shape[1], self.rows.shape[1]
        each = 2 * count * rows
        batch = torch.arange(len(branches), device=places.device).repeat_interleave(each)
        row = torch.arange(each, device=places.device).repeat(len(branches))
        place = places.repeat(1, 2).repeat_interleave(rows, 1).flatten()
        decided, first = {}, 0
        for key, open_ones in self.open.items():
            mine = ((place >= first) & (place < first + len(open_ones))).nonzero()[:, 0]
            unit = open_ones[place[mine] - first]
            decided[key] = Decided(batch[mine], row[mine], unit, row[mine] < count * rows)
            first += len(open_ones)
        chosen = self.choice(branches)
        if rows > 1:
            slopes, prices = (
                {key: value.repeat(1, 2 * count, *[1] * (value.ndim - 2)) for key, value in of.items()}
                for of in (chosen.slopes, chosen.multipliers)
            )
            chosen = replace(chosen, slopes=slopes, multipliers=prices)
        walked = self.rows[branches.part].repeat(1, 2 * count, 1)
        value = self.relaxed(branches).below(walked, replace(chosen, decided=decided)).value
        value = value.unflatten(1, (2, count, rows)) - self.most[branches.part][:, None, None]
        return value.amax(3).permute(1, 2, 0)

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
            losses[key] = (above + _BELOW * below).unsqueeze(1)
        found = self.gathered(losses, branches.slopes.new_zeros(len(branches), 1, self.units))[:, 0]
        return found.masked_fill(branches.signs != 0, -1.0)
