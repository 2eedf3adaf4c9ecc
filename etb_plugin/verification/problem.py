"""What is verified: that no point of a box gives an unsafe output; and what can be known about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from etb_plugin.attacks import Pgd, polished
from etb_plugin.bounds import Box, margin_spec

TOLERANCE = 1e-6
"""What a row has to exceed before it counts as proved, in units of the outputs.

All is computed in float64. A bound by interval arithmetic or CROWN sums up to 10^5 products of numbers up to 10^3,
which rounding to 2^-53 moves by less than 10^-8; a solver's bound was moved outwards by 5e-7 already
(`bounds.solvers`). What is verified is the network over the real numbers: a float32 forward pass may round a smaller
margin away.
"""


_STRICTLY = 1e-300
"""Above it no limit stands for "less than 0", which is at most the number below 0."""


class Verdict(StrEnum):
    """What is known of a problem. `UNKNOWN` is what a limit leaves, and counts as attackable."""

    ROBUST = "robust"
    FALSIFIED = "falsified"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Unsafe:
    """Outputs y with rows @ y <= most, all of them together. Shapes: rows [rows, outputs], most [rows]."""

    rows: Tensor
    most: Tensor


@dataclass(frozen=True)
class Problem:
    """One box (a batch of 1) and the outputs that no point of it may give: those of any one of `unsafe`."""

    box: Box
    unsafe: tuple[Unsafe, ...]

    def unsafety(self, outputs: Tensor) -> Tensor:
        """Return how far each of `outputs` [points, outputs] is inside of each unsafe part, [points, parts]: it is
        unsafe where one is 0 or more."""
        return torch.stack([(part.most - outputs @ part.rows.T).amin(1) for part in self.unsafe], 1)

    def broken(self, outputs: Tensor) -> Tensor:
        """Return which of `outputs` [points, outputs] are unsafe, [points]."""
        return (self.unsafety(outputs) >= 0).any(1)

    def met(self, network: nn.Module, points: Tensor) -> Tensor | None:
        """Return the first of `points` [points, *input] that, put back into the box, gives an unsafe output, [1,
        *input]; None if there is none."""
        inside = self.box.nearest(points.to(self.box.lower))
        with torch.no_grad():
            found = self.broken(network(inside)).nonzero()[:, 0]
        return inside[found[:1]] if len(found) else None

    def polished(self, network: nn.Module, points: Tensor, settings: Pgd) -> Tensor:
        """Return for each of `points` [points, *input] the most unsafe that projected gradient descent from there
        meets in the box, itself among them."""
        return polished(network, self.box, points, lambda outputs, _: self.unsafety(outputs), settings)

    @property
    def compares(self) -> bool:
        """Whether it only asks which of two outputs is larger, so that softmax and the like change nothing."""
        return all(
            bool(
                (part.most.abs() <= _STRICTLY).all()
                and (part.rows.sum(1) == 0).all()
                and ((part.rows != 0).sum(1) == 2).all()
            )
            for part in self.unsafe
        )

    @property
    def form(self) -> tuple[int, ...]:
        """The number of rows of each unsafe part. Problems of one form can be put to a bound together."""
        return tuple(len(part.rows) for part in self.unsafe)


@dataclass(frozen=True)
class Search:
    """What a search gives: those of the unsafe parts asked for (indices) that are proved unreachable, and a
    counterexample [1, *input] if one was met."""

    proved: Tensor
    witness: Tensor | None


def robustness(box: Box, label: int, classes: int) -> Problem:
    """Return the problem whether every point of `box` (a batch of 1) has the largest output at `label`, strictly."""
    rows = margin_spec(torch.tensor([label], device=box.lower.device), classes, box.lower.dtype)[0]
    return Problem(box, tuple(Unsafe(row[None], row.new_zeros(1)) for row in rows))


def stacked(problems: Sequence[Problem]) -> tuple[Box, Tensor, Tensor]:
    """Return boxes, rows [problems, all rows, outputs] and most [problems, all rows] of problems of one form."""
    lower = torch.cat([problem.box.lower for problem in problems])
    upper = torch.cat([problem.box.upper for problem in problems])
    rows = torch.stack([torch.cat([part.rows for part in problem.unsafe]) for problem in problems])
    most = torch.stack([torch.cat([part.most for part in problem.unsafe]) for problem in problems])
    return Box(lower, upper, ordered=True), rows, most


def proved_parts(above: Tensor, form: tuple[int, ...]) -> Tensor:
    """Return which unsafe parts cannot be reached, [problems, parts]: those with a row that is `above` its limit.

    Shapes: above [problems, all rows], how far each row's lower end lies above `most`.
    """
    return torch.stack([(part > TOLERANCE).any(1) for part in above.split(form, 1)], 1)
