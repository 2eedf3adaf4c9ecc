"""Branch and bound on ReLU splits, with the bounds of beta-CROWN (Wang et al. 2021), many branches at a time.

A branch says of some unstable hinges on which side of the knot their input is. Its bound is a linear relaxation with
optimised slopes and multipliers; branches are split at the hinge whose two halves gain most, of those that the
relaxation loses most at (after filtered smart branching, De Palma et al. 2021); the ends of a deep branch's units are
tightened anew (ours), and a branch in which every hinge is decided is a linear program, which stays open where proofs
have to be rigorous. Every bound is sound on its branch, so that what is left when time is up is unknown.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from etb_plugin.attacks import Pgd
from etb_plugin.graph.ends import tightened
from etb_plugin.graph.relaxation import Choice, Hinge, Relaxation, crown_slope, optimized
from etb_plugin.graph.rounding import are_rigorous
from etb_plugin.memory import fitting
from etb_plugin.verification.exact import Decider
from etb_plugin.verification.problem import TOLERANCE, Search

_VALUES_AT_ONCE = 2**21
"""Units that the branches of one step may hold together."""
_CANDIDATES = 24
"""Hinges of a branch that are tried before one is split."""
_LEAST_GAIN = 1e-4
"""What a half counts for that gains nothing."""
_ROOT_STEPS, _STEPS = 40, 12
"""Steps of gradient ascent at the root and in a branch."""
_ATTACKED_EVERY, _ATTACKED_AT_ONCE = 8, 64
"""Rounds after which the points where the worst branches' bounds are attained are attacked from, and how many."""
_ATTACK = Pgd(steps=20, step=0.1)
_TIGHTENED_EVERY = 5
"""Splits after which the ends of a branch's units are computed anew: dear, and worth many splits."""
_TIGHTENING_STEPS, _TIGHTENED_AT_ONCE = 3, 32
"""Steps of gradient ascent for those ends, and how many branches take them together."""


@dataclass
class _Branches:
    """Branches side by side: the unsafe part that each is about, the place of its ends among those that the tree keeps
    and the splits since they were tightened, signs [branches, units], slopes and multipliers [branches, rows, units],
    and how far its best row is proved to lie above its limit."""

    part: Tensor
    ends: Tensor
    age: Tensor
    signs: Tensor
    slopes: Tensor
    prices: Tensor
    above: Tensor

    def __getitem__(self, index: Tensor) -> "_Branches":
        return _Branches(*(value[index] for value in vars(self).values()))

    def __len__(self) -> int:
        return len(self.part)

    @property
    def open(self) -> Tensor:
        """Which are not proved, [branches]: a bound that is no number proves nothing."""
        return ~(self.above > TOLERANCE)

    def joined(self, other: "_Branches") -> "_Branches":
        mine, theirs = vars(self).values(), vars(other).values()
        return _Branches(*(torch.cat(pair) for pair in zip(mine, theirs, strict=True)))

    def each(self) -> Iterator["_Branches"]:
        return (self[torch.tensor([i], device=self.part.device)] for i in range(len(self)))


class _Tree:
    """One problem's search. `rows` [parts, rows, outputs] and `most` [parts, rows]; a shorter part repeats a row."""

    def __init__(self, decider: Decider) -> None:
        self.decider, problem, relaxation = decider, decider.problem, decider.relaxation
        self.relaxation = relaxation
        self.hinges: dict[Hinge, Tensor] = {}
        self.open: dict[Hinge, Tensor] = {}
        for key, low, high in relaxation.hinges():
            self.hinges[key] = low
            self.open[key] = ((low < 0) & (high > 0)).flatten().nonzero()[:, 0]
        self.units = sum(len(places) for places in self.open.values())
        widest = max(len(part.rows) for part in problem.unsafe)
        self.rows = torch.stack([_padded(part.rows, widest) for part in problem.unsafe])
        self.most = torch.stack([_padded(part.most, widest) for part in problem.unsafe])
        self._kept = dict(relaxation.ends)
        features = sum(low.numel() for low in self.hinges.values())
        self.at_once = max(2, min(512, fitting(_VALUES_AT_ONCE) // (features * widest)))

    def relaxed(self, branches: _Branches) -> Relaxation:
        """Return the relaxation over the branches' own ends."""
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

    def choice(self, branches: _Branches) -> Choice:
        signs = self.spread(branches.signs.unsqueeze(1).to(branches.slopes))
        return Choice(self.spread(branches.slopes), signs, self.spread(branches.prices))

    def roots(self, parts: Tensor) -> _Branches:
        """Return one branch without splits for each of the parts, bounded."""
        like = self.rows
        slopes = {key: crown_slope(low, high).unsqueeze(1) for key, low, high in self.relaxation.hinges()}
        shape = (len(parts), like.shape[1], self.units)
        none = torch.zeros_like(parts)
        start = _Branches(
            parts,
            none,
            none,
            torch.zeros(len(parts), self.units, dtype=torch.int8, device=like.device),
            self.gathered(slopes, like.new_zeros(1, 1, self.units)).expand(shape),
            like.new_zeros(shape),
            like.new_full((len(parts),), -torch.inf),
        )
        return self.bounded(start, _ROOT_STEPS)

    def bounded(self, branches: _Branches, steps: int) -> _Branches:
        """Return the branches with their slopes and multipliers optimised."""
        limits = self.most[branches.part]
        value, choice = optimized(
            self.relaxed(branches),
            self.rows[branches.part],
            steps=steps,
            start=self.choice(branches),
            enough=limits + TOLERANCE,
        )
        above = torch.maximum((value - limits).amax(1), branches.above)
        slopes = self.gathered(dict(choice.slopes), branches.slopes)
        prices = self.gathered(dict(choice.multipliers), branches.prices)
        return replace(branches, slopes=slopes, prices=prices, above=above)

    def tightened(self, branches: _Branches) -> _Branches:
        """Return those of the branches that are not empty, with ends of their own: what their splits say of the units
        before and behind, and the signs that follow."""
        signs = self.spread(branches.signs.unsqueeze(1).to(branches.slopes))
        found = tightened(self.relaxed(branches), Choice(signs=signs), steps=_TIGHTENING_STEPS, start=self.decider.root)
        left = (~found.empty).nonzero()[:, 0]
        first = len(next(iter(self._kept.values()))[0])
        for i, (low, high) in found.ends.items():
            before = self._kept[i]
            self._kept[i] = torch.cat([before[0], low[left]]), torch.cat([before[1], high[left]])
        branches = branches[left]
        places = torch.arange(first, first + len(left), device=left.device)
        branches = replace(branches, ends=places, age=torch.zeros_like(places))
        sides = {
            key: ((low >= 0).to(torch.int8) - ((low < 0) & (high <= 0)).to(torch.int8)).unsqueeze(1)
            for key, low, high in self.relaxed(branches).hinges()
        }
        implied = self.gathered(sides, branches.signs.unsqueeze(1))[:, 0]
        return replace(branches, signs=torch.where(branches.signs == 0, implied, branches.signs))

    @torch.no_grad()
    def split(self, branches: _Branches) -> _Branches:
        """Return both halves of each branch, at the hinge where the product of what both halves gain is largest.

        A half gains no more than it takes to prove it; the product, as in mixed-integer programming, wants both.
        """
        count = min(_CANDIDATES, self.units)
        lines = self.relaxed(branches).below(self.rows[branches.part], self.choice(branches))
        best = (lines.value - self.most[branches.part]).argmax(1)
        loss = self._losses(
            branches, {i: rows.values[torch.arange(len(best)), best] for i, rows in lines.arriving.items()}
        )
        loss = loss.masked_fill(branches.signs != 0, -1.0)
        units = loss.topk(count, 1).indices  # [branches, count]; decided units come last
        halves = self._halves(branches, units)
        value = self.relaxed(halves).below(self.rows[halves.part], self.choice(halves)).value - self.most[halves.part]
        decided = (branches.signs.gather(1, units) != 0).T
        before = (lines.value - self.most[branches.part]).amax(1)
        gain = torch.minimum(value.amax(1).view(2, count, -1) - before, TOLERANCE - before).clamp(min=_LEAST_GAIN)
        worth = gain.prod(0).masked_fill(decided, -1.0)
        return self._halves(branches, units.gather(1, worth.argmax(0).unsqueeze(1)))

    def next(self, queue: _Branches) -> tuple[_Branches, _Branches]:
        """Return the branches to work on, the worst first, and the rest. Old ones are tightened, by themselves."""
        order = queue.above.argsort()
        old = queue.age[order] >= _TIGHTENED_EVERY
        if self.decider.root.slopes and old[0]:
            some = order[old][:_TIGHTENED_AT_ONCE]
            rest = torch.ones_like(old)
            rest[some] = False
            return self.bounded(self.tightened(queue[some]), _STEPS), queue[rest.nonzero()[:, 0]]
        some = order[: self.at_once] if not self.decider.root.slopes else order[~old][: self.at_once]
        rest = torch.ones_like(old)
        rest[some] = False
        return queue[some], queue[rest.nonzero()[:, 0]]

    def open_ones(self, branches: _Branches) -> tuple[_Branches, Tensor | None]:
        """Return the branches that are not proved, and a counterexample if one is met at their bounds."""
        left = branches[branches.open]
        return left, self.witness(left) if len(left) else None

    def _halves(self, branches: _Branches, units: Tensor) -> _Branches:
        """Return, sign after sign and column after column of `units` [branches, count], every branch split there."""
        count = units.shape[1]
        index = torch.arange(len(branches), device=units.device).repeat(2 * count)
        halves = branches[index]
        sign = torch.tensor([1, -1], dtype=torch.int8, device=units.device).repeat_interleave(len(index) // 2)
        signs = halves.signs.clone()
        signs[torch.arange(len(index), device=units.device), units.T.flatten().repeat(2)] = sign
        return replace(halves, signs=signs, age=halves.age + 1)

    def _losses(self, branches: _Branches, arriving: dict[int, Tensor]) -> Tensor:
        """Return how much each open unit's relaxation may lose, [branches, units]."""
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
        return self.gathered(losses, branches.slopes.new_zeros(len(branches), 1, self.units))[:, 0]

    @torch.no_grad()
    def witness(self, branches: _Branches) -> Tensor | None:
        """Return a counterexample among the points where the branches' bounds are attained, if there is one."""
        return self.decider.broken(self._attained(branches))

    @torch.no_grad()
    def attacked(self, branches: _Branches) -> Tensor | None:
        """Return a counterexample that projected gradient descent meets from the points where the bounds of the worst
        branches are attained, if there is one."""
        points = self._attained(branches[branches.above.argsort()[:_ATTACKED_AT_ONCE]])
        return self.decider.broken(self.decider.problem.polished(self.decider.network, points, _ATTACK))

    def _attained(self, branches: _Branches) -> Tensor:
        """Return the points where the branches' bounds are attained, [branches * rows, *input]."""
        lines = self.relaxed(branches).below(self.rows[branches.part], self.choice(branches))
        return lines.minimizer(self.relaxation.region).flatten(0, 1)


def search(decider: Decider, parts: Tensor, deadline: float) -> Search:
    """Branch until each of the problem's unsafe `parts` (indices) is proved unreachable, a counterexample is met, or
    `time.monotonic()` reaches `deadline`.

    Network, relaxation and problem are of one dtype.
    """
    tree = _Tree(decider)
    stuck: set[int] = set()
    queue, witness = tree.open_ones(tree.roots(parts.to(tree.rows.device)))
    for rounds in itertools.count():
        if witness is None and len(queue) and rounds % _ATTACKED_EVERY == 0:
            witness = tree.attacked(queue)
        if not len(queue) or witness is not None or time.monotonic() >= deadline:
            break
        now, queue = tree.next(queue)
        now = now[now.open]
        full = (now.signs != 0).all(1)
        for leaf in now[full].each():
            if are_rigorous():  # a solver's answer is no proof in real arithmetic
                stuck.add(int(leaf.part))
                continue
            proved, witness = decider.decide(
                int(leaf.part), deadline - time.monotonic(), integer=False, signs=leaf.signs[0].tolist()
            )
            if witness is not None:
                return Search(parts[:0], witness)
            if not proved:
                stuck.add(int(leaf.part))
        if full.all():  # none left, or leaves only
            continue
        now, witness = tree.open_ones(tree.bounded(tree.split(now[~full]), _STEPS))
        queue = queue.joined(now)
    left = stuck | set(queue.part.tolist())
    return Search(torch.tensor([part for part in parts.tolist() if part not in left], dtype=torch.long), witness)


def _padded(rows: Tensor, size: int) -> Tensor:
    return torch.cat([rows, rows[:1].expand(size - len(rows), *rows.shape[1:])])
