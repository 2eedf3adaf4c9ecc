"""Deciding a problem by its mixed-integer program: proved, or broken by a point, or left open by a limit."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from etb_plugin.bounds.program import Maps, Program, build_program
from etb_plugin.bounds.solvers import Solver, load
from etb_plugin.graph.ends import Tightened
from etb_plugin.graph.relaxation import Relaxation
from etb_plugin.verification.problem import TOLERANCE, Problem


class Decider:
    """A problem with the relaxation of its box and how it came about (`root`), and its program, which is built when
    it is first needed."""

    def __init__(
        self,
        network: nn.Module,
        relaxation: Relaxation,
        root: Tightened,
        maps: Maps,
        problem: Problem,
        solver: str,
    ) -> None:
        self.network, self.relaxation, self.root, self.problem = network, relaxation, root, problem
        self._maps, self._solver_name = maps, solver

    @cached_property
    def _program(self) -> Program:
        return build_program(self.relaxation, self._maps)

    @cached_property
    def _mixed(self) -> Solver:
        return load(self._solver_name, self._program, integer=True)

    @cached_property
    def _linear(self) -> Solver:
        return load(self._solver_name, self._program, integer=False)

    def decide(
        self, part: int, seconds: float, *, integer: bool = True, signs: Sequence[int] = ()
    ) -> tuple[bool, Tensor | None]:
        """Return whether the problem's unsafe `part` is proved unreachable, and a counterexample [1, *input] if not.

        Neither where `seconds` or the tolerance came first. With `signs`, one for each unit of the program, only the
        branch where each unit is on (+1) or off (-1) is asked about. Without `integer` the relaxation is solved, whose
        points rarely are counterexamples.
        """
        program = self._program
        rows = self.problem.unsafe[part].rows.double().cpu().numpy()
        most = self.problem.unsafe[part].most.tolist()
        cost, constant = program.objective(rows[0])
        further = []
        for row, limit in zip(rows[1:], most[1:], strict=True):
            coefficients, beside = program.objective(row)
            further.append((coefficients, limit - beside))
        found = (self._mixed if integer else self._linear).minimize(
            cost,
            constant - most[0],
            time_limit=max(seconds, 0.01),
            enough=TOLERANCE,
            fixed={unit.switch: float(sign > 0) for unit, sign in zip(program.units, signs, strict=False)},
            rows=further,
        )
        if found.bound > TOLERANCE:
            return True, None
        return False, None if found.point is None else self.broken(torch.from_numpy(found.point))

    def broken(self, points: Tensor) -> Tensor | None:
        """Return the first of `points` [points, inputs or *input] that, put back into the box, gives an unsafe
        output: [1, *input]."""
        return self.problem.met(self.network, points.reshape(-1, *self.problem.box.shape))
