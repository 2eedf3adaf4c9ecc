"""Branch and bound: a tree of branches, each with a bound of its own, many at a time and the worst first.

What a branch is, how it is bounded and where it is cut say the trees: `hinges` cuts at the knots of piecewise linear
activations, `units` cuts the ranges of what any activation takes. A branch is cut where both halves gain most, of the
places at which its relaxation loses most (after filtered smart branching, De Palma et al. 2021); the ends of a deep
branch's units are tightened anew (ours). Every bound is sound on its branch, so that what is left when time is up is
unknown.
"""

import contextlib
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from etb_plugin.attacks import Pgd
from etb_plugin.errors import OutOfTime
from etb_plugin.graph.ends import Tightened, tightened
from etb_plugin.graph.graph import Ends
from etb_plugin.graph.relaxation import Choice, Relaxation, optimized
from etb_plugin.memory import fitting
from etb_plugin.stopping import check_time, until
from etb_plugin.verification.problem import TOLERANCE, Problem, Search
from etb_plugin.verification.waiting import Waiting

_ROOT_STEPS, _STEPS = 40, 12
"""Steps of gradient ascent at the root, and in a branch."""
_VALUES_AT_ONCE = 2**21
"""Units that the branches of one step may hold together."""
_LEAST_GAIN = 1e-4
"""What a half counts for that gains nothing."""
_ATTACKED_EVERY, _ATTACKED_AT_ONCE = 8, 64
"""Rounds after which the points where the worst branches' bounds are attained are attacked from, and how many."""
_ATTACK = Pgd(steps=20, step=0.1)
_TIGHTENED_AT_ONCE = 32
"""Branches that take ends of their own together."""


@dataclass
class Branches(Waiting):
    """Branches side by side: the unsafe part that each is about, the cuts since the ends of its units were tightened,
    and how far its best row is proved to lie above its limit, all [branches]; and those ends [branches, units]."""

    part: Tensor
    age: Tensor
    above: Tensor
    low: Tensor
    high: Tensor

    @property
    def open(self) -> Tensor:
        """Which are not proved, [branches]: a bound that is no number proves nothing."""
        return ~(self.above > TOLERANCE)

    def each(self) -> Iterator[Self]:
        """Yield one after another."""
        return (self[torch.tensor([i], device=self.part.device)] for i in range(len(self)))


B = TypeVar("B", bound=Branches)


class Tree(ABC, Generic[B]):
    """One problem's search over a `relaxation` of its box, whose ends came about by `root`. `rows` [parts, rows,
    outputs] and `most` [parts, rows]; a shorter part repeats a row."""

    candidates: ClassVar[int]
    """Places of a branch that are tried before it is cut at one."""
    tightened_every: ClassVar[int]
    """Cuts after which the ends of a branch's units are computed anew: dear, and worth many cuts."""
    tightening_steps: ClassVar[int]
    """Steps of gradient ascent for those ends."""

    def __init__(self, network: nn.Module, relaxation: Relaxation, root: Tightened, problem: Problem) -> None:
        self.network, self.relaxation, self.root, self.problem = network, relaxation, root, problem
        widest = max(len(part.rows) for part in problem.unsafe)
        self.rows = torch.stack([_padded(part.rows, widest) for part in problem.unsafe])
        self.most = torch.stack([_padded(part.most, widest) for part in problem.unsafe])

    @property
    @abstractmethod
    def size(self) -> int:
        """How many values belong to a row of a branch."""

    @property
    def at_once(self) -> int:
        """How many branches are worked on together."""
        return max(2, min(512, fitting(_VALUES_AT_ONCE) // (self.size * self.rows.shape[1])))

    @abstractmethod
    def ends(self, branches: B) -> Ends:
        """Return the branches' ends for every activation."""

    @abstractmethod
    def of_units(self, ends: Ends) -> tuple[Tensor, Tensor]:
        """Return ends of every activation as those of the units, [branches, units]."""

    @abstractmethod
    def choice(self, branches: B) -> Choice:
        """Return what the branches chose last."""

    @abstractmethod
    def root_branches(self, parts: Tensor) -> B:
        """Return one branch without cuts for each of the unsafe `parts` (indices), not bounded yet."""

    @abstractmethod
    def chosen(self, branches: B, choice: Choice, above: Tensor) -> B:
        """Return the branches with what they chose now, and with how far they lie `above` their limits."""

    @abstractmethod
    def losses(self, branches: B, arriving: dict[int, Tensor]) -> Tensor:
        """Return how much the relaxation may lose at each place where a branch may be cut, [branches, places], -1 where
        it may not. `arriving` holds one row of each branch as it came to the activations."""

    @abstractmethod
    def cut(self, copies: B, places: Tensor, upper: Tensor) -> B:
        """Return each branch with one half, the upper or the lower, of a cut at its place, all [branches]."""

    @abstractmethod
    def whole(self, branches: B) -> Tensor:
        """Return which branches cannot be cut any more, [branches]."""

    @abstractmethod
    def finish(self, leaf: B, seconds: float) -> tuple[bool, Tensor | None]:
        """Return whether a branch that cannot be cut is proved, and a counterexample if one is found, in `seconds`."""

    def relaxed(self, branches: B) -> Relaxation:
        """Return the relaxation over the branches' own ends."""
        with torch.no_grad():  # what a line is where nothing is chosen is not needed here
            return self.relaxation.over(self.ends(branches))

    def tightened(self, branches: B) -> B:
        """Return those of the branches that are not empty, with ends of their own."""
        found = tightened(self.relaxed(branches), self.choice(branches), steps=self.tightening_steps, start=self.root)
        left = (~found.empty).nonzero()[:, 0]
        low, high = self.of_units(found.ends)
        kept = replace(branches, age=torch.zeros_like(branches.age), low=low, high=high)[left]
        return self.implied(kept)

    def implied(self, branches: B) -> B:
        """Return branches whose ends were computed anew with what else follows from those."""
        return branches

    def cut_values(self, branches: B, places: Tensor) -> Tensor:
        """Return how far each half would lie above its limit with what its branch chose, [2, count, branches], upper
        halves first, if the branch were cut at one of `places` [branches, count]."""
        halves = self.halves(branches, places)
        value = self.relaxed(halves).below(self.rows[halves.part], self.choice(halves)).value
        return (value - self.most[halves.part]).amax(1).view(2, -1, len(branches))

    def halves(self, branches: B, places: Tensor) -> B:
        """Return, upper halves first and column after column of `places` [branches, count], every branch cut there."""
        copies = branches[torch.arange(len(branches), device=places.device).repeat(2 * places.shape[1])]
        upper = torch.arange(len(copies), device=places.device) < len(copies) // 2
        return replace(self.cut(copies, places.T.flatten().repeat(2), upper), age=copies.age + 1)

    def bounded(self, branches: B, steps: int = _STEPS) -> B:
        """Return the branches with their lines and multipliers optimised."""
        limits = self.most[branches.part]
        value, choice = optimized(
            self.relaxed(branches),
            self.rows[branches.part],
            steps=steps,
            start=self.choice(branches),
            enough=limits + TOLERANCE,
        )
        return self.chosen(branches, choice, torch.fmax((value - limits).amax(1), branches.above))

    @torch.no_grad()
    def split(self, branches: B) -> B:
        """Return both halves of each branch, cut where the product of what both gain is largest.

        A half gains no more than it takes to prove it; the product, as in mixed-integer programming, wants both.
        """
        lines = self.relaxed(branches).below(self.rows[branches.part], self.choice(branches))
        above = lines.value - self.most[branches.part]
        best = above.argmax(1)
        arriving = {i: rows.values[torch.arange(len(best)), best] for i, rows in lines.arriving.items()}
        loss = self.losses(branches, arriving)
        loss, places = loss.topk(min(self.candidates, loss.shape[1]), 1)  # [branches, count]
        columns = max(1, self.at_once // (2 * len(branches)))
        values = []
        for some in places.split(columns, 1):
            check_time()
            values.append(self.cut_values(branches, some))
        before = above.amax(1)
        gain = torch.minimum(torch.cat(values, 1) - before, TOLERANCE - before).clamp(min=_LEAST_GAIN)
        worth = gain.prod(0).masked_fill(loss.T < 0, -1.0)
        return self.halves(branches, places.gather(1, worth.argmax(0).unsqueeze(1)))

    def next(self, queue: B) -> tuple[B, B]:
        """Return the branches to work on, in their order, and the rest. Old ones are tightened, by themselves."""
        order = queue.order()
        old = queue.age[order] >= self.tightened_every
        tightening = bool(self.root.slopes) and bool(old[0])
        if tightening:
            some = order[old][:_TIGHTENED_AT_ONCE]
        else:
            some = (order[~old] if self.root.slopes else order)[: self.at_once]
        rest = torch.ones_like(old)
        rest[some] = False
        now = self.bounded(self.tightened(queue[some])) if tightening else queue[some]
        return now, queue[rest.nonzero()[:, 0]]

    def open_ones(self, branches: B) -> tuple[B, Tensor | None]:
        """Return the branches that are not proved, and a counterexample if one is met at their bounds."""
        left = branches[branches.open]
        return left, self.witness(left) if len(left) else None

    def witness(self, branches: B) -> Tensor | None:
        """Return a counterexample among the points where the branches' bounds are attained, if there is one."""
        return self.problem.met(self.network, self._attained(branches))

    def attacked(self, branches: B) -> Tensor | None:
        """Return a counterexample that projected gradient descent meets from the points where the bounds of the worst
        branches are attained, if there is one."""
        points = self._attained(branches[branches.above.argsort()[:_ATTACKED_AT_ONCE]])
        return self.problem.met(self.network, self.problem.polished(self.network, points, _ATTACK))

    @torch.no_grad()
    def _attained(self, branches: B) -> Tensor:
        """Return the points where the branches' bounds are attained, [branches * rows, *input]."""
        lines = self.relaxed(branches).below(self.rows[branches.part], self.choice(branches))
        return lines.minimizer(self.relaxation.region).flatten(0, 1)


def search(tree: Tree[B], parts: Tensor, deadline: float) -> Search:
    """Branch until each of the problem's unsafe `parts` (indices) is proved unreachable, a counterexample is met, or
    `time.monotonic()` reaches `deadline`.

    Network, relaxation and problem are of one dtype.
    """
    stuck: set[int] = set()
    now = queue = tree.root_branches(parts.to(tree.rows.device))
    with contextlib.suppress(OutOfTime), until(deadline):
        queue, witness = tree.open_ones(tree.bounded(queue, _ROOT_STEPS))
        for rounds in itertools.count():
            if witness is None and len(queue) and rounds % _ATTACKED_EVERY == 0:
                witness = tree.attacked(queue)
            if witness is not None:
                return Search(parts[:0], witness)
            now = queue[:0]
            if not len(queue):
                break
            check_time()
            now, queue = tree.next(queue)
            now = now[now.open]
            whole = tree.whole(now)
            for leaf in now[whole].each():
                proved, witness = tree.finish(leaf, deadline - time.monotonic())
                if witness is not None:
                    return Search(parts[:0], witness)
                if not proved:
                    stuck.add(int(leaf.part))
            if whole.all():  # none left, or leaves only
                continue
            children, witness = tree.open_ones(tree.bounded(tree.split(now[~whole])))
            queue = queue.joined(children)
    left = stuck.union(queue.part.tolist(), now.part.tolist())
    return Search(torch.tensor([part for part in parts.tolist() if part not in left], dtype=torch.long), None)


def _padded(rows: Tensor, size: int) -> Tensor:
    return torch.cat([rows, rows[:1].expand(size - len(rows), *rows.shape[1:])])
