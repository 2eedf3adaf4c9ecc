"""The bound `exact`: the true range, by mixed-integer programming."""

import copy

import torch
from torch import Tensor, nn

from etb_plugin.bounds.program import affine_maps, build_program, refuse_curved
from etb_plugin.bounds.registry import BoundFunction, register_bound
from etb_plugin.bounds.solvers import TOLERANCE, check_solver, load
from etb_plugin.bounds.types import check_spec, identity_rows
from etb_plugin.errors import ConfigError
from etb_plugin.graph.ends import crown_ends
from etb_plugin.graph.regions import Box
from etb_plugin.graph.relaxation import Relaxation
from etb_plugin.graph.tracing import trace

TAKES = "affine and piecewise linear layers"


@register_bound("exact", sound=True, differentiable=False, takes=TAKES)
def exact(
    network: nn.Module,
    input_shape: torch.Size,
    *,
    time_limit: float | None = None,
    solver: str = "highs",
    lower_only: bool = False,
    sign_only: bool = False,
) -> BoundFunction:
    """The true range of each row, by mixed-integer programming (Tjeng et al. 2019): HiGHS, or `solver="gurobi"`.

    In float64, to 1e-6: each end is moved outwards by 5e-7, the solvers' tolerances being 1e-9 for constraints and
    1e-7 for optimality (see `solvers`: a tolerance, no rigorous proof). A row that is not done within `time_limit`
    seconds has the bound proved until then: sound, and wider. With `sign_only` the solver stops as soon as the sign
    of a lower end is known. `lower_only` spares the upper side, +inf there. Cost: exponential in the number of
    units that CROWN leaves unstable.
    """
    return by_program(
        network, input_shape, integer=True, time_limit=time_limit, solver=solver,
        lower_only=lower_only or sign_only, sign_only=sign_only,
    )  # fmt: skip


def by_program(
    network: nn.Module,
    input_shape: torch.Size,
    *,
    integer: bool,
    time_limit: float | None,
    solver: str,
    lower_only: bool,
    sign_only: bool = False,
) -> BoundFunction:
    """Return what `exact` and `lp` compute: image by image, CROWN's ends, one program, one objective for each end."""
    check_solver(solver)
    if time_limit is not None and not time_limit > 0:
        raise ConfigError(f"time_limit is {time_limit}; it must be positive, in seconds")
    graph = trace(network, input_shape)
    refuse_curved(graph)
    classes = graph.classes

    def apply(box: Box, spec: Tensor | None) -> tuple[Tensor, Tensor]:
        check_spec(spec, classes)
        graph = trace(copy.deepcopy(network).double().requires_grad_(False), input_shape)
        rows = (identity_rows(box.lower, classes).expand(len(box), -1, -1) if spec is None else spec).double()
        maps = affine_maps(graph, rows)
        lower = torch.empty(rows.shape[:2], dtype=torch.float64)
        upper = torch.full_like(lower, torch.inf)
        for image in range(len(box)):
            one = Box(box.lower[image : image + 1].double(), box.upper[image : image + 1].double())
            relaxation = Relaxation(graph, one, crown_ends(graph, one).ends)
            lower[image] = crown = relaxation.below(rows[image : image + 1]).value[0].cpu()
            wanted = [row for row, known in enumerate(crown.tolist()) if not (sign_only and known > TOLERANCE)]
            if not wanted:
                continue
            program = build_program(relaxation, maps)
            loaded = load(solver, program, integer=integer)
            for row in wanted:
                cost, constant = program.objective(rows[image, row].cpu().numpy())
                enough = TOLERANCE if sign_only else None
                found = loaded.minimize(cost, constant, time_limit=time_limit, enough=enough)
                lower[image, row] = max(float(crown[row]), found.bound)
                if not lower_only:
                    upper[image, row] = -loaded.minimize(-cost, -constant, time_limit=time_limit).bound
        return lower.to(box.lower), upper.to(box.lower)

    return apply
