"""Solvers of a network's program: HiGHS, and Gurobi where a user has it.

Both are told to keep every constraint, and 0-1 columns, to 1e-9; a bound is moved outwards by `TOLERANCE`, far more
than what such violations came to on the networks that the tests enumerate, and far less than any margin that matters.
It is a tolerance and no proof: a floating-point solver's answer is not a rigorous one.
"""

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from etb_plugin.bounds.program import Program, Vector
from etb_plugin.errors import ConfigError, unknown_name

TOLERANCE = 5e-7
"""How far a solver's bound is moved outwards."""
_FEASIBILITY = 1e-9
_GAP = 1e-7


@dataclass(frozen=True)
class Solution:
    """What is known of the least objective: it is `bound` or more, +inf where the program is infeasible. `point`
    [inputs] is the best input found, if any."""

    bound: float
    point: Vector | None


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """Keep what C code writes to stdout from it: programs read what `etb verify` answers there."""
    flush = ctypes.CDLL("msvcrt" if os.name == "nt" else None).fflush
    sys.stdout.flush()
    flush(None)
    kept = os.dup(1)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            yield
            flush(None)
    finally:
        os.dup2(kept, 1)
        os.close(kept)


class Solver(Protocol):
    """A program loaded into a solver, for several objectives."""

    def minimize(
        self,
        cost: Vector,
        constant: float,
        *,
        time_limit: float | None = None,
        enough: float | None = None,
        fixed: Mapping[int, float] | None = None,
        rows: Sequence[tuple[Vector, float]] = (),
    ) -> Solution:
        """Minimise cost @ columns + constant.

        `enough` is a value on whose two sides the answer may stop: once the least objective is known to be above it,
        or a point is found at or below 0. `fixed` gives columns their values; `rows` are further constraints
        (coefficients, most). `time_limit` is in seconds.
        """


class Highs:
    """HiGHS, through highspy. On one thread: images, not threads, are what is done side by side."""

    package, remedy = "highspy", "pip install highspy"

    def __init__(self, program: Program, integer: bool) -> None:
        import highspy

        self._highspy, self._program = highspy, program
        self._integer = integer and bool(program.units)
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = program.matrix.shape[1], program.matrix.shape[0]
        model.col_cost_ = np.zeros(model.num_col_)
        model.col_lower_, model.col_upper_ = program.lower, program.upper
        model.row_lower_, model.row_upper_ = program.row_lower, program.row_upper
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_ = program.matrix.indptr
        model.a_matrix_.index_ = program.matrix.indices
        model.a_matrix_.value_ = program.matrix.data
        if self._integer:
            kinds = [highspy.HighsVarType.kContinuous] * model.num_col_
            for column in program.switches:
                kinds[column] = highspy.HighsVarType.kInteger
            model.integrality_ = kinds
        with _silent_stdout():  # HiGHS greets when it is made, before it can be told not to
            self._solver = highspy.Highs()
        for option, value in (
            ("output_flag", False),
            ("threads", 1),
            ("primal_feasibility_tolerance", _FEASIBILITY),
            ("dual_feasibility_tolerance", _FEASIBILITY),
            ("mip_feasibility_tolerance", _FEASIBILITY),
            ("mip_rel_gap", 0.0),
            ("mip_abs_gap", _GAP),
            # The program is dense and reduced already: presolve took 10 s, and a search without it a sixth of the time.
            ("presolve", "off"),
            ("mip_heuristic_effort", 0.0),  # attacks find counterexamples faster
        ):
            self._solver.setOptionValue(option, value)
        self._solver.passModel(model)
        self._stop: Callable[[float, float], bool] = lambda bound, best: False
        if self._integer:
            self._solver.cbMipInterrupt += self._interrupted

    def _interrupted(self, event: Any) -> None:
        # Said either way: HiGHS keeps the last answer, also for the next objective.
        event.interrupt(self._stop(event.data_out.mip_dual_bound, event.data_out.mip_primal_bound))

    def minimize(
        self,
        cost: Vector,
        constant: float,
        *,
        time_limit: float | None = None,
        enough: float | None = None,
        fixed: Mapping[int, float] | None = None,
        rows: Sequence[tuple[Vector, float]] = (),
    ) -> Solution:
        solver, program = self._solver, self._program
        every = np.arange(len(cost), dtype=np.int32)
        solver.changeColsCost(len(cost), every, cost)
        solver.changeObjectiveOffset(constant)
        solver.setOptionValue("time_limit", np.inf if time_limit is None else solver.getRunTime() + time_limit)
        self._stop = lambda bound, best: enough is not None and (bound > enough or best <= 0)
        for column, value in (fixed or {}).items():
            solver.changeColBounds(column, value, value)
        before = solver.getNumRow()
        for coefficients, most in rows:
            used = coefficients.nonzero()[0].astype(np.int32)
            solver.addRow(-np.inf, most, len(used), used, coefficients[used])
        try:
            solver.clearSolver()  # the same call gives the same answer, whatever was asked before
            solver.run()
            return self._solution()
        finally:
            for column in fixed or {}:
                solver.changeColBounds(column, program.lower[column], program.upper[column])
            if rows:
                solver.deleteRows(len(rows), np.arange(before, before + len(rows), dtype=np.int32))

    def _solution(self) -> Solution:
        status, kinds = self._solver.getModelStatus(), self._highspy.HighsModelStatus
        info = self._solver.getInfo()
        if status in (kinds.kInfeasible, kinds.kUnboundedOrInfeasible):  # every column has ends: never unbounded
            return Solution(np.inf, None)
        done = status == kinds.kOptimal
        proved = info.objective_function_value if done else -np.inf  # of a linear program
        bound = info.mip_dual_bound if self._integer else proved
        feasible = info.primal_solution_status == self._highspy.SolutionStatus.kSolutionStatusFeasible
        point = np.array(self._solver.getSolution().col_value[: self._program.inputs]) if feasible else None
        return Solution(bound - TOLERANCE, point)


class Gurobi:
    """Gurobi, through gurobipy and the user's licence."""

    package, remedy = "gurobipy", "pip install gurobipy, and get a licence"

    def __init__(self, program: Program, integer: bool) -> None:
        import gurobipy

        self._gurobipy, self._program = gurobipy, program
        environment = gurobipy.Env(params={"OutputFlag": 0})
        self._model = model = gurobipy.Model(env=environment)
        for name, value in (
            ("Threads", 1),
            ("FeasibilityTol", _FEASIBILITY),
            ("OptimalityTol", _FEASIBILITY),
            ("IntFeasTol", _FEASIBILITY),
            ("MIPGap", 0.0),
            ("MIPGapAbs", _GAP),
        ):
            model.setParam(name, value)
        kinds = np.full(len(program.lower), gurobipy.GRB.CONTINUOUS)
        if integer:
            kinds[program.switches] = gurobipy.GRB.BINARY
        self._columns = model.addMVar(len(program.lower), lb=program.lower, ub=program.upper, vtype=kinds)
        for sense, ends in (("<", program.row_upper), (">", program.row_lower)):
            finite = np.isfinite(ends)
            if finite.any():
                model.addMConstr(program.matrix[finite], self._columns, sense, ends[finite])

    def minimize(
        self,
        cost: Vector,
        constant: float,
        *,
        time_limit: float | None = None,
        enough: float | None = None,
        fixed: Mapping[int, float] | None = None,
        rows: Sequence[tuple[Vector, float]] = (),
    ) -> Solution:
        model, columns, codes = self._model, self._columns, self._gurobipy.GRB
        model.setParam("TimeLimit", np.inf if time_limit is None else time_limit)
        model.setParam("BestBdStop", np.inf if enough is None else enough)
        model.setParam("BestObjStop", -np.inf if enough is None else 0.0)
        model.setObjective(cost @ columns + constant)
        extra = [model.addConstr(coefficients @ columns <= most) for coefficients, most in rows]
        extra += [model.addConstr(columns[[column]] == value) for column, value in (fixed or {}).items()]
        try:
            model.reset()
            model.optimize()
            if model.Status in (codes.INFEASIBLE, codes.INF_OR_UNBD):
                return Solution(np.inf, None)
            done = model.Status == codes.OPTIMAL
            bound = model.ObjBound if model.IsMIP or done else -np.inf
            point = np.asarray(columns.X)[: self._program.inputs] if model.SolCount else None
            return Solution(bound - TOLERANCE, point)
        except self._gurobipy.GurobiError as error:
            raise ConfigError(f"Gurobi: {error}") from None
        finally:
            model.remove(extra)
            model.update()


SOLVERS: dict[str, type[Highs] | type[Gurobi]] = {"highs": Highs, "gurobi": Gurobi}


def check_solver(name: str) -> None:
    """Raise ConfigError where no solver is called `name`, or it is not installed."""
    if name not in SOLVERS:
        raise unknown_name("solver", name, SOLVERS)
    if find_spec(SOLVERS[name].package) is None:
        raise ConfigError(f"the solver {name!r} is not installed: {SOLVERS[name].remedy}")


def load(name: str, program: Program, *, integer: bool) -> Solver:
    """Return the solver called `name` with `program` in it: the mixed-integer one, or its linear relaxation."""
    check_solver(name)
    return SOLVERS[name](program, integer)
