"""The bound `lp`: the linear relaxation, solved."""

import torch
from torch import nn

from etb_plugin.bounds.exact import TAKES, by_program
from etb_plugin.bounds.registry import BoundFunction, register_bound


@register_bound("lp", sound=True, differentiable=False, takes=TAKES)
def lp(
    network: nn.Module,
    input_shape: torch.Size,
    *,
    time_limit: float | None = None,
    solver: str = "highs",
    lower_only: bool = False,
) -> BoundFunction:
    """The triangle relaxation of every ReLU (Ehlers 2017) with CROWN's ends, solved by a linear program.

    The best that any dual or CROWN bound with the same ends can be. In float64; each end is moved outwards by 5e-7
    (see `exact`). A row that is not done within `time_limit` seconds has CROWN's bound. Cost: two linear programs
    for each row.
    """
    return by_program(network, input_shape, integer=False, time_limit=time_limit, solver=solver, lower_only=lower_only)
